#include "framework/nn/parameters.h"

#include "data/rng.h"

namespace trireme::nn {

at::Tensor Parameters::add(const std::string& name, at::IntArrayRef shape, const std::string& group,
                           const std::function<void(at::Tensor&)>& draw) {
  const auto options = at::TensorOptions(device_).dtype(type_);
  at::Tensor leaf;
  if (drawn_) {
    at::Tensor host = at::empty(shape, at::kDouble);
    draw(host);
    leaf = host.to(options);
  } else {
    leaf = at::empty(shape, options);
  }
  all_.push_back({name, leaf.requires_grad_(), nullptr, group});
  return leaf;
}

at::Tensor Parameters::normal(const std::string& name, at::IntArrayRef shape, double std, const std::string& group) {
  return add(name, shape, group, [&](at::Tensor& t) {
    Rng rng(seed_, "init/" + name);
    double* p = t.data_ptr<double>();
    for (std::int64_t i = 0; i < t.numel(); ++i) p[i] = std * rng.normal();
  });
}

at::Tensor Parameters::uniform(const std::string& name, at::IntArrayRef shape, double bound, const std::string& group) {
  return add(name, shape, group, [&](at::Tensor& t) {
    Rng rng(seed_, "init/" + name);
    double* p = t.data_ptr<double>();
    for (std::int64_t i = 0; i < t.numel(); ++i) p[i] = bound * (2 * rng.uniform() - 1);
  });
}

at::Tensor Parameters::constant(const std::string& name, at::IntArrayRef shape, double value,
                                const std::string& group) {
  return add(name, shape, group, [&](at::Tensor& t) { t.fill_(value); });
}

at::Tensor Parameters::buffer(const std::string& name, at::IntArrayRef shape, double value) {
  all_.push_back({name, at::full(shape, value, at::TensorOptions(device_).dtype(type_)), nullptr, "buffer"});
  return all_.back().value;
}

at::Tensor Parameters::counter(const std::string& name) {
  all_.push_back({name, at::zeros({}, at::TensorOptions(device_).dtype(at::kLong)), nullptr, "buffer"});
  return all_.back().value;
}

}  // namespace trireme::nn
