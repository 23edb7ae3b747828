// The executor's passes.
#include "framework/base/tensor.h"
#include "framework/losses/token_loss.h"
#include "trainers/sweep/executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::sweep {

namespace {

void wait_for(at::Device device) {
  if (device.is_cuda()) at::zeros({1}, at::TensorOptions(device)).item();
}

}  // namespace

at::Tensor Executor::losses_of(const Pack& pack) {
  const at::Tensor hidden = model_.hidden(pack.tokens(model_.device()));
  return token_losses(hidden, model_.head(), pack.labels(model_.device()));
}

// What samples of a step are padded to; 0: they stay as they are, as where no step could be recorded anyway.
std::int64_t Executor::padded_length(const std::vector<std::int64_t>& jobs) const {
  const JobTrainConfig& t = sweep_.train;
  if (t.pad == "off" || task_.objective == "dpo" || t.accumulate > 1 || sweep_.lora.dropout > 0) return 0;
  std::int64_t tokens = 0;
  for (const auto job : jobs) tokens += candidates_[std::size_t(job)].batch_size * sample_tokens_;
  return t.pad == "longest" || step_->gains_by_recording(tokens) ? sample_tokens_ : 0;
}

// The samples of a step of every job that can go on, in `accumulate` packs.
std::vector<Pack> Executor::step_packs(const std::vector<std::int64_t>& jobs) const {
  const auto n = std::size_t(sweep_.train.accumulate);
  std::vector<Pack> packs(n, Pack(padded_length(jobs)));
  for (const auto job : jobs) add_step(packs, job, jobs_[std::size_t(job)].step());
  return packs;
}

void Executor::add_step(std::vector<Pack>& packs, std::int64_t job, std::int64_t step) const {
  const auto batch = jobs_[std::size_t(job)].batch(step);
  const std::size_t n = packs.size();
  std::int64_t rows = 0;
  for (std::size_t k = 0; k < n; ++k) {
    const std::size_t first = k * batch.size() / n, last = (k + 1) * batch.size() / n;
    if (first == last) continue;
    packs[k].begin_job(job, step, rows);
    for (std::size_t s = first; s < last; ++s) fill(packs[k], true, batch[s]);
    rows += packs[k].rows().back().last - packs[k].rows().back().first;
  }
}

// Each job's mean over what counts in its own batch; the sum of those means is what backward begins at, so every
// adapter's gradient is that of the job alone. All ranks make the same number of passes.
void Executor::train_pass() {
  const auto begin = std::chrono::steady_clock::now();
  std::vector<std::int64_t> jobs;
  for (std::size_t i = 0; i < jobs_.size(); ++i)
    if (here(std::int64_t(i)) && roster_->jobs()[i].phase == Roster::Phase::running) jobs.push_back(std::int64_t(i));
  if (jobs != window_.jobs) window_.jobs = jobs, window_.warm = Pace::warm_passes, window_.passes = 0;
  if (window_.passes == 0) window_.begin = begin;
  const auto packs = step_packs(jobs);
  for (const auto& pack : packs) {
    ++passes_;
    empty_passes_ += pack.empty();
    if (jobs.empty() && sharded_) sharded_->empty_pass(true);
  }
  if (jobs.empty()) return;
  const bool whole = packs.size() == 1 && task_.objective != "dpo";
  const at::Tensor now = whole ? step_->run(packs[0].batch(model_.device())).clone() : step_in_pieces(jobs, packs);
  for (std::size_t k = 0; k < jobs.size(); ++k) jobs_[std::size_t(jobs[k])].stepped(now[std::int64_t(k)]);
  for (const auto& pack : packs)
    for (std::size_t k = 0; k < pack.jobs(); ++k) unsettled_tokens_[pack.rows()[k].slot] += double(pack.tokens_of(k));
  unsettled_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  std::int64_t tokens = 0;
  for (const auto& pack : packs) tokens += pack.size();
  window_.last = tokens / std::ssize(packs);
  if (window_.warm > 0) {
    if (--window_.warm == 0) wait_for(model_.device());
    return;
  }
  if (window_.passes++ == 0) window_.tokens = 0;
}

