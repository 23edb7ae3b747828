#include "framework/models/dit/prediction_cache.h"

#include "framework/base/tensor.h"

#include <cmath>
#include <utility>

#include <ATen/ATen.h>

namespace trireme {

void VelocityHistory::forget() {
  nodes_.clear();
  age_ = at::Tensor();
}

void VelocityHistory::computed(const at::Tensor& v, double sigma, const at::Tensor& active) {
  const auto most = std::size_t(settings_.order) + 1;
  if (!active.defined()) {
    nodes_.insert(nodes_.begin(), {v, at::full({v.size(0), v.size(1), 1}, sigma, v.options())});
    if (nodes_.size() > most) nodes_.pop_back();
    age_ = at::zeros({v.size(0), v.size(1), 1}, v.options());
    return;
  }
  const at::Tensor was =
      at::zeros({v.size(0), v.size(1)}, v.options().dtype(at::kBool)).scatter_(1, active, true).unsqueeze(2);
  Node next{v, at::full({1}, sigma, v.options())};
  for (auto& node : nodes_) {
    const Node before = node;
    node = {at::where(was, next.v, node.v), at::where(was, next.sigma, node.sigma)};
    next = before;
  }
  age_ = (age_ + 1).masked_fill(was, 0);
}

at::Tensor VelocityHistory::extrapolate(double sigma) const {
  const Node& last = nodes_.front();
  if (nodes_.size() == 1) return last.v;
  const auto damp = [&](int k) {
    return settings_.by_order ? at::full({1}, std::pow(settings_.decay, k), age_.options())
                              : at::pow(settings_.decay, age_ + 1);
  };
  const auto slope = [](const Node& a, const Node& b) { return (a.v - b.v) / (a.sigma - b.sigma); };
  const at::Tensor first = slope(last, nodes_[1]), ahead = sigma - last.sigma;
  at::Tensor v = last.v + damp(1) * first * ahead;
  if (nodes_.size() > 2)
    v += damp(2) * (first - slope(nodes_[1], nodes_[2])) / (last.sigma - nodes_[2].sigma) * ahead *
         (sigma - nodes_[1].sigma);
  return v;
}

void VelocityHistory::state(Archive& ar, at::IntArrayRef shape, at::Device device) {
  auto count = std::int64_t(nodes_.size());
  ar.value("nodes", count);
  if (ar.loading()) {
    const auto options = at::TensorOptions(device).dtype(at::kFloat);
    nodes_.clear();
    for (std::int64_t i = 0; i < count; ++i)
      nodes_.push_back({at::empty(shape, options), at::empty({shape[0], shape[1], 1}, options)});
    age_ = at::empty({shape[0], shape[1], 1}, options);
  }
  for (std::size_t i = 0; i < nodes_.size(); ++i) {
    const std::string number = std::to_string(i);
    archive(ar, "v" + number, nodes_[i].v);
    archive(ar, "sigma" + number, nodes_[i].sigma);
  }
  if (count > 0) archive(ar, "age", age_);
}

void TaylorSeries::computed(const at::Tensor& value, std::int64_t step) {
  std::vector<at::Tensor> next{value};
  for (std::int64_t k = 0; k < order_ && std::size_t(k) < factors_.size(); ++k)
    next.push_back((next[std::size_t(k)] - factors_[std::size_t(k)]) / double(step - last_));
  factors_ = std::move(next);
  last_ = step;
}

at::Tensor TaylorSeries::predict(std::int64_t step) const {
  at::Tensor sum = factors_.front();
  double factor = 1;
  for (std::size_t k = 1; k < factors_.size(); ++k) {
    factor *= double(step - last_) / double(k);
    sum = sum + factors_[k] * factor;
  }
  return sum;
}

}  // namespace trireme
