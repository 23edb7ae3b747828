#include "comm/cuda/exchange.h"

#include "comm/cuda/reduce.h"
#include "comm/error.h"

#include <algorithm>
#include <cstring>

namespace trireme::cuda {
namespace {

struct Call {
  Shared shared;
  std::vector<std::byte> mine, all;
  Peers peers;
  Event moved;
};

std::size_t ranks(const HostDriven& g) { return static_cast<std::size_t>(g.me.size); }

// Fills peers.counts; true if all ranks' memory can be opened.
bool read(Call& c, std::size_t n, std::vector<Exported>& records) {
  const std::size_t row = c.mine.size(), counts = c.shared.counts.size();
  bool usable = true;
  records.resize(n);
  c.peers.counts.resize(n * counts);
  for (std::size_t r = 0; r < n; ++r) {
    const std::byte* from = c.all.data() + r * row;
    std::memcpy(&records[r], from, sizeof(Exported));
    if (counts > 0) std::memcpy(&c.peers.counts[r * counts], from + sizeof(Exported), row - sizeof(Exported));
    usable &= records[r].usable != 0;
  }
  return usable;
}

}  // namespace

void exchange(HostDriven& g, Script& s, Shared shared) {
  auto c = std::make_shared<Call>();
  c->shared = std::move(shared);
  if (!g.ipc && c->shared.piece == 0) {
    for (auto& stage : staged(g, s, c->shared.pieces)) s.add(std::move(stage));
    return;
  }
  s.add([&g, &s, c] {
    Exported record = {};
    if (g.ipc) record = export_memory(c->shared.memory);
    const auto& counts = c->shared.counts;
    c->mine.resize(sizeof record + counts.size() * sizeof counts[0]);
    c->all.resize(ranks(g) * c->mine.size());
    std::memcpy(c->mine.data(), &record, sizeof record);
    if (!counts.empty()) std::memcpy(c->mine.data() + sizeof record, counts.data(), counts.size() * sizeof counts[0]);
    s.host = g.host->all_gather({c->mine.data(), c->mine.size(), DType::u8, {}},
                                {c->all.data(), c->all.size(), DType::u8, {}});
    return true;
  });
  s.add([&s] { return s.host.done(); });
  s.add([&g, &s, c] {
    std::vector<Exported> records;
    if (!read(*c, ranks(g), records)) {
      const std::size_t piece = c->shared.piece;
      if (piece > 0) {
        const std::size_t largest = *std::max_element(c->peers.counts.begin(), c->peers.counts.end());
        c->shared.pieces.count = (largest + piece - 1) / piece;
      }
      s.replace(staged(g, s, c->shared.pieces));
      return true;
    }
    for (const auto& record : records) c->peers.memory.push_back(import_memory(record));
    c->shared.kernels(c->peers);
    c->moved.record(g.me.device, g.stream.get());
    return true;
  });
  s.add([c] { return c->moved.complete(); });
  s.add_host([](Communicator& host) { return host.barrier(); });
  s.add([&g, &s] {
    g.copy_result(s);
    return true;
  });
}

bool can_share_memory(HostDriven& g) {
  const OnDevice on(g.me.device);
  void* word = nullptr;  // never freed: others may have it mapped
  TRIREME_CUDA_CHECK(cudaMalloc(&word, sizeof(std::uint64_t)));
  const Exported mine = export_memory(word);
  TRIREME_CUDA_CHECK(cudaMemcpy(word, &mine.process, sizeof(std::uint64_t), cudaMemcpyHostToDevice));
  std::vector<Exported> all(ranks(g));
  g.host->all_gather({&mine, sizeof mine, DType::u8, {}}, {all.data(), all.size() * sizeof mine, DType::u8, {}}).wait();
  std::int32_t possible = all.size() <= most_inputs;
  for (const auto& other : all) {
    possible = possible && within_reach(other);
    if (!possible) break;
    try {
      std::uint64_t found = 0;
      TRIREME_CUDA_CHECK(cudaMemcpy(&found, import_memory(other).data, sizeof found, cudaMemcpyDeviceToHost));
      possible = found == other.process;
    } catch (const Error&) {  // an answer
      possible = 0;
    }
  }
  g.host->all_reduce({&possible, 1, DType::i32, {}}, Op::min).wait();
  return possible != 0;
}

}  // namespace trireme::cuda
