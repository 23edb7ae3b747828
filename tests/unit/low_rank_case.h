// Matrices of a bucket for the kernels of PowerSGD, and what each of them must give: by ATen in f64, where they lie (a
// host beside a GPU may be slow).
#pragma once
#include "framework/base/tensor.h"
#include "framework/gradients/low_rank.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include <ATen/ATen.h>

namespace trireme::test {

struct LowRankCase {
  std::vector<LowRankMatrix> matrices;
  at::Tensor gradient, before, error, p, q, own_q, partial, table;
  LowRankJob job;
  std::vector<at::Tensor> m;  // f64: before + gradient

  // `shift`: values before the first gradient, so that rows lie off 16 bytes.
  LowRankCase(const std::vector<std::pair<std::int64_t, std::int64_t>>& shapes, std::int64_t rank, bool feedback,
              std::int64_t shift, at::Device device) {
    std::int64_t values = 0, ps = 0, qs = 0;
    for (const auto& [rows, columns] : shapes) {
      LowRankMatrix x;
      x.m = rows, x.n = columns, x.r = std::min({rank, rows, columns});
      x.gradient = values + shift, x.error = values;
      values += rows * columns, ps += x.r * rows, qs += x.r * columns;
      matrices.push_back(x);
    }
    at::manual_seed(7);
    const at::TensorOptions there = at::TensorOptions(device).dtype(at::kFloat);
    const auto unknown = [&](std::int64_t n) { return at::full({n}, std::nan(""), there); };
    gradient = at::randn({shift + values}, there), before = at::randn({values}, there), error = unknown(values);
    p = unknown(ps), q = at::randn({qs}, there), own_q = unknown(qs);
    for (ps = qs = 0; auto& x : matrices) {
      x.p = p.data_ptr<float>() + ps, x.q = q.data_ptr<float>() + qs, x.own_q = own_q.data_ptr<float>() + qs;
      ps += x.r * x.m, qs += x.r * x.n;
      at::Tensor sum = of(gradient, x.gradient, x.m, x.n);
      m.push_back(feedback ? (sum.to(at::kFloat) + of(before, x.error, x.m, x.n).to(at::kFloat)).to(at::kDouble) : sum);
    }
    partial = unknown(low_rank_layout(matrices.data(), std::ssize(matrices), job));
    const auto bytes = std::int64_t(matrices.size() * sizeof(LowRankMatrix));
    table = at::from_blob(matrices.data(), {bytes}, at::kByte).clone().to(device);
    job.matrices = static_cast<const LowRankMatrix*>(table.const_data_ptr());
    job.gradient = gradient.data_ptr<float>();
    job.before = feedback ? before.const_data_ptr<float>() : nullptr;
    job.error = error.data_ptr<float>();
    job.partial = partial.data_ptr<float>();
  }

  Place place() const { return buffer_of(q).place; }
  // In f64.
  static at::Tensor of(const at::Tensor& all, std::int64_t at, std::int64_t rows, std::int64_t columns) {
    return all.narrow(0, at, rows * columns).view({rows, columns}).to(at::kDouble);
  }

  // The largest difference of the three kernels, each from what it was given, over the largest value (of a product: at
  // least 2 % of what its terms' magnitudes sum to, since a matrix of one value may cancel).
  double worst() {
    double worst = 0;
    const auto compare = [&](const at::Tensor& found, const at::Tensor& wanted, double least = 0) {
      const double largest = wanted.abs().max().item<double>(), size = largest < least ? least : largest;
      const double d = (found - wanted).abs().max().item<double>() / size;
      worst = d <= worst ? worst : d;  // a NaN stays
    };
    const auto compare_product = [&](const at::Tensor& found, const at::Tensor& a, const at::Tensor& b) {
      compare(found, a.mm(b), 0.02 * a.abs().mm(b.abs()).max().item<double>());
    };
    const at::Tensor first = q.clone();
    project(job, place());
    each([&](const LowRankMatrix& x, std::int64_t at_p, std::int64_t at_q, const at::Tensor& sum) {
      compare(of(error, x.error, x.m, x.n), sum);
      compare_product(of(p, at_p, x.r, x.m), of(first, at_q, x.r, x.n), sum.t());
    });
    back_project(job, place());
    each([&](const LowRankMatrix& x, std::int64_t at_p, std::int64_t at_q, const at::Tensor& sum) {
      compare_product(of(own_q, at_q, x.r, x.n), of(p, at_p, x.r, x.m), sum);
      compare(of(q, at_q, x.r, x.n), of(own_q, at_q, x.r, x.n));
    });
    p /= p.abs().max(), q.copy_(first);
    approximate(job, place());
    each([&](const LowRankMatrix& x, std::int64_t at_p, std::int64_t at_q, const at::Tensor& sum) {
      const at::Tensor turned = of(p, at_p, x.r, x.m).t();
      const at::Tensor left = job.before ? sum - turned.mm(of(own_q, at_q, x.r, x.n)) : sum;
      compare(of(error, x.error, x.m, x.n), left);
      compare_product(of(gradient, x.gradient, x.m, x.n), turned, of(q, at_q, x.r, x.n));
    });
    return worst;
  }

 private:
  template <class F>
  void each(F f) {
    std::int64_t at_p = 0, at_q = 0, k = 0;
    for (const auto& x : matrices) {
      f(x, at_p, at_q, m[std::size_t(k++)]);
      at_p += x.r * x.m, at_q += x.r * x.n;
    }
  }
};

}  // namespace trireme::test
