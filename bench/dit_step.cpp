// One forward of FLUX's shape with random weights beside diffusers' own: 4 + 8 blocks (or all 19 + 38: "whole"), 24
// heads of 128, bf16, one picture, 256 text tokens, on one GPU; on a CPU a small one in f32. Arms of ours: op by op,
// recorded as a CUDA graph, the latter with text anchoring, and of a part of the tokens against cached keys (--problem
// "1024 whole"). With "autotune" diffusers is also compiled whole, every product tuned, which takes minutes.
#include "bench/bench.h"
#include "bench/flux_shape.h"
#include "comm/error.h"
#include "framework/device_info.h"
#include "framework/graphed_denoiser.h"
#include "framework/models/dit/token_set.h"

#include <cmath>
#include <cstdlib>

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

struct Problem {
  std::int64_t side = 1024;  // pixels; 16 a token
  bool whole = false, autotune = false;

  explicit Problem(const std::string& text)
      : side(std::atoll(text.c_str())),
        whole(text.find("whole") != std::string::npos),
        autotune(text.find("autotune") != std::string::npos) {
    if (side < 64 || side > 8192 || side % 16)
      throw UsageError("--problem", text, "512, 1024, 2048 or 4096, or \"1024 whole\", \"1024 autotune\"");
  }
};

// The share of tokens in "sparse 0.125"; 1 elsewhere.
double share_of(const std::string& arm) { return arm.starts_with("sparse ") ? std::atof(arm.c_str() + 7) : 1; }

void serve(const Options& o, Communicator&) {
  const at::NoGradGuard none;
  const bool gpu = o.device == "cuda";
  const Problem problem(o.problem);
  const at::Device device = gpu ? at::Device(at::kCUDA, 0) : at::Device(at::kCPU);
  const at::ScalarType type = gpu ? at::kBFloat16 : at::kFloat;
  const auto model = random_denoiser(flux_shape(problem.whole, gpu), 1, device, type);
  GraphedDenoiser graphed(*model);
  Denoiser& used = o.arm == "eager" ? *model : graphed;
  const auto options = at::TensorOptions(device).dtype(type);
  const at::Tensor x = at::randn({1, 16, 1, problem.side / 8, problem.side / 8}, options);
  const at::Tensor t = at::full({1}, 0.7, options.dtype(at::kFloat));
  const Conditioning c{at::randn({1, flux_text_tokens, 4096}, options), at::randn({1, 768}, options), {}, {}, {}};
  const std::int64_t tokens = (problem.side / 16) * (problem.side / 16);
  TokenSet set;
  DitHooks hooks;
  if (o.arm == "text anchor") hooks.text_bias = std::log(double(tokens) / 4096) + 1e-3;
  at::Tensor y = used.forward(x, t, c, hooks);
  if (share_of(o.arm) < 1) {
    hooks.tokens = &set;
    used.forward(x, t, c, hooks);
    const std::int64_t some =
        std::max<std::int64_t>(64, std::int64_t(std::ceil(share_of(o.arm) * double(tokens) / 64)) * 64);
    set.choose(std::get<0>(at::randperm(tokens, options.dtype(at::kLong)).narrow(0, 0, some).sort()).unsqueeze(0));
  }
  for (int i = 0; i < 3; ++i) y = used.forward(x, t, c, hooks);
  Server server(o.serve, 0);
  while (const auto command = server.command()) {
    if (*command == "memory") {
      server.reply(nlohmann::json{{"peak_gib", gpu ? peak_device_memory_gib(device) : 0.0}});
      continue;
    }
    const int n = std::atoi(command->c_str());
    const auto begin = std::chrono::steady_clock::now();
    const double cpu = thread_cpu_ms();
    for (int i = 0; i < n; ++i) y = used.forward(x, t, c, hooks);
    const double last = y.to(at::kFloat).pow(2).mean().item<double>();
    server.reply(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count(),
                 thread_cpu_ms() - cpu, std::vector<double>(n == 1 ? 1 : 0, last));
  }
}

// 57 (24 n D^2 + 4 n^2 D) of the whole: weights that meet every token, and attention.
double teraflops(const Problem& p) {
  const double n = double(p.side / 16) * double(p.side / 16) + flux_text_tokens, d = 24 * 128;
  return (p.whole ? 57 : 12) * (24 * n * d * d + 4 * n * n * d) / 1e12;
}

nlohmann::json measure(const Options& o, const std::string& problem) {
  const bool gpu = o.device == "cuda";
  const Scratch scratch;
  const Problem p(problem);
  std::vector<std::unique_ptr<Arm>> arms;
  std::vector<std::string> ours{"eager"};
  if (gpu) ours.insert(ours.end(), {"graph", "text anchor", "sparse 0.5", "sparse 0.26", "sparse 0.125"});
  std::vector<std::string> peers{"eager"};
  if (gpu) peers.insert(peers.end(), {"graph", "compile"});
  if (gpu && p.autotune) peers.push_back("autotune");
  for (const auto& name : ours)
    arms.push_back(std::make_unique<Arm>("trireme " + name, own_arm(o, name, problem, 1, scratch.path("own " + name)),
                                         1, scratch.path("own " + name)));
  for (const auto& name : peers) {
    const std::string folder = scratch.path("peer " + name);
    const std::vector<std::string> words{"--arm",    name,
                                         "--config", flux_shape(p.whole, gpu).dump(),
                                         "--side",   std::to_string(p.side),
                                         "--device", gpu ? "cuda" : "cpu"};
    arms.push_back(std::make_unique<Arm>("diffusers " + name, peer_arm("dit_step.py", words, folder), 1, folder));
  }
  // All arms keep their weights: with all 12 billion an arm that no longer fits is skipped.
  std::vector<Arm*> all;
  for (const auto& arm : arms) {
    if (arm->ready(std::chrono::seconds(400))) arm->block(1, true);
    all.push_back(arm.get());
  }
  alternate(all, p.side > 2048 ? 2 : 10, o.blocks);
  nlohmann::json rows = nlohmann::json::array();
  double best = INFINITY;
  for (const auto& arm : arms)
    if (arm->name().starts_with("diffusers") && arm->skipped().empty()) best = std::min(best, arm->median_ms());
  for (const auto& arm : arms) {
    nlohmann::json row = arm->row();
    row["problem"] = problem;
    if (arm->skipped().empty()) {
      if (const auto memory = arm->ask("memory")) row.update(*memory);
      if (share_of(arm->name().substr(arm->name().find(' ') + 1)) == 1 && gpu)
        row["tflops"] = 1e3 * teraflops(p) / arm->median_ms();
      if (std::isfinite(best)) row["over_best_peer"] = arm->median_ms() / best;
    }
    rows.push_back(row);
  }
  return rows;
}

nlohmann::json run(const Options& o) {
  nlohmann::json rows = nlohmann::json::array();
  std::vector<std::string> problems{o.problem};
  if (o.problem.empty())
    problems = o.device == "cuda" ? std::vector<std::string>{"512", "1024", "2048"} : std::vector<std::string>{"256"};
  for (const auto& problem : problems)
    for (auto& row : measure(o, problem)) rows.push_back(row);
  return rows;
}

const Benchmarks::Entry entry({"dit_step", "one forward of FLUX's shape against diffusers (--device)", run, serve,
                               /*on_devices=*/true});

}  // namespace
}  // namespace trireme::bench
