/* Preloaded into the ranks, it makes rank 1 lie: the FORGE_AT-th message that looks like sizes of codes (u64, whole
   words of a chunk of at least a header) announces 2^40 bytes more in its first size. Messages between ranks are seen,
   not shared memory. */
#include <mpi.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static int looks_like_sizes(const void* bytes, int n) {
  uint64_t sizes[64];
  if (n < 8 || n % 8 != 0 || n > (int)sizeof sizes) return 0;
  memcpy(sizes, bytes, (size_t)n);
  for (int k = 0; k < n / 8; ++k)
    if (sizes[k] < 20 || sizes[k] > 100000 || sizes[k] % 4 != 0) return 0;
  return 1;
}

int MPI_Isend(const void* data, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm, MPI_Request* request) {
  static int seen;
  static uint64_t forged[64];
  const char *rank = getenv("OMPI_COMM_WORLD_RANK"), *when = getenv("FORGE_AT");
  if (rank && when && strcmp(rank, "1") == 0 && looks_like_sizes(data, count) && ++seen == atoi(when)) {
    memcpy(forged, data, (size_t)count);
    forged[0] += (uint64_t)1 << 40;
    data = forged;
  }
  return PMPI_Isend(data, count, type, to, tag, comm, request);
}
