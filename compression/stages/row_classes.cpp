#include "compression/stages/row_classes.h"

#include "comm/clones.h"

#include <algorithm>
#include <array>

namespace trireme::coding {
namespace {

using Counts = SymbolCounts;

TRIREME_CLONES std::uint32_t distance(const std::uint8_t* row, std::uint32_t dim, std::uint32_t centre) {
  std::uint32_t sum = 0;
  for (std::uint32_t i = 0; i < dim; ++i) {
    const std::int32_t d = static_cast<std::int32_t>(row[i]) - static_cast<std::int32_t>(centre);
    sum += static_cast<std::uint32_t>(d < 0 ? -d : d);
  }
  return std::min(sum, distance_bins - 1);
}

std::uint64_t cost_256(const Counts& counts) {
  std::uint64_t bits = 0;
  std::uint32_t total = 0, low = most_symbols, high = 0;
  for (std::uint32_t s = 0; s < most_symbols; ++s)
    if (counts[s]) {
      total += counts[s];
      low = std::min(low, s);
      high = s;
    }
  if (total == 0) return table_bits_256(1);
  const std::uint32_t log2_total = log2_256(total);
  for (std::uint32_t s = low; s <= high; ++s) bits += symbol_bits_256(counts[s], log2_total);
  return bits + table_bits_256(high - low + 1);
}

Counts sum(const Counts& a, const Counts& b) {
  Counts both;
  for (std::uint32_t s = 0; s < most_symbols; ++s) both[s] = a[s] + b[s];
  return both;
}

}  // namespace

RowClasses choose_classes(const std::uint8_t* codes, std::uint32_t n, std::uint32_t dim, std::uint32_t centre) {
  std::array<std::uint32_t, distance_bins> rows_at{}, nearer{};
  std::vector<std::uint16_t> bin(n);
  for (std::uint32_t r = 0; r < n; ++r)
    ++rows_at[bin[r] = static_cast<std::uint16_t>(distance(codes + std::size_t{r} * dim, dim, centre))];
  for (std::uint32_t b = 1; b < distance_bins; ++b) nearer[b] = nearer[b - 1] + rows_at[b - 1];
  RowClasses out;
  out.of_row.resize(n);
  Counts parts[most_classes][4] = {};
  for (std::uint32_t r = 0; r < n; ++r) {
    const std::uint32_t c = out.of_row[r] = static_cast<std::uint8_t>(class_of(nearer[bin[r]], n));
    count_symbols(codes + std::size_t{r} * dim, dim, parts[c]);
  }
  std::array<Counts, most_classes> four;
  for (std::size_t c = 0; c < most_classes; ++c)
    four[c] = sum(sum(parts[c][0], parts[c][1]), sum(parts[c][2], parts[c][3]));
  const Counts near = sum(four[0], four[1]), far = sum(four[2], four[3]), one = sum(near, far);
  const std::uint64_t cost_1 = cost_256(one), cost_2 = cost_256(near) + cost_256(far) + 256 * std::uint64_t{n},
                      cost_4 = cost_256(four[0]) + cost_256(four[1]) + cost_256(four[2]) + cost_256(four[3]) +
                               512 * std::uint64_t{n};
  out.classes = cost_1 <= cost_2 && cost_1 <= cost_4 ? 1 : cost_2 <= cost_4 ? 2 : 4;
  out.counts = out.classes == 4 ? four : std::array<Counts, most_classes>{out.classes == 2 ? near : one, far};
  if (out.classes == 1) out.of_row.clear();
  if (out.classes == 2)
    for (auto& c : out.of_row) c /= 2;
  return out;
}

}  // namespace trireme::coding
