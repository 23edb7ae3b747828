// What the arms of bench comm share: the operations, how much goes in and comes out, values and their check, the link's
// counter.
#pragma once
#include "comm/communicator.h"

#include <cstdint>
#include <string>
#include <vector>

namespace trireme::bench {

extern const std::vector<std::string> collectives;  // names of the operations

// One exchange: what a rank passes in and gets out, in f32 elements. all_reduce and broadcast work in place on `out`.
struct Exchange {
  std::string op;
  float *in = nullptr, *out = nullptr;
  std::size_t in_count = 0, out_count = 0;
};
// Without memory. `bytes` follows nccl-tests: what a rank passes in (all_gather: gets out), so all_to_all sends bytes /
// ranks to each. Counts are 0 where that is less than an element a rank, and of a barrier.
Exchange exchange_of(const std::string& op, std::size_t bytes, int ranks);
// Ours, on memory of `place`.
Work start(Communicator& comm, const Exchange& x, Place place);

// Random values, so small that `most_calls` sums in place stay finite. Host memory.
int most_calls(int ranks);
void fill(const Exchange& x, int rank);
// Elements of x.out, every `stride`th looked at, that `calls` calls on filled memory have not made what they should be.
std::int64_t count_wrong(const Exchange& x, int calls, const Communicator& comm, std::size_t stride = 1);

// Bytes on the busiest link over bytes of the buffer, as nccl-tests counts them.
double bus_factor(const std::string& op, int ranks);
// Bytes that a rank sends, in the mean over ranks, over bytes of the buffer.
double sent_factor(const std::string& op, int ranks);

// Bytes that this host has put on the link of tests/net/lab, by the kernel's counter; 0 elsewhere.
std::uint64_t link_bytes();

}  // namespace trireme::bench
