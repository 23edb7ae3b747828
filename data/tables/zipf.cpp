#include "data/tables/zipf.h"

#include <algorithm>
#include <cmath>

namespace trireme {
namespace {

constexpr std::int64_t most_exact = 4096;

// Antiderivative of x^-s.
double integral(double x, double s) { return std::abs(s - 1) < 1e-9 ? std::log(x) : std::pow(x, 1 - s) / (1 - s); }
double inverse(double y, double s) { return std::abs(s - 1) < 1e-9 ? std::exp(y) : std::pow(y * (1 - s), 1 / (1 - s)); }

// Sum of (i + q)^-s over i = first..last: the ends one by one, the middle by the midpoint rule.
double sum(std::int64_t first, std::int64_t last, double s, double q, std::int64_t exact) {
  double total = 0;
  const std::int64_t until = std::min(last, first + exact - 1);
  for (std::int64_t i = first; i <= until; ++i) total += std::pow(double(i) + q, -s);
  if (until < last) total += integral(double(last) + 0.5 + q, s) - integral(double(until) + 0.5 + q, s);
  return total;
}

}  // namespace

Zipf::Zipf(const Spec& spec) : spec_(spec) {
  const auto given = std::int64_t(spec_.head.size());
  double rest = 1;
  for (const double p : spec_.head) rest -= p;
  exact_ = std::min(spec_.n, std::max(most_exact, given));
  p_.assign(spec_.head.begin(), spec_.head.end());
  p_.resize(std::size_t(std::min(given, exact_)));
  if (spec_.n > given) norm_ = std::max(rest, 0.0) / sum(given + 1, spec_.n, spec_.s, spec_.q, most_exact);
  for (std::int64_t i = given + 1; i <= exact_; ++i) p_.push_back(norm_ * std::pow(double(i) + spec_.q, -spec_.s));
  low_ = integral(double(exact_) + 0.5 + spec_.q, spec_.s);
  high_ = integral(double(spec_.n) + 0.5 + spec_.q, spec_.s);
  p_.push_back(spec_.n > exact_ ? norm_ * (high_ - low_) : 0);
  double total = 0;
  for (const double p : p_) total += p;
  for (double& p : p_) p /= total;

  const std::size_t k = p_.size();
  keep_.assign(k, 1), other_.assign(k, 0);
  std::vector<double> scaled(k);
  std::vector<std::int32_t> small, large;
  for (std::size_t i = 0; i < k; ++i) {
    scaled[i] = p_[i] * double(k);
    other_[i] = std::int32_t(i);
    (scaled[i] < 1 ? small : large).push_back(std::int32_t(i));
  }
  while (!small.empty() && !large.empty()) {
    const auto s = std::size_t(small.back()), l = std::size_t(large.back());
    small.pop_back();
    keep_[s] = scaled[s], other_[s] = std::int32_t(l);
    scaled[l] -= 1 - scaled[s];
    if (scaled[l] < 1) large.pop_back(), small.push_back(std::int32_t(l));
  }
}

std::int64_t Zipf::draw(Rng& rng) const {
  const double u = rng.uniform() * double(p_.size());
  const auto cell = std::min(std::size_t(u), p_.size() - 1);
  const auto i = u - double(cell) < keep_[cell] ? std::int64_t(cell) : other_[cell];
  if (i < exact_) return i;
  const double x = inverse(low_ + rng.uniform() * (high_ - low_), spec_.s) - spec_.q;
  return std::clamp(std::int64_t(x + 0.5), exact_ + 1, spec_.n) - 1;
}

double Zipf::probability(std::int64_t i) const {
  return i < exact_ ? p_[std::size_t(i)] : norm_ * std::pow(double(i + 1) + spec_.q, -spec_.s);
}

double same_first_share(std::int64_t n, double s, double q) {
  if (q == 0 || n < 2) return s;
  const auto share = [n](double e, double shift) { return std::pow(1 + shift, -e) / sum(1, n, e, shift, 512); };
  const double wanted = share(s, 0);
  double low = 0, high = 30;
  for (int k = 0; k < 50; ++k) {
    const double middle = (low + high) / 2;
    (share(middle, q) < wanted ? low : high) = middle;
  }
  return low;
}

}  // namespace trireme
