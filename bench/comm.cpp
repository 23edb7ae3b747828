// Collectives on ranks of this machine (or of the hosts that mpirun is told of): ours on memory as a user has it and on
// memory from Communicator::allocate, raw MPI on a duplicate communicator, and torch.distributed over gloo.
// `size` follows nccl-tests: the bytes a rank passes in (all_gather: gets out), so all_to_all sends size / ranks to
// each. Each call's time is the slowest rank's; `time` is the median over blocks of a block's median, p99 is over all
// calls. `--device cuda`: memory of GPUs, ours over NCCL and bare NCCL.
#include "bench/bench.h"
#include "bench/collectives.h"
#include "bench/comm_device.h"
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

// Of the arms on a host, and of those on GPUs.
constexpr std::size_t smallest = 8, largest = 64u << 20, largest_on_device = 256u << 20;
std::size_t largest_of(const Options& o) { return o.device == "cuda" ? largest_on_device : largest; }

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
  void call_raw(const Exchange& x);

  Communicator& world_;
  const bool raw_;
  MPI_Comm comm_ = MPI_COMM_NULL;
  Memory in_, out_;
  std::shared_ptr<void> shared_in_, shared_out_;
};

void Rank::call_raw(const Exchange& x) {
  const int part = int(x.in_count) / world_.size();
  if (x.op == "all_reduce") MPI_Allreduce(MPI_IN_PLACE, x.out, int(x.out_count), MPI_FLOAT, MPI_SUM, comm_);
  if (x.op == "reduce_scatter") MPI_Reduce_scatter_block(x.in, x.out, int(x.out_count), MPI_FLOAT, MPI_SUM, comm_);
  if (x.op == "all_gather") MPI_Allgather(x.in, int(x.in_count), MPI_FLOAT, x.out, int(x.in_count), MPI_FLOAT, comm_);
  if (x.op == "all_to_all") MPI_Alltoall(x.in, part, MPI_FLOAT, x.out, part, MPI_FLOAT, comm_);
  if (x.op == "broadcast") MPI_Bcast(x.out, int(x.out_count), MPI_FLOAT, 0, comm_);
  if (x.op == "barrier") MPI_Barrier(comm_);
}

// Two calls first that are not timed.
nlohmann::json Rank::measure(int calls, const std::string& op, std::size_t bytes, bool symmetric) {
  if (symmetric && !shared_in_) {
    shared_in_ = world_.allocate(largest);
    shared_out_ = world_.allocate(largest);
  }
  Exchange x = exchange_of(op, bytes, world_.size());
  x.in = symmetric ? static_cast<float*>(shared_in_.get()) : in_.get(x.in_count);
  x.out = symmetric ? static_cast<float*>(shared_out_.get()) : out_.get(x.out_count);
  fill(x, world_.rank());
  std::vector<double> us(std::size_t(calls + 2));
  world_.barrier().wait();
  const std::uint64_t sent_before = link_bytes();
  for (double& t : us) {
    const auto begin = std::chrono::steady_clock::now();
    raw_ ? call_raw(x) : start(world_, x, {}).wait();
    t = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - begin).count();
  }
  world_.barrier().wait();
  double sent = double(link_bytes() - sent_before) / double(us.size() * std::size_t(world_.size()));
  std::int64_t wrong = op == "barrier" ? 0 : count_wrong(x, calls + 2, world_);
  us.erase(us.begin(), us.begin() + 2);
  world_.all_reduce({us.data(), us.size(), DType::f64}, Op::max).wait();
  world_.all_reduce({&wrong, 1, DType::i64}, Op::sum).wait();
  world_.all_reduce({&sent, 1, DType::f64}, Op::sum).wait();
  return {{"us", us}, {"wrong", wrong}, {"sent", sent}};
}

