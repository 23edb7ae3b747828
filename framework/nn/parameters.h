// Named leaves of a model, initialised from (seed, name): equal on every rank, whatever the order of creation.
#pragma once
#include "framework/base/param.h"

#include <functional>

namespace trireme::nn {

class Parameters {
 public:
  Parameters(std::uint64_t seed, at::ScalarType type, at::Device device) : seed_(seed), type_(type), device_(device) {}

  // Weights that are loaded: memory without values.
  static Parameters unset(at::ScalarType type, at::Device device) {
    Parameters p(0, type, device);
    p.drawn_ = false;
    return p;
  }

  at::Tensor normal(const std::string& name, at::IntArrayRef shape, double std, const std::string& group = "decay");
  at::Tensor uniform(const std::string& name, at::IntArrayRef shape, double bound, const std::string& group = "decay");
  at::Tensor constant(const std::string& name, at::IntArrayRef shape, double value,
                      const std::string& group = "no_decay");
  // Saved, loaded and exported with the weights, but no weight: of group "buffer", without a gradient.
  at::Tensor buffer(const std::string& name, at::IntArrayRef shape, double value);
  at::Tensor counter(const std::string& name);  // the same, an i64 scalar that begins at 0
  const std::vector<Param>& all() const { return all_; }

 private:
  at::Tensor add(const std::string& name, at::IntArrayRef shape, const std::string& group,
                 const std::function<void(at::Tensor& host)>& draw);
  std::uint64_t seed_;
  at::ScalarType type_;
  at::Device device_;
  bool drawn_ = true;
  std::vector<Param> all_;
};

}  // namespace trireme::nn
