// The temperature's gradient against numerical derivatives, in f64.
#include "comm/local/self.h"
#include "framework/losses/contrastive.h"

#include <cmath>
#include <numeric>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace trireme::fastclip {
namespace {

constexpr std::int64_t n = 9, d = 5;

struct Problem {
  at::Tensor image, text;
  std::vector<std::int64_t> ids = std::vector<std::int64_t>(n);
  Problem() {
    at::manual_seed(11);
    const auto unit = [] {
      const at::Tensor x = at::randn({n, d}, at::kDouble);
      return x / x.norm(2, {1}, true);
    };
    image = unit();
    text = unit();
    std::iota(ids.begin(), ids.end(), 0);
  }
  LossResult loss(double t, const GlobalLossOptions& o) const {
    const auto self = make_self();
    const NormalizerTable table(n, at::TensorOptions().dtype(at::kDouble));
    return global_loss(*self, image, text, at::full({}, t, at::kDouble), ids, 1.0, table, o);
  }
  // RGCL-g / 2 with gamma = 1: tau (mean(log u1) + mean(log u2)) / 2 + rho tau.
  double objective(double t, double rho) const {
    const double mean = loss(t, {true, rho, 1e-14, true}).mean_log_u.item<double>();
    return std::exp(-t) * (mean + rho);
  }
};

TEST(TauGradient, PaperIsTheDerivativeOfTheObjective) {
  const Problem p;
  for (const double t : {1.5, 2.7, 3.5}) {
    const double h = 1e-5, numeric = (p.objective(t + h, 3.0) - p.objective(t - h, 3.0)) / (2 * h);
    const double paper = p.loss(t, {true, 3.0, 1e-14, true}).d_log_scale.item<double>();
    EXPECT_NEAR(paper, numeric, 1e-7 * (1 + std::abs(numeric))) << t;
  }
}

// The authors' code counts the sum over pairs twice: the difference is that sum's half.
TEST(TauGradient, RepoMinusPaperIsTheExtraHalf) {
  const Problem p;
  const double t = 2.5, tau = std::exp(-t), rho = 3.0;
  const LossResult repo = p.loss(t, {true, rho, 1e-14, false}), paper = p.loss(t, {true, rho, 1e-14, true});
  const double exact_half = paper.d_log_scale.item<double>() + tau * (rho + paper.mean_log_u.item<double>());
  EXPECT_NEAR(repo.d_log_scale.item<double>() - paper.d_log_scale.item<double>(), exact_half, 1e-12);
  EXPECT_GT(std::abs(exact_half), 1e-3);
}

TEST(Table, HighestRowWinsAndSkipWritesNothing) {
  NormalizerTable table(4, at::TensorOptions().dtype(at::kDouble));
  const std::vector<std::int64_t> ids{2, 1, 2};
  const at::Tensor log_u = at::arange(6, at::kDouble).view({2, 3}), no = at::zeros({}, at::kFloat);
  table.write(ids, log_u, no);
  EXPECT_EQ(table.image[2].item<double>(), 2);
  EXPECT_EQ(table.image[1].item<double>(), 1);
  EXPECT_EQ(table.text[2].item<double>(), 5);
  EXPECT_TRUE(std::isinf(table.image[0].item<double>()));
  table.write(ids, log_u * std::nan(""), at::ones({}, at::kFloat));
  EXPECT_EQ(table.image[2].item<double>(), 2);
}

}  // namespace
}  // namespace trireme::fastclip
