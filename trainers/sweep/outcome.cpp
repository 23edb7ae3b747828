// The executor's state in checkpoints, and what a task ends with.
#include "comm/error.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/device_info.h"
#include "framework/models/adapters.h"
#include "framework/models/generate.h"
#include "trainers/sweep/executor.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <numeric>
#include <utility>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme::sweep {
namespace {

bool on_any_rank(Communicator& ranks, bool here) {
  std::int64_t any = here;
  ranks.all_reduce({&any, 1, DType::i64}, Op::max).wait();
  return any != 0;
}

void tell_too_large(const Roster& roster, const std::vector<Decision>& decisions, const std::string& place, int rank) {
  const std::string cure = "take smaller search.batch_size, cut batches by train.accumulate, or raise memory.capacity";
  const bool all = std::ranges::count(decisions, "too_large", &Decision::decision) == std::ssize(roster.jobs());
  for (const auto& d : decisions) {
    if (d.decision != "too_large") continue;
    const auto& job = roster.jobs()[std::size_t(roster.index(d.job))].load;
    const std::string what = "job " + d.job + " " + roster.needs(job);
    if (all) throw UsageError(place, "no job fits: " + what, cure);
    if (rank == 0)
      std::cerr << place << ": " << what << ": it ends as too_large, the others go on; " << cure << std::endl;
  }
}

}  // namespace

std::string Executor::data_identity() const {
  return data_.identity + (data_.questions.empty() ? "" : ", " + data_.questions);
}

void Executor::state(Archive& ar) {
  std::string roster = roster_->save(), journal = journal_.save(), data = data_identity();
  ar.text("data", data);
  if (data != data_identity() && data != data_.identity) {  // the last: from before questions counted
    const bool questions = !task_.data.test_file.empty() && data.starts_with(data_.identity + ", ");
    throw DataError(questions ? task_.data.test_file : task_.data.data,
                    "is not what this sweep began with (" + data + ")", "put it back, or use --fresh to start over");
  }
  ar.text("roster", roster);
  ar.text("journal", journal);
  ar.value("tick", tick_);
  ar.value("seconds", seconds_);
  if (ar.loading()) {
    roster_->load(roster);
    journal_.restore(journal);
  }
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    const auto& j = roster_->jobs()[i];
    if (j.rank != ranks_.rank()) continue;
    const Archive::Group group(ar, "job_" + std::to_string(i));
    const bool ended = j.phase == Roster::Phase::done || j.phase == Roster::Phase::exited;
    jobs_[i].state(ar, *optimizer_, here(std::int64_t(i)) ? std::int64_t(i) : -1, ended);
  }
}

// What a replay begins from: the first line of losses.jsonl.
std::string Executor::losses_header() const {
  nlohmann::ordered_json header{{"task", task_.name}, {"total_steps", nlohmann::json::object()}};
  for (const auto& j : jobs_) header["total_steps"][j.candidate().job] = j.total_steps();
  const EarlyExitConfig& e = sweep_.early_exit;
  header.update({{"enabled", e.enabled},
                 {"cut", e.cut},
                 {"warmup_ratio", e.warmup_ratio},
                 {"keep_ratio", e.keep_ratio},
                 {"window", e.window},
                 {"patience_div", e.patience_div},
                 {"tau_slope", e.tau_slope},
                 {"patience_ovf", e.patience_ovf},
                 {"tau_gap", e.tau_gap},
                 {"ema_alpha", e.ema_alpha},
                 {"asha_max_t", e.asha_max_t},
                 {"asha_grace", e.asha_grace},
                 {"asha_eta", e.asha_eta}});
  for (const auto& d : roster_->too_large()) header["too_large"].push_back(d.job);
  return header.dump();
}

void Executor::save() {
  checkpoints_->save(tick_, Snapshot::take([this](Archive& ar) { state(ar); }, ranks_.rank()), "{}");
}

// A job that does not fit ends alone, before its first step; a task of such jobs only is an error.
void Executor::begin_roster(const std::vector<std::int64_t>& steps) {
  roster_ = std::make_unique<Roster>(sweep_.early_exit, limit_, ranks_.size(), sweep_.steal, loads_, steps);
  std::int64_t goes_on = saved_in(folder_);  // then its jobs' ends are what was saved, not what is told here
  ranks_.broadcast({&goes_on, 1, DType::i64}, 0).wait();
  if (!goes_on) tell_too_large(*roster_, roster_->too_large(), task_.place, ranks_.rank());
}

bool Executor::restore() {
  const auto step = checkpoints_ ? checkpoints_->latest() : std::nullopt;
  if (!step) return roster_->exits().cut_done();
  checkpoints_->load(*step).restore([this](Archive& ar) { state(ar); });
  restored_ = tick_;
  const bool cut_done = roster_->exits().cut_done();
  const auto decisions = roster_->refuse();  // there may be less room now
  tell_too_large(*roster_, decisions, task_.place, ranks_.rank());
  trireme::agree(ranks_, attempt([&] {
                   for (const auto& d : decisions) {
                     if (d.decision == "too_large") journal_.refused(d.job);
                     journal_.decided(d);
                   }
                 }));
  if (heard_ && !decisions.empty()) heard_(*roster_, decisions);
  drop_ended();
  return cut_done;
}

at::Tensor Executor::weights(const std::string& job) const {
  const std::int64_t i = roster_->index(job);
  return store_->filled(i) ? store_->flat_weights(i) : jobs_[std::size_t(i)].best();
}

