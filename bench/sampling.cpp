// Milliseconds a step of the arms of a sampling file, on 1, 2, 4 .. --ranks ranks (on a GPU: at most as many as there
// are GPUs), arms and ranks in turn: --problem "recipes/sdit/speed.yaml key=value ...". A block is a whole picture of
// an arm without files. Where a method makes a smaller sketch first (SuperGen), that is timed apart: step_ms and all
// that is a step's are of the refinement, sketch_step_ms of the sketch with its scaling up, picture_ms of both. Of
// tiles: how near the time of one rank's tiles, shared out evenly, comes. With the word
// "peers", of FLUX's layout on one rank: diffusers too, and cache-dit over it, eager and its blocks compiled
// (bench/peers/sampling.py).
#include "bench/bench.h"
#include "bench/turns.h"
#include "comm/device.h"
#include "comm/error.h"
#include "framework/base/quantile.h"
#include "framework/device_info.h"
#include "framework/graphed_denoiser.h"
#include "trainers/sample/engine.h"
#include "trainers/sample/model.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <sstream>

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

using sample::SampleConfig;
using sample::SampleJob;

struct Problem {
  SampleJob job;
  bool peers = false;
};

Problem problem_of(const Options& o) {
  Problem problem;
  std::istringstream words(o.problem.empty() ? "recipes/sdit/speed.yaml" : o.problem);
  std::string file, word, only;
  words >> file;
  std::vector<std::string> overrides{"device=" + o.device};
  for (std::string pending; words >> word;) {  // a list has spaces
    pending += (pending.empty() ? "" : " ") + word;
    if (std::ranges::count(pending, '[') != std::ranges::count(pending, ']')) continue;
    if (pending == "peers")
      problem.peers = true;
    else if (pending.starts_with("only="))
      only = "," + pending.substr(5) + ",";
    else
      overrides.push_back(pending);
    pending.clear();
  }
  SampleJob& job = problem.job = sample::read_job(file, overrides);
  if (!only.empty())
    std::erase_if(job.arms, [&](const auto& c) { return only.find("," + c.arm + ",") == std::string::npos; });
  if (job.arms.empty()) throw UsageError("--problem", "names no arm of " + file, "only=ARM,ARM");
  return problem;
}

// The peers' process, with the model, size and steps of arm `c`.
std::vector<std::string> peers_of(const SampleConfig& c, const std::string& folder) {
  const nlohmann::json config = sample::read_model_config(c);
  const DenoiserInfo info = sample::plan_model(config).info;
  if (info.layout != "flux")
    throw UsageError("--problem", "peers draw with FLUX's layout, not " + info.layout, "leave 'peers' out");
  const std::int64_t token = info.latent_factor * info.patch;
  const nlohmann::json picture{{"tokens", {c.size[0] / token, c.size[1] / token}},
                               {"text", info.base_text},
                               {"steps", c.steps},
                               {"guidance", c.guidance},
                               {"precision", c.precision == "bf16" ? "bfloat16" : "float32"}};
  return peer_arm("sampling.py", {"--config", config.dump(), "--picture", picture.dump(), "--device", c.device},
                  folder);
}

// All arms in one process of one number of ranks, with one model. Answers "run ARM".
class Arms {
 public:
  Arms(const Options& o, Communicator& world)
      : world_(world), job_(problem_of(o).job), place_(sample::place(job_.arms[0], world)) {
    const SampleConfig& first = job_.arms[0];
    json_ = sample::read_model_config(first);
    plan_ = sample::plan_model(json_);
    for (const auto& c : job_.arms)
      if (c.model != first.model || c.precision != first.precision || c.weights != first.weights)
        throw UsageError("bench sampling", "arm " + c.arm + " has another model", "one file for each model");
    model_ = sample::load_model(first, json_, place_.device);
  }

  nlohmann::json run(const std::string& name) {
    const auto found = std::ranges::find_if(job_.arms, [&](const auto& c) { return c.arm == name; });
    try {
      return step(*found);
    } catch (const UsageError& e) {  // on all ranks alike: what a number of ranks cannot do
      return {{"skipped", e.what()}};
    }
  }

 private:
  // What an arm keeps from one picture to the next.
  struct Kept {
    sample::Groups groups;
    std::unique_ptr<LatentCodec> codec;
    std::unique_ptr<sample::Conditions> conditions;
    std::unique_ptr<GraphedDenoiser> graphed;
    LevelModulations modulations;
    std::unique_ptr<SampleContext> context;
  };

