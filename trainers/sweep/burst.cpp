// The executor's steps where the ranks of a task are a pipeline: bursts between two moments at which anything is
// decided (an evaluation of any job, with which jobs also end and rotate, a checkpoint, a request to stop).
#include "comm/error.h"
#include "data/file.h"
#include "framework/base/agree.h"
#include "framework/device_info.h"
#include "trainers/sweep/executor.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <utility>

#include <ATen/ATen.h>

namespace trireme::sweep {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t most_steps = 256;

}  // namespace

// What the task has chosen, in its folder, or chooses now, once. What was begun without a choice goes on gathered.
bool Executor::wants_pipeline() {
  const bool several = ranks_.size() > 1 && task_.objective != "dpo";
  if (sweep_.parallel == "pipeline" || sweep_.parallel == "gather" || !several) return sweep_.parallel == "pipeline";
  const std::string file = folder_ + "/parallel.json";
  enum : std::int64_t { gathered, piped, open } chosen = open;
  trireme::agree(ranks_, attempt([&] {
                   if (ranks_.rank() != 0) return;
                   if (fs::exists(file)) {
                     const auto text = read_file(file, 1 << 16);
                     chosen = ParallelChoice::load({text.begin(), text.end()}, file).pipeline ? piped : gathered;
                   } else if (saved_in(folder_) || !model_.device().is_cuda()) {
                     chosen = gathered;
                   }
                 }));
  auto told = std::int64_t(chosen);
  ranks_.broadcast({&told, 1, DType::i64}, 0).wait();
  if (told != open) return told == piped;
  const auto costs = no_stages(model_, *store_, ranks_.size()).empty() ? parallel_costs() : std::nullopt;
  if (!costs) return false;
  const ParallelChoice choice = choose_parallel(*costs);
  trireme::agree(ranks_, attempt([&] {
                   if (ranks_.rank() != 0) return;
                   make_folder(system_io(), folder_);
                   replace_durably(system_io(), file, choice.save());
                 }));
  if (ranks_.rank() == 0)
    std::cerr << task_.name << ": " << ranks_.size() << " ranks "
              << (choice.pipeline ? "are a pipeline that all jobs fill" : "gather layers")
              << ": a step is predicted at " << choice.gathered << " s gathered, " << choice.pipelined
              << " s as a pipeline\n";
  return choice.pipeline;
}

// What is under way on a stage is no more than the mean rank keeps of its own jobs, but where several pieces of a job
// are at a time.
MemoryLimit Executor::pipeline_limit() const {
  MemoryLimit limit = limit_;
  limit.model.copies = 2;
  std::int64_t largest = 0;  // travels in f32 with its moments, put together, sent and received
  for (const auto& l : loads_) largest = std::max(largest, l.parameters);
  limit.model.fixed += 36 * double(largest);
  if (sweep_.train.accumulate > 1) limit.model.per_token *= 2;
  return limit;
}

void Executor::begin_stages(const Placement& place) {
  if (!wants_pipeline()) return;
  const MemoryLimit limit = pipeline_limit();
  std::string why =
      task_.objective == "dpo" ? "preference pairs are not made for it" : no_stages(model_, *store_, ranks_.size());
  const bool room = fitting_order(limit, loads_).size() == fitting_order(limit_, loads_).size();
  if (sweep_.parallel == "auto" && why.empty() && !room) why = "a job has no room in a pipeline";
  std::int64_t goes_on = saved_in(folder_);
  ranks_.broadcast({&goes_on, 1, DType::i64}, 0).wait();
  if (!why.empty() && !goes_on && sweep_.parallel == "pipeline")
    throw UsageError(task_.place, "execution.parallel is pipeline, but " + why, "say auto or gather");
  if (!why.empty()) {
    if (ranks_.rank() == 0) std::cerr << task_.name << ": goes on with gathered layers: " << why << "\n";
    return;
  }
  limit_ = limit;
  const auto more = [&](const char* what) { return ranks_for_device(ranks_, place, what); };
  auto slices = more("slices"), neighbours = more("neighbours");
  stage_ = std::make_unique<Stage>(model_, *store_, *optimizer_, *sharded_, sweep_.train, std::move(slices),
                                   std::move(neighbours));
  begin_steps();            // evaluations get layers by broadcasts now
  release_device_memory();  // of shares
  restart_device_peak(model_.device());
}

// Up to the first evaluation of a job of this rank, and no further than the next checkpoint.
std::int64_t Executor::burst_steps() const {
  std::int64_t steps = burst_step_seconds_ > 0 ? std::int64_t(longest_burst / burst_step_seconds_) : 1;
  steps = std::clamp<std::int64_t>(steps, 1, most_steps);
  if (sweep_.checkpoint_every > 0) steps = std::min(steps, sweep_.checkpoint_every - tick_ % sweep_.checkpoint_every);
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
  std::vector<std::int64_t> tokens(std::size_t(ranks_.size()), 0);
  const auto pack = [&](std::int64_t n, std::int64_t place) {
    const Stage::Place& p = places[std::size_t(place / pieces)];
    auto found = piece_of(p.slot, step[std::size_t(p.slot)] + n, std::size_t(place % pieces));
    const std::int64_t more = found.batch.tokens.ids.size(0);
    tokens[std::size_t(p.rank)] += more;
    if (p.rank == ranks_.rank()) unsettled_tokens_[p.slot] += double(more);
    return found;
  };
  const auto losses = stage_->burst(places, jobs_, {std::ssize(places) * pieces, pieces}, pack, steps);
  std::size_t own = 0;
  for (const auto& p : places) {
    if (p.rank != ranks_.rank()) continue;
    const at::Tensor& all = losses[own++];
    for (std::int64_t n = 0; n < steps; ++n) jobs_[std::size_t(p.slot)].stepped(all[n]);
  }
  passes_ += steps, tick_ += steps - 1;
  const auto took = [&] { return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count(); };
  unsettled_seconds_ += took();
  window_.warm = std::exchange(window_.jobs, running) != running;  // other jobs than before make plans
  window_.begin = begin, window_.passes = steps;
  window_.tokens = double(*std::ranges::max_element(tokens) / pieces);
  settle();
  burst_step_seconds_ = took() / double(steps);
}

}  // namespace trireme::sweep
