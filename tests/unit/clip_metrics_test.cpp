// Retrieval, zero-shot and linear-probe metrics: against what open_clip's, clip_benchmark's and scikit-learn's own code
// says of the same features (tests/reference/clip_metrics.py), against f64 by brute force, and on 1, 2 and 4 ranks.
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "comm/local/self.h"
#include "framework/models/linear_probe.h"
#include "framework/models/retrieval.h"
#include "framework/models/zero_shot.h"
#include "tests/unit/reference_files.h"

#include <cmath>
#include <fstream>
#include <mutex>

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

using Metrics = std::map<std::string, double>;

const nlohmann::json& peer() {
  static const auto all = nlohmann::json::parse(std::ifstream(test::reference_file("clip/metrics.json")));
  return all;
}

// [rows, width] numbers in [-1, 1), as clip_metrics.py makes them.
at::Tensor mixed(std::uint64_t seed, std::int64_t rows, std::int64_t width) {
  at::Tensor out = at::empty({rows, width}, at::kDouble);
  double* p = out.data_ptr<double>();
  for (std::int64_t i = 0; i < rows; ++i)
    for (std::int64_t j = 0; j < width; ++j) {
      std::uint64_t x = std::uint64_t(i) * 6364136223846793005u + std::uint64_t(j) * 1442695040888963407u +
                        seed * 0x9E3779B97F4A7C15u;
      for (const std::uint64_t factor : {0xFF51AFD7ED558CCDu, 0xC4CEB9FE1A85EC53u}) x = (x ^ x >> 33) * factor;
      *p++ = double((x ^ x >> 33) >> 11) * 0x1p-52 - 1;
    }
  return out;
}

at::Tensor unit(const at::Tensor& x) { return (x / x.norm(2, {1}, true)).to(at::kFloat); }

at::Tensor around(const at::Tensor& base, const std::vector<std::int64_t>& owner, std::uint64_t seed, double noise) {
  return unit(base.index_select(0, at::tensor(owner, at::kLong)) +
              mixed(seed, std::int64_t(owner.size()), base.size(1)) * noise);
}

std::vector<std::int64_t> labels_of(std::int64_t rows, std::int64_t classes) {
  std::vector<std::int64_t> labels;
  for (std::int64_t i = 0; i < rows; ++i) labels.push_back((i * 7 + i * i / 11) % classes);
  return labels;
}

// `captions[i]` texts of image i, all distinct; rows of the features in that order.
RetrievalTask task_of(Protocol protocol, const std::vector<std::int64_t>& captions) {
  std::vector<std::vector<std::string>> texts;
  for (const auto n : captions) {
    texts.emplace_back();
    for (std::int64_t k = 0; k < n; ++k) texts.back().push_back(std::to_string(texts.size()) + "." + std::to_string(k));
  }
  return retrieval_task(protocol, texts);
}

Metrics on_one(Protocol protocol, const RetrievalTask& task, const at::Tensor& images, const at::Tensor& texts) {
  const auto self = make_self();
  return retrieval_metrics(*self, protocol, task, images, texts);
}

TEST(ClipMetrics, OpenClipsOwn) {
  const at::Tensor base = mixed(1, 400, 24);
  std::vector<std::int64_t> owner(400);
  for (std::int64_t i = 0; i < 400; ++i) owner[std::size_t(i)] = i;
  const RetrievalTask task = task_of(Protocol::open_clip, std::vector<std::int64_t>(400, 1));
  const Metrics ours = on_one(Protocol::open_clip, task, unit(base), around(base, owner, 2, 1.6));
  for (const std::string way : {"image_to_text", "text_to_image"}) {
    for (const std::string k : {"1", "5", "10"})
      EXPECT_EQ(ours.at(way + "_r" + k), peer()["open_clip"][way + "_R@" + k]) << way << k;
    EXPECT_EQ(ours.at(way + "_mean_rank"), peer()["open_clip"][way + "_mean_rank"]) << way;
    EXPECT_EQ(ours.at(way + "_median_rank"), peer()["open_clip"][way + "_median_rank"]) << way;
  }
}

