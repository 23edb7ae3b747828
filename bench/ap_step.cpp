// A step of several LoRA jobs on a backbone that lies on several ranks: adapter parallelism beside sharded
// data-parallel (packed, and one job at a time), a filled pipeline and a loop over adapters, with what the gathers and
// the computation take alone.
//   --problem SHAPE[/LAYERS][@TOKENS]:LENGTHxBATCH,...[:ARM,...]   TOKENS: the most of a rank in a pass
#include "bench/adapter_arms.h"
#include "bench/bench.h"
#include "comm/error.h"
#include "framework/base/quantile.h"
#include "framework/device_info.h"
#include "framework/metrics/utilisation.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <iostream>
#include <map>
#include <numeric>
#include <set>
#include <sstream>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

namespace trireme::bench {
namespace {

using Clock = std::chrono::steady_clock;

struct Shape {
  std::int64_t hidden, intermediate, layers, heads, kv_heads, vocab;
  bool bf16;
  std::vector<std::int64_t> ranks;
};
const std::vector<std::int64_t> paper = {16, 32, 64, 128, 16, 32, 64, 128};
const std::map<std::string, Shape> shapes = {{"70b", {8192, 28672, 80, 64, 8, 128256, true, paper}},
                                             {"32b", {5120, 27648, 64, 40, 8, 152064, true, paper}},
                                             {"8b", {4096, 14336, 32, 32, 8, 128256, true, paper}},
                                             {"1b", {2048, 5632, 22, 32, 4, 32000, true, paper}},
                                             {"lab", {256, 704, 8, 4, 2, 512, false, {4, 8, 16, 32, 4, 8, 16, 32}}}};

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, by);) parts.push_back(part);
  return parts;
}

struct Row {
  int length = 0, batch = 0, blocks = 1;
};

struct Problem {
  AdapterJobs jobs;
  std::vector<Row> rows;
  std::set<std::string> arms;
  std::string name;
  bool has(const char* arm) const { return arms.empty() || arms.contains(arm); }
  bool sharded() const { return has("ours") || has("loop") || has("one job at a time") || has("packed"); }
};

Problem problem_of(const Options& o) {
  const std::string text = o.problem.empty() ? "lab:64x1,64x2" : o.problem;
  const auto wrong = [&](const std::string& why) {
    return UsageError("--problem", text.substr(0, 80) + ": " + why, "write for example 70b/8@4096:256x1,256x2:ours");
  };
  const auto parts = split(text, ':');
  char shape[9] = {};
  int layers = 0, tokens = 0;
  if (parts.size() < 2 || std::sscanf(parts[0].c_str(), "%8[a-z0-9]", shape) != 1 || !shapes.contains(shape))
    throw wrong("the shapes are 70b, 32b, 8b, 1b and lab");
  if (const auto slash = parts[0].find('/'); slash != std::string::npos) layers = std::atoi(&parts[0][slash + 1]);
  if (const auto at = parts[0].find('@'); at != std::string::npos) tokens = std::atoi(&parts[0][at + 1]);
  const Shape& s = shapes.at(shape);
  Problem p;
  p.name = parts[0];
  CausalLmConfig& c = p.jobs.model;
  c.family = "llama";
  c.vocab = s.vocab, c.hidden = s.hidden, c.intermediate = s.intermediate, c.layers = layers > 0 ? layers : s.layers;
  c.heads = s.heads, c.kv_heads = s.kv_heads, c.head_dim = s.hidden / s.heads, c.eps = 1e-5;
  p.jobs.type = s.bf16 ? at::kBFloat16 : at::kFloat;
  p.jobs.ranks = s.ranks;
  if (tokens > 0) p.jobs.pass_tokens = tokens;
  for (const auto& row : split(parts[1], ',')) {
    Row r;
    if (std::sscanf(row.c_str(), "%dx%d", &r.length, &r.batch) != 2 || r.length < 2 || r.batch < 1)
      throw wrong("'" + row + "' is no LENGTHxBATCH");
    p.rows.push_back(r);
  }
  if (parts.size() > 2)
    for (const auto& arm : split(parts[2], ',')) p.arms.insert(arm);
  return p;
}

// One of the ranks, which measures what rank 0 of the benchmark's own process asks for.
class Measuring {
 public:
  Measuring(const Options& o, Communicator& world) : world_(world), p_(problem_of(o)) {
    TrainConfig config;
    config.device = o.device;
    place_ = place_rank(world, config);
    if (place_.device.is_cpu()) at::set_num_threads(1);
    for (const auto& jobs : balanced(p_.jobs.ranks, world.size())) own_.push_back(jobs);
    all_.resize(p_.jobs.ranks.size());
    std::iota(all_.begin(), all_.end(), 0);
  }

  nlohmann::json sharded(const Row& row);
  template <class Wanted, class Other>
  void begin_row(const Row& row, std::unique_ptr<Wanted>& wanted, std::unique_ptr<Other>& other);
  nlohmann::json pipeline(const Row& row);

