#include "trainers/loop.h"

#include "comm/error.h"
#include "data/loader.h"
#include "framework/base/agree.h"
#include "framework/experiment.h"
#include "framework/init_from.h"
#include "framework/io/checkpoint.h"
#include "framework/io/file_io.h"
#include "framework/metrics/metrics.h"
#include "framework/metrics/trace.h"
#include "framework/report/report.h"
#include "framework/session.h"
#include "trainers/dry_run.h"
#include "trainers/run_folder.h"
#include "trainers/start.h"
#include "trainers/step_report.h"
#include "trainers/stop.h"
#include "trainers/watched.h"

#include <cmath>
#include <filesystem>
#include <iostream>
#include <thread>

#include <ATen/Parallel.h>

#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

void check_divisible(const Experiment& setup, int ranks) {
  const auto batch = setup.train.batch_size, parts = setup.train.accumulate;
  if (batch % ranks != 0)
    throw UsageError(setup.config.place("batch_size"),
                     std::to_string(batch) + " is not divisible by " + std::to_string(ranks) + " ranks",
                     "choose a multiple of the number of ranks");
  if (batch / ranks % parts != 0)
    throw UsageError(
        setup.config.place("accumulate"),
        std::to_string(parts) + " does not divide the " + std::to_string(batch / ranks) + " samples of a rank",
        "choose a divisor of it");
}

// How many ranks were asked to stop, and have their part of a checkpoint on disk: one small all-reduce after a step.
struct Agreed {
  double stop = 0, written = 0;
};

Agreed agree_on_step(bool stop, bool written, Communicator& control) {
  const CallSite here("loop: stop request and finished checkpoint");
  Agreed a{stop ? 1.0 : 0.0, written ? 1.0 : 0.0};
  control.all_reduce({&a, 2, DType::f64, {}}, Op::sum).wait();
  return a;
}

std::string format(double v) {
  char text[64];
  std::snprintf(text, sizeof text, "%.6g", v);
  return text;
}

// `done:` of a finished run, from its own metrics.
std::string done_line(const RunFolder& folder, const Recipe& recipe) {
  double step = 0, loss = std::nan("");
  std::map<std::string, double> eval;
  for (const auto& r : read_metrics(folder.file("metrics.jsonl"))) {
    for (const auto& [key, value] : r.values) {
      if (key == "loss" && std::isfinite(value)) loss = value, step = double(r.step);
      if (key.starts_with("eval/")) eval[key.substr(5)] = value;
    }
  }
  std::string line = "done: step=" + format(step) + " loss=" + format(loss);
  for (const auto& key : recipe.headline_metrics())
    if (eval.contains(key)) line += (key == "loss" ? " eval_loss=" : " " + key + "=") + format(eval[key]);
  std::error_code failed;
  const auto relative = fs::relative(folder.dir, fs::current_path(), failed);
  return line + " run=" + (failed ? folder.dir : relative.string());
}

class Loop {
 public:
  Loop(const TrainOptions& options, Experiment& setup, Traced& world, Watchdog& watchdog)
      : setup_(setup),
        config_(setup.train),
        world_(world),
        watchdog_(watchdog),
        session_(world, config_, *setup.recipe, options.fresh ? "" : run_dir_of(options) + "/ckpt"),
        loader_(setup.recipe->train_data(), setup.recipe->train_ids(), config_.batch_size, world.rank(), world.size(),
                std::uint64_t(config_.seed), {.prefetch = config_.prefetch}),
        folder_(open_run_folder(run_dir_of(options), options.fresh, setup.config, setup.schema, world)),
        checkpoints_(folder_.file("ckpt"), int(config_.checkpoint.keep), world),
        report_(config_, session_, world, setup.recipe->flops_per_sample()) {
    total_ = session_.context().steps;
    if (const auto latest = checkpoints_.latest(folder_.alone)) {
      session_.restore(checkpoints_.load(*latest), [this](Archive& ar) { state(ar); });
    } else if (!config_.init_from.empty()) {
      init_from(config_.init_from, session_, world);
    }
    saved_at_ = step_;
    if (world.rank() != 0 || step_ == total_) return;  // a finished run stays as it is
    const bool terminal = isatty(STDERR_FILENO) || std::getenv("TRIREME_TERMINAL");
    metrics_ = Metrics(folder_.dir, step_, total_, terminal, setup.recipe->unit(), setup.recipe->charts());
    described_ = recipe_description(*setup.recipe);
    record_start(folder_, setup.config, setup.schema,
                 describe_environment(world.size(), at::get_num_threads(), described_), step_);
    session_.context().on_message = [this](std::string_view line) { metrics_.message(line); };
    if (step_ < total_)
      metrics_.message(start_banner(setup, session_, folder_, std::ssize(setup.recipe->train_ids()), step_));
  }

