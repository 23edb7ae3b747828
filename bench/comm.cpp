// Collectives on ranks of this machine (or of the hosts that mpirun is told of): ours on memory as a user has it and on
// memory from Communicator::allocate, raw MPI on a duplicate communicator, and torch.distributed over gloo.
// `size` follows nccl-tests: the bytes a rank passes in (all_gather: gets out), so all_to_all sends size / ranks to
// each. Each call's time is the slowest rank's; `time` is the median over blocks of a block's median, p99 is over all
// calls.
#include "bench/bench.h"
#include "comm/error.h"
#include "comm/mpi/mpi.h"
#include "trainers/launch.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>
#include <sstream>

#include <malloc.h>
#include <unistd.h>

#define OMPI_SKIP_MPICXX 1
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

namespace trireme::bench {
namespace {

constexpr std::size_t smallest = 8, largest = 64u << 20;
const std::vector<std::string> ops{"all_reduce", "reduce_scatter", "all_gather", "all_to_all", "broadcast", "barrier"};

// One exchange: what a rank passes in and gets out, in f32 elements. all_reduce and broadcast work in place on `out`.
struct Exchange {
  std::string op;
  float *in, *out;
  std::size_t in_count, out_count;
};

std::size_t in_count(const std::string& op, std::size_t bytes, int n) {
  const std::size_t whole = bytes / sizeof(float), part = whole / std::size_t(n);
  return op == "reduce_scatter" || op == "all_to_all" ? part * std::size_t(n) : op == "all_gather" ? part : whole;
}
std::size_t out_count(const std::string& op, std::size_t bytes, int n) {
  const std::size_t whole = bytes / sizeof(float), part = whole / std::size_t(n);
  return op == "reduce_scatter" ? part : op == "all_gather" || op == "all_to_all" ? part * std::size_t(n) : whole;
}

// Element i of what rank r passes in: random, and so small that many sums in place stay finite.
float value(int r, std::size_t i) {
  std::uint64_t x = (std::uint64_t(r) << 40 | i) * 0x9E3779B97F4A7C15u;
  x = (x ^ x >> 29) * 0xBF58476D1CE4E5B9u;
  return std::bit_cast<float>(std::uint32_t((x >> 41) & 0x007fffffu) | 27u << 23) * (x & 1 ? 1.f : -1.f);
}
// In-place sums grow by `ranks` a call; they start at 2^-100.
int most_calls(int ranks) { return int(180 / std::log2(double(ranks))); }

class Memory {
 public:
  float* get(std::size_t floats) {
    if (floats > size_) {
      std::free(data_);
      data_ = static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64));
      if (!data_) throw std::bad_alloc();
      size_ = floats;
    }
    return data_;
  }
  ~Memory() { std::free(data_); }

 private:
  float* data_ = nullptr;
  std::size_t size_ = 0;
};

// A rank of one C++ arm.
class Rank {
 public:
  Rank(Communicator& world, bool raw) : world_(world), raw_(raw) {
    if (raw_) MPI_Comm_dup(MPI_COMM_WORLD, &comm_);
  }
  ~Rank() {
    if (raw_) MPI_Comm_free(&comm_);
  }
  nlohmann::json measure(int calls, const std::string& op, std::size_t bytes, bool symmetric);

 private:
  void call(const Exchange& x);
  void call_raw(const Exchange& x);
  void fill(const Exchange& x) const;
  std::int64_t count_wrong(const Exchange& x, int calls) const;

  Communicator& world_;
  const bool raw_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  Memory in_, out_;
  std::shared_ptr<void> shared_in_, shared_out_;
};

void Rank::call(const Exchange& x) {
  const ConstBuffer in{x.in, x.in_count};
  const Buffer out{x.out, x.out_count};
  if (x.op == "all_reduce") return world_.all_reduce(out, Op::sum).wait();
  if (x.op == "reduce_scatter") return world_.reduce_scatter(in, out, Op::sum).wait();
  if (x.op == "all_gather") return world_.all_gather(in, out).wait();
  if (x.op == "broadcast") return world_.broadcast(out, 0).wait();
  if (x.op == "barrier") return world_.barrier().wait();
  const std::vector<std::size_t> counts(std::size_t(world_.size()), x.in_count / std::size_t(world_.size()));
  world_.all_to_all(in, counts, out, counts).wait();
}

void Rank::call_raw(const Exchange& x) {
  const int part = int(x.in_count) / world_.size();
  if (x.op == "all_reduce") MPI_Allreduce(MPI_IN_PLACE, x.out, int(x.out_count), MPI_FLOAT, MPI_SUM, comm_);
  if (x.op == "reduce_scatter") MPI_Reduce_scatter_block(x.in, x.out, int(x.out_count), MPI_FLOAT, MPI_SUM, comm_);
  if (x.op == "all_gather") MPI_Allgather(x.in, int(x.in_count), MPI_FLOAT, x.out, int(x.in_count), MPI_FLOAT, comm_);
  if (x.op == "all_to_all") MPI_Alltoall(x.in, part, MPI_FLOAT, x.out, part, MPI_FLOAT, comm_);
  if (x.op == "broadcast") MPI_Bcast(x.out, int(x.out_count), MPI_FLOAT, 0, comm_);
  if (x.op == "barrier") MPI_Barrier(comm_);
}

