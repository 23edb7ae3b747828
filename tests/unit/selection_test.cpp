// JEST and RHO-loss against plain loops written from their definition, on any number of ranks, and how rows are drawn.
#include "framework/losses/selection.h"

#include "comm/error.h"
#include "comm/local/loopback.h"
#include "data/rng.h"

#include <cmath>
#include <map>
#include <set>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace trireme::test {
namespace {

constexpr std::int64_t total = 40, width = 6, reference_width = 4;
constexpr double learner_scale = 12, reference_scale = 9;

at::Tensor unit_rows(std::uint64_t key, std::int64_t n, std::int64_t d) {
  Rng rng(3, "selection", key);
  at::Tensor t = at::empty({n, d}, at::kDouble);
  for (std::int64_t i = 0; i < t.numel(); ++i) t.mutable_data_ptr<double>()[i] = rng.normal();
  return t / t.norm(2, {1}, true);
}

struct Features {
  at::Tensor image = unit_rows(1, total, width), text = unit_rows(2, total, width);
  at::Tensor r_image = unit_rows(3, total, reference_width), r_text = unit_rows(4, total, reference_width);
};

ScoredFeatures scored(const at::Tensor& image, const at::Tensor& text, double scale, int rank, std::int64_t b) {
  return {image.narrow(0, rank * b, b), text.narrow(0, rank * b, b), at::scalar_tensor(scale, at::kDouble)};
}

using Chosen = std::vector<std::vector<std::int64_t>>;  // global rows of each rank

Chosen chosen(int ranks, const Selection& s, const Features& f, std::uint64_t seed, std::int64_t step) {
  Chosen all(static_cast<std::size_t>(ranks));
  run_loopback(ranks, [&](Communicator& comm) {
    const int r = comm.rank();
    const std::int64_t b = total / ranks;
    const at::Tensor rows = select_rows(comm, s, scored(f.image, f.text, learner_scale, r, b),
                                        scored(f.r_image, f.r_text, reference_scale, r, b), seed, step);
    EXPECT_EQ(rows.size(0), selected_rows(s, b));
    for (std::int64_t i = 0; i < rows.size(0); ++i) all[std::size_t(r)].push_back(rows[i].item<std::int64_t>() + r * b);
  });
  return all;
}

// The definition, one number at a time.
class Plain {
 public:
  Plain(const Features& f, int ranks) : f_(f), ranks_(ranks), b_(total / ranks) {}

  // Scaled similarity of image i and text j.
  double learner(std::int64_t i, std::int64_t j) const { return learner_scale * dot(f_.image, f_.text, i, j); }
  double reference(std::int64_t i, std::int64_t j) const { return reference_scale * dot(f_.r_image, f_.r_text, i, j); }

  Chosen jest(const Selection& s, std::uint64_t seed, std::int64_t step) const {
    const auto draw = std::size_t(double(b_) * s.fraction / double(s.chunks) + 1e-9);
    std::vector<Rng> rngs;
    for (int r = 0; r < ranks_; ++r) rngs.emplace_back(seed, "select", std::uint64_t(step), std::uint64_t(r));
    Chosen all(static_cast<std::size_t>(ranks_));
    for (std::int64_t chunk = 0; chunk < s.chunks; ++chunk) {
      std::set<std::int64_t> before;
      for (const auto& rows : all) before.insert(rows.begin(), rows.end());
      for (int r = 0; r < ranks_; ++r) {
        std::map<double, std::int64_t, std::greater<>> order;
        double least = HUGE_VAL;
        for (std::int64_t i = r * b_; i < (r + 1) * b_; ++i) least = std::min(least, diagonal(i));
        for (std::int64_t i = r * b_; i < (r + 1) * b_; ++i) {
          double key = chunk == 0 ? std::log(diagonal(i) - least) : diagonal(i) + more(i, before);
          if (chunk == 0 || s.method == "jest") key -= std::log(-std::log(rngs[std::size_t(r)].uniform()));
          if (!before.contains(i)) order[key] = i;
        }
        auto next = order.begin();
        for (std::size_t k = 0; k < draw; ++k) all[std::size_t(r)].push_back((next++)->second);
      }
    }
    for (auto& rows : all) std::sort(rows.begin(), rows.end());
    return all;
  }

  Chosen rho(const Selection& s) const {
    std::set<std::int64_t> everyone;
    for (std::int64_t i = 0; i < total; ++i) everyone.insert(i);
    Chosen all(static_cast<std::size_t>(ranks_));
    for (int r = 0; r < ranks_; ++r) {
      std::map<double, std::int64_t, std::greater<>> order;
      for (std::int64_t i = r * b_; i < (r + 1) * b_; ++i) order[diagonal(i) + more(i, everyone)] = i;
      auto next = order.begin();
      for (std::int64_t k = 0; k < std::llround(double(b_) * s.fraction); ++k)
        all[std::size_t(r)].push_back((next++)->second);
      std::sort(all[std::size_t(r)].begin(), all[std::size_t(r)].end());
    }
    return all;
  }