  int run() {
    if (step_ == total_) {
      if (world_.rank() == 0)
        std::cout << "the run is complete (--fresh starts over)\n" << done_line(folder_, *setup_.recipe) << std::endl;
      return int(ExitCode::ok);
    }
    while (step_ < total_) {
      report_.begin_step();
      watchdog_.phase("the loader");
      session_.context().now.step = step_;
      Batch batch = loader_.next();
      session_.context().now.epoch = batch.epoch;
      report_.loaded();
      watchdog_.phase("the step");
      const bool ahead = setup_.recipe->looks_ahead() && step_ + 1 < total_;
      session_.step(batch, ahead ? &loader_.peek() : nullptr);
      watchdog_.finished(++step_);
      if (!described_.empty())
        record_measured(folder_, std::exchange(described_, {}), recipe_description(*setup_.recipe));
      // The host reads the device only where it must, and before a checkpoint; on a CPU reading is free.
      const bool read = session_.context().device().is_cpu() || due(config_.log_every) ||
                        due(config_.checkpoint.every) || due(config_.eval_every) || step_ == total_;
      const Agreed agreed =
          read ? agree_on_step(stop_requested(), checkpoints_.written(), session_.context().comm("control")) : Agreed{};
      const double loss = read ? session_.loss() : std::nan("");
      if (read) judge(loss);
      if (agreed.written == world_.size()) checkpoints_.finish();
      account(loss);
      if (due(config_.eval_every) || step_ == total_) evaluate();
      const bool stop = agreed.stop > 0 && step_ < total_;
      if (due(config_.checkpoint.every) || step_ == total_ || stop || is_best_) save(stop);
      if (stop) {
        session_.context().message("stopped at step " + std::to_string(step_) +
                                   " after a checkpoint; the same command resumes");
        return int(ExitCode::stopped);
      }
    }
    finish();
    return int(ExitCode::ok);
  }

 private:
  bool due(std::int64_t every) const { return every > 0 && step_ % every == 0; }

  void state(Archive& ar) {
    ar.value("step", step_);
    ar.value("best", best_);
    session_.state(ar);
    Archive::Group g(ar, "loader");
    loader_.state(ar);
  }

  // A step whose loss or gradient is not finite changed no weight. `stop` ends at the first one, wherever the host
  // reads next: the last checkpoint is good. fp16 skips by design while its loss scale comes down, 16 steps at most.
  void judge(double loss) {
    const SkippedSteps::Seen skipped = session_.take_skipped();
    if (skipped.total == 0) return;
    const std::int64_t allowed = config_.precision == "fp16" ? 16 : config_.nonfinite == "skip" ? 10 : 0;
    if (skipped.in_a_row <= allowed) {
      if (config_.precision == "fp16") return;
      const std::string more =
          skipped.total > 1 ? " and " + std::to_string(skipped.total - 1) + " more up to step " + std::to_string(step_)
                            : "";
      session_.context().message("step " + std::to_string(skipped.first) + more +
                                 ": loss or gradient not finite, skipped");
      return;
    }
    checkpoints_.finish();
    const std::string values = session_.skipped() ? "loss " + format(loss) + ", gradient norm " +
                                                        format(session_.gradient_norm()) + ": not finite"
                                                  : "loss or gradient not finite";
    throw Error(ExitCode::nonfinite, "step " + std::to_string(allowed ? step_ : skipped.first),
                values + (allowed ? " for " + std::to_string(skipped.in_a_row) + " steps in a row" : ""),
                "start over with a lower optimizer.lr or with optimizer.clip_norm set; the last checkpoint is kept");
  }

  void account(double loss) {
    report_.add_step();
    metrics_.progress(step_, loss);
    if (due(config_.log_every) || step_ == total_) metrics_.log(report_.record(step_, loss));
  }

  void evaluate() {
    Trace::Span span(Trace::Track::step, "evaluate");
    const CallSite here("evaluation");
    watchdog_.phase("the evaluation");
    const auto values = session_.evaluate();
    choose_best(values);
    if (values.empty()) return;
    Record r;
    r.step = step_;
    for (const auto& [key, value] : values) r.values["eval/" + key] = value;
    metrics_.log(r);
  }

