#include "framework/models/binary.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace trireme {
namespace {

// Rank 0 gets the values of all ranks in rank order.
template <class T>
std::vector<T> gather(const std::vector<T>& mine, std::span<const std::int64_t> counts, DType type,
                      Communicator& comm) {
  const auto n = std::size_t(comm.size());
  std::vector<std::size_t> send(n, 0), recv(n, 0);
  send[0] = mine.size();
  std::vector<T> all;
  if (comm.rank() == 0) {
    recv.assign(counts.begin(), counts.end());
    all.resize(std::accumulate(recv.begin(), recv.end(), std::size_t{0}));
  }
  comm.all_to_all({mine.data(), mine.size(), type}, send, {all.data(), all.size(), type}, recv).wait();
  return all;
}

double probability(double logit) { return 1 / (1 + std::exp(-logit)); }

std::map<std::string, double> metrics_of(const Judged& all) {
  double hits = 0, bce = 0, predicted = 0, positive = 0;
  const auto n = double(all.labels.size());
  for (std::size_t i = 0; i < all.labels.size(); ++i) {
    const double l = all.logits[i], y = double(all.labels[i]);
    hits += (l > 0) == (y > 0.5);
    bce += std::max(l, 0.0) - l * y + std::log1p(std::exp(-std::abs(l)));
    predicted += probability(l);
    positive += y;
  }
  std::map<std::string, double> m{{"auc", auc(all.logits, all.labels)},
                                  {"accuracy", hits / n},
                                  {"bce", bce / n},
                                  {"calibration", predicted / positive},
                                  {"positive_rate", positive / n}};
  if (all.truth.empty()) return m;
  std::vector<double> p, q;
  for (const double t : all.truth) p.push_back(probability(t)), q.push_back(1 - p.back());
  m["bayes_auc"] = auc(all.truth, p, q);
  m["auc_reached"] = (m["auc"] - 0.5) / (m["bayes_auc"] - 0.5);
  return m;
}

}  // namespace

double auc(std::span<const double> scores, std::span<const double> positive, std::span<const double> negative) {
  const auto nan = std::numeric_limits<double>::quiet_NaN();
  if (std::any_of(scores.begin(), scores.end(), [](double s) { return std::isnan(s); })) return nan;  // has no order
  std::vector<std::size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) { return scores[a] < scores[b]; });
  double below = 0, pairs = 0, all_positive = 0;  // below: negatives with a lower score
  for (std::size_t i = 0; i < order.size();) {
    double tied_positive = 0, tied_negative = 0;
    const double score = scores[order[i]];
    for (; i < order.size() && scores[order[i]] == score; ++i)
      tied_positive += positive[order[i]], tied_negative += negative[order[i]];
    pairs += tied_positive * (below + tied_negative / 2);
    below += tied_negative, all_positive += tied_positive;
  }
  return all_positive > 0 && below > 0 ? pairs / (all_positive * below) : nan;
}

double auc(std::span<const double> scores, std::span<const float> labels) {
  std::vector<double> positive(labels.begin(), labels.end()), negative;
  for (const double y : positive) negative.push_back(1 - y);
  return auc(scores, positive, negative);
}

Judged gathered(const Judged& mine, Communicator& comm) {
  const std::int64_t sizes[] = {std::int64_t(mine.labels.size()), std::int64_t(mine.truth.size())};
  std::vector<std::int64_t> all_sizes(2 * std::size_t(comm.size())), counts, true_counts;
  comm.all_gather({sizes, 2, DType::i64}, {all_sizes.data(), all_sizes.size(), DType::i64}).wait();
  for (std::size_t r = 0; r < all_sizes.size(); r += 2)
    counts.push_back(all_sizes[r]), true_counts.push_back(all_sizes[r + 1]);
  Judged all;
  all.logits = gather(mine.logits, counts, DType::f64, comm);
  all.labels = gather(mine.labels, counts, DType::f32, comm);
  all.truth = gather(mine.truth, true_counts, DType::f64, comm);
  return all;
}

std::map<std::string, double> binary_metrics(const Judged& mine, Communicator& comm) {
  const Judged all = gathered(mine, comm);
  static const std::vector<std::string> names{"accuracy", "auc",         "auc_reached",  "bayes_auc",
                                              "bce",      "calibration", "positive_rate"};
  std::vector<double> values(2 * names.size());  // and which of them there are
  if (comm.rank() == 0) {
    const auto m = metrics_of(all);
    for (std::size_t i = 0; i < names.size(); ++i)
      if (const auto found = m.find(names[i]); found != m.end())
        values[i] = found->second, values[names.size() + i] = 1;
  }
  comm.broadcast({values.data(), values.size(), DType::f64}, 0).wait();
  std::map<std::string, double> m;
  for (std::size_t i = 0; i < names.size(); ++i)
    if (values[names.size() + i] != 0) m[names[i]] = values[i];
  return m;
}

}  // namespace trireme
