#include "compression/stages/quantize.h"

#include "comm/clones.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

namespace trireme::coding {
namespace {

// The bits of floats as integers in their order, and back.
std::int32_t in_order(std::int32_t bits) { return bits ^ ((bits >> 31) & 0x7fffffff); }

struct Scanned {
  std::int32_t low = std::numeric_limits<std::int32_t>::max(), high = std::numeric_limits<std::int32_t>::min();
  std::int32_t largest = 0;  // bits of the largest magnitude
};
TRIREME_CLONES void scan(const float* v, std::size_t n, Scanned& all) {
  std::int32_t low = all.low, high = all.high, largest = all.largest;
  for (std::size_t i = 0; i < n; ++i) {
    const std::int32_t bits = std::bit_cast<std::int32_t>(v[i]), key = bits ^ ((bits >> 31) & 0x7fffffff);
    largest = std::max(largest, bits & 0x7fffffff);
    low = std::min(low, key);
    high = std::max(high, key);
  }
  all = {low, high, largest};
}

// As scan, for rows that hold something else than numbers.
void scan_finite(const float* v, std::size_t n, float& low, float& high) {
  for (std::size_t i = 0; i < n; ++i)
    if (std::isfinite(v[i])) low = std::min(low, v[i]), high = std::max(high, v[i]);
}

constexpr std::int32_t infinity_bits = 0x7f800000;

}  // namespace

void Range::add(const Range& other) {
  nonfinite = nonfinite || other.nonfinite;
  if (!other.any) return;
  min = any ? std::min(min, other.min) : other.min;
  max = any ? std::max(max, other.max) : other.max;
  any = true;
}

Range range_of(const Rows& rows) {
  Range r;
  if (rows.values() == 0) return r;
  const bool whole = rows.stride == rows.dim;
  const std::size_t parts = whole ? 1 : rows.n, each = whole ? rows.values() : rows.dim;
  Scanned all;
  for (std::size_t i = 0; i < parts; ++i) scan(rows.row(i), each, all);
  if (all.largest < infinity_bits) {
    r.any = true;
    r.min = std::bit_cast<float>(in_order(all.low)), r.max = std::bit_cast<float>(in_order(all.high));
    return r;
  }
  r.nonfinite = true;
  constexpr float most = std::numeric_limits<float>::max();
  float low = most, high = -most;
  for (std::size_t i = 0; i < rows.n; ++i) scan_finite(rows.row(i), rows.dim, low, high);
  r.any = low <= high;
  if (r.any) r.min = low, r.max = high;
  return r;
}

namespace {

struct Quantized {
  std::int32_t low = std::numeric_limits<std::int32_t>::max(), high = std::numeric_limits<std::int32_t>::min();
  bool missed = false;
};

TRIREME_CLONES void quantize_row(const float* v, std::size_t n, float eb, std::int32_t* code, Quantized& all) {
  const float step = 2 * eb;
  constexpr float rounder = 12582912.0f;  // 1.5 * 2^23: the sum's last bit is worth 1, ties go to even
  std::int32_t low = all.low, high = all.high, missed = 0;
  for (std::size_t i = 0; i < n; ++i) {
    const float q = (v[i] / step + rounder) - rounder;
    const auto c = static_cast<std::int32_t>(q);
    code[i] = c;
    low = std::min(low, c);
    high = std::max(high, c);
    missed |= misses_bound(v[i], q * step, eb) ? 1 : 0;
  }
  all.low = low, all.high = high, all.missed = missed != 0;
}

TRIREME_CLONES void dequantize_row(const std::int32_t* code, std::size_t n, float step, float* to) {
  for (std::size_t i = 0; i < n; ++i) to[i] = static_cast<float>(code[i]) * step;
}

bool misses(float x, std::int32_t code, float eb) { return misses_bound(x, static_cast<float>(code) * (2 * eb), eb); }

}  // namespace

void quantize(const Rows& rows, float eb, bool strict, Codes& codes) {
  codes.wide.resize(rows.values());
  codes.outliers.clear();
  Quantized all;
  for (std::size_t r = 0; r < rows.n; ++r) {
    std::int32_t* code = codes.wide.data() + r * rows.dim;
    quantize_row(rows.row(r), rows.dim, eb, code, all);
    if (!strict || !all.missed) continue;
    for (std::size_t i = 0; i < rows.dim; ++i)
      if (misses(rows.row(r)[i], code[i], eb))
        codes.outliers.push_back({static_cast<std::uint32_t>(r * rows.dim + i), rows.row(r)[i]});
  }
  codes.min = codes.wide.empty() ? 0 : all.low;
  codes.span = codes.wide.empty() ? 1 : static_cast<std::uint32_t>(all.high - all.low) + 1;
}

void dequantize(const Codes& codes, const Rows& rows, float eb, float* to, std::size_t stride) {
  for (std::size_t r = 0; r < rows.n; ++r)
    dequantize_row(codes.wide.data() + r * rows.dim, rows.dim, 2 * eb, to + r * stride);
  for (const auto& o : codes.outliers) to[o.index / rows.dim * stride + o.index % rows.dim] = o.value;
}

namespace {

template <class Code>
TRIREME_CLONES void narrow_all(const std::int32_t* from, std::size_t n, std::int32_t min, Code* to) {
  for (std::size_t i = 0; i < n; ++i) to[i] = static_cast<Code>(from[i] - min);
}

}  // namespace

template <class Code>
void narrow(const Codes& codes, std::vector<Code>& to) {
  to.resize(codes.wide.size());
  narrow_all(codes.wide.data(), codes.wide.size(), codes.min, to.data());
}
template void narrow(const Codes&, std::vector<std::uint8_t>&);
template void narrow(const Codes&, std::vector<std::uint16_t>&);

namespace {

std::uint64_t hash(const std::uint8_t* row, std::size_t width) {
  std::uint64_t h = width;
  const auto mix = [&](std::uint64_t word) {
    h = (h ^ word) * 0x9e3779b97f4a7c15u;
    h ^= h >> 29;
  };
  for (; width >= 8; width -= 8, row += 8) {
    std::uint64_t word;
    std::memcpy(&word, row, 8);
    mix(word);
  }
  if (width) {
    std::uint64_t word = 0;
    std::memcpy(&word, row, width);
    mix(word);
  }
  return h;
}

}  // namespace

void dedup(const std::uint8_t* rows, std::size_t n, std::size_t stride, std::size_t width, Dedup& to) {
  to.index.resize(n);
  to.unique.clear();
  constexpr std::uint32_t none = ~0u;
  const std::size_t slots = std::bit_ceil(std::max<std::size_t>(2 * n, 2));
  struct Slot {
    std::uint32_t number, tag;
  };
  std::vector<Slot> table(slots, {none, 0});
  for (std::size_t r = 0; r < n; ++r) {
    const std::uint8_t* row = rows + r * stride;
    const std::uint64_t h = hash(row, width);
    const auto tag = static_cast<std::uint32_t>(h >> 32);
    std::size_t at = h & (slots - 1);
    // Equal hashes decide nothing: the rows are compared.
    while (table[at].number != none &&
           (table[at].tag != tag || std::memcmp(rows + to.unique[table[at].number] * stride, row, width) != 0))
      at = (at + 1) & (slots - 1);
    if (table[at].number == none) {
      table[at] = {static_cast<std::uint32_t>(to.unique.size()), tag};
      to.unique.push_back(static_cast<std::uint32_t>(r));
    }
    to.index[r] = table[at].number;
  }
}

}  // namespace trireme::coding
