#include "recipes/sdit/caches.h"

#include <ATen/ATen.h>

namespace trireme::sdit {
namespace {

at::Tensor difference(const at::Tensor& a, const at::Tensor& b) { return a.defined() ? a - b : a; }

}  // namespace

double StepCache::relative_change(const at::Tensor& a, const at::Tensor& b) const {
  const at::Tensor wide = b.to(at::kFloat), apart = (a.to(at::kFloat) - wide).abs();
  if (!ranks_) return (apart.mean() / wide.abs().mean()).item<double>();
  const at::Tensor sums = at::stack({apart.sum(at::kDouble), wide.abs().sum(at::kDouble)}).cpu();
  auto* const both = sums.mutable_data_ptr<double>();
  ranks_->all_reduce({both, 2, DType::f64}, Op::sum).wait();
  return both[0] / both[1];
}

void TeaCache::forget() {
  StepCache::forget();
  sum_ = 0;
  modulated_ = residual_ = at::Tensor();
}

std::optional<BlockStreams> TeaCache::before_blocks(const BlockStreams& in,
                                                    const std::function<at::Tensor()>& modulated) {
  const at::Tensor now = modulated();
  bool run = !residual_.defined() || place_.step < rule_.retained || place_.step + 1 >= place_.steps;
  if (!run) {
    const double change = relative_change(now, modulated_);
    double value = 0;
    for (const double factor : rule_.polynomial) value = value * change + factor;
    sum_ += value;
    run = !(sum_ < rule_.threshold);
  }
  modulated_ = now;
  if (run) {
    sum_ = 0;
    return {};
  }
  computed_.back() = false;
  return BlockStreams{in.image + residual_, in.text};
}

void TeaCache::after_blocks(const BlockStreams& in, const BlockStreams& first_out, const BlockStreams& out) {
  residual_ = out.image - in.image;
}

void FirstBlockCache::forget() {
  StepCache::forget();
  in_a_row_ = 0;
  first_ = at::Tensor();
  image_.forget(), text_.forget();
}

std::optional<BlockStreams> FirstBlockCache::after_first_block(const BlockStreams& in, const BlockStreams& out) {
  const at::Tensor first = out.image - in.image;
  const bool may = first_.defined() && place_.step >= rule_.warmup && in_a_row_ != rule_.most_in_a_row;
  if (!may || !(relative_change(first, first_) <= rule_.threshold)) {
    first_ = first;
    in_a_row_ = 0;
    return {};
  }
  ++in_a_row_;
  computed_.back() = false;
  return BlockStreams{out.image + image_.predict(place_.step),
                      text_.empty() ? out.text : out.text + text_.predict(place_.step)};
}

void FirstBlockCache::after_blocks(const BlockStreams& in, const BlockStreams& first_out, const BlockStreams& out) {
  if (place_.step < rule_.warmup) image_.forget(), text_.forget();  // slopes there mislead
  image_.computed(out.image - first_out.image, place_.step);
  if (const at::Tensor text = difference(out.text, first_out.text); text.defined()) text_.computed(text, place_.step);
}

void TaylorSeer::forget() {
  StepCache::forget();
  layers_.clear();
}

bool TaylorSeer::computes(const Rule& rule, std::int64_t step) {
  return step < rule.warmup || (step - rule.warmup - 1 + rule.interval) % rule.interval == 0;
}

BlockStreams TaylorSeer::attention(std::int64_t layer, const std::function<BlockStreams()>& run) {
  const auto [at, fresh] = layers_.try_emplace(layer, Layer{TaylorSeries(rule_.order), TaylorSeries(rule_.order)});
  auto& [image, text] = at->second;
  if (fresh || computes(rule_, place_.step)) {
    const BlockStreams out = run();
    if (out.image.defined()) image.computed(out.image, place_.step);
    if (out.text.defined()) text.computed(out.text, place_.step);
    return out;
  }
  computed_.back() = false;
  const auto predict = [&](const TaylorSeries& s) { return s.empty() ? at::Tensor() : s.predict(place_.step); };
  return {predict(image), predict(text)};
}

void AttentionBroadcast::forget() {
  StepCache::forget();
  layers_.clear();
}

BlockStreams AttentionBroadcast::attention(std::int64_t layer, const std::function<BlockStreams()>& run) {
  const double timestep = 1000 * place_.sigma;
  const auto known = layers_.find(layer);
  const bool inside = rule_.low < timestep && timestep < rule_.high;
  if (known != layers_.end() && inside && place_.step % rule_.every != 0) {
    computed_.back() = false;
    return known->second;
  }
  return layers_[layer] = run();
}

}  // namespace trireme::sdit
