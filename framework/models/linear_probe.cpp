#include "framework/models/linear_probe.h"

#include "comm/error.h"

#include <array>
#include <cmath>
#include <deque>
#include <limits>
#include <map>
#include <optional>

namespace trireme {
namespace {

constexpr int max_steps = 1000, kept_pairs = 10;

// The objective over theta [classes, d + 1], whose last column is the bias.
class Objective {
 public:
  Objective(const at::Tensor& features, const at::Tensor& labels, std::int64_t classes, double c)
      : x_(at::cat({features.to(at::kDouble), at::ones({features.size(0), 1}, features.options().dtype(at::kDouble))},
                   1)),
        labels_(labels.unsqueeze(1)),
        penalty_(1 / (c * double(features.size(0)))),
        classes_(classes) {}

  at::Tensor zeros() const { return at::zeros({classes_, x_.size(1)}, x_.options()); }

  struct Value {
    double loss;
    at::Tensor gradient;
  };
  Value at(const at::Tensor& theta) const {
    const double n = double(x_.size(0));
    const at::Tensor log_p = at::log_softmax(at::matmul(x_, theta.t()), 1);
    at::Tensor slope = log_p.exp();
    slope.scatter_add_(1, labels_, at::full_like(labels_, -1, slope.options()));
    at::Tensor weight = theta.clone();
    weight.select(1, weight.size(1) - 1).zero_();
    const at::Tensor loss = -log_p.gather(1, labels_).sum() / n + weight.square().sum() * (penalty_ / 2);
    return {loss.item<double>(), at::matmul(slope.t(), x_) / n + weight * penalty_};
  }

 private:
  at::Tensor x_, labels_;
  double penalty_;
  std::int64_t classes_;
};

double product_of(const at::Tensor& a, const at::Tensor& b) { return (a * b).sum().item<double>(); }

// The last steps and how the gradient changed over them: an estimate of the inverse Hessian (two-loop recursion).
class Curvature {
 public:
  void add(at::Tensor step, at::Tensor change) {
    const double product = product_of(step, change);
    if (product <= 0) return;
    pairs_.push_back({std::move(step), std::move(change), product});
    if (pairs_.size() > kept_pairs) pairs_.pop_front();
  }
  at::Tensor direction(const at::Tensor& gradient) const {
    at::Tensor q = -gradient;
    std::vector<double> weight(pairs_.size());
    for (std::size_t i = pairs_.size(); i-- > 0;) {
      weight[i] = product_of(pairs_[i].step, q) / pairs_[i].product;
      q = q - pairs_[i].change * weight[i];
    }
    if (!pairs_.empty()) q = q * (pairs_.back().product / product_of(pairs_.back().change, pairs_.back().change));
    for (std::size_t i = 0; i < pairs_.size(); ++i)
      q = q + pairs_[i].step * (weight[i] - product_of(pairs_[i].change, q) / pairs_[i].product);
    return q;
  }

 private:
  struct Pair {
    at::Tensor step, change;
    double product;
  };
  std::deque<Pair> pairs_;
};

struct Point {
  at::Tensor theta;
  Objective::Value value;
};

// Along `direction` to a point that satisfies the weak Wolfe conditions, by bisection (Lewis and Overton); nothing
// where rounding leaves no descent.
std::optional<Point> line_search(const Objective& f, const Point& from, const at::Tensor& direction, double length) {
  const double slope = product_of(from.value.gradient, direction);
  double low = 0, high = std::numeric_limits<double>::infinity();
  for (int tries = 0; tries < 40 && slope < 0; ++tries) {
    const at::Tensor theta = from.theta + direction * length;
    Objective::Value value = f.at(theta);
    if (!(value.loss <= from.value.loss + 1e-4 * length * slope))
      high = length;
    else if (product_of(value.gradient, direction) < 0.9 * slope)
      low = length;
    else
      return Point{theta, std::move(value)};
    length = std::isfinite(high) ? (low + high) / 2 : 2 * low;
  }
  return {};
}

double largest(const at::Tensor& t) { return t.abs().max().item<double>(); }

// [validation, training] row numbers.
std::array<at::Tensor, 2> split(const at::Tensor& labels, const std::string& where) {
  const at::Tensor host = labels.cpu();
  std::map<std::int64_t, int> seen;
  std::vector<std::int64_t> rows[2];
  for (std::int64_t i = 0; i < host.size(0); ++i) rows[seen[host[i].item<std::int64_t>()]++ % 5 != 4].push_back(i);
  if (rows[0].empty())
    throw DataError(where, "no class has five samples to choose the penalty by", "give the probe more training data");
  return {at::tensor(rows[0], at::kLong).to(labels.device()), at::tensor(rows[1], at::kLong).to(labels.device())};
}

double accuracy(const LinearModel& model, const at::Tensor& features, const at::Tensor& labels) {
  const at::Tensor scores = at::matmul(features.to(at::kDouble), model.weight.t()) + model.bias;
  return (scores.argmax(1) == labels).to(at::kDouble).mean().item<double>();
}

}  // namespace

LinearModel logistic_regression(const at::Tensor& features, const at::Tensor& labels, std::int64_t classes, double c,
                                double tolerance) {
  const Objective f(features, labels, classes, c);
  Point now{f.zeros(), {}};
  now.value = f.at(now.theta);
  Curvature curvature;
  std::int64_t steps = 0;
  for (; steps < max_steps && largest(now.value.gradient) > tolerance; ++steps) {
    const double first = steps ? 1 : 1 / std::max(1.0, now.value.gradient.norm().item<double>());
    std::optional<Point> next = line_search(f, now, curvature.direction(now.value.gradient), first);
    if (!next) break;
    curvature.add(next->theta - now.theta, next->value.gradient - now.value.gradient);
    now = std::move(*next);
  }
  const std::int64_t d = features.size(1);
  return {now.theta.narrow(1, 0, d).contiguous(), now.theta.select(1, d).contiguous(), steps};
}

LinearProbe linear_probe(const at::Tensor& features, const at::Tensor& labels, std::int64_t classes,
                         const std::string& where) {
  const auto [validation, training] = split(labels, where);
  const auto rows = [&](const at::Tensor& of, const at::Tensor& which) { return of.index_select(0, which); };
  const at::Tensor x = rows(features, training), y = rows(labels, training);
  const at::Tensor held_x = rows(features, validation), held_y = rows(labels, validation);
  const auto c_at = [](int eighth) { return std::pow(10.0, -6 + eighth / 8.0); };
  std::map<int, double> found;  // eighth of a decade -> accuracy on the validation split
  const auto best = [&] {
    return std::max_element(found.begin(), found.end(), [](auto& a, auto& b) { return a.second < b.second; })->first;
  };
  const auto try_at = [&](int eighth) {
    if (eighth < 0 || eighth > 96 || found.contains(eighth)) return;
    found[eighth] = accuracy(logistic_regression(x, y, classes, c_at(eighth)), held_x, held_y);
  };
  for (int eighth = 0; eighth <= 96; eighth += 16) try_at(eighth);
  for (int step = 8; step > 0; step /= 2) {
    const int peak = best();
    try_at(peak - step);
    try_at(peak + step);
  }
  const double c = c_at(best());
  return {logistic_regression(features, labels, classes, c), c};
}

}  // namespace trireme
