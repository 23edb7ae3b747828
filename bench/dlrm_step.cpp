// One step of DLRM on one thread: our session against the same model in plain PyTorch, equal weights and batches, and
// the matrix products of that step alone, which both have to do. Kaggle's shape with 16 values a row, tables a hundred
// times smaller.
#include "bench/own_run.h"
#include "comm/error.h"

#include <filesystem>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

namespace trireme::bench {
namespace {

const std::vector<std::int64_t> bottom{13, 512, 256, 64, 16}, top{16 + 27 * 26 / 2, 512, 256, 1};

std::string yaml(const std::string& batch) {
  return "recipe: dlrm\nsteps: 1000000\nthreads: 1\nbatch_size: " + batch +
         "\noptimizer: {name: sgd, lr: 0.1, momentum: 0.0, weight_decay: 0.0, schedule: const}\n"
         "data: {shape: kaggle, scale: 100}\nmodel: {dim: 16, bottom: [512, 256, 64], top: [512, 256]}\n";
}

// Forward, weight gradient and input gradient of every layer; the first layer of the bottom needs no input gradient.
class Products {
 public:
  explicit Products(std::int64_t batch) {
    for (const auto* widths : {&bottom, &top})
      for (std::size_t i = 0; i + 1 < widths->size(); ++i)
        layers_.push_back({at::randn({batch, (*widths)[i]}), at::randn({(*widths)[i + 1], (*widths)[i]}),
                           at::randn({batch, (*widths)[i + 1]}), at::empty({batch, (*widths)[i + 1]}),
                           at::empty({(*widths)[i + 1], (*widths)[i]}),
                           widths == &bottom && i == 0 ? at::Tensor() : at::empty({batch, (*widths)[i]})});
  }
  double step() {
    for (auto& l : layers_) {
      at::mm_out(l.y, l.x, l.w.t());
      at::mm_out(l.dw, l.g.t(), l.x);
      if (l.dx.defined()) at::mm_out(l.dx, l.g, l.w);
    }
    return 0;
  }

 private:
  struct Layer {
    at::Tensor x, w, g, y, dw, dx;
  };
  std::vector<Layer> layers_;
};

std::string shared_file(const std::string& folder) {
  return (std::filesystem::path(folder).parent_path() / "start.safetensors").string();
}

void serve(const Options& o, Communicator& world) {
  at::set_num_threads(1);
  Server server(o.serve, world.rank());
  const std::int64_t batch = std::stoll(o.problem);
  if (o.arm == "products") {
    Products products(batch);
    return server.run([&] { return products.step(); });
  }
  Experiment run(Config::parse(yaml(o.problem), "benchmark"));
  const int batches = batch > 10000 ? 1 : 4;
  OwnSession session(run, world, batches);
  session.write(shared_file(o.serve), {{"batches", std::to_string(batches)}});
  server.run([&] { return session.step(); });
}

nlohmann::json run_problem(const Options& o, const std::string& batch) {
  const Scratch scratch;
  const auto ours = [&](const std::string& arm) {
    return std::make_unique<Arm>(arm, own_arm(o, arm, batch, 1, scratch.path(arm)), 1, scratch.path(arm));
  };
  std::vector<std::unique_ptr<Arm>> arms;
  arms.push_back(ours("trireme"));
  if (!arms[0]->ready(std::chrono::seconds(300))) throw DataError("bench " + o.name, arms[0]->skipped());
  arms.push_back(ours("products"));
  arms.push_back(std::make_unique<Arm>(
      "pytorch", peer_arm("dlrm_step.py", {"--file", scratch.path("start.safetensors")}, scratch.path("pytorch")), 1,
      scratch.path("pytorch")));
  std::vector<Arm*> stepping;
  for (auto& arm : arms) arm->ready(std::chrono::seconds(120)), stepping.push_back(arm.get());
  alternate(stepping, std::stoll(batch) > 10000 ? 1 : 10, o.blocks);
  nlohmann::json rows = nlohmann::json::array();
  for (auto& arm : arms) {
    auto row = arm->row();
    row["batch"] = std::stoll(batch);
    // CPU time of the stepping thread: other programs on the machine hardly change it.
    if (arm->skipped().empty()) row["cpu_ratio"] = arm->median_cpu_ms() / arms[0]->median_cpu_ms();
    rows.push_back(row);
  }
  return rows;
}

nlohmann::json run(const Options& o) {
  nlohmann::json rows = nlohmann::json::array();
  for (const std::string batch : {"2048", "65536"})
    if (o.problem.empty() || o.problem == batch)
      for (auto& row : run_problem(o, batch)) rows.push_back(row);
  return rows;
}

const Benchmarks::Entry entry({"dlrm_step", "DLRM step on one thread against PyTorch, and its matrix products alone",
                               run, serve});

}  // namespace
}  // namespace trireme::bench
