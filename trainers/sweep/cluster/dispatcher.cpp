#include "trainers/sweep/cluster/dispatcher.h"

#include "comm/error.h"
#include "framework/base/agree.h"

#include <algorithm>
#include <cstdio>

namespace trireme::cluster {
namespace {

std::string ranks_text(const std::vector<int>& ranks) {
  std::string text;
  for (int r : ranks) text += (text.empty() ? "" : ",") + std::to_string(r);
  return (ranks.size() == 1 ? "rank " : "ranks ") + text;
}

std::string seconds_text(double s) {
  char text[32];
  std::snprintf(text, sizeof text, "%.1f s", s);
  return text;
}

}  // namespace

Dispatcher::Dispatcher(const DriveOptions& options, const ReadTask& read)
    : options_(options),
      read_(read),
      before_(recover(options.run_dir)),
      journal_(options.run_dir),
      inbox_(options.run_dir),
      scheduler_(options.settings) {
  journal_.begin(now(), options.settings.gpus);
  for (const auto& f : before_.failed) before_.unfinished.push_back(f.task);
  for (const auto& u : before_.unfinished) {
    scheduler_.arrive(u.task);
    orders_[u.task.name] = {u.task.name, u.text, u.started};
    arrived_ = true;
  }
  for (const auto& text : options.tasks)
    if (!before_.tasks.contains(read_(text).name)) take(text, "");
}

double Dispatcher::now() const {
  return before_.t + std::chrono::duration<double>(std::chrono::steady_clock::now() - begin_).count();
}

void Dispatcher::say(const std::string& line) const {
  if (options_.message) options_.message(seconds_text(now()) + ": " + line);
}

void Dispatcher::take(const std::string& text, const std::string& letter) {
  const Task task = read_(text);
  if (before_.tasks.contains(task.name))
    throw UsageError("task " + task.name, "the run has one of that name", "give it another name");
  scheduler_.arrive(task);
  journal_.arrive(now(), task, text, letter);
  before_.tasks.insert(task.name);
  orders_[task.name] = {task.name, text, false};
  arrived_ = true;
}

void Dispatcher::read_inbox() {
  const auto clock = std::chrono::steady_clock::now();
  if (clock - looked_ < std::chrono::milliseconds(200) && !scheduler_.done()) return;  // the last look misses nobody
  looked_ = clock;
  for (const auto& letter : inbox_.letters()) {
    if (before_.letters.contains(letter.id)) {  // killed between taking it and saying so
      inbox_.answer(letter.id, true, "taken by the run before it was resumed");
      continue;
    }
    const auto failure = attempt([&] {
      if (!letter.fault.empty()) throw DataError(letter.id, letter.fault);
      take(letter.text, letter.id);
    });
    if (failure) {
      journal_.refused(now(), letter.id, failure->what);
      inbox_.answer(letter.id, false, failure->what);
      say("letter " + letter.id + " refused: " + failure->what);
    } else {
      inbox_.answer(letter.id, true, "at " + seconds_text(now()) + " of the run");
      say("letter " + letter.id + " accepted");
    }
  }
}

// Tasks that wait may be alike, and are read again.
void Dispatcher::measured(const std::string& task, double remaining) {
  scheduler_.measured(task, now(), remaining);
  journal_.measured(now(), task, remaining);
  say("task " + task + " will take " + seconds_text(remaining));
  const auto waiting = scheduler_.waiting();
  for (const auto& t : waiting)
    if (!orders_.at(t.name).resume) scheduler_.retime(t.name, read_(orders_.at(t.name).text).seconds);
}

void Dispatcher::hear(const Report& report, int rank, Decision& decision) {
  if (report.kind == Report::nothing) return;
  const std::string task = leaders_.at(rank);
  if (report.kind == Report::measured) {
    measured(task, report.remaining);
    decision.go_on.push_back(task);
    return;
  }
  if (report.kind == Report::cut) {
    const std::size_t had = ranks_.at(task).size();
    const auto kept = scheduler_.cut(task, now(), report.remaining, int(report.ranks), report.remaining_all);
    const double remaining = kept.size() == had && report.remaining_all > 0 ? report.remaining_all : report.remaining;
    journal_.cut(now(), task, kept, remaining);
    say("task " + task + " cut, " + seconds_text(remaining) + " left on " + ranks_text(kept));
    orders_.at(task).resume = true;
    ranks_.at(task) = kept;
    if (kept.size() == had)
      decision.go_on.push_back(task);
    else
      decision.begin.push_back({orders_.at(task), kept, true});
    return;
  }
  scheduler_.complete(task);
  if (report.kind == Report::failed) {
    ++result_.failed;
    journal_.failed(now(), task, {ExitCode(report.code), report.why});
    say("task " + task + " failed: " + report.why);
  } else {
    ++result_.done;
    journal_.done(now(), task);
    say("task " + task + " done");
  }
  leaders_.erase(rank), ranks_.erase(task), orders_.erase(task);
}

Decision Dispatcher::decide(const std::vector<Report>& reports) {
  Decision decision;
  for (std::size_t r = 0; r < reports.size(); ++r) {
    hear(reports[r], int(r), decision);
    decision.stop |= reports[r].stop != 0;
  }
  decision.stop &= !scheduler_.done();  // nothing is left to stop
  if (decision.stop) {
    journal_.stop(now());
    result_.stopped = true;
    return decision;
  }
  read_inbox();
  const int plans = scheduler_.plans();
  const auto starts = scheduler_.due(now());
  if (scheduler_.plans() > plans)
    journal_.plan(now(), arrived_, scheduler_.last_plan(), scheduler_.planned()), arrived_ = false;
  for (const auto& s : starts) {
    journal_.start(now(), s, false);
    say("task " + s.task + " starts on " + ranks_text(s.gpus));
    leaders_[s.gpus.front()] = s.task, ranks_[s.task] = s.gpus;
    decision.begin.push_back({orders_.at(s.task), s.gpus, false});
    orders_.at(s.task).resume = true;
  }
  decision.finished = scheduler_.done();
  return decision;
}

DriveResult Dispatcher::result() const {
  DriveResult r = result_;
  r.seconds = now();
  return r;
}

}  // namespace trireme::cluster
