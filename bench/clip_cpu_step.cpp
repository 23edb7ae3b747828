// One FastCLIP v3 step on the CPU: our session on 2 ranks x 1 thread and on 1 rank x 2 threads, against the same model
// in PyTorch with 2 threads. All arms get the same initial weights and batches of real pairs.
#include "bench/own_run.h"
#include "comm/error.h"

#include <cstdio>
#include <filesystem>

#include <ATen/Parallel.h>

namespace trireme::bench {
namespace {

struct Problem {
  const char *name, *model;
  int batch;
};
constexpr Problem problems[] = {
    {"64px",
     "{embed_dim: 192, image_size: 64, patch_size: 8, vision_width: 192, vision_layers: 6, vision_heads: 3, "
     "context: 32, vocab: 4096, text_width: 192, text_layers: 3, text_heads: 3}",
     128},
    {"32px",
     "{embed_dim: 192, image_size: 32, patch_size: 8, vision_width: 192, vision_layers: 4, vision_heads: 3, "
     "context: 20, vocab: 4096, text_width: 192, text_layers: 2, text_heads: 3}",
     64},
};
constexpr int batches = 4;

const Problem& problem_of(const std::string& name) {
  for (const auto& p : problems)
    if (name == p.name) return p;
  throw UsageError("--problem", name, "64px or 32px");
}

std::string yaml(const Problem& p) {
  return "recipe: fastclip\nsteps: 1000000\nbatch_size: " + std::to_string(p.batch) +
         "\noptimizer: {lr: 5.0e-4, beta2: 0.98, eps: 1.0e-8, weight_decay: 0.2, schedule: const}\n"
         "data: {file: openclipart}\nmodel: " +
         p.model +
         "\nloss: {name: rgclg, tau: 0.05, rho: 6.5, lr_tau: 1.0e-3, lr_tau_schedule: const, gamma_schedule: constant, "
         "gamma_min: 0.8}\n";
}

// Every arm of one problem shares the file that our first arm writes.
std::string shared_file(const std::string& folder) {
  return (std::filesystem::path(folder).parent_path() / "start.safetensors").string();
}

void serve(const Options& o, Communicator& world) {
  at::set_num_threads(world.size() > 1 ? 1 : 2);
  const Problem& p = problem_of(o.problem);
  Experiment run(Config::parse(yaml(p), "benchmark"));
  OwnSession session(run, world, batches);
  if (world.size() == 1)
    session.write(shared_file(o.serve), {{"heads", "3"}, {"patch", "8"}, {"batches", std::to_string(batches)}});
  Server(o.serve, world.rank()).run([&] { return session.step(); });
}

nlohmann::json run_problem(const Options& o, const Problem& p) {
  const Scratch scratch;
  const auto folder = [&](const std::string& arm) { return scratch.path(arm); };
  const auto ours = [&](const std::string& arm, int ranks) {
    return std::make_unique<Arm>("trireme " + arm, own_arm(o, arm, p.name, ranks, folder(arm)), ranks, folder(arm));
  };
  const auto peer = [&](const std::string& arm) {
    return std::make_unique<Arm>(
        "pytorch " + arm,
        peer_arm("clip_step.py", {"--file", scratch.path("start.safetensors"), "--arm", arm}, folder(arm)), 1,
        folder(arm));
  };
  std::vector<std::unique_ptr<Arm>> arms;
  arms.push_back(ours("1x2", 1));
  if (!arms[0]->ready(std::chrono::seconds(300))) throw DataError("bench " + o.name, arms[0]->skipped());
  arms.push_back(ours("2x1", 2));
  for (const char* arm : {"eager", "trimmed", "compile", "bf16", "bf16_compile"}) arms.push_back(peer(arm));

  // None steps while others still start. bf16 is tried after ours and the f32 arms are known.
  for (auto& arm : arms) arm->ready(std::chrono::seconds(120));
  // Two steps each: the first compiles what is to be compiled. bf16 without hardware for it can take a minute a step:
  // it has five times our time (and some for the start), and is not tried compiled after that.
  bool bf16_hopeless = false;
  for (auto& arm : arms) {
    const bool bf16 = arm->name().find("bf16") != std::string::npos,
               compiled = arm->name().find("compile") != std::string::npos;
    const double ours = std::min(arms[0]->last_ms(), arms[1]->last_ms());
    if (bf16 && bf16_hopeless) arm->skip("bf16 has no hardware here: see the arm that is not compiled");
    const std::chrono::seconds patience(bf16 && !compiled ? 3 + int(5e-3 * ours) : 240);
    for (int i = 0; i < 2; ++i) arm->block(1, true, patience);
    if (bf16 && arm->skipped().empty() && arm->last_ms() > 5 * ours)
      arm->skip("a step takes " + std::to_string(std::int64_t(arm->last_ms())) + " ms, more than 5 times ours");
    bf16_hopeless |= bf16 && !arm->skipped().empty();
    std::fprintf(stderr, "%s %s: %s (%.0f ms)\n", p.name, arm->name().c_str(),
                 arm->skipped().empty() ? "ready" : arm->skipped().c_str(), arm->last_ms());
  }
  std::vector<Arm*> stepping;
  for (auto& arm : arms) stepping.push_back(arm.get());
  alternate(stepping, p.batch > 64 ? 1 : 5, o.blocks);

  nlohmann::json rows = nlohmann::json::array();
  for (auto& arm : arms) {
    auto row = arm->row();
    row["problem"] = p.name;
    if (arm->skipped().empty()) {
      row["pairs_per_s"] = 1e3 * p.batch / arm->median_ms();
      row["ratio"] = arm->median_ms() / std::min(arms[0]->median_ms(), arms[1]->median_ms());
    }
    rows.push_back(row);
  }
  return rows;
}

nlohmann::json run(const Options& o) {
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& p : problems)
    if (o.problem.empty() || o.problem == p.name)
      for (auto& row : run_problem(o, p)) rows.push_back(row);
  return rows;
}

const Benchmarks::Entry entry({"clip_cpu_step", "FastCLIP step on the CPU against PyTorch", run, serve});

}  // namespace
}  // namespace trireme::bench
