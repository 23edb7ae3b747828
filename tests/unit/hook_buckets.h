// One bucket with a matrix of 40 x 30, a vector and a scalar, for tests of gradient hooks.
#pragma once
#include "data/rng.h"
#include "framework/gradients/hook.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

namespace trireme::test {

struct OneBucket {
  Bucket bucket;
  explicit OneBucket(std::int64_t ranks, at::Device device = at::kCPU) {
    const std::int64_t shards = 64 * ranks, n = (1216 + 64 + 64 + shards - 1) / shards * shards;
    bucket.flat = at::zeros({n}, at::TensorOptions().dtype(at::kFloat).device(device));
    bucket.gradients = {bucket.flat.narrow(0, 0, 1200).view({40, 30}), bucket.flat.narrow(0, 1216, 50),
                        bucket.flat.narrow(0, 1280, 1).squeeze()};
    bucket.parameters = {"m", "v", "s"};
  }
  void fill(std::uint64_t seed) {
    for (auto& g : bucket.gradients) {
      at::Tensor values = at::empty(g.sizes(), at::kFloat);
      Rng rng(seed, "gradient", std::uint64_t(g.numel()));
      for (std::int64_t i = 0; i < g.numel(); ++i) values.data_ptr<float>()[i] = float(rng.normal());
      g.copy_(values);
    }
  }
};

inline void reduce(GradientHook& hook, Bucket& bucket, Communicator& comm) {
  Communicator* const lanes[] = {&comm};
  std::vector<Work> works;
  hook.reduce(bucket, lanes, works);
  for (auto& work : works) work.wait();
}

// What a selection of the largest magnitudes must give: by sorting. NaN first, equal ones by index.
inline std::vector<std::int32_t> largest_of(const at::Tensor& values, std::int64_t keep) {
  const auto* v = values.const_data_ptr<float>();
  std::vector<std::int32_t> order(std::size_t(values.numel()));
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = std::int32_t(i);
  const auto size = [v](std::int32_t i) { return std::abs(v[i]); };
  const auto nan = [v](std::int32_t i) { return v[i] != v[i]; };
  std::stable_sort(order.begin(), order.end(), [&](std::int32_t a, std::int32_t b) {
    return nan(a) != nan(b) ? nan(a) : !nan(a) && size(a) > size(b);
  });
  order.resize(std::size_t(keep));
  std::sort(order.begin(), order.end());
  return order;
}

}  // namespace trireme::test