TEST(ClipMetrics, ClipBenchmarksRetrieval) {
  const at::Tensor base = mixed(3, 150, 24);
  std::vector<std::int64_t> counts, owner;
  for (std::int64_t i = 0; i < 150; ++i) {
    counts.push_back(1 + i % 5);
    owner.insert(owner.end(), std::size_t(1 + i % 5), i);
  }
  const RetrievalTask task = task_of(Protocol::clip_benchmark, counts);
  const Metrics ours = on_one(Protocol::clip_benchmark, task, unit(base), around(base, owner, 4, 1.8));
  for (const std::string k : {"1", "5", "10"}) {  // theirs are f32
    const auto& theirs = peer()["clip_benchmark_retrieval"];
    EXPECT_EQ(float(ours.at("text_to_image_r" + k)), theirs["image_retrieval_recall@" + k].get<float>()) << k;
    EXPECT_EQ(float(ours.at("image_to_text_r" + k)), theirs["text_retrieval_recall@" + k].get<float>()) << k;
  }
}

TEST(ClipMetrics, ClipBenchmarksClassification) {
  const std::int64_t classes = 23, templates = 3;
  const at::Tensor base = mixed(5, classes, 24);
  std::vector<std::int64_t> owner;
  for (std::int64_t i = 0; i < classes * templates; ++i) owner.push_back(i / templates);
  const at::Tensor weights = class_features(around(base, owner, 6, 0.7), templates);
  const auto labels = labels_of(500, classes);
  const auto self = make_self();
  const Metrics ours = classification_metrics(*self, around(base, labels, 7, 1.9), weights, labels);
  const auto& theirs = peer()["clip_benchmark_classification"];
  EXPECT_EQ(ours.at("zero_shot_top1"), theirs["acc1"]);
  EXPECT_EQ(ours.at("zero_shot_top5"), theirs["acc5"]);
  EXPECT_NEAR(ours.at("zero_shot_mean_per_class"), theirs["mean_per_class_recall"], 1e-15);
  EXPECT_EQ(ours.at("zero_shot_chance"), 1 / 23.0);
  EXPECT_EQ(ours.at("zero_shot_top5_chance"), 5 / 23.0);
}

// Features of small whole numbers: every score is exact, and most tie.
at::Tensor whole_numbers(std::uint64_t seed, std::int64_t rows) { return (mixed(seed, rows, 6) * 3).floor(); }

std::vector<std::int64_t> by_brute_force(const at::Tensor& q, const at::Tensor& c, const Matches& matches) {
  std::vector<std::int64_t> ranks(std::size_t(q.size(0)), c.size(0));
  const at::Tensor scores = at::matmul(q, c.t());
  const auto s = scores.accessor<double, 2>();
  for (const auto& [i, own] : matches) {
    std::int64_t before = 0;
    for (std::int64_t j = 0; j < c.size(0); ++j) before += s[i][j] > s[i][own] || (s[i][j] == s[i][own] && j < own);
    ranks[std::size_t(i)] = std::min(ranks[std::size_t(i)], before);
  }
  return ranks;
}

TEST(ClipMetrics, RanksWithTiesAsByBruteForceOnAnyNumberOfRanks) {
  const std::int64_t n = 2500, rows = 40, m = 300;  // three blocks of queries
  Items queries{whole_numbers(11, n), {}}, candidates{whole_numbers(12, rows), {}};
  Matches matches;
  for (std::int64_t j = 0; j < m; ++j) candidates.row.push_back(j * 17 % rows);
  for (std::int64_t i = 0; i < n; ++i)  // none, one or several, in no order
    for (std::int64_t k = 0; k < i % 4; ++k) matches.emplace_back(n - 1 - i, (i * 31 + k * 101) % m);
  const auto expanded = candidates.features.index_select(0, at::tensor(candidates.row, at::kLong));
  const auto expected = by_brute_force(queries.features, expanded, matches);
  for (const auto type : {at::kDouble, at::kFloat})
    for (const int world : {1, 2, 4}) {
      Items q{queries.features.to(type), {}}, c{candidates.features.to(type), candidates.row};
      run_loopback(world, [&](Communicator& comm) {
        const at::Tensor ranks = ranks_of(comm, q, c, matches);
        EXPECT_TRUE(at::equal(ranks, at::tensor(expected, at::kLong))) << type << " on " << world;
      });
    }
}

