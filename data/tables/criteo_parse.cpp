// The parser alone, which is what its speed is measured by.
#include "data/tables/criteo.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

namespace trireme {
namespace {

constexpr std::uint8_t no_digit = 255;

constexpr std::array<std::uint8_t, 256> hex_digits() {
  std::array<std::uint8_t, 256> t{};
  for (auto& v : t) v = no_digit;
  for (int k = 0; k < 10; ++k) t[std::size_t('0' + k)] = std::uint8_t(k);
  for (int k = 0; k < 6; ++k) t[std::size_t('a' + k)] = t[std::size_t('A' + k)] = std::uint8_t(10 + k);
  return t;
}
constexpr auto hex = hex_digits();

// Logs of small counts, which most are.
const float* logs() {
  static const std::vector<float> table = [] {
    std::vector<float> t(65536);
    for (std::size_t i = 0; i < t.size(); ++i) t[i] = float(std::log1p(double(i)));
    return t;
  }();
  return table.data();
}

float dense_of(std::uint64_t value) { return value < 65536 ? logs()[value] : float(std::log1p(double(value))); }

// Eight hexadecimal digits at once: each byte becomes its value, and what it should look like is compared with it.
bool eight_digits(const char* p, std::uint32_t& value) {
  constexpr std::uint64_t ones = 0x0101010101010101ull;
  std::uint64_t x = 0;
  std::memcpy(&x, p, 8);
  const std::uint64_t y = x | ones * 0x20;  // small letters
  const std::uint64_t letter = (y >> 6) & ones, v = (y & ones * 0x0f) + letter * 9;
  const bool alike = (v + ones * '0' + letter * ('a' - 10 - '0')) == y && ((x ^ y) & ~(letter << 5)) == 0;
  const bool in_range = (v & ones * 0x10) == 0 && (((v + ones * 6) >> 4) & ones) == letter;
  if (!alike || !in_range) return false;
  const std::uint64_t be = __builtin_bswap64(v);
  std::uint64_t n = (be | be >> 4) & 0x00ff00ff00ff00ffull;
  n = (n | n >> 8) & 0x0000ffff0000ffffull;
  value = std::uint32_t(n | n >> 16);
  return true;
}

struct Line {
  const char *p, *end;  // end: of the line
  const char* why = nullptr;

  bool fail(const char* reason) {
    why = reason;
    return false;
  }
  bool tab() {
    if (p == end) return fail("has too few columns");
    if (*p != '\t') return fail("has something else than digits in a column");
    ++p;
    return true;
  }

  bool integer(float& out) {
    bool negative = false;
    if (p < end && *p == '-') negative = true, ++p;
    std::uint64_t value = 0;
    const char* begin = p;
    while (p < end && std::uint8_t(*p - '0') < 10) value = value * 10 + std::uint64_t(*p++ - '0');
    if (p - begin > 18 || (negative && p == begin)) return fail("has an integer that is none");
    out = negative ? 0 : dense_of(value);
    return true;
  }

  bool word(std::uint32_t& out) {
    if (end - p >= 8 && (p + 8 == end || p[8] == '\t') && eight_digits(p, out)) {
      p += 8;
      return true;
    }
    std::uint32_t value = 0;
    const char* begin = p;
    for (std::uint8_t d = 0; p < end && (d = hex[std::uint8_t(*p)]) != no_digit; ++p) value = value << 4 | d;
    if (p - begin > 8) return fail("has a category of more than 8 hexadecimal digits");
    out = value;
    return true;
  }

  bool parse(std::uint8_t& label, float* dense, std::uint32_t* words) {
    if (p == end) return fail("is empty");
    if (*p != '0' && *p != '1') return fail("has a label that is neither 0 nor 1");
    label = std::uint8_t(*p++ - '0');
    for (int k = 0; k < criteo_dense; ++k)
      if (!tab() || !integer(dense[k])) return false;
    for (int k = 0; k < criteo_tables; ++k)
      if (!tab() || !word(words[k])) return false;
    if (p == end) return true;
    return fail(*p == '\t' ? "has too many columns" : "has something else than digits in a column");
  }
};

// x modulo a fixed number, by two products (Lemire et al., 2019).
struct Modulo {
  std::uint64_t m;
  std::uint32_t d;
  explicit Modulo(std::uint32_t divisor) : m(divisor ? ~std::uint64_t{0} / divisor + 1 : 0), d(divisor) {}
  std::uint32_t operator()(std::uint32_t x) const { return d ? std::uint32_t((__uint128_t(m * x) * d) >> 64) : x; }
};

void clear(CriteoBlock& b) {
  b.label.clear(), b.dense.clear(), b.words.clear(), b.bad.clear();
  b.bad_lines = b.lines = 0;
}

void cut(CriteoBlock& b, std::size_t n) {
  b.label.resize(n), b.dense.resize(n * criteo_dense), b.words.resize(n * criteo_tables);
}

// Why it is malformed; null: it is not.
const char* take_record(const std::int32_t* record, const Modulo& modulo, CriteoBlock& out, std::size_t n) {
  if (record[0] != 0 && record[0] != 1) return "has a label that is neither 0 nor 1";
  out.label[n] = std::uint8_t(record[0]);
  float* dense = out.dense.data() + n * criteo_dense;
  for (int k = 0; k < criteo_dense; ++k) dense[k] = dense_of(std::uint64_t(std::max(record[1 + k], 0)));
  std::uint32_t* words = out.words.data() + n * criteo_tables;
  for (int k = 0; k < criteo_tables; ++k) {
    if (record[1 + criteo_dense + k] < 0) return "has a category below 0";
    words[k] = modulo(std::uint32_t(record[1 + criteo_dense + k]));
  }
  return nullptr;
}

}  // namespace

void parse_criteo_records(std::string_view records, std::uint32_t max_ind_range, CriteoBlock& out) {
  clear(out);
  const Modulo modulo(max_ind_range);
  const std::size_t all = records.size() / criteo_record;
  cut(out, all);
  std::size_t n = 0;
  for (std::size_t k = 0; k < all; ++k) {
    std::int32_t record[criteo_record / 4];
    std::memcpy(record, records.data() + k * criteo_record, criteo_record);
    if (const char* why = take_record(record, modulo, out, n); !why)
      ++n;
    else if (++out.bad_lines, out.bad.size() < 10)
      out.bad.push_back({std::int64_t(k), why});
  }
  out.lines = std::int64_t(all);
  cut(out, n);
}

void parse_criteo(std::string_view text, std::uint32_t max_ind_range, CriteoBlock& out) {
  clear(out);
  const Modulo modulo(max_ind_range);
  const char *p = text.data(), *end = p + text.size();
  std::size_t n = 0;
  while (p < end) {
    const auto* stop = static_cast<const char*>(std::memchr(p, '\n', std::size_t(end - p)));
    if (!stop) stop = end;
    if (n == out.label.size()) {
      const std::size_t room = std::max<std::size_t>(1024, n * 2);
      cut(out, room);
    }
    Line line{p, stop > p && stop[-1] == '\r' ? stop - 1 : stop};
    std::uint32_t* words = out.words.data() + n * criteo_tables;
    if (line.parse(out.label[n], out.dense.data() + n * criteo_dense, words)) {
      if (max_ind_range)
        for (int k = 0; k < criteo_tables; ++k) words[k] = modulo(words[k]);
      ++n;
    } else if (++out.bad_lines, out.bad.size() < 10) {
      out.bad.push_back({out.lines, line.why});
    }
    ++out.lines;
    p = stop + 1;
  }
  cut(out, n);
}

}  // namespace trireme