 private:
  struct Timed {
    std::string name;
    std::function<void()> run;
    std::vector<double> ms = {}, cpu_ms = {};  // cpu: of this process
    double median() const { return quantile(ms, 0.5); }
  };
  const std::vector<std::int64_t>& own() const { return own_[std::size_t(world_.rank())]; }
  void everybody();
  void take_turns(std::vector<Timed>& arms, int blocks);
  double one_at_a_time(int blocks);
  nlohmann::json describe(const std::string& arm, const Row& row, const std::vector<double>& ms) const;
  double flops(const Row& row) const;

  Communicator& world_;
  Problem p_;
  Placement place_;
  std::vector<std::vector<std::int64_t>> own_;
  std::vector<std::int64_t> all_;
  std::unique_ptr<ShardedJobs> sharded_;
  std::unique_ptr<PipelinedJobs> pipeline_;
};

double process_cpu_ms() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return 1e3 * double(t.tv_sec) + 1e-6 * double(t.tv_nsec);
}

// All devices are done, and all ranks know.
void Measuring::everybody() {
  if (place_.device.is_cuda()) at::zeros({1}, place_.device).item();
  world_.barrier().wait();
}

void Measuring::take_turns(std::vector<Timed>& arms, int blocks) {
  for (int block = -1; block < blocks; ++block)
    for (auto& arm : arms) {
      everybody();
      const auto begin = Clock::now();
      const double cpu = process_cpu_ms();
      arm.run();
      const double used = process_cpu_ms() - cpu;
      everybody();
      if (block < 0) continue;
      arm.ms.push_back(std::chrono::duration<double, std::milli>(Clock::now() - begin).count());
      arm.cpu_ms.push_back(used);
    }
}

// Forward and the input's gradient of the base, with its head; forward and both gradients of adapters; attention as if
// it saw all tokens. What is computed again does not count.
double Measuring::flops(const Row& row) const {
  const CausalLmConfig& c = p_.jobs.model;
  const double layer = double(c.hidden * (2 * c.heads + 2 * c.kv_heads) * c.head_dim + 3 * c.hidden * c.intermediate);
  const double base = layer * double(c.layers) + double(c.hidden * c.vocab);
  const double unit = double(4 * c.hidden + 2 * c.heads * c.head_dim + 2 * c.kv_heads * c.head_dim) +
                      double(3 * (c.hidden + c.intermediate));
  double adapters = 0;
  for (const auto r : p_.jobs.ranks) adapters += unit * double(r * c.layers);
  const double tokens = double(row.length * row.batch), jobs = double(p_.jobs.ranks.size());
  const double attention = 12.0 * double(c.layers * c.heads * c.head_dim) * row.length;
  return tokens * (jobs * (4 * base + attention) + 6 * adapters);
}

nlohmann::json Measuring::describe(const std::string& arm, const Row& row, const std::vector<double>& ms) const {
  const double step = quantile(ms, 0.5);
  const double tokens = double(p_.jobs.ranks.size()) * row.length * row.batch;
  const double peak = data_sheet_tflops(device_name(place_.device), "bf16");
  nlohmann::json r{{"problem", p_.name},
                   {"arm", arm},
                   {"length", row.length},
                   {"batch", row.batch},
                   {"step_ms", step},
                   {"low_ms", *std::min_element(ms.begin(), ms.end())},
                   {"high_ms", *std::max_element(ms.begin(), ms.end())},
                   {"tokens_per_s", tokens / step * 1e3}};
  if (place_.device.is_cuda()) {
    r["mfu"] = utilisation(flops(row), step, world_.size(), peak).mfu;
    r["reserved_gib"] = double(peak_reserved_bytes(place_.device)) / 1073741824;
    r["device"] = device_name(place_.device);
  }
  return r;
}

// Steps of each job by itself, where a rank has no room for all; of equal ranks one stands for all.
double Measuring::one_at_a_time(int blocks) {
  std::map<std::int64_t, std::pair<std::int64_t, int>> kinds;  // by rank: a job, and how many
  for (const auto job : all_) {
    auto& kind = kinds[p_.jobs.ranks[std::size_t(job)]];
    kind.first = job, ++kind.second;
  }
  double total = 0;
  for (const auto& [rank, kind] : kinds) {
    const std::vector<std::int64_t> one{kind.first};
    sharded_->hold(one);
    std::vector<Timed> arms{{"one", [&] { sharded_->data_parallel_step(one); }}};
    take_turns(arms, blocks);
    total += arms[0].median() * kind.second;
  }
  return total;
}

// A device holds one of the two.
template <class Wanted, class Other>
void Measuring::begin_row(const Row& row, std::unique_ptr<Wanted>& wanted, std::unique_ptr<Other>& other) {
  p_.jobs.length = row.length, p_.jobs.batch = row.batch;
  restart_device_peak(place_.device);
  if (!wanted) {
    other.reset();
    release_device_memory();
    wanted = std::make_unique<Wanted>(p_.jobs, world_, place_);
  }
  wanted->set_shape(row.length, row.batch);
}

