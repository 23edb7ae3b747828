#include "bench/mlp_step.h"

#include "bench/own_run.h"
#include "comm/error.h"
#include "comm/local/self.h"

#include <filesystem>

#include <ATen/Parallel.h>

namespace trireme::bench {
namespace {

constexpr int batches = 4;

// DDP's default; what is to hide behind backward must begin before its end.
std::size_t bucket_mib(const Options& o) { return o.name == "overlap" ? 4 : 25; }

std::string yaml(const Options& o, int ranks, const std::string& more) {
  const int batch = std::stoi(o.problem) * ranks, samples = std::max(8000, (batches + 1) * batch);
  return "recipe: mlp\nsteps: 1000000\nbatch_size: " + std::to_string(batch) +
         "\noptimizer: {name: sgd, lr: 0.01, momentum: 0, weight_decay: 0, schedule: const}\n"
         "bucket_mib: " +
         std::to_string(bucket_mib(o)) + "\nfirst_bucket_mib: 1\nsamples: " + std::to_string(samples) +
         "\nsizes: [1024, 2048, 2048, 2048, 10]\n" + more;
}

std::string start_file(const std::string& folder) {
  return (std::filesystem::path(folder).parent_path() / "start.safetensors").string();
}

// The all-reduces of one step back to back.
void serve_comm(const Options& o, Communicator& world, std::size_t bytes) {
  struct Piece {
    std::shared_ptr<void> memory;
    std::size_t bytes;
  };
  std::vector<Piece> pieces;
  for (std::size_t left = bytes; left > 0; left -= pieces.back().bytes) {
    const std::size_t n = std::min(left, bucket_mib(o) << 20);
    pieces.push_back({world.allocate(n), n});
  }
  Server(o.serve, world.rank()).run([&] {
    std::vector<Work> work;
    for (auto& p : pieces)
      work.push_back(world.all_reduce({p.memory.get(), p.bytes / sizeof(float), DType::f32}, Op::sum));
    for (auto& w : work) w.wait();
    return 0.0;
  });
}

}  // namespace

void serve_mlp_step(const Options& o, Communicator& world) {
  at::set_num_threads(1);
  const bool alone = o.arm == "compute";
  const auto self = make_self();
  Communicator& group = alone ? *self : world;
  const bool plain = alone || o.arm == "trireme" || o.arm == "comm";
  std::string hook = o.arm;
  if (hook == "powersgd") hook += ", rank: 32, start: 2";  // the rank that trains as well as no hook
  const std::string more = o.arm == "no overlap" ? "overlap: false\n" : plain ? "" : "hook: {name: " + hook + "}\n";
  Experiment run(Config::parse(yaml(o, group.size(), more), "benchmark"));
  OwnSession session(run, group, batches);
  if (o.arm == "comm") return serve_comm(o, world, session.reduced_bytes());
  if (o.arm == "trireme") session.write(start_file(o.serve), {{"batches", std::to_string(batches)}});
  Server(o.serve, world.rank()).run([&] {
    const double loss = session.step();
    // As DDP's, which adds up the losses: a step is over when the slowest rank has computed it.
    if (alone) world.barrier().wait();
    return loss;
  });
}

Arm& MlpArms::add(const std::string& name, const std::vector<std::string>& command, const std::string& folder) {
  owned_.push_back(std::make_unique<Arm>(name, command, o_.ranks, folder));
  arms_.push_back(owned_.back().get());
  arms_.back()->ready(std::chrono::seconds(180));
  return *arms_.back();
}

Arm& MlpArms::ours(const std::string& arm) {
  const std::string folder = scratch_.path("ours " + arm);
  Arm& a = add(arm == "trireme" ? arm : "trireme " + arm, own_arm(o_, arm, std::to_string(batch_), o_.ranks, folder),
               folder);
  if (arms_.size() == 1 && !a.skipped().empty()) throw DataError("bench " + o_.name, a.skipped());
  return a;
}

Arm& MlpArms::ddp(const std::string& arm) {
  const std::string folder = scratch_.path("ddp " + arm);
  return add("ddp gloo" + (arm == "copy" ? std::string() : " " + arm),
             peer_arm("ddp_step.py",
                      {"--file", start_file(folder), "--arm", arm, "--port", std::to_string(free_port()),
                       "--bucket-mib", std::to_string(bucket_mib(o_))},
                      folder, o_.ranks),
             folder);
}

nlohmann::json MlpArms::rows() const {
  nlohmann::json rows = nlohmann::json::array();
  for (const Arm* arm : arms_) {
    auto row = arm->row();
    row["problem"] = "batch " + std::to_string(batch_) + " a rank, " + std::to_string(o_.ranks) + " ranks";
    if (const char* lab = std::getenv("TRIREME_LAB")) row["lab"] = lab;
    if (arm->skipped().empty()) row["ratio"] = arm->median_ms() / arms_.front()->median_ms();
    rows.push_back(row);
  }
  return rows;
}

}  // namespace trireme::bench