  // The best checkpoint holds the weights that were evaluated: it is saved now, not when the next one is due. Rank 0
  // judges for all: saving is collective, and another rank's metrics may differ in their last bits.
  void choose_best(const std::map<std::string, double>& values) {
    const auto found = values.find(setup_.recipe->best_metric());
    double judged[2] = {0, best_};
    if (config_.checkpoint.best && found != values.end() && found->second > best_)
      judged[0] = 1, judged[1] = found->second;
    session_.context().comm("control").broadcast({judged, 2, DType::f64}, 0).wait();
    is_best_ = judged[0] != 0;
    best_ = judged[1];
  }

  void save(bool now) {
    Trace::Span span(Trace::Track::step, "checkpoint");
    const CallSite here("checkpoint");
    watchdog_.phase("a checkpoint");
    if (saved_at_ == step_) return;
    saved_at_ = step_;
    metrics_.flush();
    Snapshot snapshot = Snapshot::take([this](Archive& ar) { state(ar); }, world_.rank());
    checkpoints_.save(step_, std::move(snapshot), "{}", std::exchange(is_best_, false));
    if (now || !config_.checkpoint.async || step_ == total_) checkpoints_.finish();
  }

  void finish() {
    const CallSite here("the end");
    watchdog_.phase("the end");
    checkpoints_.finish();
    metrics_.flush();
    // Rank 0 merges what the others wrote.
    if (Trace::enabled() && world_.rank() != 0) Trace::write(folder_.file("trace.json"));
    world_.barrier().wait();
    if (world_.rank() != 0) return;
    if (Trace::enabled()) Trace::write(folder_.file("trace.json"));
    write_report({folder_.dir}, folder_.file("report.html"));
    metrics_.message("report: " + folder_.file("report.html"));
    metrics_ = Metrics();
    std::cout << done_line(folder_, *setup_.recipe) << std::endl;
  }

  Experiment& setup_;
  const TrainConfig& config_;
  Traced& world_;
  Watchdog& watchdog_;
  // A mistake that setting up finds leaves the run folder as it was.
  Session session_;
  Loader loader_;
  RunFolder folder_;
  std::string described_;  // on rank 0: what the recipe says of itself, until its first step
  Checkpoints checkpoints_;
  Metrics metrics_;
  StepReport report_;
  std::int64_t step_ = 0, total_ = 0, saved_at_ = 0;
  double best_ = -std::numeric_limits<double>::infinity();
  bool is_best_ = false;
};

}  // namespace

std::string run_dir_of(const TrainOptions& o) {
  if (o.out.empty()) return "runs/" + fs::path(o.file).stem().string();
  // As --fresh can rename it: no slash at its end, no dots, no link.
  fs::path dir = fs::path(o.out).lexically_normal();
  if (!dir.has_filename()) dir = dir.parent_path();
  std::error_code failed;
  const bool dots = dir.filename() == "." || dir.filename() == "..";
  if (dots || fs::is_symlink(dir, failed)) dir = fs::weakly_canonical(dir, failed);
  return failed ? o.out : dir.string();
}

void check_config(const TrainOptions& o) {
  const Experiment setup(Config::load(o.file, o.overrides));
  check_divisible(setup, std::max(1, o.ranks));
}

void print_config(const TrainOptions& o) {
  const Experiment setup(Config::load(o.file, o.overrides));
  std::cout << setup.config.print(setup.schema, true) << std::flush;
}

void set_threads(const TrainConfig& config, int local_ranks) {
  const int cores = int(std::thread::hardware_concurrency());
  at::set_num_threads(config.threads ? int(config.threads) : std::max(1, cores / std::max(1, local_ranks)));
}

int train(const TrainOptions& options, Communicator& world, int local_ranks) {
  Experiment setup(Config::load(options.file, options.overrides));
  set_threads(setup.train, local_ranks);
  check_divisible(setup, world.size());
  check_same_config(config_hash(setup.config, setup.schema), world);
  if (options.dry_run) {
    dry_run(setup, world, [](Session& session) { agree_on_step(false, false, session.context().comm("control")); });
    return int(ExitCode::ok);
  }
  if (setup.train.trace) Trace::enable(world.rank());
  // Everything that talks to other ranks from here on is recorded and watched.
  Watched job(world, setup.train.watchdog, run_dir_of(options), Steps::together);
  Loop loop(options, setup, job.ranks, job.watchdog);
  return loop.run();
}

}  // namespace trireme