  Kept& kept(const SampleConfig& c, Sampler& method) {
    const auto [at, fresh] = kept_.try_emplace(c.arm);
    if (!fresh && at->second) return *at->second;
    auto k = std::make_unique<Kept>();
    k->groups = sample::make_groups(c, method, place_, world_);
    k->codec = latent_codec(plan_.info.channels, plan_.info.latent_factor);
    k->conditions = sample::read_conditions(c, plan_.info, json_);
    k->conditions->model_loaded(*model_);
    k->graphed = std::make_unique<GraphedDenoiser>(*model_, sample::recorded_forwards(c));
    k->context = std::make_unique<SampleContext>(*k->groups.tensors, *k->graphed, *k->codec, place_.device,
                                                 sample::precision_of(c));
    SampleContext& context = *k->context;
    context.steps = c.steps, context.height = c.size[0], context.width = c.size[1], context.frames = c.frames;
    context.shift.mu_mode = "none";
    context.halves = k->groups.halves.get();
    context.parallel = k->groups.sequence.get();
    context.modulations = &k->modulations;
    method.setup(context);
    at->second = std::move(k);
    return *at->second;
  }

  nlohmann::json step(const SampleConfig& c) {
    Sampler& method = *c.samplers.at(c.method);
    Kept& k = kept(c, method);
    std::vector<double> tiles, ran;  // a value a step, of methods that say so
    k.context->record = [&](std::string_view what, double value) {
      if (what == "computed_tiles") tiles.push_back(value);
      if (what == "computed") ran.push_back(value);
    };
    Sampling s;
    for (std::int64_t i = 0; i < c.batch; ++i) s.prompts.push_back({k.conditions->texts()[0], std::uint64_t(i), i});
    s.guidance = c.guidance;
    k.conditions->fill(s, sample::latent_shape(c, plan_.info), *k.context);
    s.grid = model_->grid(s.x.sizes());
    method.begin(s, *k.context);
    wait(s.x);
    world_.barrier().wait();
    const Pass first = timed_pass(s, method, k);
    const bool sketched = s.step < s.steps();
    if (sketched) ran.clear();  // what is told is of the refinement
    const Pass pass = sketched ? timed_pass(s, method, k) : first;
    nlohmann::json answer{{"ms", pass.ms / pass.steps},
                          {"picture_ms", sketched ? first.ms + pass.ms : pass.ms},
                          {"cpu_ms", pass.cpu_ms / pass.steps},
                          {"steps", pass.steps},
                          {"computed", ran.empty() ? pass.steps : std::accumulate(ran.begin(), ran.end(), 0.0)},
                          {"bytes_a_step", double(pass.sent.bytes) / pass.steps},
                          {"collectives_a_step", double(pass.sent.calls) / pass.steps},
                          {"tiles", tiles},
                          {"tokens", s.grid.tokens()},
                          {"peak_gib", place_.device.is_cuda() ? peak_device_memory_gib(place_.device) : 0.0}};
    if (sketched) answer["sketch_ms"] = first.ms / first.steps, answer["sketch_steps"] = first.steps;
    return answer;
  }

  struct Pass {
    double ms = 0, cpu_ms = 0, steps = 0;
    CommStats sent;
  };
  // Until the picture is done or the method turns back to refine it.
  static Pass timed_pass(Sampling& s, Sampler& method, Kept& k) {
    Pass pass;
    const CommStats before = k.groups.sent();
    const auto began = std::chrono::steady_clock::now();
    const double cpu = thread_cpu_ms();
    for (std::int64_t next = s.step; s.step == next && s.step < s.steps();) {
      const double sigma = s.sigma(), to = s.sigmas[std::size_t(s.step) + 1];
      s.x = euler_step(s.x, method.velocity(s, *k.context), sigma, to);
      next = ++s.step, ++pass.steps;
      method.stepped(s, *k.context);
    }
    wait(s.x);
    pass.ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - began).count();
    pass.cpu_ms = thread_cpu_ms() - cpu;
    pass.sent = k.groups.sent();
    pass.sent.bytes -= before.bytes, pass.sent.calls -= before.calls;
    return pass;
  }

  static void wait(const at::Tensor& x) { (void)x.sum().item<float>(); }

  Traced world_;
  const SampleJob job_;
  const Placement place_;
  nlohmann::json json_;
  sample::ModelPlan plan_;
  std::unique_ptr<Denoiser> model_;
  std::map<std::string, std::unique_ptr<Kept>> kept_;
};

void serve(const Options& o, Communicator& world) {
  const at::NoGradGuard none;
  Arms arms(o, world);
  Server server(o.serve, int(world.rank()));
  while (const auto command = server.command()) server.reply(arms.run(command->substr(4)));
}

struct Row {
  Arm* process;
  std::string arm;
  int ranks;
  std::int64_t units;                                      // of work a tile
  std::vector<double> ms = {}, sketch = {}, picture = {};  // of a step, of a step of the sketch, of both passes
  nlohmann::json last = {};
  std::string skipped = {};