 private:
  static double dot(const at::Tensor& a, const at::Tensor& b, std::int64_t i, std::int64_t j) {
    double sum = 0;
    for (std::int64_t k = 0; k < a.size(1); ++k)
      sum += a.const_data_ptr<double>()[i * a.size(1) + k] * b.const_data_ptr<double>()[j * a.size(1) + k];
    return sum;
  }
  double diagonal(std::int64_t i) const { return reference(i, i) - learner(i, i); }
  // What the rows `others` add to the loss of i beyond the reference's, both sides averaged.
  double more(std::int64_t i, const std::set<std::int64_t>& others) const {
    double sums[4] = {};
    for (const auto j : others)
      sums[0] += std::exp(learner(i, j)), sums[1] += std::exp(learner(j, i)), sums[2] += std::exp(reference(i, j)),
          sums[3] += std::exp(reference(j, i));
    return (std::log(sums[0]) + std::log(sums[1]) - std::log(sums[2]) - std::log(sums[3])) / 2;
  }

  const Features& f_;
  const int ranks_;
  const std::int64_t b_;
};

TEST(Selection, IsItsDefinitionOnAnyNumberOfRanks) {
  const Features f;
  std::set<Chosen> seen;
  for (const int ranks : {1, 2, 4})
    for (const std::int64_t chunks : {1, 2, 5})
      for (const std::int64_t step : {0, 1, 7}) {
        SCOPED_TRACE(std::to_string(ranks) + " ranks, " + std::to_string(chunks) + " chunks, step " +
                     std::to_string(step));
        const Plain plain(f, ranks);
        for (const std::string method : {"jest", "jest_topk"}) {
          const Selection s{method, 0.5, chunks};
          const Chosen got = chosen(ranks, s, f, 11, step);
          EXPECT_EQ(got, plain.jest(s, 11, step)) << method;
          seen.insert(got);
        }
        const Selection s{"rho", 0.35, chunks};
        EXPECT_EQ(chosen(ranks, s, f, 11, step), plain.rho(s));
      }
  EXPECT_GT(seen.size(), 20u) << "draws that do not depend on the step";
}

// Two of five rows: the chance of each pair is known.
TEST(Selection, DrawsByItsWeights) {
  const double weights[] = {0, 1, 2, 3, 4};  // diag - min(diag)
  const std::int64_t n = 5;
  at::Tensor image = at::zeros({n, 2}, at::kDouble), text = at::zeros({n, 2}, at::kDouble);
  for (std::int64_t i = 0; i < n; ++i) {  // -10 cos: learnability -10 cos + 0
    const double cosine = -weights[i] / 10;
    image[i][0] = 1, text[i][0] = cosine, text[i][1] = std::sqrt(1 - cosine * cosine);
  }
  const at::Tensor flat = at::ones({n, 1}, at::kDouble);
  const ScoredFeatures learner{image, text, at::scalar_tensor(10, at::kDouble)},
      reference{flat, flat, at::scalar_tensor(1, at::kDouble)};
  constexpr int draws = 20000;
  std::map<std::pair<std::int64_t, std::int64_t>, double> seen;
  run_loopback(1, [&](Communicator& comm) {
    for (int seed = 0; seed < draws; ++seed) {
      const at::Tensor rows = select_rows(comm, {"jest", 0.4, 1}, learner, reference, std::uint64_t(seed), 3);
      const auto* p = rows.const_data_ptr<std::int64_t>();
      seen[{p[0], p[1]}] += 1;
    }
  });
  double chi2 = 0;
  for (std::int64_t i = 0; i < n; ++i)
    for (std::int64_t j = i + 1; j < n; ++j) {
      const double a = weights[i] / 10, b = weights[j] / 10, chance = a * b / (1 - a) + b * a / (1 - b);
      const double wanted = draws * chance, got = seen[{i, j}];
      if (chance > 0)
        chi2 += (got - wanted) * (got - wanted) / wanted;
      else
        EXPECT_EQ(got, 0) << i << " " << j;
    }
  EXPECT_LT(chi2, 20.5) << "five degrees of freedom: one in a thousand";
}

TEST(Selection, StaysSoundAtTheEdges) {
  const Features f;
  // Equal learnability everywhere: no row has a weight, and rows are chosen nevertheless, each once.
  const at::Tensor same = at::ones({total, 1}, at::kDouble);
  run_loopback(1, [&](Communicator& comm) {
    const ScoredFeatures flat{same, same, at::scalar_tensor(1, at::kDouble)};
    EXPECT_TRUE(at::equal(select_rows(comm, {"jest", 1, 1}, flat, flat, 1, 1), at::arange(total)));
    const at::Tensor rows = select_rows(comm, {"jest", 0.5, 4}, flat, flat, 1, 1);
    EXPECT_EQ(std::get<0>(at::_unique(rows)).size(0), total / 2);
    // f32, and scales at which plain exponentials overflow.
    const auto steep = [&](const at::Tensor& a, const at::Tensor& b) {
      return ScoredFeatures{a.to(at::kFloat), b.to(at::kFloat), at::scalar_tensor(1000, at::kFloat)};
    };
    for (const std::string method : {"jest", "jest_topk", "rho"})
      EXPECT_EQ(select_rows(comm, {method, 0.5, 2}, steep(f.image, f.text), steep(f.r_image, f.r_text), 1, 1).size(0),
                total / 2);
  });
  EXPECT_EQ(selected_rows({"jest", 0.29, 1}, 100), 29);
  EXPECT_EQ(selected_rows({"jest", 0.2, 2}, 15), 2);
  for (const std::string method : {"jest", "rho"}) EXPECT_THROW(selected_rows({method, 0.01, 1}, 20), UsageError);
}

}  // namespace
}  // namespace trireme::test
