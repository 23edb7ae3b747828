// A task for the inter-task scheduler that only counts ticks, on ranks that check each other. Its text is a line of
// numbers: NAME GPUS SECONDS TICKS CUT_AT RANKS_AFTER FAIL_AT (0: never), each tick of a millisecond.
#pragma once
#include "comm/error.h"
#include "framework/report/gantt.h"
#include "trainers/sweep/cluster/driver.h"

#include <chrono>
#include <fstream>
#include <sstream>
#include <thread>

#include <gtest/gtest.h>

namespace trireme::test {

struct FakeSpec {
  cluster::Task task;
  int ticks = 0, cut_at = 0, ranks_after = 0, fail_at = 0;
};

inline FakeSpec fake_spec(const std::string& text) {
  FakeSpec s;
  std::istringstream in(text);
  if (!(in >> s.task.name >> s.task.gpus >> s.task.seconds >> s.ticks >> s.cut_at >> s.ranks_after >> s.fail_at))
    throw UsageError("task", "is no line of a name and six numbers");
  return s;
}

class FakeTask : public cluster::TaskRun {
 public:
  FakeTask(const cluster::TaskOrder& order, Communicator& comm, std::string folder)
      : spec_(fake_spec(order.text)), comm_(comm), file_(folder + "/progress_" + order.name) {
    if (order.resume) std::ifstream(file_) >> done_;
  }
  cluster::TaskEvent tick() override {
    std::int64_t sum = done_ + 1;  // ranks that were at different ticks would not agree
    comm_.all_reduce({&sum, 1, DType::i64}, Op::sum).wait();
    if (sum != (done_ + 1) * comm_.size()) throw Error(ExitCode::bug, "fake task", "ranks are at different ticks");
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ++done_;
    if (done_ == spec_.fail_at) throw DataError(spec_.task.name, "goes wrong on purpose");
    if (done_ == spec_.ticks) return {cluster::TaskEvent::done};
    if (done_ == spec_.cut_at) return {cluster::TaskEvent::cut, 0.001 * (spec_.ticks - done_), spec_.ranks_after};
    return {};
  }
  void save() override {
    if (comm_.rank() == 0) std::ofstream(file_) << done_;
    comm_.barrier().wait();
  }

 private:
  FakeSpec spec_;
  Communicator& comm_;
  std::string file_;
  std::int64_t done_ = 0;
};

inline cluster::DriveResult drive_fakes(Communicator& world, const std::string& folder, std::vector<std::string> tasks,
                                        std::function<bool()> stop = {}) {
  cluster::DriveOptions options;
  options.run_dir = folder, options.tasks = std::move(tasks), options.stop = std::move(stop);
  return cluster::drive(
      world, options, [](const std::string& text) { return fake_spec(text).task; },
      [&](const cluster::TaskOrder& order, Communicator& comm) {
        return std::make_unique<FakeTask>(order, comm, folder);
      });
}

// No GPU runs two tasks at once.
inline void expect_apart(const std::vector<GanttBar>& bars) {
  for (const auto& a : bars)
    for (const auto& b : bars)
      for (int g : a.gpus)
        if (&a < &b && std::find(b.gpus.begin(), b.gpus.end(), g) != b.gpus.end()) {
          EXPECT_TRUE(a.end <= b.start + 1e-9 || b.end <= a.start + 1e-9) << a.task << " and " << b.task << " on " << g;
        }
}

}  // namespace trireme::test
