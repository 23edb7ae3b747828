#include "trainers/sweep/roster.h"

#include "comm/error.h"

#include <algorithm>
#include <cstdio>

#include <nlohmann/json.hpp>

namespace trireme::sweep {
namespace {

// Of a size that jobs differ by: "0.9 MB", "141 GB".
std::string memory_text(double bytes) {
  static const char* const units[] = {"kB", "MB", "GB", "TB"};
  std::size_t unit = 0;
  for (bytes /= 1e3; bytes >= 1e3 && unit < 3; ++unit) bytes /= 1e3;
  char text[48];
  std::snprintf(text, sizeof text, "%.*f %s", bytes < 100 ? 2 : 0, bytes, units[unit]);
  return text;
}

std::map<std::string, std::int64_t> steps_by_name(const std::vector<Load>& loads,
                                                  const std::vector<std::int64_t>& steps) {
  std::map<std::string, std::int64_t> by_name;
  for (std::size_t i = 0; i < loads.size(); ++i) by_name[loads[i].job] = steps[i];
  return by_name;
}

}  // namespace

Roster::Roster(const EarlyExitConfig& config, const MemoryLimit& limit, int ranks, bool steal, std::vector<Load> loads,
               std::vector<std::int64_t> total_steps)
    : limit_(limit), ranks_(ranks), steal_(steal), exits_(config, steps_by_name(loads, total_steps)) {
  for (std::size_t i = 0; i < loads.size(); ++i) jobs_.push_back({std::move(loads[i]), total_steps[i]});
  too_large_ = refuse();
}

std::vector<Decision> Roster::refuse() {
  std::vector<Decision> decisions;
  for (const auto& j : jobs_)
    if (j.phase == Phase::queued && !limit_.allows({}, j.load))
      for (auto& d : exits_.refuse(j.load.job)) decisions.push_back(std::move(d));
  follow();
  return decisions;
}

std::string Roster::needs(const Load& job) const {
  return "needs " + memory_text(limit_.model.bytes({&job, 1})) + " alone, and a rank has " + memory_text(limit_.bytes);
}

std::int64_t Roster::index(const std::string& job) const {
  for (std::size_t i = 0; i < jobs_.size(); ++i)
    if (jobs_[i].load.job == job) return std::int64_t(i);
  throw Error(ExitCode::bug, "sweep", "there is no job " + job);
}

std::vector<Load> Roster::running(int rank) const {
  std::vector<Load> all;
  for (const auto& j : jobs_)
    if (j.rank == rank && (j.phase == Phase::running || j.phase == Phase::waiting)) all.push_back(j.load);
  return all;
}

// The rank with the fewest tokens that has room; a parked job stays at home where nothing is stolen. -1: none.
int Roster::place_for(const Entry& job) const {
  int best = -1;
  std::int64_t least = 0;
  for (int r = 0; r < ranks_; ++r) {
    const bool away = job.rank >= 0 && job.rank != r;
    const auto there = running(r);
    if ((away && (!steal_ || !there.empty())) || !limit_.allows(there, job.load)) continue;
    std::int64_t tokens = 0;
    for (const auto& l : there) tokens += l.tokens;
    if (!away && job.rank == r) return r;
    if (best < 0 || tokens < least) best = r, least = tokens;
  }
  return best;
}

std::vector<Roster::Move> Roster::plan() {
  std::vector<Move> moves;
  std::vector<Load> queue;
  std::vector<Entry*> entries;
  for (auto& j : jobs_) {
    const auto state = exits_.job(j.load.job).state;
    const bool back = j.phase == Phase::parked && state != EarlyExit::State::waiting;
    if (j.phase != Phase::queued && !back) continue;
    queue.push_back(j.load);
    entries.push_back(&j);
  }
  if (queue.empty()) return moves;
  for (auto& j : jobs_)
    if (j.phase == Phase::waiting) {
      j.phase = Phase::parked;
      moves.push_back({Move::park, std::int64_t(&j - jobs_.data()), j.rank, j.rank});
    }
  for (const std::size_t i : admission_order(queue, freed_)) {
    Entry& j = *entries[i];
    const int rank = place_for(j);
    if (rank < 0) continue;
    const auto kind = j.phase == Phase::queued ? Move::start : j.rank == rank ? Move::resume : Move::take;
    moves.push_back({kind, &j - jobs_.data(), rank, j.rank});
    j.phase = Phase::running;
    j.rank = rank;
  }
  return moves;
}

void Roster::leave(Entry& job, Phase phase) {
  if (job.phase == Phase::running || job.phase == Phase::waiting) freed_ = job.load.batch_size;
  job.phase = phase;
}

std::vector<Decision> Roster::hear(const Evaluated& event) {
  Entry& job = jobs_.at(std::size_t(event.job));
  job.step = event.step;
  auto decisions = exits_.evaluate(job.load.job, event.step, &event.average, event.loss);
  follow();
  return decisions;
}

// Phases as early exit has it.
void Roster::follow() {
  for (auto& j : jobs_) {
    const auto state = exits_.job(j.load.job).state;
    if (state == EarlyExit::State::exited && j.phase != Phase::exited) leave(j, Phase::exited);
    if (state == EarlyExit::State::waiting && j.phase == Phase::running) j.phase = Phase::waiting;
    if (state == EarlyExit::State::going_on && j.phase == Phase::waiting) j.phase = Phase::running;
    const bool here = j.phase == Phase::running || j.phase == Phase::parked;
    if (state == EarlyExit::State::going_on && here && j.step == j.total_steps) leave(j, Phase::done);
  }
}

std::int64_t Roster::winner() const {
  std::int64_t best = -1;
  double loss = std::numeric_limits<double>::infinity();
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    const auto& j = exits_.job(jobs_[i].load.job);
    const bool counts = jobs_[i].phase == Phase::done || j.reason == "overfitting";
    if (counts && j.best < loss) best = std::int64_t(i), loss = j.best;
  }
  return best;
}

std::string Roster::save() const {
  nlohmann::json all{
      {"exits", exits_.save()}, {"freed", freed_.value_or(0)}, {"ranks", ranks_}, {"jobs", nlohmann::json::array()}};
  for (const auto& j : jobs_) all["jobs"].push_back({j.load.job, j.step, int(j.phase), j.rank});
  return all.dump();
}

void Roster::load(const std::string& text) {
  const auto all = nlohmann::json::parse(text);
  exits_.load(all.at("exits").get<std::string>());
  if (const auto freed = all.at("freed").get<std::int64_t>()) freed_ = freed;
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    const auto& j = all.at("jobs").at(i);
    jobs_[i].step = j[1].get<std::int64_t>();
    jobs_[i].phase = Phase(j[2].get<int>());
    jobs_[i].rank = j[3].get<int>();
    const bool begun = jobs_[i].phase != Phase::queued,
               over = jobs_[i].phase == Phase::done || jobs_[i].phase == Phase::exited;
    if (begun && !over && !limit_.allows({}, jobs_[i].load))
      throw UsageError("job " + jobs_[i].load.job, "has begun, and now " + needs(jobs_[i].load),
                       "go on with as much memory as before, or use --fresh to start over");
    if (all.at("ranks").get<int>() == ranks_) continue;
    // Other ranks now: all that has a state begins parked, and plan() places it anew.
    if (jobs_[i].rank >= 0) jobs_[i].rank %= ranks_;
    if (jobs_[i].phase == Phase::running || jobs_[i].phase == Phase::waiting) jobs_[i].phase = Phase::parked;
  }
}

}  // namespace trireme::sweep
