#include "recipes/dlrm/planner.h"

#include "comm/error.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace trireme::dlrm {
namespace {

std::string gib(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g GiB", bytes / 1073741824);
  return text;
}

// The rank with the least bytes among those with fewer than `most` tables.
int least(const Owners& o, std::size_t most) {
  int best = -1;
  for (std::size_t r = 0; r < o.bytes.size(); ++r)
    if (o.tables[r].size() < most && (best < 0 || o.bytes[r] < o.bytes[std::size_t(best)])) best = int(r);
  return best;
}

Owners place(const std::vector<Table>& tables, const std::vector<std::size_t>& order, double bytes_per_row, int ranks,
             std::size_t most) {
  Owners o{std::vector<int>(tables.size()), std::vector<std::vector<std::int64_t>>(std::size_t(ranks)),
           std::vector<double>(std::size_t(ranks))};
  for (const std::size_t t : order) {
    const int r = least(o, most);
    o.of_table[t] = r;
    o.tables[std::size_t(r)].push_back(std::int64_t(t));
    o.bytes[std::size_t(r)] += double(tables[t].rows) * bytes_per_row;
  }
  for (auto& list : o.tables) std::sort(list.begin(), list.end());
  return o;
}

}  // namespace

Owners plan_tables(const std::vector<Table>& tables, double bytes_per_row, int ranks, double limit,
                   const std::string& cure) {
  std::vector<std::size_t> order(tables.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return tables[a].rows > tables[b].rows; });
  for (const auto& t : tables)
    if (const double bytes = double(t.rows) * bytes_per_row; bytes > limit)
      throw UsageError("table " + t.name,
                       "needs " + gib(bytes) + " with its optimizer state, a rank may hold " + gib(limit), cure);
  const std::size_t even = (tables.size() + std::size_t(ranks) - 1) / std::size_t(ranks);
  const auto fullest = [](const Owners& o) { return *std::max_element(o.bytes.begin(), o.bytes.end()); };
  Owners o = place(tables, order, bytes_per_row, ranks, even);
  if (fullest(o) > limit) o = place(tables, order, bytes_per_row, ranks, tables.size());
  if (fullest(o) > limit)
    throw UsageError("planner",
                     "the fullest of " + std::to_string(ranks) + " ranks would hold " + gib(fullest(o)) +
                         " of tables, a rank may hold " + gib(limit),
                     "use more ranks, " + cure);
  return o;
}

}  // namespace trireme::dlrm
