// Batched LoRA: every backend against autograd in f64.
#include "framework/nn/lora.h"


#include <gtest/gtest.h>

namespace trireme::nn {
namespace {

// Of the larger of both, or 1. NaN where either has one.
double max_difference(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0) return a.sizes() == b.sizes() ? 0 : 1;
  return ((a - b).abs().max() / at::clamp_min(b.abs().max(), 1)).item<double>();
}

struct Job {
  std::int64_t rank, rows;
  double scale;
};

std::vector<Projection> projections(std::int64_t in, std::int64_t out, at::ScalarType type) {
  at::manual_seed(1);
  return {{"m.0.q_proj", at::randn({out, in}, at::kDouble).div_(8).to(type), at::randn({out}, at::kDouble).to(type)},
          {"m.0.o_proj", at::randn({in, out}, at::kDouble).div_(8).to(type), {}}};
}

TEST(Lora, ProjectEqualsAutograd) {
  const std::vector<Job> jobs = {{8, 1, 2.0},   {16, 63, 0.5}, {64, 0, 1.0},
                                 {16, 64, 3.0}, {8, 65, 1.0},  {64, 130, 0.25}};
  AdapterStore store(projections(48, 80, at::kDouble), 7, 64, LoraBackend::loop);
  std::vector<SlotRows> rows;
  std::int64_t at = 3;  // rows of no slot at the front
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const auto slot = std::int64_t(i + (i > 1));  // slot 2 is empty
    store.fill(slot, {.shapes = {{jobs[i].rank, jobs[i].scale}, {jobs[i].rank, jobs[i].scale}}, .seed = 5 + i});
    for (auto& t : store.weights(slot)) t.b.normal_(0, 0.2);
    store.publish(slot);
    rows.push_back({slot, at, at + jobs[i].rows});
    at += jobs[i].rows;
  }
  store.begin(rows, true);
  const at::Tensor x = at::randn({at + 2, 48}, at::kDouble).set_requires_grad(true), g = at::randn_like(x);
  const at::Tensor y = store.project(1, at::gelu(store.project(0, x)));
  y.backward(g);
  const at::Tensor dx = x.grad().clone();
  x.mutable_grad().reset();

  std::vector<std::vector<at::Tensor>> leaves;
  at::Tensor h = x;
  for (std::int64_t t = 0; t < 2; ++t) {
    const auto& base = store.targets()[std::size_t(t)];
    if (t) h = at::gelu(h);
    std::vector<at::Tensor> parts;
    const at::Tensor own = at::linear(h, base.weight, base.bias);
    std::int64_t done = 0;
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const auto w = store.weights(rows[i].slot)[std::size_t(t)];
      leaves.push_back({w.a.clone().set_requires_grad(true), w.b.clone().set_requires_grad(true)});
      parts.push_back(own.slice(0, done, rows[i].first));
      const at::Tensor part = h.slice(0, rows[i].first, rows[i].last);
      parts.push_back(own.slice(0, rows[i].first, rows[i].last) +
                      jobs[i].scale * part.mm(leaves.back()[0].t()).mm(leaves.back()[1].t()));
      done = rows[i].last;
    }
    parts.push_back(own.slice(0, done));
    h = at::cat(parts);
  }
  EXPECT_LT(max_difference(y, h), 1e-11);
  h.backward(g);
  EXPECT_LT(max_difference(dx, x.grad()), 1e-11);
  for (std::size_t i = 0; i < rows.size(); ++i)
    for (std::size_t t = 0; t < 2; ++t) {
      const auto got = store.gradients(rows[i].slot)[t];
      EXPECT_LT(max_difference(got.a, leaves[t * rows.size() + i][0].grad()), 1e-10) << i;
      EXPECT_LT(max_difference(got.b, leaves[t * rows.size() + i][1].grad()), 1e-10) << i;
    }
}

}  // namespace
}  // namespace trireme::nn