TaskOutcome Executor::outcome() {
  TaskOutcome out;
  const double peak = double(peak_reserved_bytes(model_.device()));  // of training: answers come after it
  settle();
  std::vector<double> seconds = job_seconds_;  // of this rank's passes
  ranks_.all_reduce({seconds.data(), seconds.size(), DType::f64}, Op::sum).wait();
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    const auto& j = roster_->jobs()[i];
    const auto& e = roster_->exits().job(j.load.job);
    out.jobs.push_back({candidates_[i], j.phase == Roster::Phase::done ? "done" : e.reason, j.step, j.total_steps,
                        e.best, seconds[i]});
    if (e.reason == "too_large") continue;
    const auto samples = std::int64_t(std::max(data_.train.size(), data_.train_pairs.size()));
    out.all_samples += samples * sweep_.train.epochs;
    out.samples += std::min(j.step * j.load.batch_size, samples * sweep_.train.epochs);
  }
  out.winner = roster_->winner();
  std::optional<Failure> failure;
  if (out.winner >= 0) {
    out.winner_folder = folder_ + "/winner";
    if (roster_->jobs()[std::size_t(out.winner)].rank == ranks_.rank())
      failure = attempt([&] { write_winner(out.winner); });
  }
  trireme::agree(ranks_, failure);
  ask(out);
  double sums[] = {double(passes_), double(empty_passes_), evaluation_seconds_ / ranks_.size()};
  ranks_.all_reduce({sums, 3, DType::f64}, Op::sum).wait();
  double most[] = {memory_forecast_, peak};
  ranks_.all_reduce({most, 2, DType::f64}, Op::max).wait();
  out.memory_forecast = most[0], out.memory_peak = most[1];
  out.empty_share = sums[0] > 0 ? sums[1] / sums[0] : 0;
  out.evaluation_seconds = sums[2];
  out.seconds = seconds_;
  out.evaluation_ratio = evaluation_ratio_;
  out.moves_between_ranks = moves_;
  if (sharded_) out.gathers = sharded_->gathers(), out.gathered_bytes = sharded_->bytes_received();
  return out;
}

void Executor::write_winner(std::int64_t winner) {
  Job& job = jobs_[std::size_t(winner)];
  if (store_->filled(winner)) store_->clear(winner);
  store_->fill(winner, job.init(), job.best());
  write_peft(folder_ + "/winner", adapter_of(*store_, winner, adapters_[std::size_t(winner)]), model_.config().family);
  store_->clear(winner);
}

// The winner and the next best, the jobs of a rank in the same passes. Ranks that share the backbone gather the layers
// of each other's passes.
void Executor::ask(TaskOutcome& out) {
  constexpr std::size_t most = 4;
  if (out.winner < 0 || !decode_ || data_.test.empty()) return;
  std::vector<std::int64_t> best, mine;
  for (std::size_t i = 0; i < out.jobs.size(); ++i)
    if (const auto& j = out.jobs[i]; std::isfinite(j.best) && (j.end == "done" || j.end == "overfitting"))
      best.push_back(std::int64_t(i));
  std::ranges::stable_sort(best, {},
                           [&](std::int64_t i) { return std::pair(i != out.winner, out.jobs[std::size_t(i)].best); });
  best.resize(std::min(best.size(), most));
  for (const auto i : best)
    if (roster_->jobs()[std::size_t(i)].rank == ranks_.rank()) mine.push_back(i);
  std::vector<double> shares(jobs_.size(), 0);
  const auto failure = attempt([&] {
    if (!mine.empty()) answer(mine, shares);
  });
  while (sharded_ && on_any_rank(ranks_, false)) sharded_->empty_pass(false);
  trireme::agree(ranks_, failure);
  ranks_.all_reduce({shares.data(), shares.size(), DType::f64}, Op::sum).wait();
  for (const auto i : best) out.jobs[std::size_t(i)].exact_match = shares[std::size_t(i)];
  out.exact_match = out.jobs[std::size_t(out.winner)].exact_match;
}

void Executor::answer(const std::vector<std::int64_t>& jobs, std::vector<double>& shares) {
  const std::size_t at_a_time = 128 / jobs.size();
  for (const auto i : jobs) store_->fill(i, jobs_[std::size_t(i)].init(), jobs_[std::size_t(i)].best());
  GreedyOptions options;
  options.most = task_.data.length;
  if (data_.end >= 0) options.ends = {data_.end};
  std::size_t each = 0;  // questions of a job in these passes
  options.before_pass = [&](std::span<const std::int64_t> lengths) {
    on_any_rank(ranks_, true);  // alone too: a watchdog sees each pass
    std::vector<nn::SlotRows> rows;
    std::int64_t row = 0;
    for (std::size_t j = 0; j < jobs.size(); ++j) {
      const auto own = lengths.subspan(j * each, each);
      const std::int64_t first = std::exchange(row, std::accumulate(own.begin(), own.end(), row));
      if (row > first) rows.push_back({.slot = jobs[j], .first = first, .last = row});
    }
    store_->begin(std::move(rows), false);
  };
  for (std::size_t i = 0; i < data_.test.size(); i += each) {
    each = std::min(at_a_time, data_.test.size() - i);
    std::vector<std::vector<std::int64_t>> prompts;
    for (std::size_t k = 0; k < jobs.size() * each; ++k) {
      const auto& prompt = data_.test[i + k % each].prompt;
      prompts.emplace_back(prompt.begin(), prompt.end());
    }
    const auto answers = greedy(model_, prompts, options);
    for (std::size_t k = 0; k < answers.size(); ++k)
      shares[std::size_t(jobs[k / each])] += answered(data_.test[i + k % each], decode_(answers[k]));
  }
  for (const auto i : jobs) store_->clear(i), shares[std::size_t(i)] /= double(data_.test.size());
}

}  // namespace trireme::sweep
