// Checks of what a caller passes to a collective, shared by the backends. All throw CommError with the rank.
#pragma once
#include "comm/communicator.h"

#include <vector>

namespace trireme {

struct Member {
  int rank = 0, size = 1;
  int device = -1;  // where its buffers must be; -1: host memory
};

// The operation of a collective and what all ranks must agree on.
enum class Collective : std::uint8_t {
  all_reduce,
  reduce_scatter,
  all_gather,
  all_to_all,
  broadcast,
  barrier,
  split,
  allocate
};
std::string_view name(Collective c);

void check_all_reduce(Member me, const Buffer& inout);
void check_reduce_scatter(Member me, const ConstBuffer& in, const Buffer& out);
void check_all_gather(Member me, const ConstBuffer& in, const Buffer& out);
void check_all_to_all(Member me, const ConstBuffer& in, std::span<const std::size_t> send, const Buffer& out,
                      std::span<const std::size_t> recv);
void check_broadcast(Member me, const Buffer& inout, int root);

// "rank 1 of 4"
std::string place(Member me);
// Do the two ranges share a byte?
bool overlap(const void* a, std::size_t a_bytes, const void* b, std::size_t b_bytes);
// offsets[r] = bytes before rank r's part; one more entry holds the total.
std::vector<std::size_t> byte_offsets(std::span<const std::size_t> counts, DType dtype);

inline const std::byte* at(const void* p, std::size_t bytes) { return static_cast<const std::byte*>(p) + bytes; }
inline std::byte* at(void* p, std::size_t bytes) { return static_cast<std::byte*>(p) + bytes; }

// Does `out` lie in `in` otherwise than as block `rank` of it (or the reverse)?
inline bool misplaced(const void* whole, std::size_t whole_bytes, const void* block, std::size_t block_bytes,
                      int rank) {
  return overlap(whole, whole_bytes, block, block_bytes) &&
         block != at(whole, static_cast<std::size_t>(rank) * block_bytes);
}

}  // namespace trireme