  void step(bool count) {
    if (!skipped.empty()) return;
    const auto answer = process->ask("run " + arm);
    if (!answer) skipped = process->skipped();
    if (answer && answer->contains("skipped")) skipped = answer->at("skipped").get<std::string>();
    if (!skipped.empty()) return;
    last = *answer;
    if (!count) return;
    ms.push_back(answer->at("ms").get<double>());
    if (last.contains("sketch_ms")) sketch.push_back(last["sketch_ms"].get<double>());
    if (last.contains("picture_ms")) picture.push_back(last["picture_ms"].get<double>());
  }
  double median() const { return quantile(ms, 0.5); }
  std::string title() const { return arm + " on " + std::to_string(ranks); }
  // Units of tiles one after another, of the rank that has the most, over all steps; 0: there are no tiles.
  double longest() const {
    double sum = 0;
    for (const auto& tiles : last.at("tiles")) sum += std::ceil(tiles.get<double>() * double(units) / ranks);
    return sum;
  }
};

nlohmann::json row_of(const Row& row, const Row* one, const Row* first) {
  nlohmann::json r{{"arm", row.arm}, {"ranks", row.ranks}};
  if (!row.skipped.empty() || row.ms.empty()) {
    r["skipped"] = row.skipped.empty() ? "stopped before" : row.skipped;
    return r;
  }
  r["step_ms"] = row.median(), r["low_ms"] = quantile(row.ms, 0.25), r["high_ms"] = quantile(row.ms, 0.75);
  r["blocks"] = row.ms.size();
  if (!row.picture.empty()) r["picture_ms"] = quantile(row.picture, 0.5);
  if (!row.sketch.empty())
    r["sketch_step_ms"] = quantile(row.sketch, 0.5), r["sketch_steps"] = row.last["sketch_steps"];
  for (const char* key : {"cpu_ms", "steps", "computed", "tokens", "peak_gib", "bytes_a_step", "collectives_a_step"})
    if (row.last.contains(key)) r[key] = row.last.at(key);
  if (first && first != &row && !first->ms.empty()) r["first_over_this"] = first->median() / row.median();
  if (!one || one == &row || one->ms.empty()) return r;
  r["over_one"] = one->median() / row.median();
  const double tiles = row.longest();
  r["of_ideal"] = (tiles > 0 ? tiles / one->longest() * one->median() : one->median() / row.ranks) / row.median();
  return r;
}

nlohmann::json run(const Options& o) {
  const auto [job, peers] = problem_of(o);
  const Scratch scratch;
  const int most = o.device == "cuda" ? std::min(o.ranks, device_runtime()->count()) : o.ranks;
  std::vector<std::unique_ptr<Arm>> processes;
  std::vector<Row> rows;
  for (int p = 1; p <= most; p *= 2) {
    const std::string name = "ranks" + std::to_string(p), folder = scratch.path(name);
    auto& process =
        *processes.emplace_back(std::make_unique<Arm>(name, own_arm(o, "arms", o.problem, p, folder), p, folder));
    for (const auto& c : job.arms) {
      const auto unit = c.settings.find("unit: half");
      rows.push_back({&process, c.arm, p, c.method == "supergen" && unit != std::string::npos ? 2 : 1});
    }
  }
  if (peers) {
    const std::string folder = scratch.path("peers");
    auto& process = *processes.emplace_back(std::make_unique<Arm>("peers", peers_of(job.arms[0], folder), 1, folder));
    for (const char* arm : {"diffusers", "diffusers_compiled", "cache_dit", "cache_dit_compiled"})
      rows.push_back({&process, arm, 1, 1});
  }
  for (const auto& p : processes) p->ready(std::chrono::seconds(300));
  in_turns(rows, o.blocks);
  nlohmann::json all = nlohmann::json::array();
  for (const auto& row : rows) {
    const auto with = [&](const std::string& arm, int ranks) -> const Row* {
      const auto at = std::ranges::find_if(rows, [&](const Row& r) { return r.arm == arm && r.ranks == ranks; });
      return at == rows.end() ? nullptr : &*at;
    };
    const Row* one = with(row.arm, 1);
    if (!one || one->ms.empty()) one = with(job.arms[0].arm, 1);
    all.push_back(row_of(row, one, with(job.arms[0].arm, row.ranks)));
  }
  return all;
}

const Benchmarks::Entry entry(
    {"sampling", "a step of each arm of a sampling file, on 1, 2 .. --ranks ranks (--problem FILE.yaml, --device)", run,
     serve, /*on_devices=*/true});

}  // namespace
}  // namespace trireme::bench