void serve(const Options& o, Communicator& world) {
  if (o.device == "cuda") return serve_comm_on_device(o, world);
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

// What one arm gave for one operation and size.
struct Result {
  std::string arm, memory, transport, skipped;
  Arm* process = nullptr;
  std::vector<double> us, medians;
  std::int64_t wrong = 0;
  double sent = 0;  // by the link's counter, bytes a call and rank

  void take(const nlohmann::json& answer, bool discard) {
    if (answer.contains("skipped")) skipped = answer["skipped"];
    if (!skipped.empty()) return;
    wrong += answer["wrong"].get<std::int64_t>();
    transport = answer.value("transport", "gloo");
    sent = answer.value("sent", 0.0);
    if (discard) return;
    const auto block = answer["us"].get<std::vector<double>>();
    medians.push_back(quantile(block, 0.5));
    us.insert(us.end(), block.begin(), block.end());
  }
  double time() const { return quantile(medians, 0.5); }
};

// "OP", "OP:BYTES" or "OP:FROM-TO"; all operations and sizes if empty.
struct Selection {
  std::vector<std::string> chosen = collectives;
  std::size_t from = smallest, to;

  Selection(const std::string& text, std::size_t most) : to(most) {
    if (text.empty()) return;
    const auto colon = text.find(':');
    const std::string op = text.substr(0, colon);
    const auto wrong = [&](const std::string& what) {
      throw UsageError("bench comm --problem " + text, what, "e.g. all_reduce, all_reduce:1048576, all_to_all:8-65536");
    };
    if (std::find(collectives.begin(), collectives.end(), op) == collectives.end())
      wrong("'" + op + "' is no operation");
    chosen = {op};
    if (colon == std::string::npos) return;
    char rest = 0;
    unsigned long long a = 0, b = 0;
    const int found = std::sscanf(text.c_str() + colon, ":%llu-%llu%c", &a, &b, &rest);
    if (found != 1 && found != 2) wrong("the size is BYTES or FROM-TO");
    from = a;
    to = found == 2 ? b : a;
    if (from < smallest || to > most || from > to || !std::has_single_bit(from))
      wrong("sizes are powers of two from 8 to " + std::to_string(most));
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
  if (const char* lab = std::getenv("TRIREME_LAB")) row["lab"] = lab;
  if (r.sent > 0 && bytes > 0) {
    row["sent"] = r.sent;
    row["sent_by_formula"] = double(bytes) * sent_factor(op, n);
  }
  if (&r != &ours && ours.time() > 0) row["ratio"] = us / ours.time();
  return row;
}

// An arm in the table: a process, and which of its memory it is asked to use.
struct Contestant {
  std::string name, memory;
  Arm* process;
};

// All arms alternate, block by block.
void measure(const Options& o, const std::vector<Contestant>& all, const std::string& op, std::size_t bytes,
             nlohmann::json& rows) {
  std::vector<Result> results;
  for (const auto& c : all)
    if (op != "barrier" || c.memory != "symmetric") results.push_back({c.name, c.memory, "", "", c.process, {}, {}, 0});
  const int calls =
      int(std::clamp<std::size_t>(largest / std::max<std::size_t>(bytes, 1), 4, std::size_t(most_calls(o.ranks) - 2)));
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

nlohmann::json measure_all(const Options& o, const std::vector<Contestant>& all) {
  const Selection selection(o.problem, largest_of(o));
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& op : selection.chosen) {
    if (op == "barrier") {
      measure(o, all, op, 0, rows);
      continue;
    }
    for (std::size_t bytes = selection.from; bytes <= selection.to; bytes *= 2)
      if (exchange_of(op, bytes, o.ranks).out_count > 0) measure(o, all, op, bytes, rows);
  }
  return rows;
}

constexpr auto patience = std::chrono::seconds(120);

nlohmann::json run_on_device(const Options& o) {
  const Scratch scratch;
  Arm ours("trireme", own_arm(o, "trireme", "", o.ranks, scratch.path("trireme")), o.ranks, scratch.path("trireme"));
  if (!ours.ready(patience)) throw DataError("bench " + o.name, ours.skipped());
  Arm nccl("nccl", own_arm(o, "nccl", "", o.ranks, scratch.path("nccl")), o.ranks, scratch.path("nccl"));
  nccl.ready(patience);
  return measure_all(o, {{"trireme", "device", &ours}, {"nccl", "device", &nccl}});
}

nlohmann::json run(const Options& o) {
  (void)Selection(o.problem, largest_of(o));  // a mistake is told before any rank starts
  if (o.device == "cuda") return run_on_device(o);
  const Scratch scratch;
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
  return measure_all(o, {{"trireme", "private", &ours},
                         {"trireme-symmetric", "symmetric", &ours},
                         {"mpi", "private", &mpi},
                         {"gloo", "private", &gloo}});
}

const Benchmarks::Entry entry({"comm",
                               "collectives on 2 ranks (--ranks N) against raw MPI and torch.distributed over gloo; "
                               "--device cuda: on GPUs, against bare NCCL",
                               run, serve, true});

}  // namespace
}  // namespace trireme::bench
