#include "trainers/sample/run.h"

#include "comm/error.h"
#include "data/file.h"
#include "framework/base/agree.h"
#include "framework/base/apart.h"
#include "framework/device_info.h"
#include "framework/graphed_denoiser.h"
#include "framework/io/file_io.h"
#include "framework/io/folder_lock.h"
#include "trainers/run_folder.h"
#include "trainers/sample/engine.h"
#include "trainers/sample/model.h"
#include "trainers/sample/model_digest.h"
#include "trainers/sample/report.h"
#include "trainers/stop.h"
#include "trainers/watched.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <map>
#include <optional>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

namespace trireme::sample {
namespace {

namespace fs = std::filesystem;

constexpr const char* digest_file = "model.crc32c";

bool holds_pictures(const std::string& folder) {
  if (!fs::exists(folder)) return false;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    const auto name = entry.path().filename();
    if (entry.is_regular_file() && name != "config.resolved.yaml" && name != digest_file) return true;
  }
  return false;
}

std::string text_of(const std::string& file) {
  const auto bytes = read_file(file, 1 << 20);
  return {bytes.begin(), bytes.end()};
}

// An arm goes on where it says the same as when it began, and its model's files are the same. Others may come and go.
void take_up_arm(const SampleConfig& arm, const std::string& digest, const std::string& folder) {
  const std::string saved = folder + "/config.resolved.yaml", model = folder + "/" + digest_file;
  if (holds_pictures(folder) && fs::exists(saved)) {
    std::string keys;
    for (const auto& key : differing_settings(arm, text_of(saved), saved)) keys += (keys.empty() ? "" : ", ") + key;
    if (!keys.empty())
      throw UsageError(folder, "holds pictures of other settings: " + keys,
                       "put them back, use another --out, or --fresh to start over");
    if (fs::exists(model) && text_of(model) != digest)
      throw UsageError(folder, "holds pictures of other files of " + arm.model,
                       "put them back, use another --out, or --fresh to start over");
  }
  make_folder(system_io(), folder);
  replace_durably(system_io(), saved, arm.settings);
  replace_durably(system_io(), model, digest);
}

void take_up(const SampleRun& run, const SampleJob& job, std::shared_ptr<FolderLock>& lock) {
  lock = take_folder(run.out, run.fresh, Results::pictures);
  std::map<std::string, std::string> digests;  // arms mostly share their model
  for (const auto& arm : job.arms) {
    auto& digest = digests[arm.model + "\n" + arm.weights + "\n" + arm.embeds];
    if (digest.empty()) digest = model_digest(arm);
    take_up_arm(arm, digest, run.out + "/" + arm.arm);
  }
  replace_durably(system_io(), run.out + "/config.resolved.yaml", job.settings);
}

// What is refused before weights are read and ranks wait: all arms, on every rank alike.
struct ArmPlan {
  nlohmann::json model;
  ModelPlan plan;
  std::unique_ptr<Conditions> conditions;
  std::int64_t steps = 0;  // of all its batches
};

ArmPlan plan_arm(const SampleConfig& c) {
  ArmPlan arm;
  arm.model = read_model_config(c);
  arm.plan = plan_model(arm.model);
  latent_shape(c, arm.plan.info);
  arm.conditions = read_conditions(c, arm.plan.info, arm.model);
  const std::int64_t pictures = std::ssize(arm.conditions->texts()) * c.count;
  arm.steps = (pictures + c.batch - 1) / c.batch * c.samplers.at(c.method)->steps_in_all(c.steps);
  return arm;
}

void check_memory(const SampleConfig& c, const ArmPlan& arm, at::Device device, int ranks, int local_ranks, bool tell) {
  const MemoryPlan memory = plan_memory(c, arm.plan, ranks);
  if (tell) std::cout << c.arm << ": " << memory.text << std::endl;
  const double there = memory_there(c, device, local_ranks);
  if (there <= 0 || memory.bytes <= there) return;
  throw Error(ExitCode::memory, "arm " + c.arm, memory.text + ", but " + gib(there) + " are there",
              "smaller size, batch or model, precision: bf16, or fewer ranks on a machine");
}

FlowShift shift_of(const SampleConfig& c, const DenoiserInfo& m) {
  FlowShift shift;
  shift.shift = c.shift;
  shift.mu_mode = c.mu_mode == "auto" ? (m.layout == "flux" ? "linear" : "none") : c.mu_mode;
  // FLUX's line runs from a quarter of the side it was trained for to that side.
  const double tokens = double(m.base_side * m.base_side);
  shift.points = {tokens / 16, 0.5, tokens, 1.15};
  return shift;
}

class Job {
 public:
  Job(const SampleJob& job, const std::string& out, Watched& ranks, int local_ranks)
      : job_(job),
        out_(out),
        world_(ranks.ranks),
        watchdog_(ranks.watchdog),
        placement_(place(job.arms[0], world_)),
        local_ranks_(local_ranks) {}

