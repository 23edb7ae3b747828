// One DLRM step of the Kaggle shape (d = 16), one rank on a CPU or a GPU, beside plain PyTorch (EmbeddingBag with
// sparse gradients, as facebookresearch/dlrm), on a GPU PyTorch in a CUDA graph and our step without one, and on a CPU
// (one thread) ours in bf16 and the matrix products of that step alone, which all have to do. f32 without TF32, SGD,
// equal weights and batches, which lie on the device. --problem BATCH or BATCH/SCALE: tables of 1 / SCALE of the rows.
// "BATCH ranks": the same global batch on 1, 2, 4, ... --ranks ranks, beside DistributedDataParallel with
// all_to_all_single for the rows; its ids need no exchange, ours are exchanged in the step.
#include "bench/bench.h"
#include "bench/own_run.h"
#include "comm/device.h"
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
  bool ranks = false;
};

Problem problem_of(const std::string& words) {
  Problem p;
  char* end = nullptr;
  p.batch = std::strtoll(words.c_str(), &end, 10);
  if (*end == '/') p.scale = std::strtoll(end + 1, &end, 10);
  p.ranks = std::string_view(end) == " ranks";
  if ((*end != 0 && !p.ranks) || p.batch < 1 || p.scale < 1)
    throw UsageError("--problem", words + " is no batch size", "write for example 2048, 2048/1000 or '2048 ranks'");
  return p;
}

std::string yaml(const Options& o) {
  const Problem p = problem_of(o.problem);
  return "recipe: dlrm\nsteps: 1000000\nlog_every: 1000000\ndevice: " + o.device +
         (o.device == "cpu" ? "\nthreads: 1" : "") + (o.arm == "eager" ? "\ngraph: off" : "\ngraph: on") +
         (o.arm == "bf16" ? "\nprecision: bf16" : "") + "\nbatch_size: " + std::to_string(p.batch) +
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
  if (o.arm == "trireme" && world.size() == 1)
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

using Arms = std::vector<std::unique_ptr<Arm>>;

constexpr std::chrono::seconds patience{600};

void start(Arms& arms, const std::string& name, const std::vector<std::string>& command, int ranks,
           const std::string& folder) {
  arms.push_back(std::make_unique<Arm>(name, command, ranks, folder));
}

void start_peer(Arms& arms, const Options& o, const Scratch& scratch, const std::string& arm, int ranks) {
  const std::string name = ranks > 1 ? arm + " x" + std::to_string(ranks) : arm, folder = scratch.path(name);
  start(arms, "torch " + name,
        peer_arm("dlrm_step.py",
                 {"--file", start_file(scratch.path("trireme")), "--arm", arm, "--device", o.device, "--port",
                  std::to_string(free_port())},
                 folder, arm == "ddp" ? ranks : 0),
        ranks, folder);
}

// Ours on one rank comes first: it writes what the peers read.
Arms start_arms(const Options& o, const std::string& problem, const Scratch& scratch) {
  Arms arms;
  const auto own = [&](const std::string& arm, const std::string& name, int ranks) {
    start(arms, name, own_arm(o, arm, problem, ranks, scratch.path(name)), ranks, scratch.path(name));
  };
  own("trireme", "trireme", 1);
  if (!arms[0]->ready(patience)) throw DataError("bench dlrm_step", arms[0]->skipped());
  if (problem_of(problem).ranks) {  // one after the other: several ranks each, and a port that is free now
    start_peer(arms, o, scratch, "ddp", 1);
    for (int n = 2; n <= o.ranks; n *= 2) {
      arms.back()->ready(patience);
      own("trireme", "trireme x" + std::to_string(n), n);
      start_peer(arms, o, scratch, "ddp", n);
    }
  } else {  // side by side: each takes long to read the weights
    start_peer(arms, o, scratch, "plain", 1);
    if (o.device == "cuda") {
      start_peer(arms, o, scratch, "graph", 1);
      own("eager", "trireme without a graph", 1);
    } else {
      own("bf16", "trireme bf16", 1);
    }
  }
  for (const auto& arm : arms) arm->ready(patience);
  return arms;
}

nlohmann::json row_of(const Options& o, const std::string& problem, const Arm& arm, const Arm& ours) {
  auto row = arm.row();
  row["problem"] = problem, row["device"] = o.device;
  if (!arm.skipped().empty()) return row;
  row["ratio"] = arm.median_ms() / ours.median_ms();
  // CPU time of the stepping thread: other programs on the machine hardly change it.
  if (o.device == "cpu") row["cpu_ratio"] = arm.median_cpu_ms() / ours.median_cpu_ms();
  if (arm.name() != "products")
    row["worst_loss_difference"] = worst_difference(ours.losses(equal_steps), arm.losses(equal_steps));
  return row;
}

nlohmann::json run_problem(const Options& o, const std::string& problem) {
  const Scratch scratch;
  Arms owned = start_arms(o, problem, scratch);
  std::vector<Arm*> arms;
  for (const auto& arm : owned) arms.push_back(arm.get());
  for (Arm* arm : arms)  // before the products, which have no loss
    for (int i = 0; i < equal_steps && arm->skipped().empty(); ++i) arm->block(1, true);
  if (o.device == "cpu" && !problem_of(problem).ranks) {
    start(owned, "products", own_arm(o, "products", problem, 1, scratch.path("products")), 1, scratch.path("products"));
    arms.push_back(owned.back().get());
    arms.back()->ready(patience);
  }
  const bool small = problem_of(problem).batch < 10000;
  alternate(arms, o.device == "cuda" ? (small ? 200 : 20) : (small ? 10 : 1), o.blocks);
  nlohmann::json rows = nlohmann::json::array();
  // Of an arm on several ranks: by ours on as many, the arm before it.
  for (std::size_t i = 0; i < arms.size(); ++i) {
    const bool ddp = arms[i]->name().starts_with("torch ddp");
    rows.push_back(row_of(o, problem, *arms[i], ddp && arms[i - 1]->skipped().empty() ? *arms[i - 1] : *arms[0]));
  }
  return rows;
}

nlohmann::json run(const Options& o) {
  nlohmann::json rows = nlohmann::json::array();
  std::vector<std::string> problems{o.problem};
  if (o.problem.empty()) problems = {"2048", "65536"};
  if (o.problem.empty() && o.device == "cuda" && device_runtime()->count() > 1)
    for (const char* more : {"2048 ranks", "65536 ranks"}) problems.emplace_back(more);
  for (const auto& problem : problems) {
    (void)problem_of(problem);
    for (auto& row : run_problem(o, problem)) rows.push_back(row);
  }
  return rows;
}

const Benchmarks::Entry entry({"dlrm_step",
                               "DLRM step of the Kaggle shape (--device) against PyTorch; on several GPUs (--ranks N) "
                               "against its DDP",
                               run, serve, true});

}  // namespace
}  // namespace trireme::bench
