#include "bench/judge.h"

#include <algorithm>
#include <cmath>

namespace trireme::bench {
namespace {

// 97.5 % quantiles of Student's t for 1 to 12 degrees of freedom.
constexpr double student[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179};

double mean_of(const std::vector<double>& v) {
  double sum = 0;
  for (const double x : v) sum += x;
  return sum / double(v.size());
}

double deviation_of(const std::vector<double>& v) {
  const double mean = mean_of(v);
  double sum = 0;
  for (const double x : v) sum += (x - mean) * (x - mean);
  return v.size() > 1 ? std::sqrt(sum / double(v.size() - 1)) : 0;
}

}  // namespace

Ratio ratio_of(const std::vector<double>& peer, const std::vector<double>& ours) {
  std::vector<double> each;
  for (std::size_t i = 0; i < std::min(peer.size(), ours.size()); ++i) each.push_back(peer[i] / ours[i]);
  if (each.empty()) return {};
  const double mean = mean_of(each), n = double(each.size());
  const double t = each.size() < 2 ? 0 : each.size() - 2 < std::size(student) ? student[each.size() - 2] : 2.0;
  const double half = t * deviation_of(each) / std::sqrt(n);
  return {mean, mean - half, mean + half};
}

nlohmann::json judged(nlohmann::json rows) {
  std::vector<double> seeds;
  for (const auto& row : rows)
    if (row["arm"] == "trireme none" && row.contains("last_loss")) seeds.push_back(row["last_loss"]);
  if (seeds.empty()) return rows;
  for (auto& row : rows) {
    if (!row.contains("last_loss")) continue;
    const std::string arm = row["arm"], side = arm.substr(0, arm.find(' '));
    for (const auto& none : rows)
      if (none["arm"] == side + " none" && none["seed"] == row["seed"] && none.contains("last_loss")) {
        row["against_none"] = row["last_loss"].get<double>() / none["last_loss"].get<double>();
        row["allowed"] = 1 + std::max(0.01, 2 * deviation_of(seeds) / mean_of(seeds));
      }
  }
  return rows;
}

}  // namespace trireme::bench
