// Batched LoRA on a GPU: the grouped kernels against their host twins, every backend against the host's, and a training
// whose jobs are the same bits alone and in company.
#include "comm/device.h"
#include "framework/nn/adapter_optimizer.h"

#include <cmath>
#include <cstring>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace trireme::nn {
namespace {

bool no_gpu() { return !device_runtime() || device_runtime()->count() == 0; }

double off(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0) return 0;
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble), y = b.detach().to(at::kCPU, at::kDouble);
  return ((x - y).abs().max() / at::clamp_min(y.abs().max(), 1e-3)).item<double>();
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.cpu().contiguous(), y = b.cpu().contiguous();
  return x.sizes() == y.sizes() && std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

struct Case {
  std::int64_t in, out;
  std::vector<std::int64_t> ranks, rows;
  double dropout = 0;
  bool whole = false;  // every row is somebody's
};

// Three targets of one input -> their outputs, dx and all gradients, on the host. Data and weights are values of bf16
// in every type.
std::vector<at::Tensor> run(const Case& c, LoraBackend backend, at::Device device, at::ScalarType type) {
  at::manual_seed(11);
  const auto draw = [&](at::IntArrayRef shape, double std) {
    return (at::randn(shape) * std).to(at::kBFloat16).to(device, type);
  };
  const double std = 1 / std::sqrt(double(c.in));
  AdapterStore store({{"q", draw({c.out, c.in}, std), draw({c.out}, 1)},
                      {"k", draw({72, c.in}, std), {}},
                      {"v", draw({c.in, c.in}, std), {}}},
                     std::int64_t(c.ranks.size()), 128, backend);
  std::vector<SlotRows> rows;
  std::int64_t at = c.whole ? 0 : 1;
  for (std::size_t i = 0; i < c.ranks.size(); ++i) {
    const auto slot = std::int64_t(i);
    store.fill(slot, {.shapes = {{c.ranks[i], 0.5}, {8, 2}, {c.ranks[i], 1}}, .seed = i, .dropout = c.dropout});
    for (auto& t : store.weights(slot)) {
      t.a.copy_(draw(t.a.sizes(), std));
      t.b.copy_(draw(t.b.sizes(), 0.1));
    }
    store.publish(slot);
    rows.push_back({slot, at, at + c.rows[i], 3, 50});
    at += c.rows[i] + (c.whole ? 0 : std::int64_t(i % 2));
  }
  if (!c.whole) at += 3;
  const at::Tensor x = draw({at, c.in}, 1).set_requires_grad(true);
  store.begin(rows, true);
  const std::int64_t targets[] = {0, 1, 2};
  std::vector<at::Tensor> all = store.project(targets, x), g;
  for (const auto& y : all) g.push_back(draw(y.sizes(), 1));
  torch::autograd::backward(all, g);
  all.push_back(x.grad());
  for (std::size_t i = 0; i < c.ranks.size(); ++i) all.push_back(store.flat_gradients(std::int64_t(i)));
  for (auto& t : all) t = t.detach().cpu();
  return all;
}

// Tiles and their edges; sums cut into parts, over columns and over tokens; ranks of every template; widths that no
// tile takes.
const std::vector<Case> cases = {{96, 200, {8, 16, 4, 16}, {1, 63, 64, 65}},
                                 {136, 64, {32, 24, 8}, {30, 70, 0}},
                                 {640, 1032, {64, 40, 8}, {130, 17, 64}},
                                 {2048, 256, {128, 72, 16}, {130, 17, 64}},
                                 {256, 384, {16}, {1100}},
                                 {512, 512, {16, 64, 8, 32, 16, 16, 64, 128}, {100, 1, 300, 64, 65, 7, 0, 512}},
                                 {37, 50, {16, 24}, {30, 70}},
                                 {256, 512, {16, 64}, {100, 200}, 0.25},
                                 {512, 640, {16, 64, 8, 32}, {100, 1, 300, 64}, 0, true},
                                 {256, 512, {16, 64}, {100, 200}, 0.25, true},
                                 {37, 50, {16, 24}, {30, 70}, 0, true}};

