// The executor's state in checkpoints, and what a task ends with.
#include "comm/error.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/models/adapters.h"
#include "trainers/sweep/executor.h"

#include <ATen/ATen.h>

namespace trireme::sweep {

void Executor::state(Archive& ar) {
  std::string roster = roster_->save(), journal = journal_.save(), data = data_.identity;
  ar.text("data", data);
  if (data != data_.identity)
    throw DataError(task_.data.data, "is not what this sweep began with (" + data + ")",
                    "put it back, or use --fresh to start over");
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

void Executor::save() {
  checkpoints_->save(tick_, Snapshot::take([this](Archive& ar) { state(ar); }, ranks_.rank()), "{}");
}

void Executor::restore() {
  if (!checkpoints_) return;
  const auto step = checkpoints_->latest();
  if (!step) return;
  checkpoints_->load(*step).restore([this](Archive& ar) { state(ar); });
  restored_ = tick_;
}

at::Tensor Executor::weights(const std::string& job) const {
  const std::int64_t i = roster_->index(job);
  return store_->filled(i) ? store_->flat_weights(i) : jobs_[std::size_t(i)].best();
}

double Executor::remaining_seconds() {
  double done = 0, left = 0;
  for (const auto& j : roster_->jobs()) {
    done += double(j.step * j.load.batch_size);
    const bool over = j.phase == Roster::Phase::exited || j.phase == Roster::Phase::done;
    if (!over) left += double((j.total_steps - j.step) * j.load.batch_size);
  }
  double seconds = done > 0 ? seconds_ * left / done : 0;
  ranks_.broadcast({&seconds, 1, DType::f64}, 0).wait();
  return seconds;
}

TaskOutcome Executor::outcome() {
  TaskOutcome out;
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    const auto& j = roster_->jobs()[i];
    const auto& e = roster_->exits().job(j.load.job);
    out.jobs.push_back(
        {candidates_[i], j.phase == Roster::Phase::done ? "done" : e.reason, j.step, j.total_steps, e.best});
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
  double sums[] = {double(passes_), double(empty_passes_), evaluation_seconds_ / ranks_.size()};
  ranks_.all_reduce({sums, 3, DType::f64}, Op::sum).wait();
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

}  // namespace trireme::sweep
