// One forward of FLUX's shape with random weights beside diffusers' own: 4 + 8 blocks (or all 19 + 38: "whole"), 24
// heads of 128, bf16, one picture, 256 text tokens, on one GPU; on a CPU a small one in f32. Arms of ours: op by op,
// recorded as a CUDA graph, the latter with text anchoring, and of a part of the tokens against cached keys (--problem
// "1024 2048 whole": sides in pixels). With "autotune" diffusers is also compiled whole, every product tuned, which
// takes minutes.
#include "bench/bench.h"
#include "bench/flux_shape.h"
#include "bench/turns.h"
#include "comm/error.h"
#include "framework/base/quantile.h"
#include "framework/device_info.h"
#include "framework/graphed_denoiser.h"
#include "framework/models/dit/token_set.h"

#include <cmath>
#include <cstdlib>
#include <limits>
#include <sstream>

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

struct Problem {
  std::vector<std::int64_t> sides;  // pixels; 16 a token
  bool whole = false, autotune = false;

  explicit Problem(const std::string& text) {
    std::istringstream words(text);
    for (std::string word; words >> word;) {
      if (word == "whole")
        whole = true;
      else if (word == "autotune")
        autotune = true;
      else
        sides.push_back(std::atoll(word.c_str()));
    }
    for (const auto side : sides)
      if (side < 64 || side > 8192 || side % 16)
        throw UsageError("--problem", text, "sides in pixels: \"512 1024\", \"1024 whole\", \"1024 autotune\"");
  }
};

// The share of tokens in "sparse 0.125"; 1 elsewhere.
double share_of(const std::string& arm) { return arm.starts_with("sparse ") ? std::atof(arm.c_str() + 7) : 1; }

// All our arms in one process, with one model.
class Forwards {
 public:
  explicit Forwards(const Options& o)
      : gpu_(o.device == "cuda"),
        options_(at::TensorOptions(gpu_ ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU))
                     .dtype(gpu_ ? at::kBFloat16 : at::kFloat)),
        model_(random_denoiser(flux_shape(Problem(o.problem).whole, gpu_), 1, options_.device(),
                               at::typeMetaToScalarType(options_.dtype()))),
        graphed_(*model_) {}

  // "SIDE N ARM": N forwards.
  nlohmann::json run(const std::string& command) {
    std::istringstream words(command);
    std::int64_t side = 0;
    int n = 0;
    std::string arm;
    words >> side >> n >> std::ws;
    std::getline(words, arm);
    Case& c = cases_[std::to_string(side) + arm];
    if (!c.x.defined()) begin(c, side, arm);
    if (side <= 1024) forward(c, arm), wait(c.y);  // arms find the GPU awake alike
    const auto began = std::chrono::steady_clock::now();
    const double cpu = thread_cpu_ms();
    for (int i = 0; i < n; ++i) forward(c, arm);
    wait(c.y);
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
    return {{"ms", ms / n},
            {"cpu_ms", (thread_cpu_ms() - cpu) / n},
            {"peak_gib", gpu_ ? peak_device_memory_gib(options_.device()) : 0.0}};
  }

 private:
  struct Case {
    at::Tensor x, y;
    Conditioning condition;
    std::unique_ptr<TokenSet> tokens;
    DitHooks hooks;
  };

  void begin(Case& c, std::int64_t side, const std::string& arm) {
    c.x = at::randn({1, 16, 1, side / 8, side / 8}, options_);
    c.condition = {at::randn({1, flux_text_tokens, 4096}, options_), at::randn({1, 768}, options_), {}, {}, {}};
    const std::int64_t tokens = side / 16 * (side / 16);
    if (arm == "text anchor") c.hooks.text_bias = std::log(double(tokens) / 4096) + 1e-3;
    if (const double share = share_of(arm); share < 1) {
      c.tokens = std::make_unique<TokenSet>();
      c.hooks.tokens = c.tokens.get();
      forward(c, arm);
      const auto some = std::max<std::int64_t>(64, std::int64_t(std::ceil(share * double(tokens) / 64)) * 64);
      c.tokens->choose(
          std::get<0>(at::randperm(tokens, options_.dtype(at::kLong)).narrow(0, 0, some).sort()).unsqueeze(0));
    }
    for (int i = 0; i < 3; ++i) forward(c, arm);
    wait(c.y);
  }

  void forward(Case& c, const std::string& arm) {
    const at::Tensor t = at::full({1}, 0.7, options_.dtype(at::kFloat));
    Denoiser& used = arm == "eager" ? *model_ : graphed_;
    c.y = used.forward(c.x, t, c.condition, c.hooks);
  }

  static void wait(const at::Tensor& y) { (void)y.sum(at::kFloat).item<float>(); }

  const bool gpu_;
  const at::TensorOptions options_;
  const std::unique_ptr<Denoiser> model_;
  GraphedDenoiser graphed_;
  std::map<std::string, Case> cases_;
};

void serve(const Options& o, Communicator&) {
  const at::NoGradGuard none;
  Forwards forwards(o);
  Server server(o.serve, 0);
  while (const auto command = server.command()) server.reply(forwards.run(*command));
}