// Training in bf16 evaluates under autocast: scores of 8 bits would be a lottery of ties.
TEST(ClipMetrics, AutocastDoesNotRoundScores) {
  const at::Tensor queries = mixed(21, 200, 64).to(at::kFloat), candidates = queries + 1e-4 * mixed(22, 200, 64);
  Matches matches;
  for (std::int64_t i = 0; i < 200; ++i) matches.emplace_back(i, i);
  const auto self = make_self();
  const at::Tensor plain = ranks_of(*self, {queries, {}}, {candidates.to(at::kFloat), {}}, matches);
  at::autocast::set_autocast_enabled(at::kCPU, true);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  const at::Tensor under =
      ranks_of(*self, {10 + queries / 100, {}}, {10 + candidates.to(at::kFloat) / 100, {}}, matches);
  at::autocast::set_autocast_enabled(at::kCPU, false);
  const at::Tensor expected =
      ranks_of(*self, {10 + queries / 100, {}}, {10 + candidates.to(at::kFloat) / 100, {}}, matches);
  EXPECT_TRUE(at::equal(under, expected));
  EXPECT_EQ(plain.sum().item<std::int64_t>(), 0);
}

TEST(ClipMetrics, FeaturesThatAreNoNumbersFindNothing) {
  const auto self = make_self();
  const double nan = std::nan("");
  at::Tensor images = at::eye(3, at::kDouble), texts = at::eye(3, at::kDouble);
  images[1].fill_(nan);
  const Matches own{{0, 0}, {1, 1}, {2, 2}};
  EXPECT_TRUE(at::equal(ranks_of(*self, {images, {}}, {texts, {}}, own), at::tensor({0, 3, 0}, at::kLong)));
  texts.fill_(nan);
  EXPECT_TRUE(at::equal(ranks_of(*self, {images, {}}, {texts, {}}, own), at::tensor({3, 3, 3}, at::kLong)));
}

// Two images of "a", one of "b"; by features, image 1 looks like "b".
TEST(ClipMetrics, ProtocolsCountEqualCaptionsDifferently) {
  const std::vector<std::vector<std::string>> captions{{"a"}, {"a"}, {"b"}};
  const at::Tensor images = at::tensor({1., 0., .6, .8, 0., 1.}, at::kDouble).view({3, 2}),
                   texts = at::eye(2, at::kDouble);
  std::map<Protocol, Metrics> m;
  for (const Protocol p : {Protocol::ours, Protocol::open_clip, Protocol::clip_benchmark}) {
    const RetrievalTask task = retrieval_task(p, captions);
    EXPECT_EQ(task.texts, (std::vector<std::string>{"a", "b"}));
    EXPECT_EQ(task.candidate.size(), p == Protocol::ours ? 2u : 3u);
    m[p] = on_one(p, task, images, texts);
  }
  // Image 0 finds "a", 2 finds "b". Text "a" finds image 0: for ours that is all, elsewhere the second "a" belongs
  // to 1.
  EXPECT_EQ(m[Protocol::ours]["image_to_text_r1"], 2 / 3.);
  EXPECT_EQ(m[Protocol::ours]["text_to_image_r1"], 1);
  EXPECT_EQ(m[Protocol::ours]["chance_r1"], 1 / 2.);
  EXPECT_NEAR(m[Protocol::ours]["text_to_image_chance_r1"], (2 / 3. + 1 / 3.) / 2, 1e-15);
  for (const Protocol p : {Protocol::open_clip, Protocol::clip_benchmark}) {
    EXPECT_EQ(m[p]["image_to_text_r1"], 2 / 3.);  // the first "a" wins the tie
    EXPECT_EQ(m[p]["text_to_image_r1"], 2 / 3.);
    EXPECT_NEAR(m[p]["chance_r1"], 1 / 3., 1e-15);
  }
  EXPECT_NEAR(m[Protocol::open_clip]["image_to_text_mean_rank"], (1 + 3 + 1) / 3., 1e-15);
  EXPECT_EQ(m[Protocol::open_clip]["image_to_text_median_rank"], 1);

  const std::vector<std::vector<std::string>> several{{"a", "b", "a"}, {"b"}};
  EXPECT_EQ(retrieval_task(Protocol::ours, several).matches, (Matches{{0, 0}, {0, 1}, {1, 1}}));
  EXPECT_EQ(retrieval_task(Protocol::open_clip, several).candidate, (std::vector<std::int64_t>{0, 1}));
  EXPECT_EQ(retrieval_task(Protocol::clip_benchmark, several).matches, (Matches{{0, 0}, {0, 1}, {0, 2}, {1, 3}}));
}

