// Data-parallel step of an MLP on 2 ranks with one thread each: our session, reducer and shared memory, against
// PyTorch's DistributedDataParallel over gloo. Same weights, batches, bucket sizes and optimizer.
#include "bench/own_run.h"
#include "comm/error.h"

#include <ATen/Parallel.h>

#include <filesystem>

namespace trireme::bench {
namespace {

constexpr int ranks = 2, batches = 4;

std::string yaml(int batch_a_rank) {
  return "recipe: mlp\nsteps: 1000000\nbatch_size: " + std::to_string(batch_a_rank * ranks) +
         "\noptimizer: {name: sgd, lr: 0.01, momentum: 0, weight_decay: 0, schedule: const}\n"
         "bucket_mib: 25\nfirst_bucket_mib: 1\nsamples: 4000\nsizes: [1024, 2048, 2048, 2048, 10]\n";
}

std::string shared_file(const std::string& folder) {
  return (std::filesystem::path(folder).parent_path() / "start.safetensors").string();
}

void serve(const Options& o, Communicator& world) {
  at::set_num_threads(1);
  OwnRun run(yaml(std::stoi(o.problem)));
  OwnSession session(run, world, batches);
  session.write(shared_file(o.serve), {{"batches", std::to_string(batches)}});
  Server(o.serve, world.rank()).run([&] { return session.step(); });
}

nlohmann::json run(const Options& o) {
  nlohmann::json rows = nlohmann::json::array();
  for (const int batch : {16, 128}) {
    const Scratch scratch;
    const auto peer = [&](const std::string& arm) {
      return std::make_unique<Arm>("ddp gloo" + std::string(arm == "view" ? " bucket view" : ""),
                                   peer_arm("ddp_step.py", {"--file", scratch.path("start.safetensors"), "--arm", arm}, scratch.path(arm)),
                                   ranks, scratch.path(arm));
    };
    Arm ours("trireme", own_arm(o, "trireme", std::to_string(batch), ranks, scratch.path("trireme")), ranks, scratch.path("trireme"));
    if (!ours.ready(std::chrono::seconds(120))) throw DataError("bench " + o.name, ours.skipped());
    const auto copy = peer("copy"), view = peer("view");
    copy->ready(std::chrono::seconds(120));
    view->ready(std::chrono::seconds(120));
    alternate({&ours, copy.get(), view.get()}, 10, o.blocks);
    for (auto* arm : {&ours, copy.get(), view.get()}) {
      auto row = arm->row();
      row["problem"] = "batch " + std::to_string(batch) + " a rank";
      if (arm->skipped().empty()) row["ratio"] = arm->median_ms() / ours.median_ms();
      rows.push_back(row);
    }
  }
  return rows;
}

const Benchmark::Entry entry({"ddp_step", "data-parallel MLP step on 2 ranks against PyTorch DDP over gloo", run, serve});

}  // namespace
}  // namespace trireme::bench
