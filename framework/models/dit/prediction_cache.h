// What a sampler remembers of past predictions, to form those that it does not compute.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

class Archive;

// The velocities that were computed last, of every token its own ones with their sigmas, and Newton's extrapolation of
// them:
//   v* = v1 + d (v1 - v0) / (s1 - s0) (s* - s1) + d2 [v1, v0, v-1] (s* - s1)(s* - s0)
// d = decay^k: k the steps since the token was computed, or with by_order the order of the difference. What was
// extrapolated is never a node. On the device of what it is given; not thread-safe.
class VelocityHistory {
 public:
  struct Settings {
    std::int64_t order = 1;  // 0, 1 or 2
    double decay = 0.95;
    bool by_order = false;
  };
  explicit VelocityHistory(const Settings& settings) : settings_(settings) {}
  void forget();
  // v f32 [B, N, D]: of every token; active undefined: all were computed at this sigma; i64 [B, K]: those were. The
  // others' nodes stay as they are.
  void computed(const at::Tensor& v, double sigma, const at::Tensor& active = {});
  // [B, N, D] for all tokens, by as many nodes as all of them have. At least one computed() before.
  at::Tensor extrapolate(double sigma) const;
  // f32 [B, N, 1]: of each token, which step after the one it was computed in the next one is.
  at::Tensor age() const { return age_ + 1; }
  bool empty() const { return nodes_.empty(); }
  // `shape` [B, N, D] and `device` of what is loaded.
  void state(Archive& archive, at::IntArrayRef shape, at::Device device);

 private:
  struct Node {
    at::Tensor v, sigma;  // [B, N, D], [B, N, 1]
  };
  Settings settings_;
  std::vector<Node> nodes_;  // the last first
  at::Tensor age_;           // f32 [B, N, 1]: steps since computed
};

// Taylor's series of a tensor over steps (TaylorSeer, arXiv 2503.06923): differences of the last computed values over
// the steps between them.
class TaylorSeries {
 public:
  explicit TaylorSeries(std::int64_t order) : order_(order) {}
  void computed(const at::Tensor& value, std::int64_t step);  // kept as it is, not copied
  at::Tensor predict(std::int64_t step) const;                // at least one computed() before
  bool empty() const { return factors_.empty(); }
  void forget() { factors_.clear(); }

 private:
  std::int64_t order_, last_ = 0;
  std::vector<at::Tensor> factors_;  // derivative k
};

}  // namespace trireme