TEST(Gpu, LoraKernelsEqualTheHosts) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto want = run(cases[i], LoraBackend::kernels, at::kCPU, at::kFloat);
    for (const auto type : {at::kBFloat16, at::kFloat}) {
      const auto got = run(cases[i], LoraBackend::kernels, {at::kCUDA, 0}, type);
      const auto again = run(cases[i], LoraBackend::kernels, {at::kCUDA, 0}, type);
      for (std::size_t k = 0; k < want.size(); ++k) {
        EXPECT_LE(off(got[k], want[k]), type == at::kFloat ? 1e-4 : 2e-2) << "case " << i << ", tensor " << k;
        EXPECT_TRUE(same_bits(got[k], again[k])) << "case " << i << ", tensor " << k;
      }
    }
  }
}

TEST(Gpu, LoraBackendsAgree) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  for (const auto backend : {LoraBackend::grouped_mm, LoraBackend::bmm, LoraBackend::loop, LoraBackend::wide})
    for (const std::size_t i : {0u, 2u, 5u, 7u}) {
      const auto want = run(cases[i], LoraBackend::kernels, at::kCPU, at::kFloat);
      const auto got = run(cases[i], backend, {at::kCUDA, 0}, at::kBFloat16);
      for (std::size_t k = 0; k < want.size(); ++k)
        EXPECT_LE(off(got[k], want[k]), 2e-2) << int(backend) << ", case " << i << ", tensor " << k;
    }
}

// Three steps of each job of `ranks` on the place, without the others where `only` names one -> weights.
std::vector<at::Tensor> train(at::Device device, at::ScalarType type, std::int64_t only, std::int64_t poison) {
  at::manual_seed(2);
  const at::Tensor w = (at::randn({64, 64}) * 0.1).to(device, type);
  const std::int64_t ranks[] = {8, 16, 40};
  AdapterStore store({{"w", w, {}}}, 3, 64);
  AdapterOptimizer optimizer(store);
  std::vector<std::int64_t> slots;
  for (std::int64_t i = 0; i < 3; ++i)
    if (only < 0 || only == i) {
      store.fill(i, {.shapes = {{ranks[i], 2}}, .seed = std::uint64_t(i), .dropout = 0.1});
      optimizer.start(i, {0.01, 0.1, 0.5});
      slots.push_back(i);
    }
  for (std::int64_t n = 0; n < 3; ++n) {
    std::vector<SlotRows> rows;
    std::vector<at::Tensor> x;
    for (const auto i : slots) {
      at::manual_seed(std::uint64_t(100 * i + n));
      x.push_back(at::randn({50 + 40 * i, 64}).to(device, type));
      if (i == poison && n == 1) x.back().fill_(NAN);
      const auto first = rows.empty() ? 0 : rows.back().last;
      rows.push_back({i, first, first + x.back().size(0), 0, n});
    }
    store.begin(rows, true);
    const at::Tensor all = at::cat(x), y = store.project(0, all);
    at::Tensor losses = at::zeros({3}, y.options().dtype(at::kFloat));
    std::vector<at::Tensor> terms;
    for (const auto& r : rows) {
      terms.push_back((y - all).slice(0, r.first, r.last).to(at::kFloat).square().mean());
      losses[r.slot].copy_(terms.back().detach());
    }
    at::stack(terms).sum().backward();
    optimizer.step(slots, losses);
  }
  std::vector<at::Tensor> weights(3);
  for (const auto i : slots) weights[std::size_t(i)] = optimizer.park(i).weights;
  return weights;
}

TEST(Gpu, LoraJobsTrainAsOnTheHostAndApart) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const auto host = train(at::kCPU, at::kFloat, -1, -1);
  const auto together = train({at::kCUDA, 0}, at::kFloat, -1, -1);
  const auto sick = train({at::kCUDA, 0}, at::kFloat, -1, 1);
  for (std::int64_t i = 0; i < 3; ++i) {
    const auto k = std::size_t(i);
    EXPECT_LE((together[k] - host[k]).abs().max().item<double>(), 2e-3) << i;
    const auto solo = train({at::kCUDA, 0}, at::kFloat, i, -1);
    EXPECT_LE((together[k] - solo[k]).abs().max().item<double>(), 2e-3) << i;
    if (i == 1)
      EXPECT_TRUE(at::isfinite(sick[k]).all().item<bool>());
    else
      EXPECT_TRUE(same_bits(sick[k], together[k])) << i;
  }
}

}  // namespace
}  // namespace trireme::nn