nlohmann::json Measuring::sharded(const Row& row) {
  begin_row(row, sharded_, pipeline_);
  const bool packed = p_.has("packed"), one = p_.has("one job at a time");
  sharded_->hold(packed ? all_ : own());
  const auto jobs = std::int64_t(own().size());
  std::vector<Timed> arms{{"ours", [&] { sharded_->own_step(own()); }},
                          {"gather alone", [&] { sharded_->gather_step(jobs); }},
                          {"compute alone", [&] { sharded_->compute_alone(own()); }}};
  if (p_.has("loop"))
    arms.push_back({"loop over adapters", [&] {
                      sharded_->set_backend(nn::LoraBackend::loop);
                      sharded_->own_step(own());
                      sharded_->set_backend(nn::LoraBackend::kernels);
                    }});
  if (packed) arms.push_back({"data-parallel, packed", [&] { sharded_->data_parallel_step(all_); }});
  if (packed && one)
    arms.push_back({"data-parallel, one job at a time", [&] {
                      for (const auto& job : all_) sharded_->data_parallel_step({&job, 1});
                    }});
  take_turns(arms, row.blocks);
  nlohmann::json rows = nlohmann::json::array();
  const double slower = std::max(arms[1].median(), arms[2].median());
  for (const auto& arm : arms) {
    rows.push_back(describe(arm.name, row, arm.ms));
    rows.back()["over_ours"] = arm.median() / arms[0].median();
    if (place_.device.is_cuda()) continue;
    rows.back()["cpu_ms"] = quantile(arm.cpu_ms, 0.5);  // of rank 0; others' programs hardly change it
    rows.back()["cpu_over_ours"] = quantile(arm.cpu_ms, 0.5) / quantile(arms[0].cpu_ms, 0.5);
  }
  rows[0]["over_slower_part"] = arms[0].median() / slower;
  rows[0]["gather_over_compute"] = arms[1].median() / arms[2].median();
  rows[0]["passes"] = sharded_->passes(jobs, row.batch);
  if (one && !packed) {
    const double ms = one_at_a_time(row.blocks);
    rows.push_back(describe("data-parallel, one job at a time", row, {ms}));
    rows.back()["over_ours"] = ms / arms[0].median();
  }
  return rows;
}

nlohmann::json Measuring::pipeline(const Row& row) {
  begin_row(row, pipeline_, sharded_);
  const auto period = pipeline_->period();
  for (std::int64_t t = 0; t < period; ++t) pipeline_->tick();  // full from here on
  std::vector<Timed> arms{{"pipeline", [&] {
                             for (std::int64_t t = 0; t < period; ++t) pipeline_->tick();
                           }}};
  take_turns(arms, row.blocks);
  pipeline_->drain();
  return nlohmann::json::array({describe("pipeline of different adapters", row, arms[0].ms)});
}

void serve(const Options& o, Communicator& world) {
  Measuring measuring(o, world);
  Server server(o.serve, world.rank());
  while (const auto command = server.command()) {
    std::istringstream words(*command);
    std::string what;
    Row row;
    words >> what >> row.length >> row.batch >> row.blocks;
    const auto rows = what == "pipeline" ? measuring.pipeline(row) : measuring.sharded(row);
    if (world.rank() == 0) server.reply({{"rows", rows}});
  }
}

nlohmann::json run(const Options& o) {
  const Problem p = problem_of(o);
  Scratch scratch;
  const std::string folder = scratch.path("ranks");
  Arm arm("ranks", own_arm(o, "all", o.problem.empty() ? "lab:64x1,64x2" : o.problem, o.ranks, folder), o.ranks,
          folder);
  if (!arm.ready(std::chrono::seconds(180))) throw DataError("bench ap_step", arm.skipped());
  nlohmann::json rows = nlohmann::json::array();
  for (const char* what : {"sharded", "pipeline"}) {
    if (what == std::string("sharded") ? !p.sharded() : !p.has("pipeline")) continue;
    for (const auto& row : p.rows) {
      const auto reply = arm.ask(std::string(what) + " " + std::to_string(row.length) + " " +
                                 std::to_string(row.batch) + " " + std::to_string(o.blocks));
      if (!reply) {
        rows.push_back({{"problem", p.name}, {"arm", what}, {"skipped", arm.skipped()}});
        return rows;
      }
      for (auto r : (*reply)["rows"]) {
        r["ranks"] = o.ranks;
        if (const char* lab = std::getenv("TRIREME_LAB")) r["lab"] = lab;
        std::cerr << r.dump() << std::endl;  // what is measured stays, however the rest ends
        rows.push_back(std::move(r));
      }
    }
  }
  return rows;
}

const Benchmarks::Entry entry({"ap_step",
                               "LoRA jobs on a sharded backbone (--ranks N): adapter parallelism, data-parallel, "
                               "pipeline (--problem 70b/8@4096:256x1,256x2:ours,pipeline)",
                               run, serve, /*on_devices=*/true});

}  // namespace
}  // namespace trireme::bench