// 57 (24 n D^2 + 4 n^2 D) of the whole: weights that meet every token, and attention.
double teraflops(std::int64_t side, bool whole) {
  const double n = double(side / 16) * double(side / 16) + flux_text_tokens, d = 24 * 128;
  return (whole ? 57 : 12) * (24 * n * d * d + 4 * n * n * d) / 1e12;
}

struct Row {
  Arm* process;
  bool peer;
  std::string arm;
  std::int64_t side;
  std::vector<double> ms = {};
  nlohmann::json last = {};

  void step(bool count) {
    const int n = side > 2048 ? 1 : side > 1024 ? 2 : 5;
    const auto answer = process->ask(std::to_string(side) + " " + std::to_string(n) + " " + arm);
    if (!answer) return;
    last = *answer;
    if (count) ms.push_back(answer->at("ms").get<double>());
  }
  double median() const { return quantile(ms, 0.5); }
  std::string title() const { return std::to_string(side) + (peer ? " diffusers " : " trireme ") + arm; }
};

class Bench {
 public:
  explicit Bench(const Options& o)
      : o_(o), problem_(o.problem.empty() ? (o.device == "cuda" ? "512 1024 2048 4096" : "256") : o.problem) {
    const bool gpu = o.device == "cuda";
    Arm& own = start("trireme", own_arm(o, "ours", o.problem, 1, scratch_.path("own")), "own");
    Arm& eager = start("diffusers eager", peer("eager"), "eager");
    for (const auto side : problem_.sides) {
      std::vector<std::string> ours{"eager"};
      if (gpu) ours.insert(ours.end(), {"graph", "text anchor"});
      if (gpu && side <= 2048) ours.insert(ours.end(), {"sparse 0.5", "sparse 0.26", "sparse 0.125"});
      for (const auto& arm : ours) rows_.push_back({&own, false, arm, side});
      rows_.push_back({&eager, true, "eager", side});
      if (!gpu) continue;
      // A process for each size: what compiles, compiles at one time. Above 1024 px nothing waits for the host.
      std::vector<std::string> peers{"compile"};
      if (side <= 1024) peers.emplace_back("graph");
      if (problem_.autotune) peers.emplace_back("autotune");
      for (const auto& arm : peers) {
        const std::string folder = arm + std::to_string(side);
        rows_.push_back({&start("diffusers " + folder, peer(arm, folder, side), folder), true, arm, side});
      }
    }
  }

  nlohmann::json run() {
    for (const auto& p : processes_) p->ready(std::chrono::seconds(400));
    in_turns(rows_, o_.blocks);
    nlohmann::json all = nlohmann::json::array();
    for (const auto& row : rows_) all.push_back(result(row));
    return all;
  }

 private:
  std::vector<std::string> peer(const std::string& arm, const std::string& folder = "eager", std::int64_t side = 0) {
    const bool gpu = o_.device == "cuda";
    return peer_arm("dit_step.py",
                    {"--arm", arm, "--config", flux_shape(problem_.whole, gpu).dump(), "--device", gpu ? "cuda" : "cpu",
                     "--side", std::to_string(side)},
                    scratch_.path(folder));
  }
  Arm& start(const std::string& name, const std::vector<std::string>& command, const std::string& folder) {
    return *processes_.emplace_back(std::make_unique<Arm>(name, command, 1, scratch_.path(folder)));
  }

  nlohmann::json result(const Row& row) const {
    nlohmann::json r{{"problem", std::to_string(row.side) + (problem_.whole ? " whole" : "")},
                     {"arm", (row.peer ? "diffusers " : "trireme ") + row.arm}};
    if (row.ms.empty()) {
      r["skipped"] = row.process->skipped().empty() ? "stopped before" : row.process->skipped();
      return r;
    }
    double best = std::numeric_limits<double>::infinity();
    for (const auto& other : rows_)
      if (other.peer && other.side == row.side && !other.ms.empty()) best = std::min(best, other.median());
    r["step_ms"] = row.median(), r["low_ms"] = quantile(row.ms, 0.25), r["high_ms"] = quantile(row.ms, 0.75);
    r["blocks"] = row.ms.size();
    for (const char* key : {"cpu_ms", "peak_gib"}) r[key] = row.last.at(key);
    if (o_.device == "cuda" && share_of(row.arm) == 1)
      r["tflops"] = 1e3 * teraflops(row.side, problem_.whole) / row.median();
    if (std::isfinite(best)) r["over_best_peer"] = row.median() / best;
    return r;
  }

  const Options& o_;
  const Problem problem_;
  const Scratch scratch_;
  std::vector<std::unique_ptr<Arm>> processes_;
  std::vector<Row> rows_;
};

const Benchmarks::Entry entry({"dit_step", "one forward of FLUX's shape against diffusers (--device)",
                               [](const Options& o) { return Bench(o).run(); }, serve,
                               /*on_devices=*/true});

}  // namespace
}  // namespace trireme::bench
