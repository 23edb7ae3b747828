// The executor's steps where the ranks of a task are a pipeline: bursts between two moments at which anything is
// decided (an evaluation of any job, with which jobs also end and rotate, a checkpoint, a request to stop).
#include "trainers/sweep/executor.h"

#include <algorithm>
#include <chrono>

#include <ATen/ATen.h>

namespace trireme::sweep {
namespace {

constexpr double longest_burst = 5;           // seconds: so soon a request to stop is heard
constexpr std::int64_t first_burst = 4, most_steps = 256;

}  // namespace

void Executor::begin_stages(const Placement& place) {
  if (sweep_.parallel != "pipeline") return;
  const std::string why = no_stages(model_, *store_, ranks_.size());
  if (!why.empty())
    throw UsageError(task_.place, "execution.parallel: pipeline: " + why, "say gather, or auto");
  const auto split = [&] { return for_device(ranks_.split(0, ranks_.rank()), place, {}); };
  stage_ = std::make_unique<Stage>(model_, *store_, *optimizer_, *sharded_, sweep_.train, split(), split());
}

// Up to the first evaluation of a job of this rank, and no further than the next checkpoint.
std::int64_t Executor::burst_steps() const {
  std::int64_t steps = burst_step_seconds_ > 0 ? std::int64_t(longest_burst / burst_step_seconds_) : first_burst;
  steps = std::clamp<std::int64_t>(steps, 1, most_steps);
  if (sweep_.checkpoint_every > 0)
    steps = std::min(steps, sweep_.checkpoint_every - tick_ % sweep_.checkpoint_every);
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    if (!here(std::int64_t(i)) || roster_->jobs()[i].phase != Roster::Phase::running) continue;
    const Job& j = jobs_[i];
    for (std::int64_t n = 1; n < steps; ++n)
      if (evaluates_at(sweep_.early_exit, j.total_steps(), j.step() + n)) steps = n;
  }
  return steps;
}

// Of the pieces that a job's batch is cut into: one, which counts as a part of the whole.
AdapterPipeline::Pack Executor::piece_of(std::int64_t job, std::int64_t step, std::size_t piece) const {
  std::vector<Pack> packs(std::size_t(sweep_.train.accumulate), Pack(padded_length({job})));
  add_step(packs, job, step);
  AdapterPipeline::Pack found{packs[piece].batch(model_.device()), piece + 1 == packs.size()};
  std::int64_t count = 0;
  for (const auto& p : packs) count += p.empty() ? 0 : p.count(0);
  found.batch.counts.fill_(double(std::max<std::int64_t>(1, count)));
  return found;
}

// All ranks take the same steps of the running jobs of all.
void Executor::burst() {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<Stage::Place> places;
  std::vector<std::int64_t> step(jobs_.size() + 1, 0), running;
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    const auto& j = roster_->jobs()[i];
    if (j.phase != Roster::Phase::running) continue;
    places.push_back({std::int64_t(i), j.rank});
    running.push_back(std::int64_t(i));
    if (here(std::int64_t(i))) step[i] = jobs_[i].step();
  }
  step.back() = -burst_steps();
  ranks_.all_reduce({step.data(), step.size(), DType::i64}, Op::max).wait();
  const std::int64_t steps = -step.back(), pieces = sweep_.train.accumulate;
  const auto losses = stage_->burst(
      places, jobs_, {std::ssize(places) * pieces, pieces},
      [&](std::int64_t n, std::int64_t place) {
        const std::int64_t job = running[std::size_t(place / pieces)];
        return piece_of(job, step[std::size_t(job)] + n, std::size_t(place % pieces));
      },
      steps);
  std::size_t own = 0;
  for (const auto& p : places) {
    if (p.rank != ranks_.rank()) continue;
    const at::Tensor& all = losses[own++];
    for (std::int64_t n = 0; n < steps; ++n) jobs_[std::size_t(p.slot)].stepped(all[n]);
    unsettled_tokens_[p.slot] += double(steps * loads_[std::size_t(p.slot)].tokens);
  }
  passes_ += steps, tick_ += steps - 1;
  const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  unsettled_seconds_ += took;
  burst_step_seconds_ = took / double(steps);
}

}  // namespace trireme::sweep