void Rank::fill(const Exchange& x) const {
  const bool in_place = x.op == "all_reduce" || (x.op == "broadcast" && world_.rank() == 0);
  for (std::size_t i = 0; i < x.in_count; ++i) x.in[i] = value(world_.rank(), i);
  for (std::size_t i = 0; i < x.out_count; ++i) x.out[i] = in_place ? value(world_.rank(), i) : -1.f;
}

std::int64_t Rank::count_wrong(const Exchange& x, int calls) const {
  const int n = world_.size();
  const std::size_t part = x.out_count / std::size_t(n);
  std::int64_t wrong = 0;
  for (std::size_t i = 0; i < x.out_count; ++i) {
    double expected = 0, allowed = 0;
    if (x.op == "all_reduce" || x.op == "reduce_scatter") {
      const std::size_t at = x.op == "all_reduce" ? i : std::size_t(world_.rank()) * x.out_count + i;
      double magnitude = 0;
      for (int r = 0; r < n; ++r) expected += value(r, at), magnitude += std::fabs(value(r, at));
      const double growth = x.op == "all_reduce" ? std::pow(double(n), calls - 1) : 1;
      expected *= growth;
      allowed = 1e-6 * magnitude * growth * (x.op == "all_reduce" ? calls : 1);
    } else if (x.op == "all_gather") {
      expected = value(int(i / part), i % part);
    } else if (x.op == "all_to_all") {
      expected = value(int(i / part), std::size_t(world_.rank()) * part + i % part);
    } else {
      expected = value(0, i);
    }
    if (!(std::fabs(x.out[i] - expected) <= allowed)) ++wrong;
  }
  return wrong;
}

// Two calls first that are not timed.
nlohmann::json Rank::measure(int calls, const std::string& op, std::size_t bytes, bool symmetric) {
  if (symmetric && !shared_in_) {
    shared_in_ = world_.allocate(largest);
    shared_out_ = world_.allocate(largest);
  }
  Exchange x{op, nullptr, nullptr, in_count(op, bytes, world_.size()), out_count(op, bytes, world_.size())};
  if (op == "all_reduce" || op == "broadcast") x.in_count = 0;
  if (op == "barrier") x.in_count = x.out_count = 0;
  x.in = symmetric ? static_cast<float*>(shared_in_.get()) : in_.get(x.in_count);
  x.out = symmetric ? static_cast<float*>(shared_out_.get()) : out_.get(x.out_count);
  fill(x);
  std::vector<double> us(std::size_t(calls + 2));
  world_.barrier().wait();
  for (double& t : us) {
    const auto begin = std::chrono::steady_clock::now();
    raw_ ? call_raw(x) : call(x);
    t = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
  }
  std::int64_t wrong = op == "barrier" ? 0 : count_wrong(x, calls + 2);
  us.erase(us.begin(), us.begin() + 2);
  world_.all_reduce({us.data(), us.size(), DType::f64}, Op::max).wait();
  world_.all_reduce({&wrong, 1, DType::i64}, Op::sum).wait();
  return {{"us", us}, {"wrong", wrong}};
}

void serve(const Options& o, Communicator& world) {
  const bool raw = o.arm == "mpi";
  if (raw) {
    // A plain C program has not our malloc settings but glibc's, here where they settle after the first large free().
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, 64 << 20);
  }
  Rank rank(world, raw);
  Server server(o.serve, world.rank());
  while (const auto command = server.command()) {
    std::istringstream in(*command);
    int calls = 0;
    std::size_t bytes = 0;
    std::string op, memory;
    in >> calls >> op >> bytes >> memory;
    auto answer = rank.measure(calls, op, bytes, memory == "symmetric");
    answer["transport"] = raw ? "MPI" : mpi_transport(world);
    server.reply(answer);
  }
}

// Bytes on the busiest link over bytes of the buffer, as nccl-tests counts them.
double bus_factor(const std::string& op, int n) {
  const double others = double(n - 1) / n;
  return op == "all_reduce" ? 2 * others : op == "broadcast" ? 1 : others;
}

// What one arm gave for one operation and size.
struct Result {
  std::string arm, memory, transport, skipped;
  Arm* process = nullptr;
  std::vector<double> us, medians;
  std::int64_t wrong = 0;

  void take(const nlohmann::json& answer, bool discard) {
    if (answer.contains("skipped")) skipped = answer["skipped"];
    if (!skipped.empty()) return;
    wrong += answer["wrong"].get<std::int64_t>();
    transport = answer.value("transport", "gloo");
    if (discard) return;
    const auto block = answer["us"].get<std::vector<double>>();
    medians.push_back(quantile(block, 0.5));
    us.insert(us.end(), block.begin(), block.end());
  }
  double time() const { return quantile(medians, 0.5); }
};

// "OP", "OP:BYTES" or "OP:FROM-TO"; all operations and sizes if empty.
struct Selection {
  std::vector<std::string> chosen = ops;
  std::size_t from = smallest, to = largest;