// The time of the passes since the last call goes to their jobs, by tokens. A GPU is waited for: it is behind.
void Executor::settle() {
  const auto begin = std::chrono::steady_clock::now();
  wait_for(model_.device());
  if (window_.warm == 0 && window_.passes > 0)
    pace_.add(window_.passes, window_.tokens,
              std::chrono::duration<double>(std::chrono::steady_clock::now() - window_.begin).count());
  window_.passes = 0;
  const double took =
      unsettled_seconds_ + std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  double all = 0;
  for (const auto& [job, tokens] : unsettled_tokens_) all += tokens;
  for (const auto& [job, tokens] : unsettled_tokens_) job_seconds_[std::size_t(job)] += took * tokens / all;
  unsettled_tokens_.clear(), unsettled_seconds_ = 0;
}

// As AdapterStep does it, with several passes, or pairs in place of tokens. -> the jobs' mean losses.
at::Tensor Executor::step_in_pieces(const std::vector<std::int64_t>& jobs, const std::vector<Pack>& packs) {
  std::map<std::int64_t, std::int64_t> counts;  // of the whole batches
  for (const auto& pack : packs)
    for (std::size_t k = 0; k < pack.jobs(); ++k) counts[pack.rows()[k].slot] += pack.count(k);
  at::Tensor losses = at::zeros({store_->slots()}, at::TensorOptions(model_.device()).dtype(at::kFloat));
  for (const auto& pack : packs) {
    if (!pack.empty()) accumulate(pack, counts, losses);
    if (pack.empty() && sharded_) sharded_->empty_pass(true);
  }
  optimizer_->step(jobs, losses);
  return losses.index_select(0, to_device(at::tensor(jobs, at::kLong), losses.device()));
}

void Executor::accumulate(const Pack& pack, const std::map<std::int64_t, std::int64_t>& counts, at::Tensor& losses) {
  store_->begin(pack.rows(), true);
  const at::Tensor each = losses_of(pack);
  std::vector<at::Tensor> means;
  std::vector<std::int64_t> slots;
  for (std::size_t k = 0; k < pack.jobs(); ++k) {
    slots.push_back(pack.rows()[k].slot);
    const auto count = double(std::max<std::int64_t>(1, counts.at(slots.back())));
    means.push_back(pack.loss_sum(k, each, sweep_.train.dpo_beta) / count);
  }
  const at::Tensor all = at::stack(means);
  torch::autograd::backward({all.sum()}, {});
  losses.index_add_(0, to_device(at::tensor(slots, at::kLong), losses.device()), all.detach().to(at::kFloat));
}

void Executor::begin_evaluation() {
  Evaluation e;
  for (std::size_t i = 0; i < jobs_.size(); ++i)
    if (due(std::int64_t(i))) e.jobs.push_back(std::int64_t(i));
  if (e.jobs.empty()) return;
  e.sums.resize(e.jobs.size());
  e.counts.resize(e.jobs.size());
  evaluation_ = std::move(e);
}

// A piece of the validation samples, for every job that is due on this rank.
void Executor::evaluate_pass() {
  settle();
  const auto begin = std::chrono::steady_clock::now();
  const at::NoGradGuard no_grad;
  if (!evaluation_) begin_evaluation();
  ++passes_;
  if (!evaluation_) {
    ++empty_passes_;
    if (sharded_) sharded_->empty_pass(false);
    return;
  }
  Evaluation& e = *evaluation_;
  Pack pack;
  const auto jobs = std::int64_t(e.jobs.size());
  const std::int64_t end = std::min<std::int64_t>(
      std::int64_t(validation_.size()), e.next + std::max<std::int64_t>(1, chunk_tokens_ / (jobs * sample_tokens_)));
  for (const auto job : e.jobs) {
    pack.begin_job(job, 0);
    for (std::int64_t s = e.next; s < end; ++s) fill(pack, false, validation_[std::size_t(s)]);
  }
  const at::Tensor all = evaluated(pack).to(at::kCPU);  // one wait for all jobs
  for (std::size_t k = 0; k < e.jobs.size(); ++k) {
    e.sums[k] += all[std::int64_t(k)].item<double>();
    e.counts[k] += double(pack.count(k));
  }
  e.next = end;
  const bool last = end == std::int64_t(validation_.size());
  const double before = e.seconds;
  if (last) finish_evaluation();
  const double spent = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  evaluation_seconds_ += spent;
  if (!last) evaluation_->seconds = before + spent;
  const double each = (before + spent) / double(jobs), known = job_evaluation_seconds_;
  if (last) job_evaluation_seconds_ = known > 0 ? (known + each) / 2 : each;  // the first ones warm up
}

