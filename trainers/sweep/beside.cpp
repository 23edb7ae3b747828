// Tasks beside each other: an executor as the scheduler of tasks drives it.
#include "comm/error.h"
#include "data/file.h"
#include "framework/base/agree.h"
#include "framework/models/causal_lm_load.h"
#include "trainers/sweep/cluster/driver.h"
#include "trainers/sweep/cluster/journal.h"
#include "trainers/sweep/order.h"
#include "trainers/sweep/run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <utility>

#include <nlohmann/json.hpp>

namespace trireme::sweep {
namespace {

namespace fs = std::filesystem;

// What one sample of a task's jobs takes with its share of the evaluations, as a task on these ranks measured it; tasks
// of the same model, ranks, length and batches find it in the sweep's folder.
std::string profile_of(const TaskConfig& task, std::int64_t ranks) {
  std::error_code ignored;  // then the path as it is said
  const fs::path model = fs::weakly_canonical(task.model, ignored);
  std::string name = (ignored ? fs::path(task.model) : model).string() + " " + std::to_string(ranks) + " " +
                     std::to_string(task.data.length);
  for (const auto b : task.search.batch_size) name += " " + std::to_string(b);
  return "profile_" + std::to_string(std::hash<std::string>()(name)) + ".json";
}

// What a task trains on before its data is read: of a file a sample a line, of text about four bytes an id.
double lines_of(const InstructionSpec& data) {
  if (data.data == "arithmetic") return double(data.train);
  if (data.data.ends_with(".txt")) {
    double bytes = 0;
    std::error_code none;
    for (const auto& file : data.texts.empty() ? std::vector{data.data} : data.texts)
      if (const auto size = fs::file_size(file, none); !none) bytes += double(size);
    return bytes / 4 / double(data.length);
  }
  std::ifstream in(data.data, std::ios::binary);
  const auto lines = std::count(std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>(), '\n');
  return double(lines) * (data.validation.empty() ? 1 - data.validation_share : 1);
}

// Of all jobs, each on so many.
double samples_of(const TaskConfig& task, std::int64_t epochs, double each) {
  const auto jobs = task.search.random
                        ? task.search.random
                        : std::int64_t(task.search.lr.size() * task.search.rank.size() * task.search.batch_size.size());
  return double(jobs * epochs) * each;
}

// The steps of a task on GPUs (H200) whose passes are small: recorded where they may be padded, else launched op by op.
// That ranks' GPUs fetch layers from each other is not known yet, but likely.
double launching_seconds(const SweepConfig& sweep, const TaskConfig& task, std::int64_t ranks,
                         double samples_of_a_job) {
  const JobTrainConfig& t = sweep.train;
  const bool piped = ranks > 1 && sweep.parallel == "pipeline";
  const bool recorded =
      !piped && t.pad != "off" && t.accumulate == 1 && sweep.lora.dropout == 0 && task.objective != "dpo";
  const auto smallest = *std::min_element(task.search.batch_size.begin(), task.search.batch_size.end());
  return (recorded ? 0.006 : 0.032) * samples_of_a_job / double(smallest);
}

double weights_bytes(const SweepConfig& sweep, const std::string& model) {
  double bytes = 0;
  std::error_code ignored;
  if (sweep.weights == "random")  // what is wrong with the file ends the task, once it begins
    (void)attempt([&] { bytes = drawn_numbers(model) * (sweep.precision == "f32" ? 4 : 2); });
  else
    for (const auto& file : fs::recursive_directory_iterator(model, ignored))
      if (file.is_regular_file()) bytes += double(file.file_size());
  return bytes;
}

// Worst case, without early exit: what all jobs would train, at the speed of a like task; else at one that the weights'
// bytes tell, on GPUs at least what the steps take to launch: a guess until the task itself has measured.
double predicted_seconds(const SweepConfig& sweep, const TaskConfig& task, std::int64_t ranks, const std::string& out,
                         bool on_gpus) {
  const std::int64_t epochs = sweep.train.epochs;
  const double each = lines_of(task.data), samples = samples_of(task, epochs, each);
  if (const fs::path known = fs::path(out) / profile_of(task, ranks); fs::exists(known)) {
    const auto file = read_file(known.string(), 1 << 16);
    const auto json = nlohmann::json::parse(file.begin(), file.end(), nullptr, false);
    if (json.is_object() && json.contains("seconds_a_sample"))
      return json.value("to_begin", 0.0) + samples * json["seconds_a_sample"].get<double>();
  }
  const double bytes = weights_bytes(sweep, task.model);
  // Weights' bytes times tokens a second, forward and backward: 4 operations a weight of two bytes at 0.4 of an H200.
  const double speed = on_gpus ? 2e14 : 3.2e10;
  const double by_bytes = samples * double(task.data.length) / 4 * bytes / speed / double(ranks);
  if (!on_gpus) return 1 + by_bytes;
  return 2 + std::max(by_bytes, launching_seconds(sweep, task, ranks, double(epochs) * each));
}

class Beside : public cluster::TaskRun {
 public:
  Beside(Order order, Communicator& ranks, const std::string& out, const Placement& place)
      : order_(std::move(order)),
        ranks_(ranks),
        out_(out),
        folder_(out + "/" + order_.task.name),
        inputs_(read_inputs(order_.sweep, order_.task, ranks, place.device, folder_)),
        executor_(order_.sweep, order_.task, *std::exchange(inputs_.backbone, {}), *inputs_.data, ranks, folder_,
                  place) {
    executor_.on_answers([this](std::span<const std::int64_t> ids) { return inputs_.tokenizer->decode(ids); });
    executor_.measure_steps();
    cut_told_ = executor_.restore();
    fresh_ = std::ranges::all_of(executor_.roster().jobs(), [](const Roster::Entry& j) { return j.step == 0; });
    to_begin_ = seconds_since(begin_);
  }

