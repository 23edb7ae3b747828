// A step of several LoRA jobs on a backbone that lies on several ranks: adapter parallelism beside sharded
// data-parallel (packed, and one job at a time), the communicator's gathers instead of fetched layers, a pipeline
// filled with different adapters or with packs of them, a loop over adapters and an FP8 base, with what the gathers and
// the computation take alone. bench/ap_problem.h:
// --problem.
#include "bench/adapter_arms.h"
#include "bench/adapter_pipeline.h"
#include "bench/ap_problem.h"
#include "bench/bench.h"
#include "comm/error.h"
#include "framework/base/quantile.h"
#include "framework/device_info.h"
#include "framework/metrics/utilisation.h"

#include <algorithm>
#include <chrono>
#include <ctime>
#include <iostream>
#include <map>
#include <numeric>
#include <sstream>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

namespace trireme::bench {
namespace {

using Clock = std::chrono::steady_clock;

std::string problem_text(const Options& o) { return o.problem.empty() ? "lab:64x1,64x2" : o.problem; }

double process_cpu_ms() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return 1e3 * double(t.tv_sec) + 1e-6 * double(t.tv_nsec);
}

// An arm of a row, with what its turns took.
struct Turns {
  std::string name;
  std::function<void()> run;
  double first_ms = 0;                       // of the turn that warms up; 0: there was no time for one
  std::vector<double> ms = {}, cpu_ms = {};  // cpu: of this process
  double median() const { return ms.empty() ? first_ms : quantile(ms, 0.5); }
};

// One of the ranks, which measures what rank 0 of the benchmark's own process asks for.
class Measuring {
 public:
  Measuring(const Options& o, Communicator& world) : world_(world), p_(ap_problem(problem_text(o))) {
    TrainConfig config;
    config.device = o.device;
    place_ = place_rank(world, config);
    if (place_.device.is_cpu()) at::set_num_threads(1);
    own_ = balanced(p_.jobs.ranks, world.size())[std::size_t(world.rank())];
    all_.resize(p_.jobs.ranks.size());
    std::iota(all_.begin(), all_.end(), 0);
  }
  nlohmann::json measure(const std::string& what, const ApRow& row, int blocks);

 private:
  void everybody();
  void let_go();
  bool over();
  void take_turns(std::vector<Turns>& arms);
  ShardedJobs& sharded(bool fp8);
  PipelinedJobs& pipeline(Filling filling);
  nlohmann::json own_arms(bool fp8);
  nlohmann::json one_at_a_time();
  nlohmann::json pipelined(Filling filling);
  nlohmann::json same();
  nlohmann::json describe(const Turns& arm) const;
  nlohmann::json rows_of(const std::vector<Turns>& arms) const;
  double flops(const ApRow& row) const;

