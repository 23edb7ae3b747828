#include "framework/nn/adapter_optimizer.h"

#include "comm/error.h"
#include "framework/base/tensor.h"
#include "framework/kernels/adapter_adamw.h"

#include <cmath>
#include <cstring>

#include <ATen/ATen.h>

namespace trireme::nn {
namespace {

at::Tensor host_copy(const at::Tensor& t) { return t.detach().to(at::kCPU, t.scalar_type(), false, /*copy=*/true); }

void check_rate(double value, const char* name) {
  if (!std::isfinite(value) || value < 0)
    throw UsageError(name, "it must be finite and not negative", "correct the job's configuration");
}

}  // namespace

void ParkedAdapter::state(Archive& ar) {
  const Sharing own{.kind = Sharing::per_rank};
  std::int64_t shape[] = {std::int64_t(init.shapes.size()), weights.defined() ? weights.numel() : 0};
  ar.array("sizes", DType::i64, std::array{std::int64_t(2)}, shape, own);
  init.shapes.resize(std::size_t(shape[0]));
  std::vector<std::int64_t> ranks;
  std::vector<double> scales;
  for (const auto& s : init.shapes) ranks.push_back(s.rank), scales.push_back(s.scale);
  ar.array("ranks", DType::i64, std::span(shape, 1), ranks.data(), own);
  ar.array("scales", DType::f64, std::span(shape, 1), scales.data(), own);
  for (std::size_t t = 0; t < ranks.size(); ++t) init.shapes[t] = {ranks[t], scales[t]};
  std::int64_t whole[] = {std::int64_t(init.seed), init.gaussian, updates, alive};
  ar.array("counts", DType::i64, std::array{std::int64_t(4)}, whole, own);
  init.seed = std::uint64_t(whole[0]), init.gaussian = whole[1] != 0, updates = whole[2], alive = whole[3] != 0;
  double real[] = {init.dropout, rates.lr, rates.weight_decay, rates.clip_norm};
  ar.array("rates", DType::f64, std::array{std::int64_t(4)}, real, own);
  init.dropout = real[0], rates = {real[1], real[2], real[3]};
  for (auto [name, tensor] : {std::pair("weights", &weights), {"first", &first}, {"second", &second}}) {
    if (ar.loading()) *tensor = at::empty({shape[1]}, at::kFloat);
    archive(ar, name, *tensor, own);
  }
}

AdapterOptimizer::AdapterOptimizer(AdapterStore& store, double beta1, double beta2, double eps)
    : store_(store), beta1_(beta1), beta2_(beta2), eps_(eps) {
  const auto n = store.slots();
  const auto options = store.targets()[0].weight.options().dtype(at::kFloat);
  if (store.targets()[0].weight.scalar_type() == at::kDouble)
    throw UsageError("adapter optimizer", "its arithmetic is f32; the base is f64", "load the base in f32 or bf16");
  rates_.resize(std::size_t(n));
  first_.resize(std::size_t(n));
  second_.resize(std::size_t(n));
  for (at::Tensor* t : {&lr_, &decay_, &clip_, &updates_, &alive_, &norm_, &factor_}) *t = at::zeros({n}, options);
}

void AdapterOptimizer::start(std::int64_t slot, const AdapterRates& rates) {
  check_rate(rates.lr, "lr");
  check_rate(rates.weight_decay, "weight_decay");
  check_rate(rates.clip_norm, "clip_norm");
  const at::NoGradGuard no_grad;
  const auto k = std::size_t(slot);
  first_[k] = at::zeros_like(store_.flat_weights(slot));
  second_[k] = at::zeros_like(first_[k]);
  rates_[k] = rates;
  updates_[slot].zero_();
  alive_[slot].fill_(1);
  rates_sent_ = false;
  order_.clear();
}

void AdapterOptimizer::unpark(std::int64_t slot, const ParkedAdapter& job) {
  const at::NoGradGuard no_grad;
  store_.fill(slot, job.init, job.weights);
  start(slot, job.rates);
  const auto k = std::size_t(slot);
  first_[k].copy_(job.first);
  second_[k].copy_(job.second);
  updates_[slot].fill_(double(job.updates));
  alive_[slot].fill_(job.alive ? 1 : 0);
}

ParkedAdapter AdapterOptimizer::park(std::int64_t slot) const {
  const auto k = std::size_t(slot);
  if (!first_.at(k).defined()) throw Error(ExitCode::bug, "park", "slot " + std::to_string(slot) + " trains nothing");
  return {.init = store_.init(slot),
          .rates = rates_[k],
          .weights = host_copy(store_.flat_weights(slot)),
          .first = host_copy(first_[k]),
          .second = host_copy(second_[k]),
          .updates = std::int64_t(updates_[slot].item<float>()),
          .alive = alive_[slot].item<float>() != 0};
}

void AdapterOptimizer::stop(std::int64_t slot) {
  first_.at(std::size_t(slot)).reset();
  second_.at(std::size_t(slot)).reset();
  order_.clear();
}

void AdapterOptimizer::set_lr(std::int64_t slot, double lr) {
  check_rate(lr, "lr");
  auto& rate = rates_.at(std::size_t(slot)).lr;
  if (rate == lr) return;
  rate = lr;
  rates_sent_ = false;
}

void AdapterOptimizer::send_rates() {
  if (rates_sent_) return;
  at::Tensor host = at::empty({3, store_.slots()}, at::kFloat);
  float* p = host.mutable_data_ptr<float>();
  const auto n = rates_.size();
  for (std::size_t k = 0; k < n; ++k) {
    p[k] = float(rates_[k].lr);
    p[n + k] = float(rates_[k].weight_decay);
    p[2 * n + k] = float(rates_[k].clip_norm);
  }
  const at::Tensor there = to_device(host, lr_.device());
  lr_.copy_(there[0]);
  decay_.copy_(there[1]);
  clip_.copy_(there[2]);
  rates_sent_ = true;
}

void AdapterOptimizer::make_jobs(std::span<const std::int64_t> slots) {
  if (std::equal(slots.begin(), slots.end(), order_.begin(), order_.end())) return;
  std::vector<kernels::AdapterValues> jobs;
  longest_ = 0;
  for (const auto slot : slots) {
    const auto k = std::size_t(slot);
    if (!first_.at(k).defined()) throw Error(ExitCode::bug, "step", "slot " + std::to_string(slot) + " trains nothing");
    const at::Tensor value = store_.flat_weights(slot), working = store_.flat_working(slot);
    jobs.push_back({value.mutable_data_ptr<float>(), first_[k].mutable_data_ptr<float>(),
                    second_[k].mutable_data_ptr<float>(), store_.flat_gradients(slot).const_data_ptr<float>(),
                    working.is_same(value) ? nullptr : working.mutable_data_ptr(), value.numel(), slot});
    longest_ = std::max(longest_, value.numel());
  }
  at::Tensor host = at::empty({std::int64_t(jobs.size() * sizeof(jobs[0]))}, at::kByte);
  std::memcpy(host.mutable_data_ptr(), jobs.data(), std::size_t(host.numel()));
  jobs_ = to_device(host, lr_.device());
  const auto chunks = (longest_ + kernels::adapter_chunk - 1) / kernels::adapter_chunk;
  partial_ = at::empty({std::int64_t(jobs.size()) * chunks}, lr_.options().dtype(at::kDouble));
  order_.assign(slots.begin(), slots.end());
  ++changes_;
}

void AdapterOptimizer::prepare(std::span<const std::int64_t> slots) {
  const at::NoGradGuard no_grad;
  send_rates();
  make_jobs(slots);
}

at::Tensor AdapterOptimizer::squares(std::span<const std::int64_t> slots) const {
  const at::NoGradGuard no_grad;
  std::vector<at::Tensor> gradients;
  for (const auto slot : slots) gradients.push_back(store_.flat_gradients(slot));
  return at::stack(at::_foreach_norm(gradients, 2, at::kDouble)).square();  // makes no f64 copy on a GPU
}

void AdapterOptimizer::step(std::span<const std::int64_t> slots, const at::Tensor& losses, const at::Tensor& squares) {
  if (slots.empty()) return;
  prepare(slots);
  for (const auto slot : slots) store_.flat_gradients(slot);  // zeros where no backward came
  kernels::adapter_adamw({.jobs = static_cast<const kernels::AdapterValues*>(jobs_.const_data_ptr()),
                          .count = std::int64_t(slots.size()),
                          .longest = longest_,
                          .lr = lr_.const_data_ptr<float>(),
                          .weight_decay = decay_.const_data_ptr<float>(),
                          .clip = clip_.const_data_ptr<float>(),
                          .loss = losses.defined() ? losses.const_data_ptr<float>() : nullptr,
                          .updates = updates_.mutable_data_ptr<float>(),
                          .alive = alive_.mutable_data_ptr<float>(),
                          .norm = norm_.mutable_data_ptr<float>(),
                          .factor = factor_.mutable_data_ptr<float>(),
                          .partial = partial_.mutable_data_ptr<double>(),
                          .squares = squares.defined() ? squares.const_data_ptr<double>() : nullptr,
                          .beta1 = beta1_,
                          .beta2 = beta2_,
                          .eps = eps_},
                         buffer_of(lr_).place);
  store_.zero_gradients(slots);
}

}  // namespace trireme::nn
