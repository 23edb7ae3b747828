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

at::Tensor Executor::losses_of(const Pack& pack) {
  const at::Tensor hidden = model_.hidden(pack.tokens(model_.device()));
  return token_losses(hidden, model_.head(), pack.labels(model_.device()));
}

void Executor::train_pass() {
  Pack pack;
  std::vector<std::int64_t> in_pack;
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    if (!here(std::int64_t(i)) || roster_->jobs()[i].phase != Roster::Phase::running) continue;
    pack.begin_job(std::int64_t(i), jobs_[i].step());
    in_pack.push_back(std::int64_t(i));
    for (const auto sample : jobs_[i].next_batch()) fill(pack, true, sample);
  }
  ++passes_;
  if (pack.empty()) {
    ++empty_passes_;
    if (sharded_) sharded_->empty_pass(true);
    return;
  }
  const at::Tensor now =
      task_.objective == "dpo" ? preference_step(pack, in_pack) : step_->run(pack.batch(model_.device())).clone();
  for (std::size_t k = 0; k < in_pack.size(); ++k) jobs_[std::size_t(in_pack[k])].stepped(now[std::int64_t(k)]);
}

// As AdapterStep does it, with pairs in place of tokens.
at::Tensor Executor::preference_step(const Pack& pack, const std::vector<std::int64_t>& in_pack) {
  store_->begin(pack.rows(), true);
  const at::Tensor losses = losses_of(pack);
  std::vector<at::Tensor> means;
  for (std::size_t k = 0; k < in_pack.size(); ++k)
    means.push_back(pack.loss_sum(k, losses, sweep_.train.dpo_beta) / double(std::max<std::int64_t>(1, pack.count(k))));
  torch::autograd::backward({at::stack(means).sum()}, {});
  const at::Tensor now = at::stack(means).detach().to(at::kFloat);
  at::Tensor by_slot = at::zeros({store_->slots()}, now.options());
  by_slot.index_copy_(0, to_device(at::tensor(in_pack, at::kLong), now.device()), now);
  optimizer_->step(in_pack, by_slot);
  return now;
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
  const std::int64_t tokens =
      std::max<std::int64_t>(1, roster_->jobs()[0].load.tokens / roster_->jobs()[0].load.batch_size);
  const std::int64_t end = std::min<std::int64_t>(std::int64_t(validation_.size()),
                                                  e.next + std::max<std::int64_t>(1, chunk_tokens_ / (jobs * tokens)));
  for (const auto job : e.jobs) {
    pack.begin_job(job, 0);
    for (std::int64_t s = e.next; s < end; ++s) fill(pack, false, validation_[std::size_t(s)]);
  }
  store_->begin(pack.rows(), false);
  const at::Tensor losses = losses_of(pack).to(at::kDouble);
  for (std::size_t k = 0; k < e.jobs.size(); ++k) {
    e.sums[k] += pack.loss_sum(k, losses, sweep_.train.dpo_beta).item<double>();
    e.counts[k] += double(pack.count(k));
  }
  e.next = end;
  if (end == std::int64_t(validation_.size())) finish_evaluation();
  evaluation_seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
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
    const double* value = p.const_data_ptr<double>();
    for (std::size_t k = i; k < end; ++k) result.push_back({&pairs[k], value[2 * (k - i)], value[2 * (k - i) + 1]});
  }
  return result;
}

}  // namespace trireme::sweep
