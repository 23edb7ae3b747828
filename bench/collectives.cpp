#include "bench/collectives.h"

#include <bit>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace trireme::bench {
namespace {

// Element i of what rank r passes in.
float value(int r, std::size_t i) {
  std::uint64_t x = (std::uint64_t(r) << 40 | i) * 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 29) * 0xBF58476D1CE4E5B9u;
  return std::bit_cast<float>(std::uint32_t((x >> 41) & 0x007fffffu) | 27u << 23) * (x & 1 ? 1.f : -1.f);
}

struct Expected {
  double value = 0, allowed = 0;
};

}  // namespace

const std::vector<std::string> collectives{"all_reduce", "reduce_scatter", "all_gather",
                                           "all_to_all", "broadcast",      "barrier"};

Exchange exchange_of(const std::string& op, std::size_t bytes, int ranks) {
  const std::size_t whole = bytes / sizeof(float), part = whole / std::size_t(ranks),
                    divided = part * std::size_t(ranks);
  if (op == "all_reduce" || op == "broadcast") return {op, nullptr, nullptr, 0, whole};
  if (op == "reduce_scatter") return {op, nullptr, nullptr, divided, part};
  if (op == "all_gather") return {op, nullptr, nullptr, part, divided};
  if (op == "all_to_all") return {op, nullptr, nullptr, divided, divided};
  return {op};
}

Work start(Communicator& comm, const Exchange& x, Place place) {
  const ConstBuffer in{x.in, x.in_count, DType::f32, place};
  const Buffer out{x.out, x.out_count, DType::f32, place};
  if (x.op == "all_reduce") return comm.all_reduce(out, Op::sum);
  if (x.op == "reduce_scatter") return comm.reduce_scatter(in, out, Op::sum);
  if (x.op == "all_gather") return comm.all_gather(in, out);
  if (x.op == "broadcast") return comm.broadcast(out, 0);
  if (x.op == "barrier") return comm.barrier();
  const std::vector<std::size_t> counts(std::size_t(comm.size()), x.in_count / std::size_t(comm.size()));
  return comm.all_to_all(in, counts, out, counts);
}

// In-place sums grow by `ranks` a call; they start at 2^-100.
int most_calls(int ranks) { return int(180 / std::log2(double(ranks))); }

void fill(const Exchange& x, int rank) {
  const bool in_place = x.op == "all_reduce" || (x.op == "broadcast" && rank == 0);
  for (std::size_t i = 0; i < x.in_count; ++i) x.in[i] = value(rank, i);
  for (std::size_t i = 0; i < x.out_count; ++i) x.out[i] = in_place ? value(rank, i) : -1.f;
}

std::int64_t count_wrong(const Exchange& x, int calls, const Communicator& comm, std::size_t stride) {
  const int n = comm.size();
  const std::size_t part = x.out_count / std::size_t(n), mine = std::size_t(comm.rank());
  const double growth = x.op == "all_reduce" ? std::pow(double(n), calls - 1) : 1;
  const auto sum = [&](std::size_t at) {
    Expected e;
    for (int r = 0; r < n; ++r) e.value += value(r, at), e.allowed += std::fabs(value(r, at));
    return Expected{e.value * growth, 1e-6 * e.allowed * growth * (x.op == "all_reduce" ? calls : 1)};
  };
  const auto expected = [&](std::size_t i) -> Expected {
    if (x.op == "all_reduce") return sum(i);
    if (x.op == "reduce_scatter") return sum(mine * x.out_count + i);
    if (x.op == "all_gather") return {value(int(i / part), i % part)};
    if (x.op == "all_to_all") return {value(int(i / part), mine * part + i % part)};
    return {value(0, i)};
  };
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < x.out_count; i += stride) {
    const Expected e = expected(i);
    if (!(std::fabs(x.out[i] - e.value) <= e.allowed)) ++wrong;
  }
  return wrong;
}

double bus_factor(const std::string& op, int ranks) {
  const double others = double(ranks - 1) / ranks;
  return op == "all_reduce" ? 2 * others : op == "broadcast" ? 1 : others;
}

double sent_factor(const std::string& op, int ranks) {
  return (op == "all_reduce" ? 2 : 1) * double(ranks - 1) / ranks;
}

std::uint64_t link_bytes() {
  if (!std::getenv("TRIREME_LAB")) return 0;
  std::ifstream in("/proc/self/net/dev");
  for (std::string line; std::getline(in, line);) {
    const auto colon = line.find("eth0:");
    if (colon == std::string::npos) continue;
    std::istringstream words(line.substr(colon + 5));
    std::uint64_t bytes = 0;
    for (int i = 0; i < 9; ++i) words >> bytes;  // eight of reception, then bytes sent
    return bytes;
  }
  return 0;
}

}  // namespace trireme::bench
