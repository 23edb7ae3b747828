// The estimator's table over ranks, and what u gives the temperature: its gradient against numerical derivatives, in
// f64.
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "comm/local/self.h"
#include "framework/io/checkpoint.h"
#include "framework/losses/contrastive.h"
#include "tests/fault/program.h"

#include <cmath>
#include <limits>
#include <numeric>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace trireme::fastclip {
namespace {

constexpr std::int64_t n = 9, d = 5;

struct Problem {
  at::Tensor image, text;
  Problem() {
    at::manual_seed(11);
    const auto unit = [] {
      const at::Tensor x = at::randn({n, d}, at::kDouble);
      return x / x.norm(2, {1}, true);
    };
    image = unit();
    text = unit();
  }
  LossResult loss(double t, const GlobalLossOptions& o) const {
    const auto self = make_self();
    return global_loss(*self, {image, text}, at::full({}, t, at::kDouble), at::zeros({2, 1, n}, at::kDouble), 1.0, o);
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
  const std::vector<std::int64_t> ids{2, 1, 2};
  const at::Tensor log_u = at::arange(6, at::kDouble).view({2, 1, 3}), no = at::zeros({}, at::kFloat);
  const double never = -std::numeric_limits<double>::infinity();
  const auto self = make_self();
  NormalizerTable table(4, {never}, at::TensorOptions().dtype(at::kDouble), *self, true);
  table.write(ids, log_u, no);
  const auto at = [&](int side, int id) { return table.values()[side][0][id].item<double>(); };
  EXPECT_EQ(at(0, 2), 2);
  EXPECT_EQ(at(0, 1), 1);
  EXPECT_EQ(at(1, 2), 5);
  EXPECT_TRUE(std::isinf(at(0, 0)));
  table.write(ids, log_u * std::nan(""), at::ones({}, at::kFloat));
  EXPECT_EQ(at(0, 2), 2);
  EXPECT_THROW(table.read(*self, std::vector<std::int64_t>{4}), DataError);
}

// Spread over ranks it reads, writes and saves what the whole table does, also where ranks hold nothing (n < K) and
// samples come twice in a batch.
TEST(Table, ShardedIsTheWholeTable) {
  const auto type = at::TensorOptions().dtype(at::kDouble);
  const at::Tensor no = at::zeros({}, at::kFloat);
  at::manual_seed(3);
  for (const int k : {1, 2, 3, 4})
    for (const std::int64_t entries : {2, 5, 12}) {
      const at::Tensor drawn = at::randint(entries, {4, 3 * k}, at::kLong), values = at::randn({4, 2, 2, 3 * k}, type);
      run_loopback(k, [&](Communicator& comm) {
        NormalizerTable sharded(entries, {0.5, 7}, type, comm, true), whole(entries, {0.5, 7}, type, comm, false);
        for (int step = 0; step < 4; ++step) {
          const std::span<const std::int64_t> ids(drawn[step].const_data_ptr<std::int64_t>(), std::size_t(3 * k));
          EXPECT_TRUE(at::equal(sharded.read(comm, ids), whole.read(comm, ids)));
          sharded.write(ids, values[step], no);
          whole.write(ids, values[step], no);
        }
        const auto n = sharded.values().size(2);
        EXPECT_TRUE(at::equal(sharded.values(), whole.values().narrow(2, sharded.first(), n)));
        EXPECT_LE(n, (entries + k - 1) / k);
      });
    }
}

// Saved by four ranks, loaded by one, two and three.
TEST(Table, GoesOnWithAnyNumberOfRanks) {
  const test::TempFolder folder;
  const auto type = at::TensorOptions().dtype(at::kDouble);
  const std::vector<std::string_view> names{"log_u", "tau"};
  const at::Tensor values = at::randn({2, 2, 11}, type), no = at::zeros({}, at::kFloat);
  std::vector<std::int64_t> ids(11);
  std::iota(ids.begin(), ids.end(), 0);
  run_loopback(4, [&](Communicator& comm) {
    NormalizerTable table(11, {0, 0}, type, comm, true);
    table.write(ids, values, no);
    Checkpoints checkpoints(folder.path.string(), 1, comm);
    checkpoints.save(1, Snapshot::take([&](Archive& ar) { table.state(ar, names); }, comm.rank()), "{}");
    checkpoints.finish();
  });
  for (const int k : {1, 2, 3})
    run_loopback(k, [&](Communicator& comm) {
      NormalizerTable table(11, {0, 0}, type, comm, true);
      Checkpoints checkpoints(folder.path.string(), 1, comm);
      checkpoints.load(1).restore([&](Archive& ar) { table.state(ar, names); });
      EXPECT_TRUE(at::equal(table.values(), values.narrow(2, table.first(), table.values().size(2)))) << k;
    });
}

}  // namespace
}  // namespace trireme::fastclip