// The jobs' sums of a pack's losses, f64.
at::Tensor Executor::evaluated(const Pack& pack) {
  if (task_.objective != "dpo") return step_->evaluate(pack.batch(model_.device()));
  store_->begin(pack.rows(), false);
  const at::Tensor losses = losses_of(pack).to(at::kDouble);
  std::vector<at::Tensor> sums;
  for (std::size_t k = 0; k < pack.jobs(); ++k) sums.push_back(pack.loss_sum(k, losses, sweep_.train.dpo_beta));
  return at::stack(sums);
}

void Executor::finish_evaluation() {
  const Evaluation e = *std::exchange(evaluation_, {});
  const at::Tensor alive = optimizer_->alive().to(at::kCPU);
  for (std::size_t k = 0; k < e.jobs.size(); ++k) {
    Job& job = jobs_[std::size_t(e.jobs[k])];
    // A job whose gradient was not finite takes no step any more, whatever its loss says.
    const bool trains = alive[e.jobs[k]].item<float>() != 0;
    const double v = trains ? e.sums[k] / std::max(1.0, e.counts[k]) : std::numeric_limits<double>::quiet_NaN();
    const auto losses = job.fold(sweep_.early_exit.ema_alpha);
    const bool best = v < roster_->exits().job(job.candidate().job).best;
    job.evaluated_now(best, *store_, e.jobs[k]);
    payload_.insert(payload_.end(), {double(e.jobs[k]), double(job.step()), job.average(), v, double(losses.size())});
    payload_.insert(payload_.end(), losses.begin(), losses.end());
  }
}

void Executor::fill(Pack& pack, bool training, std::int64_t sample) const {
  const auto s = std::size_t(sample);
  if (task_.objective == "dpo")
    pack.add(training ? train_pairs_[s] : validation_pairs_[s]);
  else
    pack.add(training ? data_.train[s] : data_.validation[s]);
}

// The reference of DPO is the backbone without adapters, which never changes: one forward of each pair in all. Every
// rank computes all of them, in the same passes.
void Executor::reference_pairs() {
  train_pairs_ = referenced(data_.train_pairs);
  validation_pairs_ = referenced(data_.validation_pairs);
}

std::vector<ReferencedPair> Executor::referenced(const std::vector<Pair>& pairs) {
  const at::NoGradGuard no_grad;
  std::vector<ReferencedPair> result;
  constexpr std::size_t at_a_time = 8;
  for (std::size_t i = 0; i < pairs.size(); i += at_a_time) {
    Pack pack;
    pack.begin_job(0, 0);
    const std::size_t end = std::min(i + at_a_time, pairs.size());
    for (std::size_t k = i; k < end; ++k) pack.add(ReferencedPair{&pairs[k]});
    store_->begin({}, false);
    const at::Tensor p = pack.log_probabilities(losses_of(pack)).to(at::kCPU, at::kDouble);
    ranks_.barrier().wait();  // a watchdog sees the pass, alone too
    const double* value = p.const_data_ptr<double>();
    for (std::size_t k = i; k < end; ++k) result.push_back({&pairs[k], value[2 * (k - i)], value[2 * (k - i) + 1]});
  }
  return result;
}

}  // namespace trireme::sweep
