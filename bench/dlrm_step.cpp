// One DLRM step of the Kaggle shape (d = 16), one rank on a CPU or a GPU, beside plain PyTorch (EmbeddingBag with
// sparse gradients, as facebookresearch/dlrm), on a GPU PyTorch in a CUDA graph, and on a CPU (one thread) the matrix
// products of that step alone, which all have to do. f32 without TF32, SGD, equal
// weights and batches, which lie on the device. --problem BATCH or BATCH/SCALE: tables of 1 / SCALE of the rows.
#include "bench/bench.h"
#include "bench/own_run.h"
#include "comm/error.h"

#include <cmath>
#include <filesystem>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

namespace trireme::bench {
namespace {

constexpr int batches = 4, equal_steps = 20;
const std::vector<std::int64_t> bottom{13, 512, 256, 64, 16}, top{16 + 27 * 26 / 2, 512, 256, 1};

struct Problem {
  std::int64_t batch = 0, scale = 1;
};

Problem problem_of(const std::string& words) {
  Problem p;
  char* end = nullptr;
  p.batch = std::strtoll(words.c_str(), &end, 10);
  if (*end == '/') p.scale = std::strtoll(end + 1, &end, 10);
  if (*end != 0 || p.batch < 1 || p.scale < 1)
    throw UsageError("--problem", words + " is no batch size", "write for example 2048, or 2048/1000");
  return p;
}

std::string yaml(const Options& o) {
  const Problem p = problem_of(o.problem);
  return "recipe: dlrm\nsteps: 1000000\nlog_every: 1000000\ndevice: " + o.device +
         (o.device == "cpu" ? "\nthreads: 1" : "") + "\nbatch_size: " + std::to_string(p.batch) +
         "\noptimizer: {name: sgd, lr: 0.1, momentum: 0.0, weight_decay: 0.0, schedule: const}\n"
         "data: {shape: kaggle, scale: " +
         std::to_string(p.scale) + ", samples: " + std::to_string((batches + 1) * p.batch) +
         ", test_samples: 100}\nmodel: {shape: kaggle}\n";
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

std::string start_file(const std::string& folder) {
  return (std::filesystem::path(folder).parent_path() / "start.safetensors").string();
}

void serve(const Options& o, Communicator& world) {
  if (o.device == "cpu") at::set_num_threads(1);
  if (o.arm == "products") {
    Products products(problem_of(o.problem).batch);
    return Server(o.serve, world.rank()).run([&] { return products.step(); });
  }
  Experiment run(Config::parse(yaml(o), "benchmark"));
  OwnSession session(run, world, batches);
  session.write(start_file(o.serve), {{"batches", std::to_string(batches)}, {"lr", "0.1"}});
  session.move_batches();
  Server(o.serve, world.rank()).run([&] { session.advance(); }, [&] { return session.session().loss(); });
}

double worst_difference(const std::vector<double>& a, const std::vector<double>& b) {
  double worst = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    worst = std::max(worst, std::fabs(a[i] - b[i]) / std::fabs(a[i]));
  return worst;
}

nlohmann::json run_problem(const Options& o, const std::string& problem) {
  const Scratch scratch;
  std::vector<std::unique_ptr<Arm>> owned;
  const auto start = [&](const std::string& name, const std::vector<std::string>& command, const std::string& folder) {
    owned.push_back(std::make_unique<Arm>(name, command, 1, folder));
    owned.back()->ready(std::chrono::seconds(600));
  };
  start("trireme", own_arm(o, "trireme", problem, 1, scratch.path("trireme")), scratch.path("trireme"));
  if (!owned[0]->skipped().empty()) throw DataError("bench dlrm_step", owned[0]->skipped());
  std::vector<std::string> peers{"plain"};
  if (o.device == "cuda") peers.push_back("graph");
  for (const auto& peer : peers)
    start("torch " + peer,
          peer_arm("dlrm_step.py", {"--file", start_file(scratch.path("trireme")), "--arm", peer, "--device", o.device},
                   scratch.path(peer)),
          scratch.path(peer));
  std::vector<Arm*> arms;
  for (const auto& arm : owned) arms.push_back(arm.get());
  for (Arm* arm : arms)  // before the products, which have no loss
    for (int i = 0; i < equal_steps && arm->skipped().empty(); ++i) arm->block(1, true);
  if (o.device == "cpu") {
    start("products", own_arm(o, "products", problem, 1, scratch.path("products")), scratch.path("products"));
    arms.push_back(owned.back().get());
  }
  const bool small = problem_of(problem).batch < 10000;
  alternate(arms, o.device == "cuda" ? (small ? 200 : 20) : (small ? 10 : 1), o.blocks);
  nlohmann::json rows = nlohmann::json::array();
  for (const Arm* arm : arms) {
    auto row = arm->row();
    row["problem"] = problem, row["device"] = o.device;
    if (arm->skipped().empty()) {
      row["ratio"] = arm->median_ms() / arms[0]->median_ms();
      // CPU time of the stepping thread: other programs on the machine hardly change it.
      if (o.device == "cpu") row["cpu_ratio"] = arm->median_cpu_ms() / arms[0]->median_cpu_ms();
      if (arm->name() != "products")
        row["worst_loss_difference"] = worst_difference(arms[0]->losses(equal_steps), arm->losses(equal_steps));
    }
    rows.push_back(row);
  }
  return rows;
}

nlohmann::json run(const Options& o) {
  nlohmann::json rows = nlohmann::json::array();
  const std::vector<std::string> problems =
      o.problem.empty() ? std::vector<std::string>{"2048", "65536"} : std::vector<std::string>{o.problem};
  for (const auto& problem : problems) {
    (void)problem_of(problem);
    for (auto& row : run_problem(o, problem)) rows.push_back(row);
  }
  return rows;
}

const Benchmarks::Entry entry({"dlrm_step", "DLRM step of the Kaggle shape (--device) against PyTorch", run, serve,
                               true});

}  // namespace
}  // namespace trireme::bench