  // False: stopped.
  bool run() {
    plan();
    std::int64_t total = 0;
    for (const auto& arm : plans_) total += arm.steps;
    StepBar bar(world_.rank() == 0, total);
    for (std::size_t first = 0, end = 0; first < plans_.size(); first = end) {
      while (end < plans_.size() && model_of(end) == model_of(first)) ++end;
      if (!run_arms(first, end, bar)) return false;
    }
    return true;
  }

  nlohmann::json machine() const {
    return {{"version", TRIREME_VERSION},
            {"ranks", world_.size()},
            {"device", placement_.device.is_cpu() ? "cpu" : device_name(placement_.device)},
            {"threads", at::get_num_threads()},
            {"peak_gib", placement_.device.is_cpu() ? 0 : peak_device_memory_gib(placement_.device)}};
  }

 private:
  void plan() {
    agree(world_, attempt([&] {
            for (const auto& c : job_.arms) {
              plans_.push_back(plan_arm(c));
              check_memory(c, plans_.back(), placement_.device, int(world_.size()), local_ranks_, world_.rank() == 0);
            }
          }));
  }

  std::string model_of(std::size_t a) const {
    const auto& c = job_.arms[a];
    return c.model + "\n" + c.weights + "\n" + c.precision + "\n" +
           (c.weights == "random" ? std::to_string(c.seed) : "");
  }

  // An arm at work on this rank.
  struct Working {
    Groups groups;
    std::unique_ptr<LatentCodec> codec;
    std::unique_ptr<GraphedDenoiser> graphed;
    std::unique_ptr<SampleContext> context;
    std::unique_ptr<Engine> engine;
    std::int64_t next = 0;  // batch of this rank's group
  };

  std::unique_ptr<Working> begin_arm(std::size_t a, StepBar& bar) {
    const auto& c = job_.arms[a];
    Sampler& method = *c.samplers.at(c.method);
    agree(world_, attempt([&] { plans_[a].conditions->model_loaded(*model_); }));
    auto w = std::make_unique<Working>();
    w->groups = make_groups(c, method, placement_, world_);
    w->next = w->groups.mine;
    w->codec = latent_codec(plans_[a].plan.info.channels, plans_[a].plan.info.latent_factor);
    const auto message = [this, &bar](std::string_view line) {
      if (world_.rank() != 0) return;
      bar.clear();
      std::cout << line << std::endl;
    };
    w->graphed = std::make_unique<GraphedDenoiser>(*model_, recorded_forwards(c), message);
    w->context =
        std::make_unique<SampleContext>(*w->groups.tensors, *w->graphed, *w->codec, placement_.device, precision_of(c));
    SampleContext& context = *w->context;
    context.steps = c.steps, context.height = c.size[0], context.width = c.size[1], context.frames = c.frames;
    context.shift = shift_of(c, plans_[a].plan.info);
    context.halves = w->groups.halves.get();
    context.parallel = w->groups.sequence.get();
    context.message = message;
    method.setup(context);
    const Arm arm{c, method, *plans_[a].conditions, out_ + "/" + c.arm};
    w->engine = std::make_unique<Engine>(arm, w->groups, context, &bar);
    return w;
  }

