#include "trainers/sweep/run.h"

#include "comm/error.h"
#include "data/file.h"
#include "framework/base/agree.h"
#include "framework/device_info.h"
#include "framework/io/folder_lock.h"
#include "framework/models/causal_lm_load.h"
#include "framework/placement.h"
#include "framework/stream_place.h"
#include "trainers/loop.h"
#include "trainers/run_folder.h"
#include "trainers/stop.h"
#include "trainers/watched.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <iostream>
#include <sstream>
#include <utility>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <unistd.h>

namespace trireme::sweep {
namespace {

namespace fs = std::filesystem;

std::string settings_of(const SweepRun& run) {
  const std::string saved = run.out + "/config.resolved.yaml";
  if (!fs::exists(saved)) return {};
  const auto bytes = read_file(saved, 1 << 20);
  return {bytes.begin(), bytes.end()};
}

// A sweep goes on where its file says the same as when it began. One from before a key was there went without, and goes
// on so; its file stays as it is.
void take_up(const SweepRun& run, const SweepConfig& sweep) {
  const std::string saved = run.out + "/config.resolved.yaml", old = settings_of(run);
  if (old.empty()) {
    check_ignored(sweep);
    return replace_durably(system_io(), saved, sweep.settings);
  }
  const std::string began = begun_sweep(old, saved).settings;
  if (began != sweep.settings)
    throw UsageError(run.out, "holds a sweep with other values of " + changed_keys(began, sweep.settings),
                     "use the old values, another --out, or --fresh to start over");
}

// Settings on every rank, and the folder, which rank 0 holds.
SweepConfig begin(SweepRun run, Communicator& world, std::shared_ptr<FolderLock>& lock) {
  SweepConfig sweep;
  agree(world, attempt([&] { sweep = read_sweep(run.file, run.overrides); }));
  const WatchdogConfig& w = sweep.watchdog;  // no setting, but ranks of other limits would judge each other by them
  const std::string limits = std::to_string(w.first) + " " + std::to_string(w.later) + " " + std::to_string(w.warn);
  check_same_config(std::hash<std::string>()(sweep.settings + limits), world);
  for (const auto& task : sweep.tasks)  // one that began so goes on so
    if (world.size() == 1 && task.ranks > 1 && (run.fresh || settings_of(run).empty()))
      throw UsageError(task.place, "says ranks: " + std::to_string(task.ranks) + ", and the sweep has one process",
                       "start it with --ranks " + std::to_string(task.ranks) + " or more, or leave ranks out");
  std::string later;  // of keys, one a line
  agree(world, attempt([&] {
          if (world.rank() != 0) return;
          lock = take_folder(run.out, run.fresh, Results::sweep);
          const std::string old = settings_of(run);
          if (!old.empty())
            for (const auto& key : later_keys(old, &sweep)) later += key + "\n";
        }));
  auto size = std::int64_t(later.size());
  world.broadcast({&size, 1, DType::i64}, 0).wait();
  later.resize(std::size_t(size));
  world.broadcast({later.data(), later.size(), DType::u8}, 0).wait();
  std::istringstream keys(later);
  for (std::string key; std::getline(keys, key);) run.overrides.push_back(key);
  agree(world, attempt([&] {
          if (size > 0) sweep = read_sweep(run.file, run.overrides);
          if (world.rank() == 0) take_up(run, sweep);
        }));
  return sweep;
}

// The sweep's backbone where it is missing, by the experiment that the file names; a run that was stopped goes on. A
// run writes its report last.
int make_backbone(const SweepRun& run, const SweepConfig& sweep, Communicator& world, int local_ranks) {
  std::int64_t there = fs::exists(sweep.model + "/report.html") || fs::exists(sweep.model + "/config.json");
  world.broadcast({&there, 1, DType::i64}, 0).wait();
  if (sweep.pretrain.empty() || there) return 0;
  if (world.rank() == 0)
    std::cout << "backbone: " << sweep.model << " is not there yet, " << sweep.pretrain << " makes it\n";
  TrainOptions options;
  options.file = (fs::path(run.file).parent_path() / sweep.pretrain).string();
  options.out = sweep.model;
  return train(options, world, local_ranks);
}

// One task after the other on all ranks. What a task's own input does wrong ends that task alone; any other failure may
// be one rank's, and ends all.
SweepEnd run_in_turn(const SweepConfig& sweep, Communicator& world, const std::string& out, const Placement& place,
                     const SweepHooks& hooks) {
  SweepEnd end;
  for (const auto& task : sweep.tasks) {
    std::optional<TaskOutcome> outcome;
    hooks.starts();
    const auto stop = [&, ticked = false]() mutable {  // asked before every tick
      if (std::exchange(ticked, true)) hooks.ticked();
      return hooks.stop();
    };
    const auto failure = attempt([&] { outcome = run_task(sweep, task, world, out + "/" + task.name, place, stop); });
    if (failure && failure->code != ExitCode::usage && failure->code != ExitCode::data) raise(*failure);
    if (failure) {
      end.failed.push_back({task.name, *failure});
      if (world.rank() == 0) std::cout << "task " << task.name << " failed: " << failure->what << std::endl;
    } else if (outcome) {
      end.done.push_back(task);
    } else {
      end.stopped = true;
      return end;
    }
  }
  return end;
}

// Why a task that is over has no winner. Its jobs diverged, or early exit was told to keep none.
Failure no_result(const TaskOutcome& outcome) {
  const auto diverged = std::ranges::count(outcome.jobs, "diverging", &JobOutcome::end);
  const std::string all =
      "no job has a result, " + std::to_string(diverged) + " of " + std::to_string(outcome.jobs.size()) + " diverged; ";
  if (diverged == 0) return {ExitCode::usage, all + "raise early_exit.keep_ratio, and use --fresh or another --out"};
  return {ExitCode::nonfinite, all + "search for lower lr, and use --fresh or another --out"};
}

// Tables and page of what is done, and a line for every task that failed or has no winner. The exit code.
ExitCode tell(const SweepConfig& sweep, const SweepEnd& end, const std::string& out) {
  std::vector<TaskOutcome> outcomes;
  auto failed = end.failed;
  for (const auto& task : end.done) {
    outcomes.push_back(*read_outcome(out + "/" + task.name));
    std::cout << outcome_table(outcomes.back(), task);
    if (outcomes.back().winner < 0) failed.push_back({task.name, no_result(outcomes.back())});
  }
  write_page(out, sweep, end.done, outcomes, out + "/report.html");
  std::cout << "report: " << out << "/report.html" << std::endl;
  for (const auto& f : failed) std::cerr << "trireme: error: task " << f.name << ": " << f.why.what << std::endl;
  return failed.empty() ? ExitCode::ok : failed.front().why.code;
}

// Drawing takes minutes, and would end for want of memory.
void check_memory(const std::string& path, at::Device device, double bytes_each) {
  const double there = device.is_cpu() ? double(sysconf(_SC_PHYS_PAGES)) * double(sysconf(_SC_PAGESIZE))
                                       : double(device_memory_bytes(device));
  const double bytes = drawn_numbers(path) * bytes_each;
  if (there <= 0 || bytes <= there) return;
  char text[96];
  std::snprintf(text, sizeof text, "has weights of %.0f GB, and this rank has %.0f GB", bytes / 1e9, there / 1e9);
  throw Error(ExitCode::memory, path, text, "give the task several ranks, which share its layers, or lower its sizes");
}

// Layers that are shared, or FP8, are read (or drawn) as they are cut or coded, a tensor at a time, so that a model may
// be larger than a rank.
Backbone read_backbone(const SweepConfig& sweep, const std::string& path, at::Device device, bool shared,
                       const std::function<void()>& sign) {
  const at::ScalarType type = sweep.precision == "f32" ? at::kFloat : at::kBFloat16;
  const bool fp8 = sweep.precision == "fp8";
  if (sweep.weights == "random" && !shared) check_memory(path, device, fp8 ? 1 : double(at::elementSize(type)));
  LmWeights weights = sweep.weights == "random" ? draw_causal_lm(path, std::uint64_t(sweep.seed), device, type)
                                                : open_causal_lm(path, device, type);
  // Every job would diverge on it, and no decision would say why.
  weights.read = [path, sign, read = weights.read](const LmWeight& w) {
    const at::Tensor value = read(w);
    sign();
    if (!at::isfinite(value).all().item<bool>())
      throw DataError(path, "tensor '" + w.name + "' holds a number that is not finite",
                      "fetch the model again, or train it at a lower rate");
    return value;
  };
  if (shared || fp8) return {without_layers(weights), weights.read};
  return {CausalLm(weights.config, weights.read)};
}

// What a task's length leaves out of its data.
void tell_left_out(const TaskConfig& task, const Instructions& data) {
  const std::string length = std::to_string(task.data.length);
  std::string line;
  if (data.left_out > 0)
    line = std::to_string(data.left_out) + " samples with no answer within " + length + " ids are left out";
  if (data.questions_left_out > 0)
    line += (line.empty() ? "" : ", and ") + std::to_string(data.questions_left_out) + " of " +
            std::to_string(data.questions_left_out + std::ssize(data.test)) + " questions, of " + length +
            " ids or more" + (line.empty() ? ", are left out" : "");
  if (!line.empty()) std::cerr << task.name << ": " << line << "; raise length to have them\n";
}

}  // namespace

TaskInputs read_inputs(const SweepConfig& sweep, const TaskConfig& task, Communicator& ranks, at::Device device,
                       const std::string& folder) {
  TaskInputs in;
  agree(ranks, attempt([&] {
          in.backbone = read_backbone(sweep, task.model, device, ranks.size() > 1, signs_of(ranks));
          in.tokenizer = sweep.weights == "random" ? tokenizer_of_shape(task.model) : load_tokenizer(task.model);
          in.data = read_instructions(task.data, *in.tokenizer);
        }));
  // A rank that reads other samples would train other jobs.
  const auto check_same = [&](const std::string& file, const std::string& identity) {
    if (!same_on_all(ranks, identity))
      throw DataError(file, "or its tokenizer is not the same on all ranks", "give all nodes the same files");
  };
  check_same(task.data.data, in.data->identity);
  check_same(task.data.test_file.empty() ? task.data.data : task.data.test_file, in.data->questions);
  if (ranks.rank() == 0 && !saved_in(folder)) tell_left_out(task, *in.data);  // a task that goes on has said it
  return in;
}

void write_outcome(const std::string& folder, const TaskOutcome& outcome, const TaskConfig& task) {
  replace_durably(system_io(), folder + "/result.json", print_outcome(outcome, task));
}

std::optional<TaskOutcome> read_outcome(const std::string& folder) {
  const std::string result = folder + "/result.json";
  if (!fs::exists(result)) return {};
  const auto bytes = read_file(result, 1 << 26);
  return parse_outcome({bytes.begin(), bytes.end()}, result);
}

std::optional<TaskOutcome> run_task(const SweepConfig& sweep, const TaskConfig& task, Communicator& ranks,
                                    const std::string& folder, const Placement& place,
                                    const std::function<bool()>& stop,
                                    std::function<void(const Roster&, const std::vector<Decision>&)> heard) {
  std::int64_t over = fs::exists(folder + "/result.json");
  ranks.broadcast({&over, 1, DType::i64}, 0).wait();
  if (over) return read_outcome(folder);
  TaskInputs in = read_inputs(sweep, task, ranks, place.device, folder);
  Executor executor(sweep, task, *std::exchange(in.backbone, {}), *in.data, ranks, folder, place);
  executor.on_decisions(std::move(heard));
  executor.on_answers([&](std::span<const std::int64_t> ids) { return in.tokenizer->decode(ids); });
  auto outcome = executor.run(stop);
  if (!outcome) return outcome;
  agree(ranks, attempt([&] {
          if (ranks.rank() == 0) write_outcome(folder, *outcome, task);
        }));
  return outcome;
}

int run_sweep(const SweepRun& run, Communicator& world, int local_ranks) {
  std::shared_ptr<FolderLock> lock;
  SweepConfig sweep = begin(run, world, lock);
  if (const int code = make_backbone(run, sweep, world, local_ranks)) return code;
  if (sweep.threads) at::set_num_threads(int(sweep.threads));
  TrainConfig where;
  where.device = sweep.device, where.communicator = sweep.communicator;
  Watched job(world, sweep.watchdog, run.out, Steps::apart);
  const Placement place = place_rank(job.ranks, where);
  const bool beside = std::any_of(sweep.tasks.begin(), sweep.tasks.end(), [](const auto& t) { return t.ranks > 0; });
  StepsAhead ahead(place.device, 8);
  SweepHooks hooks{[] { return stop_requested(); }};
  hooks.starts = [&] { job.watchdog.begins("the start of a task"); };
  hooks.ticked = [&, ticks = std::int64_t(0)]() mutable {
    ahead.step();
    job.watchdog.phase("a task");
    job.watchdog.finished(++ticks);
  };
  hooks.idle = [&] { job.watchdog.phase("no task"); };
  const SweepEnd end = beside && world.size() > 1 ? run_beside(sweep, job.ranks, run.out, place, hooks)
                                                  : run_in_turn(sweep, job.ranks, run.out, place, hooks);
  if (end.stopped && world.rank() == 0)
    std::cout << "stopped after a checkpoint; the same command resumes" << std::endl;
  if (end.stopped) return int(ExitCode::stopped);
  std::int64_t code = 0;
  agree(job.ranks, attempt([&] {
          if (world.rank() == 0) code = std::int64_t(tell(sweep, end, run.out));
        }));
  job.ranks.broadcast({&code, 1, DType::i64}, 0).wait();
  return int(code);
}

}  // namespace trireme::sweep