TEST(ClipMetrics, Prompts) {
  const std::vector<std::string> classes{"cat", "{c}"}, templates{"a {c}, {}.", "{{c} {d}"};
  EXPECT_EQ(prompts_of(classes, templates, "t"),
            (std::vector<std::string>{"a cat, cat.", "{cat {d}", "a {c}, {c}.", "{{c} {d}"}));
  const std::vector<std::string> none{"a photo"};
  EXPECT_THROW(prompts_of(classes, none, "t"), DataError);
  EXPECT_THROW(prompts_of(classes, {}, "t"), DataError);
}

TEST(ClipMetrics, LogisticRegressionIsScikitLearns) {
  const std::int64_t classes = 7;
  const auto labels = labels_of(600, classes);
  const at::Tensor x = around(mixed(8, classes, 12), labels, 9, 2.2), y = at::tensor(labels, at::kLong);
  for (const auto& theirs : peer()["logistic_regression"]) {
    const double c = theirs["c"];
    const LinearModel ours = logistic_regression(x.narrow(0, 0, 400), y.narrow(0, 0, 400), classes, c, 1e-9);
    at::Tensor weight = at::empty({classes, 12}, at::kDouble);
    for (std::int64_t i = 0; i < classes; ++i)
      for (std::int64_t j = 0; j < 12; ++j)
        weight[i][j] = theirs["weight"][std::size_t(i)][std::size_t(j)].get<double>();
    const at::Tensor off = (ours.weight - weight).abs().max() / weight.abs().max();
    const at::Tensor found = (at::matmul(x.to(at::kDouble), ours.weight.t()) + ours.bias).argmax(1) == y;
    const double accuracy = found.narrow(0, 400, 200).to(at::kDouble).mean().item<double>();
    std::printf("C = %g: weights differ by %.1e after %ld steps, accuracy %.3f\n", c, off.item<double>(),
                long(ours.iterations), accuracy);
    EXPECT_LT(off.item<double>(), 1e-4) << c;
    EXPECT_EQ(accuracy, theirs["test_accuracy"]) << c;
  }
}

TEST(ClipMetrics, TheProbeChoosesItsPenaltyByTheValidationSplit) {
  const std::int64_t classes = 7;
  const auto labels = labels_of(400, classes);
  const at::Tensor x = around(mixed(8, classes, 12), labels, 9, 2.2), y = at::tensor(labels, at::kLong);
  const LinearProbe probe = linear_probe(x, y, classes, "t");
  std::vector<std::int64_t> rows[2];  // training, validation: every fifth of a class
  std::map<std::int64_t, int> seen;
  for (std::size_t i = 0; i < labels.size(); ++i) rows[++seen[labels[i]] % 5 == 0].push_back(std::int64_t(i));
  const auto part = [&](const at::Tensor& t, int k) { return t.index_select(0, at::tensor(rows[k], at::kLong)); };
  const auto validated = [&](double c) {
    const LinearModel m = logistic_regression(part(x, 0), part(y, 0), classes, c);
    const at::Tensor scores = at::matmul(part(x, 1).to(at::kDouble), m.weight.t()) + m.bias;
    return (scores.argmax(1) == part(y, 1)).to(at::kDouble).mean().item<double>();
  };
  const double chosen = validated(probe.c);
  for (double c = 1e-6; c < 2e6; c *= 100) EXPECT_GE(chosen, validated(c)) << c;
  EXPECT_GT(chosen, validated(1e-6));
  const LinearModel all = logistic_regression(x, y, classes, probe.c);
  EXPECT_TRUE(at::equal(probe.model.weight, all.weight)) << "not fitted to all of the data";
  EXPECT_THROW(linear_probe(x.narrow(0, 0, 4), y.narrow(0, 0, 4), classes, "t"), DataError);
}

}  // namespace
}  // namespace trireme
