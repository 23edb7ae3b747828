#include "trainers/sweep/cluster/driver.h"

#include "comm/error.h"
#include "data/json.h"
#include "framework/base/agree.h"
#include "trainers/sweep/cluster/dispatcher.h"

#include <algorithm>
#include <cstring>
#include <optional>

namespace trireme::cluster {
namespace {

std::string as_text(const Decision& d) {
  nlohmann::json begin = nlohmann::json::array();
  for (const auto& a : d.begin)
    begin.push_back({{"task", a.order.name},
                     {"text", a.order.text},
                     {"resume", a.order.resume},
                     {"ranks", a.ranks},
                     {"moved", a.moved}});
  return nlohmann::json{{"begin", begin}, {"go_on", d.go_on}}.dump(-1, ' ', false,
                                                                   nlohmann::json::error_handler_t::replace);
}

Decision from_text(const std::string& text) {
  const auto json = parse_json(text);
  Decision d;
  for (const auto& a : json.at("begin"))
    d.begin.push_back({{a.at("task"), a.at("text"), a.at("resume")}, a.at("ranks"), a.at("moved")});
  d.go_on = json.at("go_on").get<std::vector<std::string>>();
  return d;
}

// One rank of the job.
class Rank {
 public:
  Rank(Communicator& world, const DriveOptions& options, const StartTask& start, Dispatcher* dispatcher)
      : world_(world), options_(options), start_(start), dispatcher_(dispatcher) {}

  // Until all is done or saved. Returns whether it was stopped.
  bool run() {
    for (;;) {
      const Decision decision = round();
      if (decision.stop || decision.finished) {
        if (decision.stop && run_) run_->save();
        run_.reset(), comm_.reset();
        return decision.stop;
      }
      if (decision.regroups()) regroup(decision);
    }
  }

 private:
  Decision round();
  void until(Work work);
  void tick();
  void regroup(const Decision& decision);
  void begin(const Assignment& a, std::unique_ptr<Communicator> comm);
  void failed(const Failure& f);

  Communicator& world_;
  const DriveOptions& options_;
  const StartTask& start_;
  Dispatcher* dispatcher_;  // on rank 0
  std::unique_ptr<Communicator> comm_;
  std::unique_ptr<TaskRun> run_;
  std::string task_;
  bool paused_ = false;  // it waits for an answer to its event
  Report report_;        // of this rank, if it leads; sent by the next round
};

void Rank::failed(const Failure& f) {
  if (f.code == ExitCode::communication) raise(f);
  run_.reset(), paused_ = true;
  if (comm_->rank() != 0) return;
  report_.kind = Report::failed, report_.code = std::int64_t(f.code);
  std::strncpy(report_.why, f.what.c_str(), sizeof report_.why - 1);
}

void Rank::tick() {
  TaskEvent event;
  if (const auto failure = attempt([&] { event = run_->tick(); })) return failed(*failure);
  if (event.kind == TaskEvent::tick) return options_.ticked();
  paused_ = true;
  if (event.kind == TaskEvent::done) run_.reset();
  if (comm_->rank() != 0) return;
  report_.kind = event.kind == TaskEvent::cut        ? Report::cut
                 : event.kind == TaskEvent::measured ? Report::measured
                                                     : Report::done;
  report_.ranks = event.ranks, report_.remaining = event.remaining, report_.remaining_all = event.remaining_all;
}

// Ticks until `work` is complete on every rank of the task. The ranks of one task make the same ticks.
void Rank::until(Work work) {
  while (run_ && !paused_) {
    std::int32_t complete = work.done();
    comm_->all_reduce({&complete, 1, DType::i32}, Op::min).wait();
    if (complete) break;
    tick();
  }
  work.wait();
}

Decision Rank::round() {
  Report mine = report_;  // of a task's first rank alone: the others may have left its communicator since
  report_ = {};
  mine.stop = options_.stop && options_.stop();
  if (!run_) options_.idle();
  std::vector<Report> reports(std::size_t(world_.size()));
  until(world_.all_gather({&mine, sizeof mine, DType::u8}, {reports.data(), reports.size() * sizeof mine, DType::u8}));
  Decision decision;
  std::string text;
  if (dispatcher_) {
    decision = dispatcher_->decide(reports);
    if (decision.regroups()) text = as_text(decision);
  }
  std::int64_t head[3] = {decision.stop, decision.finished, std::int64_t(text.size())};
  until(world_.broadcast({head, 3, DType::i64}, 0));
  text.resize(std::size_t(head[2]));
  if (head[2]) {
    world_.broadcast({text.data(), text.size(), DType::u8}, 0).wait();
    decision = from_text(text);
  }
  decision.stop = head[0], decision.finished = head[1];
  return decision;
}

void Rank::regroup(const Decision& decision) {
  const auto holds = [&](const std::vector<int>& ranks) {
    return std::find(ranks.begin(), ranks.end(), world_.rank()) != ranks.end();
  };
  if (run_ && std::find(decision.go_on.begin(), decision.go_on.end(), task_) != decision.go_on.end()) paused_ = false;
  if (decision.begin.empty()) return;
  for (const auto& a : decision.begin)
    if (a.moved && run_ && a.order.name == task_) run_->save(), run_.reset();
  int color = 0;  // of those that stay as they are
  for (std::size_t i = 0; i < decision.begin.size(); ++i)
    if (holds(decision.begin[i].ranks)) color = int(i) + 1;
  auto comm = world_.split(color, world_.rank());
  if (color) begin(decision.begin[std::size_t(color) - 1], std::move(comm));
  if (!run_ && !color) comm_.reset();
}

void Rank::begin(const Assignment& a, std::unique_ptr<Communicator> comm) {
  comm_ = std::move(comm), task_ = a.order.name, paused_ = false, report_ = {};
  if (const auto failure = attempt([&] { run_ = start_(a.order, *comm_); })) failed(*failure);
}

}  // namespace

DriveResult drive(Communicator& world, const DriveOptions& options, const ReadTask& read, const StartTask& start) {
  DriveOptions own = options;
  own.settings.gpus = world.size();
  std::optional<Dispatcher> dispatcher;
  std::optional<Failure> failure;
  if (world.rank() == 0) failure = attempt([&] { dispatcher.emplace(own, read); });
  agree(world, failure);
  DriveResult result;
  result.stopped = Rank(world, own, start, dispatcher ? &*dispatcher : nullptr).run();
  if (dispatcher) result = dispatcher->result();
  std::int64_t counts[2] = {result.done, result.failed};
  world.broadcast({counts, 2, DType::i64}, 0).wait();
  world.broadcast({&result.seconds, 1, DType::f64}, 0).wait();
  result.done = int(counts[0]), result.failed = int(counts[1]);
  return result;
}

}  // namespace trireme::cluster