  explicit Selection(const std::string& text) {
    if (text.empty()) return;
    const auto colon = text.find(':');
    const std::string op = text.substr(0, colon);
    const auto wrong = [&](const std::string& what) {
      throw UsageError("bench comm --problem " + text, what, "e.g. all_reduce, all_reduce:1048576, all_to_all:8-65536");
    };
    if (std::find(ops.begin(), ops.end(), op) == ops.end()) wrong("'" + op + "' is no operation");
    chosen = {op};
    if (colon == std::string::npos) return;
    char rest = 0;
    unsigned long long a = 0, b = 0;
    const int found = std::sscanf(text.c_str() + colon, ":%llu-%llu%c", &a, &b, &rest);
    if (found != 1 && found != 2) wrong("the size is BYTES or FROM-TO");
    from = a;
    to = found == 2 ? b : a;
    if (from < smallest || to > largest || from > to || !std::has_single_bit(from))
      wrong("sizes are powers of two from 8 to 67108864");
  }
};

nlohmann::json row(const Result& r, const Result& ours, const std::string& op, std::size_t bytes, int n) {
  nlohmann::json row{{"arm", r.arm}, {"op", op}, {"size", bytes}, {"ranks", n}, {"memory", r.memory}};
  const std::string& skipped = r.process->skipped().empty() ? r.skipped : r.process->skipped();
  if (!skipped.empty() || r.medians.empty()) {
    row["skipped"] = skipped;
    return row;
  }
  const double us = r.time(), gbps = us > 0 ? double(bytes) / us * 1e-3 : 0;
  row.update({{"time", us},
              {"p99", quantile(r.us, 0.99)},
              {"low", quantile(r.medians, 0.25)},
              {"high", quantile(r.medians, 0.75)},
              {"algbw", gbps},
              {"busbw", gbps * bus_factor(op, n)},
              {"wrong", r.wrong},
              {"blocks", r.medians.size()},
              {"calls", r.us.size()},
              {"transport", r.transport}});
  if (&r != &ours && ours.time() > 0) row["ratio"] = us / ours.time();
  return row;
}

nlohmann::json run(const Options& o) {
  const Selection selection(o.problem);
  const Scratch scratch;
  const auto patience = std::chrono::seconds(120);
  Arm ours("trireme", own_arm(o, "trireme", "", o.ranks, scratch.path("trireme")), o.ranks, scratch.path("trireme"));
  if (!ours.ready(patience)) throw DataError("bench " + o.name, ours.skipped());
  // Open MPI's own default, which our backend changes for itself.
  std::vector<std::string> raw{"env", "OMPI_MCA_btl_tcp_flags=send,put,inplace,need-ack,need-csum,hetero-rdma"};
  for (const auto& word : own_arm(o, "mpi", "", o.ranks, scratch.path("mpi"))) raw.push_back(word);
  Arm mpi("mpi", raw, o.ranks, scratch.path("mpi"));
  mpi.ready(patience);
  Arm gloo("gloo", peer_arm("comm_gloo.py", {"--port", std::to_string(free_port())}, scratch.path("gloo"), o.ranks),
           o.ranks, scratch.path("gloo"));
  gloo.ready(patience);

  nlohmann::json rows = nlohmann::json::array();
  for (const auto& op : selection.chosen) {
    const bool barrier = op == "barrier";
    for (std::size_t bytes = barrier ? 0 : selection.from; bytes <= (barrier ? 0 : selection.to);
         bytes = bytes ? 2 * bytes : 1) {
      if (!barrier && in_count(op, bytes, o.ranks) == 0) continue;  // less than an element a rank
      std::vector<Result> results;
      for (auto& [arm, memory, process] :
           std::initializer_list<std::tuple<const char*, const char*, Arm*>>{{"trireme", "private", &ours},
                                                                             {"trireme-symmetric", "symmetric", &ours},
                                                                             {"mpi", "private", &mpi},
                                                                             {"gloo", "private", &gloo}})
        results.push_back({arm, memory, "", "", process, {}, {}, 0});
      if (barrier) std::erase_if(results, [](const Result& r) { return r.memory == "symmetric"; });
      const int calls = int(
          std::clamp<std::size_t>(largest / std::max<std::size_t>(bytes, 1), 4, std::size_t(most_calls(o.ranks) - 2)));
      for (int b = 0; b <= o.blocks; ++b)
        for (auto& r : results)
          if (const auto answer =
                  r.process->ask(std::to_string(calls) + " " + op + " " + std::to_string(bytes) + " " + r.memory))
            r.take(*answer, b == 0);
      std::fprintf(stderr, "%s %zu:", op.c_str(), bytes);
      for (const auto& r : results) {
        rows.push_back(row(r, results.front(), op, bytes, o.ranks));
        std::fprintf(stderr, "  %s %.2f us", r.arm.c_str(), r.time());
      }
      std::fprintf(stderr, "\n");
    }
  }
  return rows;
}

const Benchmarks::Entry entry({"comm",
                               "collectives on 2 ranks (--ranks N) against raw MPI and torch.distributed over gloo",
                               run, serve});

}  // namespace
}  // namespace trireme::bench
