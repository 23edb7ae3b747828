#include "data/tables/criteo_like.h"

#include "comm/error.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include <ATen/ATen.h>

namespace trireme {
namespace {

constexpr int rank_of_truth = 3;
// Strength of the effects by themselves and of their products: a logit of deviation about 1.2.
constexpr double alone = 0.20, together = 0.015;

const Shape& shape_of(const std::string& name) {
  const Shape* s = shape_named(name);
  if (!s)
    throw UsageError("data.shape", "unknown shape '" + name + "'", "known: kaggle, terabyte, mlperf_v1, mlperf_v2");
  return *s;
}

// SplitMix64's finaliser (Steele et al., OOPSLA'14): a draw for each (seed, table, id) without any state.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// 16 bits as a number of mean 0 and variance 1.
double unit(std::uint64_t bits) {
  return (double(bits & 0xffff) + 0.5) * (2 * 1.7320508075688772 / 65536) - 1.7320508075688772;
}

// What is rare matters less, or nobody could learn most of the truth.
double weight_of(std::int64_t id) { return std::pow(1 + double(id) / 20, -0.3); }

}  // namespace

CriteoLike::CriteoLike(const CriteoLikeSpec& spec) : spec_(spec), shape_(shape_of(spec.shape)) {
  for (std::size_t t = 0; t < shape_.tables.size(); ++t) {
    const ShapeTable& s = shape_.tables[t];
    const std::int64_t rows = scaled_rows(s.rows, spec_.scale);
    tables_.push_back({std::string("C").append(std::to_string(t)), rows, s.width});
    if (s.head.empty())
      ids_.emplace_back(Zipf::Spec{rows, same_first_share(rows, s.s, spec_.q), spec_.q});
    else
      ids_.emplace_back(Zipf::Spec{rows, s.head_s, s.head_q, s.head});
  }
  plant();
}

void CriteoLike::plant() {
  Rng rng(spec_.seed, "criteo_like/truth");
  for (std::int64_t j = 0; j < shape_.dense; ++j) {
    Column c{};
    c.zero = 0.1 + 0.5 * rng.uniform();
    c.location = 0.5 + 3 * rng.uniform();
    c.spread = 0.8 + 0.8 * rng.uniform();
    c.weight = alone * 0.5 * rng.normal();
    c.centre = (1 - c.zero) * c.location;
    for (double& h : c.hidden) h = 0.5 * rng.normal();
    columns_.push_back(c);
  }
  for (std::size_t t = 0; t < tables_.size(); ++t) effect_.push_back(0.5 + rng.uniform());
  // The bias that gives the wanted share of ones.
  std::vector<double> logits;
  std::vector<float> dense(std::size_t(shape_.dense));
  std::vector<std::int32_t> ids(static_cast<std::size_t>(width()));
  float label = 0, truth = 0;
  for (std::int64_t i = 0; i < 4096; ++i) {
    sample(i, dense.data(), ids.data(), &label, &truth);
    logits.push_back(truth);
  }
  double low = -30, high = 30;
  for (int k = 0; k < 60; ++k) {
    const double middle = (low + high) / 2;
    double ones = 0;
    for (const double l : logits) ones += 1 / (1 + std::exp(-l - middle));
    (ones / double(logits.size()) < spec_.positive_rate ? low : high) = middle;
  }
  bias_ = low;
}

double CriteoLike::raw_logit(const float* dense, const std::int32_t* ids) const {
  double sum = 0, hidden[rank_of_truth] = {}, squares = 0;
  for (std::size_t j = 0; j < columns_.size(); ++j) {
    const Column& c = columns_[j];
    const double x = (double(dense[j]) - c.centre) / (1 + c.spread);
    sum += c.weight * x;
    for (int k = 0; k < rank_of_truth; ++k) {
      const double h = c.hidden[k] * x;
      hidden[k] += h, squares += h * h;
    }
  }
  for (std::size_t t = 0; t < tables_.size(); ++t)
    for (std::int64_t w = 0; w < tables_[t].width; ++w) {
      const std::int32_t id = *ids++;
      if (id < 0) continue;
      const std::uint64_t bits = mix(spec_.seed * 0x100000001b3ull + (std::uint64_t(t) << 32) + std::uint64_t(id));
      const double scale = effect_[t] * weight_of(id) / std::sqrt(double(tables_[t].width));
      sum += alone * scale * unit(bits);
      for (int k = 0; k < rank_of_truth; ++k) {
        const double h = scale * unit(bits >> (16 * (k + 1)));
        hidden[k] += h, squares += h * h;
      }
    }
  for (const double h : hidden) sum += together * h * h;
  return sum - together * squares;
}

void CriteoLike::sample(std::int64_t id, float* dense, std::int32_t* ids, float* label, float* truth) const {
  Rng rng(spec_.seed, "criteo_like", std::uint64_t(id));
  for (std::size_t j = 0; j < columns_.size(); ++j) {
    const Column& c = columns_[j];
    const bool zero = rng.uniform() < c.zero;
    const double count = std::floor(std::exp(std::min(c.location + c.spread * rng.normal(), 16.0)));
    dense[j] = zero ? 0.0f : float(std::log1p(count));
  }
  std::int32_t* next = ids;
  for (std::size_t t = 0; t < tables_.size(); ++t)
    for (std::int64_t w = 0; w < tables_[t].width; ++w) *next++ = std::int32_t(ids_[t].draw(rng));
  const double l = logit(dense, ids);
  *truth = float(l);
  *label = rng.uniform() < 1 / (1 + std::exp(-l)) ? 1.0f : 0.0f;
}

Batch CriteoLike::read(std::span<const std::int64_t> ids, std::int64_t) const {
  const auto b = std::int64_t(ids.size());
  const std::int64_t wide = width();
  Batch batch;
  batch.ids.assign(ids.begin(), ids.end());
  const at::Tensor dense = at::empty({b, shape_.dense}, at::kFloat), sparse = at::empty({b, wide}, at::kInt);
  const at::Tensor label = at::empty({b}, at::kFloat), truth = at::empty({b}, at::kFloat);
  for (std::int64_t i = 0; i < b; ++i)
    sample(ids[std::size_t(i)], dense.mutable_data_ptr<float>() + i * shape_.dense,
           sparse.mutable_data_ptr<std::int32_t>() + i * wide, label.mutable_data_ptr<float>() + i,
           truth.mutable_data_ptr<float>() + i);
  batch.columns = {{"dense", dense}, {"ids", sparse}, {"label", label}, {"truth", truth}};
  return batch;
}

std::string CriteoLike::identity() const {
  char text[200];
  std::snprintf(text, sizeof text, "criteo_like %s scale %.17g q %.17g rate %.17g seed %llu train %lld test %lld",
                spec_.shape.c_str(), spec_.scale, spec_.q, spec_.positive_rate,
                static_cast<unsigned long long>(spec_.seed), static_cast<long long>(spec_.train),
                static_cast<long long>(spec_.test));
  return text;
}

}  // namespace trireme