  Communicator& world_;
  ApProblem p_;
  int blocks_ = 1;
  Placement place_;
  std::vector<std::int64_t> own_, all_;
  ApRow row_;
  Clock::time_point began_;
  std::map<std::pair<int, int>, double> ours_;  // ms of rows by length and batch
  std::string built_;                           // which of the two, and how
  std::unique_ptr<ShardedJobs> sharded_;
  std::unique_ptr<PipelinedJobs> pipeline_;
};

// All devices are done, and all ranks know.
void Measuring::everybody() {
  if (place_.device.is_cuda()) at::zeros({1}, place_.device).item();
  world_.barrier().wait();
}

// Has the row had its time, by rank 0's clock?
bool Measuring::over() {
  std::int64_t late = p_.seconds > 0 && Clock::now() - began_ > std::chrono::duration<double>(p_.seconds);
  world_.broadcast({&late, 1, DType::i64}, 0).wait();
  return late != 0;
}

// Blocks by turns, of which the first warms up. A row out of time keeps what it has, its first arm at least.
void Measuring::take_turns(std::vector<Turns>& arms) {
  began_ = Clock::now();
  for (int block = -1; block < blocks_; ++block)
    for (auto& arm : arms) {
      if (over() && (block >= 0 || &arm != &arms[0])) return;
      everybody();
      const auto begin = Clock::now();
      const double cpu = process_cpu_ms();
      arm.run();
      const double used = process_cpu_ms() - cpu;
      everybody();
      const double ms = std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
      if (block < 0) {
        arm.first_ms = ms;
        continue;
      }
      arm.ms.push_back(ms);
      arm.cpu_ms.push_back(used);
    }
}

// Forward and the input's gradient of the base, with its head; forward and both gradients of adapters; attention as if
// it saw all tokens. What is computed again does not count.
double Measuring::flops(const ApRow& row) const {
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

nlohmann::json Measuring::describe(const Turns& arm) const {
  const std::vector<double>& ms = arm.ms.empty() ? std::vector{arm.first_ms} : arm.ms;
  const double tokens = double(p_.jobs.ranks.size()) * row_.length * row_.batch;
  const double peak = data_sheet_tflops(device_name(place_.device), "bf16");
  nlohmann::json r{{"problem", p_.name},
                   {"arm", arm.name},
                   {"length", row_.length},
                   {"batch", row_.batch},
                   {"step_ms", arm.median()},
                   {"low_ms", *std::min_element(ms.begin(), ms.end())},
                   {"high_ms", *std::max_element(ms.begin(), ms.end())},
                   {"blocks", arm.ms.size()},  // 0: the turn that warms up is all there was time for
                   {"tokens_per_s", tokens / arm.median() * 1e3}};
  if (const auto ours = ours_.find({row_.length, row_.batch}); ours != ours_.end())
    r["over_ours"] = arm.median() / ours->second;
  if (place_.device.is_cuda()) {
    r["mfu"] = utilisation(flops(row_), arm.median(), world_.size(), peak).mfu;
    r["reserved_gib"] = double(peak_reserved_bytes(place_.device)) / 1073741824;
    r["device"] = device_name(place_.device);
  } else if (!arm.cpu_ms.empty()) {
    r["cpu_ms"] = quantile(arm.cpu_ms, 0.5);  // of rank 0; others' programs hardly change it
  }
  return r;
}

// Of arms that had a turn, with the processor's time beside the first one's.
nlohmann::json Measuring::rows_of(const std::vector<Turns>& arms) const {
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& arm : arms) {
    if (arm.first_ms == 0) continue;
    rows.push_back(describe(arm));
    if (!place_.device.is_cuda() && !arm.cpu_ms.empty() && !arms[0].cpu_ms.empty())
      rows.back()["cpu_over_ours"] = quantile(arm.cpu_ms, 0.5) / quantile(arms[0].cpu_ms, 0.5);
  }
  return rows;
}

// A device holds one of the two, bf16 or FP8.
void Measuring::let_go() {
  sharded_.reset();
  pipeline_.reset();
  built_.clear();
  release_device_memory();
  restart_device_peak(place_.device);
}

ShardedJobs& Measuring::sharded(bool fp8) {
  const std::string wanted = fp8 ? "fp8" : "bf16";
  if (built_ != wanted) {
    let_go();
    p_.jobs.fp8 = fp8;
    sharded_ = std::make_unique<ShardedJobs>(p_.jobs, world_, place_);
    built_ = wanted;
  }
  sharded_->set_shape(row_.length, row_.batch);
  return *sharded_;
}

PipelinedJobs& Measuring::pipeline(Filling filling) {
  const std::string wanted = filling == Filling::jobs ? "jobs" : "packs";
  if (built_ != wanted) {
    let_go();
    pipeline_ = std::make_unique<PipelinedJobs>(p_.jobs, world_, place_, filling);
    built_ = wanted;
  }
  pipeline_->set_shape(row_.length, row_.batch);
  return *pipeline_;
}

nlohmann::json Measuring::own_arms(bool fp8) {
  ShardedJobs& jobs = sharded(fp8);
  const bool packed = !fp8 && p_.has("packed"), loop = !fp8 && p_.has("loop");
  const auto named = [&](const char* part) { return fp8 ? std::string(part) + ", fp8" : std::string(part); };
  jobs.hold(packed ? all_ : own_);
  std::vector<Turns> arms{{fp8 ? "ours fp8" : "ours", [&] { jobs.own_step(own_); }},
                          {named("gather alone"), [&] { jobs.gather_step(std::int64_t(own_.size())); }},
                          {named("compute alone"), [&] { jobs.compute_alone(own_); }}};
  if (!fp8 && p_.has("collective") && jobs.backbone().fetched())
    for (const bool whole : {true, false})
      arms.push_back({whole ? "ours, collective gathers" : "gather alone, collective", [&, whole] {
                        jobs.set_collected(true);
                        whole ? jobs.own_step(own_) : jobs.gather_step(std::int64_t(own_.size()));
                        jobs.set_collected(false);
                      }});
  if (loop)
    arms.push_back({"loop over adapters", [&] {
                      jobs.set_backend(nn::LoraBackend::loop);
                      jobs.own_step(own_);
                      jobs.set_backend(nn::LoraBackend::kernels);
                    }});
  if (packed) arms.push_back({"data-parallel, packed", [&] { jobs.data_parallel_step(all_); }});
  if (packed && p_.has("one job at a time"))
    arms.push_back({"data-parallel, one job at a time", [&] {
                      for (const auto& job : all_) jobs.data_parallel_step({&job, 1});
                    }});
  take_turns(arms);
  if (!fp8) ours_[{row_.length, row_.batch}] = arms[0].median();
  nlohmann::json rows = rows_of(arms);
  const double gather = arms[1].median(), compute = arms[2].median();
  if (compute > 0) {
    rows[0]["over_slower_part"] = arms[0].median() / std::max(gather, compute);
    rows[0]["gather_over_compute"] = gather / compute;
  }
  rows[0]["passes"] = jobs.passes(std::int64_t(own_.size()), row_.batch);
  rows[0]["fetched"] = jobs.backbone().fetched();
  rows[0]["layer_gb"] = 1e-9 * double(jobs.backbone().layer_bytes());
  return rows;
}

// Steps of each job by itself, where a rank has no room for all; of equal ranks one stands for all.
nlohmann::json Measuring::one_at_a_time() {
  ShardedJobs& jobs = sharded(false);
  std::map<std::int64_t, std::pair<std::int64_t, int>> kinds;  // by rank: a job, and how many
  for (const auto job : all_) {
    auto& kind = kinds[p_.jobs.ranks[std::size_t(job)]];
    kind.first = job, ++kind.second;
  }
  Turns sum{"data-parallel, one job at a time", {}};
  for (const auto& [rank, kind] : kinds) {
    const std::vector<std::int64_t> one{kind.first};
    jobs.hold(one);
    std::vector<Turns> arms{{"one", [&] { jobs.data_parallel_step(one); }}};
    take_turns(arms);
    sum.first_ms += arms[0].median() * kind.second;
  }
  sum.ms = {sum.first_ms};
  return nlohmann::json::array({describe(sum)});
}

// A step of all jobs is a period, and the pipeline stays full between them.
nlohmann::json Measuring::pipelined(Filling filling) {
  PipelinedJobs& line = pipeline(filling);
  const auto period = line.period();
  std::vector<Turns> arms{
      {filling == Filling::jobs ? "pipeline of different adapters" : "pipeline of packs, wide product", [&] {
         for (std::int64_t t = 0; t < period; ++t) line.tick();
       }}};
  take_turns(arms);
  line.drain();
  nlohmann::json rows = rows_of(arms);
  rows[0]["packs"] = line.packs();
  rows[0]["ticks"] = period;
  return rows;
}

// Adapters after three steps of each rank's jobs, and what each rank finds by itself.
nlohmann::json Measuring::same() {
  let_go();
  p_.jobs.fp8 = false;
  const Sameness found = sameness(p_.jobs, world_, place_, 3);
  return nlohmann::json::array({{{"problem", p_.name},
                                 {"arm", "equal"},
                                 {"length", row_.length},
                                 {"batch", row_.batch},
                                 {"adapters", found.adapters},
                                 {"equal_to_alone", found.with_alone},
                                 {"repeatable", found.repeatable}}});
}

nlohmann::json Measuring::measure(const std::string& what, const ApRow& row, int blocks) {
  row_ = row, blocks_ = blocks;
  p_.jobs.length = row.length, p_.jobs.batch = row.batch;
  restart_device_peak(place_.device);
  if (what == "pipeline") return pipelined(Filling::jobs);
  if (what == "wide") return pipelined(Filling::packs);
  if (what == "alone") return one_at_a_time();
  return what == "equal" ? same() : own_arms(what == "fp8");
}

void serve(const Options& o, Communicator& world) {
  Measuring measuring(o, world);
  Server server(o.serve, world.rank());
  while (const auto command = server.command()) {
    std::istringstream words(*command);
    std::string what;
    ApRow row;
    int blocks = 1;
    words >> what >> row.length >> row.batch >> blocks;
    const auto rows = measuring.measure(what, row, blocks);
    if (world.rank() == 0) server.reply({{"rows", rows}});
  }
}

// What ranks are asked for, in turn: each builds what it needs once.
std::vector<std::string> questions(const ApProblem& p) {
  std::vector<std::string> all;
  const bool one = p.has("one job at a time"), packed = p.has("packed");
  if (p.has("ours") || p.has("collective") || p.has("loop") || packed) all.emplace_back("sharded");
  if (one && !packed) all.emplace_back("alone");
  if (p.has("ours fp8")) all.emplace_back("fp8");
  for (const char* arm : {"pipeline", "wide", "equal"})
    if (p.has(arm)) all.emplace_back(arm);
  return all;
}

// The ranks; where they ended over a row (out of memory), the next row gets new ones.
class Asked {
 public:
  Asked(const Options& o, const ApProblem& p) : o_(o), p_(p) {}
  // The rows, or why there are none.
  nlohmann::json ask(const std::string& what, const ApRow& row) {
    if (!arm_ || !arm_->skipped().empty()) {
      const std::string folder = scratch_.path(std::to_string(started_++));
      arm_.reset();
      arm_ = std::make_unique<Arm>("ranks", own_arm(o_, "all", problem_text(o_), o_.ranks, folder), o_.ranks, folder);
      if (!arm_->ready(std::chrono::seconds(180)) && started_ == 1) throw DataError("bench ap_step", arm_->skipped());
    }
    std::ostringstream question;
    question << what << ' ' << row.length << ' ' << row.batch << ' ' << o_.blocks;
    const auto patience = std::chrono::seconds(p_.seconds > 0 ? 180 + 8 * std::int64_t(p_.seconds) : 600);
    const auto reply = arm_->ask(question.str(), patience);
    if (reply) return reply->at("rows");
    return nlohmann::json::array({{{"problem", p_.name},
                                   {"arm", what},
                                   {"length", row.length},
                                   {"batch", row.batch},
                                   {"skipped", arm_->skipped()}}});
  }

 private:
  const Options& o_;
  const ApProblem& p_;
  Scratch scratch_;
  std::unique_ptr<Arm> arm_;
  int started_ = 0;
};

nlohmann::json run(const Options& o) {
  const ApProblem p = ap_problem(problem_text(o));
  Asked ranks(o, p);
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& what : questions(p))
    for (const auto& row : p.rows)
      for (auto r : ranks.ask(what, row)) {
        r["ranks"] = o.ranks;
        if (const char* lab = std::getenv("TRIREME_LAB")) r["lab"] = lab;
        std::cerr << r.dump() << std::endl;  // what is measured stays, however the rest ends
        rows.push_back(std::move(r));
      }
  return rows;
}

const Benchmarks::Entry entry({"ap_step",
                               "LoRA jobs on a sharded backbone (--ranks N): adapter parallelism, data-parallel, "
                               "pipelines (--problem 70b/8@4096:256x1,256x2:ours,pipeline:20)",
                               run, serve, /*on_devices=*/true});

}  // namespace
}  // namespace trireme::bench
