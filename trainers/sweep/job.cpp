#include "trainers/sweep/job.h"

#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/kernels/adamw.h"

#include <ATen/ATen.h>

namespace trireme::sweep {

Job::Job(Candidate candidate, std::int64_t samples, std::int64_t epochs, nn::AdapterInit init, std::int64_t parameters,
         at::Tensor begin)
    : candidate_(std::move(candidate)),
      init_(std::move(init)),
      samples_(samples),
      parameters_(parameters),
      begin_(std::move(begin)) {
  total_ = epochs * ((samples + candidate_.batch_size - 1) / candidate_.batch_size);
}

std::vector<std::int64_t> Job::next_batch() const {
  const std::int64_t b = candidate_.batch_size, steps = (samples_ + b - 1) / b;
  const auto order = permutation(samples_, Rng(init_.seed, "job order", std::uint64_t(step_ / steps)));
  const auto from = order.begin() + (step_ % steps) * b;
  return {from, from + std::min(b, samples_ - (step_ % steps) * b)};
}

void Job::start(nn::AdapterStore& store, std::int64_t slot) {
  store.fill(slot, init_, begin_);
  const at::Tensor w = store.flat_weights(slot);
  first_ = at::zeros_like(w);
  second_ = at::zeros_like(w);
  updates_ = at::zeros({}, w.options());
}

void Job::park(nn::AdapterStore& store, std::int64_t slot) {
  parked_ = store.flat_weights(slot).to(at::kCPU, false, true);
  first_ = first_.to(at::kCPU);
  second_ = second_.to(at::kCPU);
  updates_ = updates_.to(at::kCPU);
  store.clear(slot);
}

void Job::resume(nn::AdapterStore& store, std::int64_t slot) {
  store.fill(slot, init_);
  at::Tensor w = store.flat_weights(slot);
  w.copy_(parked_);
  store.publish(slot);
  parked_ = at::Tensor();
  first_ = first_.to(w.device());
  second_ = second_.to(w.device());
  updates_ = updates_.to(w.device());
}

void Job::update(nn::AdapterStore& store, std::int64_t slot, const at::Tensor& loss, const JobTrainConfig& config) {
  const at::NoGradGuard no_grad;
  at::Tensor w = store.flat_weights(slot);
  const at::Tensor g = store.flat_gradients(slot), norm = g.norm();
  const at::Tensor skip = at::isfinite(norm + loss).logical_not().to(at::kFloat);
  const at::Tensor scale = config.clip_norm > 0 ? (norm / config.clip_norm).clamp_min(1) : at::ones_like(norm);
  updates_ += 1 - skip;
  const kernels::AdamWTensor tensor{w.mutable_data_ptr<float>(), g.const_data_ptr<float>(),
                                    first_.mutable_data_ptr<float>(), second_.mutable_data_ptr<float>(), w.numel()};
  kernels::AdamWJob job;
  job.tensors = &tensor;
  job.count = 1;
  job.updates = updates_.const_data_ptr<float>();
  job.scale = scale.const_data_ptr<float>();
  job.skip = skip.const_data_ptr<float>();
  job.lr = candidate_.lr;
  job.beta1 = config.beta1;
  job.beta2 = config.beta2;
  job.eps = config.eps;
  job.weight_decay = config.weight_decay;
  kernels::adamw(job, buffer_of(w).place);
  store.publish(slot);
  losses_.push_back(loss.detach());
  ++step_;
}

// Those of before a resumption are on the host, later ones where the job trains.
at::Tensor Job::pending_losses() const {
  std::vector<at::Tensor> all;
  for (const auto& l : losses_) all.push_back(l.to(losses_.back().device()));
  return at::stack(all).to(at::kCPU, at::kFloat);
}

std::vector<double> Job::fold(double alpha) {
  std::vector<double> values;
  if (!losses_.empty()) {
    const at::Tensor all = pending_losses().to(at::kDouble);
    values.assign(all.const_data_ptr<double>(), all.const_data_ptr<double>() + all.numel());
  }
  losses_.clear();
  for (double v : values) average_.add(v, alpha);
  return values;
}

void Job::evaluated_now(bool best, const nn::AdapterStore& store, std::int64_t slot) {
  evaluated_ = step_;
  if (!best) return;
  best_ = store.flat_weights(slot).to(at::kCPU, false, true);
  best_step_ = step_;
}

// As rows that one rank holds: another number of ranks can load them.
void Job::state(Archive& ar, nn::AdapterStore& store, std::int64_t slot, bool ended) {
  const auto flat = [&](const char* name, at::Tensor& t, std::int64_t n, at::ScalarType type) {
    if (!t.defined()) t = at::zeros({n}, type);
    archive(ar, name, t, {Sharing::rows, 0, n});
  };
  at::Tensor numbers = at::tensor({double(step_), double(evaluated_), double(best_step_), average_.value,
                                   double(average_.begun), double(best_.defined()), double(losses_.size())},
                                  at::kDouble);
  flat("scalars", numbers, numbers.numel(), at::kDouble);
  const double* v = numbers.const_data_ptr<double>();
  const auto pending = std::int64_t(v[6]);
  at::Tensor losses = losses_.empty() ? at::zeros({pending}, at::kFloat) : pending_losses();
  if (pending) flat("losses", losses, pending, at::kFloat);
  if (ar.loading()) {
    step_ = std::int64_t(v[0]), evaluated_ = std::int64_t(v[1]), best_step_ = std::int64_t(v[2]);
    average_ = {v[3], v[4] != 0};
    losses_ = pending ? losses.unbind() : std::vector<at::Tensor>();
  }
  if (v[5] != 0) flat("best", best_, parameters_, at::kFloat);
  if (ended) return;
  if (ar.loading() && slot >= 0) start(store, slot);
  at::Tensor weights = slot >= 0 ? store.flat_weights(slot) : parked_;
  flat("weights", weights, parameters_, at::kFloat);
  if (slot < 0) parked_ = weights;
  flat("first", first_, parameters_, at::kFloat);
  flat("second", second_, parameters_, at::kFloat);
  at::Tensor updates = updates_.defined() ? updates_.reshape({1}) : at::zeros({1}, at::kFloat);
  flat("updates", updates, 1, at::kFloat);
  if (ar.loading()) updates_ = updates.reshape({}).to(slot >= 0 ? weights.device() : at::Device(at::kCPU));
  if (ar.loading() && slot >= 0) store.publish(slot);
}

at::Tensor Job::packed_tensors() const {
  return at::cat({parked_, first_, second_, best_.defined() ? best_ : at::zeros_like(parked_)});
}

std::vector<double> Job::packed_scalars() const {
  return {double(step_),  double(evaluated_),      double(best_step_),
          average_.value, updates_.item<double>(), best_.defined() ? 1.0 : 0.0};
}

void Job::unpack(const at::Tensor& tensors, const std::vector<double>& scalars) {
  const auto parts = tensors.split(parameters_);
  parked_ = parts[0].clone();
  first_ = parts[1].clone();
  second_ = parts[2].clone();
  best_ = scalars[5] != 0 ? parts[3].clone() : at::Tensor();
  step_ = std::int64_t(scalars[0]);
  evaluated_ = std::int64_t(scalars[1]);
  best_step_ = std::int64_t(scalars[2]);
  average_ = {scalars[3], true};
  updates_ = at::full({}, scalars[4], at::kFloat);
}

}  // namespace trireme::sweep
