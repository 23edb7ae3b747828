// Tasks beside each other: an executor as the scheduler of tasks drives it.
#include "comm/error.h"
#include "framework/base/agree.h"
#include "trainers/sweep/cluster/driver.h"
#include "trainers/sweep/cluster/journal.h"
#include "trainers/sweep/run.h"

#include <algorithm>
#include <filesystem>
#include <iostream>

#include <nlohmann/json.hpp>

namespace trireme::sweep {
namespace {

namespace fs = std::filesystem;

// A task as text: a file with one task, as `sweep add` hands it in; or of this sweep, by name.
struct Order {
  SweepConfig sweep;
  TaskConfig task;
};

Order read_order(const std::string& text) {
  const auto own = nlohmann::json::parse(text, nullptr, false);
  Order order;
  if (own.is_object() && own.contains("settings")) {
    order.sweep = parse_sweep(own.at("settings").get<std::string>(), "config.resolved.yaml");
    const std::string name = own.at("task").get<std::string>();
    std::erase_if(order.sweep.tasks, [&](const TaskConfig& t) { return t.name != name; });
  } else {
    order.sweep = parse_sweep(text, "task");
  }
  if (order.sweep.tasks.size() != 1)
    throw UsageError("task", "names " + std::to_string(order.sweep.tasks.size()) + " tasks", "hand in one a file");
  order.task = order.sweep.tasks[0];
  return order;
}

// Worst case, without early exit: what all jobs would train, at a speed that the weights' bytes tell. A forecast before
// any measurement; the scheduler hears what is left at the cut.
double predicted_seconds(const TaskConfig& task, std::int64_t epochs, std::int64_t ranks) {
  double bytes = 0;
  std::error_code ignored;
  for (const auto& file : fs::recursive_directory_iterator(task.model, ignored))
    if (file.is_regular_file()) bytes += double(file.file_size());
  constexpr double bytes_per_second = 5e8;  // weights read for a token, forward and backward
  const auto jobs = task.search.random
                        ? task.search.random
                        : std::int64_t(task.search.lr.size() * task.search.rank.size() * task.search.batch_size.size());
  const double tokens = double(jobs * epochs * task.data.train) * double(task.data.length) / 4;
  return 1 + tokens * bytes / bytes_per_second / 64 / double(ranks);
}

class Beside : public cluster::TaskRun {
 public:
  Beside(Order order, Communicator& ranks, const std::string& out, const Placement& place)
      : order_(std::move(order)),
        ranks_(ranks),
        folder_(out + "/" + order_.task.name),
        inputs_(read_inputs(order_.sweep, order_.task, ranks, place.device)),
        executor_(order_.sweep, order_.task, *inputs_.model, *inputs_.data, ranks, folder_, place) {
    executor_.restore();
    cut_told_ = executor_.roster().exits().cut_done();
  }

  cluster::TaskEvent tick() override {
    if (executor_.tick(false) == Executor::Progress::over) {
      const TaskOutcome outcome = executor_.finish();
      agree(ranks_, attempt([&] {
              if (ranks_.rank() == 0) write_outcome(folder_, outcome, order_.task);
            }));
      return {cluster::TaskEvent::done};
    }
    if (cut_told_ || !executor_.roster().exits().cut_done()) return {};
    cut_told_ = true;
    const auto& jobs = executor_.roster().jobs();
    const auto alive = std::count_if(jobs.begin(), jobs.end(), [](const Roster::Entry& j) {
      return j.phase != Roster::Phase::exited && j.phase != Roster::Phase::done;
    });
    const int wanted = std::max(1, std::min(ranks_.size(), int(alive)));
    return {cluster::TaskEvent::cut, executor_.remaining_seconds(), wanted};
  }

  void save() override {
    while (executor_.tick(true) == Executor::Progress::going) {
    }
  }

 private:
  Order order_;
  Communicator& ranks_;
  std::string folder_;
  TaskInputs inputs_;
  Executor executor_;
  bool cut_told_ = false;
};

}  // namespace

SweepEnd run_beside(const SweepConfig& sweep, Communicator& world, const std::string& out, const Placement& place,
                    const std::function<bool()>& stop) {
  cluster::DriveOptions options;
  options.settings.gpus = world.size();
  options.run_dir = out;
  for (const auto& task : sweep.tasks)
    options.tasks.push_back(nlohmann::json{{"task", task.name}, {"settings", sweep.settings}}.dump());
  options.stop = stop;
  options.message = [](const std::string& line) { std::cout << line << std::endl; };
  const auto read = [&](const std::string& text) {
    const Order order = read_order(text);
    const int ranks = order.task.ranks ? int(order.task.ranks) : world.size();
    return cluster::Task{order.task.name, ranks, predicted_seconds(order.task, order.sweep.train.epochs, ranks)};
  };
  const auto start = [&](const cluster::TaskOrder& task, Communicator& ranks) -> std::unique_ptr<cluster::TaskRun> {
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
