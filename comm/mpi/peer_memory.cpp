#include "comm/mpi/peer_memory.h"

#include "comm/error.h"

#include <cerrno>
#include <cstring>

#include <sys/prctl.h>
#include <sys/uio.h>
#include <unistd.h>

namespace trireme {

void allow_peers_to_read() { prctl(PR_SET_PTRACER, getppid(), 0, 0, 0); }

std::size_t read_peer(void* to, PeerBytes from, std::size_t bytes) {
  const iovec local{to, bytes}, remote{const_cast<std::byte*>(from.data), bytes};
  const ssize_t n = process_vm_readv(from.process, &local, 1, &remote, 1, 0);
  if (n >= 0) return static_cast<std::size_t>(n);
  if (errno == ESRCH || errno == EFAULT) return 0;
  throw CommError("rank " + std::to_string(from.rank),
                  std::string("its memory cannot be read: ") + std::strerror(errno),
                  "set TRIREME_MPI_TRANSPORT=staged");
}

}  // namespace trireme