  // Arms of one model, so many pictures of each in turn: a job that is cut has compared all arms on the same prompts.
  bool run_arms(std::size_t first, std::size_t end, StepBar& bar) {
    watchdog_.begins("reading the model");
    agree(world_, attempt([&] {
            model_.reset();
            model_ = load_model(job_.arms[first], plans_[first].model, placement_.device, signs_of(world_));
          }));
    std::vector<std::unique_ptr<Working>> working;
    std::int64_t turn = 1;
    for (std::size_t a = first; a < end; ++a) {
      working.push_back(begin_arm(a, bar));
      turn = std::max(turn, job_.arms[a].batch * working.back()->groups.count);
    }
    for (std::int64_t pictures = turn, left = 1; left > 0; pictures += turn) {
      left = 0;
      for (std::size_t a = first; a < end; ++a) {
        if (!advance(*working[a - first], job_.arms[a], pictures, bar)) return false;
        left = std::max(left, working[a - first]->engine->pictures() - pictures);
      }
    }
    return true;
  }

  // Up to so many pictures of an arm. False: stopped, on whichever rank.
  bool advance(Working& w, const SampleConfig& c, std::int64_t pictures, StepBar& bar) {
    bool going = true;
    watchdog_.phase("sampling");
    for (; going && w.next < w.engine->batches() && w.next * c.batch < pictures; w.next += w.groups.count) {
      if (engine_done(*w.engine, w.groups, w.next))
        bar.skip(w.engine->steps_of(w.next));
      else
        going = w.engine->run(w.next, [this] {
          watchdog_.finished(++steps_);
          return stop_requested();
        });
    }
    watchdog_.finished(steps_);  // also of a rank without a picture: it waits no longer than the others
    std::int64_t stopped = !going;
    world_.all_reduce({&stopped, 1, DType::i64}, Op::max).wait();
    return stopped == 0;
  }

  // As the first rank of the group sees it: file systems may be late.
  static bool engine_done(const Engine& engine, Groups& groups, std::int64_t batch) {
    std::int64_t done = engine.done(batch);
    groups.control->broadcast({&done, 1, DType::i64}, 0).wait();
    return done != 0;
  }

  const SampleJob& job_;
  const std::string out_;
  Traced& world_;
  Watchdog& watchdog_;
  const Placement placement_;
  const int local_ranks_;
  std::vector<ArmPlan> plans_;
  std::unique_ptr<Denoiser> model_;
  std::int64_t steps_ = 0;  // that this rank has taken
};

}  // namespace

int run_sample(const SampleRun& run, Communicator& world, int local_ranks) {
  SampleJob job;
  std::shared_ptr<FolderLock> lock;
  agree(world, attempt([&] { job = read_job(run.file, run.overrides); }));
  check_same_config(std::hash<std::string>()(job.settings), world);
  agree(world, attempt([&] {
          if (world.rank() == 0) take_up(run, job, lock);
        }));
  if (job.arms[0].threads) at::set_num_threads(int(job.arms[0].threads));
  Watched ranks(world, job.arms[0].watchdog, run.out, Steps::apart);
  Job work(job, run.out, ranks, local_ranks);
  const bool done = work.run();
  ranks.watchdog.phase("the report");
  std::function<void()> report;  // also of what a stopped job has
  if (world.rank() == 0) report = [&] { std::cout << write_report(job, run.out, work.machine()) << std::flush; };
  const auto failure = attempt_apart(ranks.ranks, report);
  if (done) return agree(ranks.ranks, failure), 0;
  if (failure) std::cerr << "trireme: no report of what is there: " << failure->what << std::endl;  // it goes on
  if (world.rank() == 0) std::cout << "stopped; the same command draws what is missing" << std::endl;
  return int(ExitCode::stopped);
}

}  // namespace trireme::sample