  cluster::TaskEvent tick() override {
    if (!std::exchange(told_, true)) return tell(executor_.remaining_seconds());
    if (executor_.tick(false) == Executor::Progress::over) {
      const TaskOutcome outcome = executor_.finish();
      agree(ranks_, attempt([&] {
              if (ranks_.rank() == 0) write_outcome(folder_, outcome, order_.task);
            }));
      return {cluster::TaskEvent::done};
    }
    if (cut_told_ || !executor_.roster().exits().cut_done()) return tell_again();
    cut_told_ = true;
    const auto& jobs = executor_.roster().jobs();
    const auto alive = std::count_if(jobs.begin(), jobs.end(), [](const Roster::Entry& j) {
      return j.phase != Roster::Phase::exited && j.phase != Roster::Phase::done;
    });
    const int wanted = std::max(1, std::min(ranks_.size(), int(alive)));
    const double left = executor_.remaining_seconds();
    end_told_ = seconds_since(begin_) + left;
    return {cluster::TaskEvent::cut, left, wanted};
  }

  void save() override {
    while (executor_.tick(true) == Executor::Progress::going) {
    }
  }

 private:
  // What is left, which the first ticks of a task that goes on know as well. What a sample takes is known while no job
  // has exited, of which nothing is left.
  cluster::TaskEvent tell(double left) {
    end_told_ = seconds_since(begin_) + left;
    const auto& roster = executor_.roster();
    const auto refused = std::ssize(roster.too_large());  // of them as little is left as of those that have exited
    const double samples = double((std::ssize(roster.jobs()) - refused) * order_.sweep.train.epochs) *
                           double(inputs_.data->train.size() + inputs_.data->train_pairs.size());
    const auto exited = std::ranges::count(roster.jobs(), Roster::Phase::exited, &Roster::Entry::phase);
    if (ranks_.rank() == 0 && fresh_ && exited == refused)
      (void)attempt([&] {  // without the file a later task is guessed at, and no more
        const double each = (executor_.seconds() + left) / samples;
        replace_durably(system_io(), (fs::path(out_) / profile_of(order_.task, ranks_.size())).string(),
                        nlohmann::json{{"seconds_a_sample", each}, {"to_begin", to_begin_}}.dump());
      });
    return {cluster::TaskEvent::measured, left};
  }

  // Where steps say by now that the end is elsewhere: by a tenth of what is left. Asked after evaluations, which come
  // on all ranks in the same ticks; the first rank's clock decides.
  cluster::TaskEvent tell_again() {
    if (!executor_.evaluated()) return {};
    const double left = executor_.remaining_seconds();
    std::int64_t moved = std::abs(seconds_since(begin_) + left - end_told_) > std::max(0.1 * left, 0.5);
    ranks_.broadcast({&moved, 1, DType::i64}, 0).wait();
    return moved ? tell(left) : cluster::TaskEvent{};
  }

  static double seconds_since(std::chrono::steady_clock::time_point begin) {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  }

  const std::chrono::steady_clock::time_point begin_ = std::chrono::steady_clock::now();
  Order order_;
  Communicator& ranks_;
  std::string out_, folder_;
  TaskInputs inputs_;
  Executor executor_;
  bool cut_told_ = false, told_ = false, fresh_ = false;  // fresh_: nothing of it ran before
  double to_begin_ = 0, end_told_ = 0;                    // seconds since it was given its ranks
};

}  // namespace

SweepEnd run_beside(const SweepConfig& sweep, Communicator& world, const std::string& out, const Placement& place,
                    const SweepHooks& hooks) {
  cluster::DriveOptions options;
  options.settings.gpus = world.size();
  options.run_dir = out;
  for (const auto& task : sweep.tasks) options.tasks.push_back(write_order(sweep.settings, task.name));
  options.stop = hooks.stop, options.ticked = hooks.ticked, options.idle = hooks.idle;
  options.message = [](const std::string& line) { std::cout << line << std::endl; };
  const auto read = [&](const std::string& text) {
    const Order order = read_order(text);
    const int ranks = order.task.ranks ? int(order.task.ranks) : world.size();
    return cluster::Task{order.task.name, ranks,
                         predicted_seconds(order.sweep, order.task, ranks, out, place.device.is_cuda())};
  };
  const auto start = [&](const cluster::TaskOrder& task, Communicator& ranks) -> std::unique_ptr<cluster::TaskRun> {
    hooks.starts();
    return std::make_unique<Beside>(read_order(task.text), ranks, out, place);
  };
  SweepEnd end;
  end.stopped = cluster::drive(world, options, read, start).stopped;
  if (world.rank() != 0) return end;
  const auto journal = cluster::recover(out);
  for (const auto& t : journal.done) end.done.push_back(read_order(t.text).task);
  for (const auto& f : journal.failed) end.failed.push_back({f.task.task.name, f.why});
  return end;
}

}  // namespace trireme::sweep
