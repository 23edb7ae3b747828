// The fused linear layer and the loss of logits against ATen's with autograd, and the norm kernel against a plain f64
// sum.
#include "framework/nn/linear.h"

#include "framework/kernels/sum_of_squares.h"
#include "framework/losses/binary_loss.h"

#include <cmath>
#include <vector>

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

namespace trireme {
namespace {

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / b.abs().max()).item<double>();
}

struct Outcome {
  at::Tensor y;
  std::vector<at::Tensor> grads;
};

Outcome run(at::ScalarType type, bool relu, bool fused, std::int64_t rows) {
  at::manual_seed(4);
  std::vector<at::Tensor> leaves;
  for (const auto& shape : std::vector<std::vector<std::int64_t>>{{rows, 7}, {5, 7}, {5}})
    leaves.push_back(at::randn(shape, at::kDouble).to(type).requires_grad_());
  const at::Tensor weight = at::randn({rows, 5}, at::kDouble).to(type);
  at::Tensor y;
  if (fused) {
    y = nn::linear(leaves[0], leaves[1], leaves[2], relu);
  } else {
    y = at::linear(leaves[0], leaves[1], leaves[2]);
    if (relu) y = at::relu(y);
  }
  torch::autograd::backward({(y * weight).sum()}, {});
  Outcome o{y.detach(), {}};
  for (const auto& leaf : leaves) o.grads.push_back(leaf.grad());
  return o;
}

TEST(Linear, EqualsAutograd) {
  for (const bool relu : {false, true})
    for (const std::int64_t rows : {9, 130})  // many rows of odd width in f32 go to oneDNN
      for (const auto& [type, tolerance] : {std::pair{at::kDouble, 1e-12}, std::pair{at::kFloat, 1e-5}}) {
        const Outcome fused = run(type, relu, true, rows), plain = run(type, relu, false, rows);
        EXPECT_LE(relative(fused.y, plain.y), tolerance);
        for (std::size_t i = 0; i < 3; ++i) EXPECT_LE(relative(fused.grads[i], plain.grads[i]), tolerance) << i;
      }
}

// The product's type is bf16, the gradients stay in the parameters' type.
TEST(Linear, WorksUnderAutocast) {
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const at::Tensor w = at::randn({5, 7}).requires_grad_(), b = at::zeros({5}).requires_grad_();
  const at::Tensor y = nn::linear(at::randn({9, 7}), w, b, true);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  torch::autograd::backward({y.sum()}, {});
  EXPECT_EQ(w.grad().scalar_type(), at::kFloat);
}

// Lengths around the vector width and a length at which one f32 sum has lost four digits.
TEST(SumOfSquares, EqualsAPlainF64Sum) {
  for (const std::int64_t n : {0, 1, 7, 8, 31, 33, 1000, 3000001}) {
    std::vector<float> x(n);
    long double want = 0;
    for (std::int64_t i = 0; i < n; ++i) {
      x[i] = float(std::sin(double(i)) + 1);
      want += static_cast<long double>(x[i]) * x[i];
    }
    EXPECT_NEAR(kernels::sum_of_squares(x.data(), n), double(want), 1e-12 * (1 + double(want))) << n;
  }
  const float bad[] = {1, NAN, 2}, huge[] = {INFINITY, 1};
  EXPECT_TRUE(std::isnan(kernels::sum_of_squares(bad, 3)));
  EXPECT_TRUE(std::isinf(kernels::sum_of_squares(huge, 2)));
}

TEST(BinaryLoss, EqualsAutograd) {
  at::manual_seed(3);
  for (const auto& [type, tolerance] : {std::pair{at::kDouble, 1e-14}, std::pair{at::kFloat, 1e-6}}) {
    // Far from zero either way, where exp(x) is infinite or 0.
    const at::Tensor x = at::cat({at::randn({500}, at::kDouble) * 4, at::tensor({-800.0, 800.0, 0.0, -800.0, 800.0})});
    const at::Tensor y = (at::randn({505}, at::kDouble) > 0.3).to(type);
    at::Tensor ours = x.clone().to(type).requires_grad_(), theirs = x.clone().requires_grad_();
    const at::Tensor loss = binary_loss(ours, y, 1010);
    const at::Tensor expected =
        at::binary_cross_entropy_with_logits(theirs, y.to(at::kDouble), {}, {}, at::Reduction::Sum) / 1010;
    torch::autograd::backward({loss * 3}, {});
    torch::autograd::backward({expected * 3}, {});
    EXPECT_LE(relative(loss.detach().to(at::kDouble), expected.detach()), tolerance);
    EXPECT_LE(relative(ours.grad().to(at::kDouble), theirs.grad()), tolerance);
  }
}

}  // namespace
}  // namespace trireme
