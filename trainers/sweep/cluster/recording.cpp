#include "trainers/sweep/cluster/recording.h"

#include "comm/error.h"
#include "trainers/sweep/cluster/journal.h"

#include <algorithm>
#include <filesystem>
#include <optional>

namespace trireme::cluster {
namespace {

struct Watched {
  Recorded r;
  std::optional<double> since;  // it runs since then
  bool cut = false;
  std::optional<double> done;

  double took(double now) const { return r.before_cut + r.after_cut + (since ? now - *since : 0); }
  void close(double now) {
    if (since) (cut ? r.after_cut : r.before_cut) += std::max(now - *since, 0.0);
    since.reset();
  }
};

double within(double value, double least, double most) {
  if (!(value >= least && value <= most)) throw DataError("schedule", "has a number that cannot be");
  return value;
}

class Watch {
 public:
  void take(const nlohmann::json& line) {
    const double t = within(line.at("t"), last_, 1e9);
    const std::string event = line.at("event");
    if (event == "begin") {  // after a kill nobody said stop
      close_all(last_);
      const int gpus = int(within(line.at("gpus"), 1, 65536));
      least_gpus_ = gpus_ ? std::min(least_gpus_, gpus) : gpus;
      gpus_ = std::max(gpus_, gpus);
    } else if (event == "plan") {
      planned(line.at("bars"));
    } else if (event == "stop") {
      close_all(t);
    } else if (event == "arrive") {
      Recorded r{{line.at("task"), int(within(line.at("gpus"), 1, gpus_)), within(line.at("seconds"), 1e-9, 1e9)}, t};
      all_.push_back({std::move(r), {}, false, {}});
    } else if (line.contains("task")) {
      heard(find(line.at("task")), event, t, line);
    }
    last_ = t;
  }

  Recording found() const {
    Recording found;
    found.gpus = gpus_, found.least_gpus = least_gpus_;
    for (const auto& w : all_) {
      if (!w.done) {
        ++found.left_out;
        continue;
      }
      found.tasks.push_back(w.r);
      found.makespan = std::max(found.makespan, *w.done);
    }
    return found;
  }

 private:
  Watched& find(const std::string& task) {
    const auto it = std::ranges::find(all_, task, [](const Watched& w) { return w.r.task.name; });
    if (it == all_.end()) throw DataError(task, "never arrived");
    return *it;
  }
  void close_all(double t) {
    for (auto& w : all_) w.close(t);
  }
  // What the planner takes a task that waits to last, which it may have heard since from one like it.
  void planned(const nlohmann::json& bars) {
    for (const auto& bar : bars) {
      Watched& w = find(bar.at("task"));
      const double seconds = bar.at("end").get<double>() - bar.at("start").get<double>();
      if (!w.since && w.took(0) == 0) w.r.task.seconds = within(seconds, 1e-9, 1e9);
    }
  }
  static void heard(Watched& w, const std::string& event, double t, const nlohmann::json& line) {
    if (event == "measured") w.r.told.push_back({w.took(t), within(line.at("remaining"), 0, 1e9)});
    if (event == "start" || event == "cut") {
      w.close(t);
      w.cut |= event == "cut", w.since = t;
      if (w.cut) w.r.gpus_after = int(within(double(line.at("gpus").size()), 1, w.r.task.gpus));
    }
    if (event == "cut") w.r.after_cut_told = within(line.at("remaining"), 0, 1e9);
    if (event == "done" || event == "failed") w.close(t);
    if (event == "done") w.done = t;
  }

  int gpus_ = 0, least_gpus_ = 0;
  double last_ = 0;
  std::vector<Watched> all_;
};

}  // namespace

Recording read_recording(const std::string& run_dir) {
  if (!std::filesystem::exists(run_dir + "/schedule.jsonl"))
    throw DataError(run_dir, "has no schedule.jsonl: no sweep with tasks beside each other ran there",
                    "name the folder of a sweep whose tasks say ranks: N, run with --ranks 2 or more");
  Watch watch;
  each_line(run_dir, [&](const nlohmann::json& line) { watch.take(line); });
  Recording found = watch.found();
  if (found.tasks.empty())
    throw DataError(run_dir + "/schedule.jsonl", "has no task that is done", "let the sweep go on until one is");
  return found;
}

std::vector<Recorded> without_exits(const Recording& recording) {
  std::vector<Recorded> all;
  for (const auto& r : recording.tasks) {
    if (r.told.empty()) return {};
    const auto first = r.told.front();
    all.push_back({r.task, r.arrival, first.after + first.remaining, 0, r.task.gpus, 0, {first}});
  }
  return all;
}

}  // namespace trireme::cluster
