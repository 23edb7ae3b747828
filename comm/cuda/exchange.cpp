#include "comm/cuda/exchange.h"

#include "comm/cuda/reduce.h"
#include "comm/error.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace trireme::cuda {
namespace {

// What a rank tells the others before they touch its memory.
struct Record {
  Exported memory;
  std::uint64_t machine = 0;
  std::int64_t device = 0;  // in its process
};

struct Call {
  Shared shared;
  std::vector<std::byte> mine, all;
  Peers peers;
  Event moved;
};

std::size_t ranks(const HostDriven& g) { return static_cast<std::size_t>(g.me.size); }

// Fills peers.counts; true if all ranks' memory can be opened.
bool read(Call& c, std::size_t n, std::vector<Record>& records) {
  const std::size_t row = c.mine.size(), counts = c.shared.counts.size();
  bool usable = true;
  records.resize(n);
  c.peers.counts.resize(n * counts);
  for (std::size_t r = 0; r < n; ++r) {
    const std::byte* from = c.all.data() + r * row;
    std::memcpy(&records[r], from, sizeof(Record));
    if (counts > 0) std::memcpy(&c.peers.counts[r * counts], from + sizeof(Record), row - sizeof(Record));
    usable &= records[r].memory.usable != 0;
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
    Record record;
    if (g.ipc) record.memory = export_memory(c->shared.memory);
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
    std::vector<Record> records;
    if (!read(*c, ranks(g), records)) {
      const std::size_t piece = c->shared.piece;
      if (piece > 0) {
        const std::size_t largest = *std::max_element(c->peers.counts.begin(), c->peers.counts.end());
        c->shared.pieces.count = (largest + piece - 1) / piece;
      }
      s.replace(staged(g, s, c->shared.pieces));
      return true;
    }
    for (const auto& record : records) c->peers.memory.push_back(import_memory(record.memory));
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
  const char* wanted = std::getenv("TRIREME_CUDA_TRANSPORT");
  const OnDevice on(g.me.device);
  Record mine;
  mine.machine = this_machine();
  mine.device = g.me.device;
  void* word = nullptr;  // never freed: others may have it mapped
  TRIREME_CUDA_CHECK(cudaMalloc(&word, sizeof(std::uint64_t)));
  mine.memory = export_memory(word);
  TRIREME_CUDA_CHECK(cudaMemcpy(word, &mine.memory.process, sizeof(std::uint64_t), cudaMemcpyHostToDevice));
  std::vector<Record> all(ranks(g));
  g.host->all_gather({&mine, sizeof mine, DType::u8, {}}, {all.data(), all.size() * sizeof mine, DType::u8, {}}).wait();
  std::int32_t possible = !(wanted && std::string_view(wanted) == "staged") && all.size() <= most_inputs;
  for (const auto& other : all) {
    if (!possible) break;
    possible = other.machine == mine.machine && other.memory.usable;
    // Two devices of one process: peer access would have to be switched on, IPC does that by itself.
    if (other.memory.process == mine.memory.process && other.device != mine.device) possible = 0;
    try {
      std::uint64_t found = 0;
      if (possible)
        TRIREME_CUDA_CHECK(cudaMemcpy(&found, import_memory(other.memory).data, sizeof found, cudaMemcpyDeviceToHost));
      possible = possible && found == other.memory.process;
    } catch (const Error&) {  // an answer
      possible = 0;
    }
  }
  g.host->all_reduce({&possible, 1, DType::i32, {}}, Op::min).wait();
  return possible != 0;
}

}  // namespace trireme::cuda
