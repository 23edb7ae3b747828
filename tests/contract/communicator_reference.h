// What a collective must give, bit by bit: inputs that every rank can compute for every other, and sums in
// rank order with conversions written apart from the library's.
#pragma once
#include "comm/communicator.h"

#include <cmath>
#include <cstring>
#include <vector>

namespace trireme::test {

inline std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

// Nearest, ties to even, found by comparing with both neighbours.
inline std::uint16_t nearest_bf16(float f) {
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  const auto value = [](std::uint32_t high) {
    const std::uint32_t b = high << 16;
    float v;
    std::memcpy(&v, &b, 4);
    return static_cast<double>(v);
  };
  const std::uint32_t low = bits >> 16, high = low + 1;
  const double below = std::fabs(f - value(low)), above = std::fabs(value(high) - f);
  if (below != above) return static_cast<std::uint16_t>(below < above ? low : high);
  return static_cast<std::uint16_t>(low % 2 == 0 ? low : high);
}

// One element type: how the reference reads and writes it.
struct Half {
  std::uint16_t bits;
  static constexpr DType dtype = DType::f16;
  float wide() const {
    _Float16 h;
    std::memcpy(&h, &bits, 2);
    return static_cast<float>(h);
  }
  static Half from(float f) {
    const _Float16 h = static_cast<_Float16>(f);
    Half r;
    std::memcpy(&r.bits, &h, 2);
    return r;
  }
};
struct Brain {
  std::uint16_t bits;
  static constexpr DType dtype = DType::bf16;
  float wide() const {
    const std::uint32_t b = static_cast<std::uint32_t>(bits) << 16;
    float f;
    std::memcpy(&f, &b, 4);
    return f;
  }
  static Brain from(float f) { return {nearest_bf16(f)}; }
};
template <class T, DType t>
struct Number {
  T bits;
  static constexpr DType dtype = t;
  T wide() const { return bits; }
  static Number from(T v) { return {v}; }
};
using F64 = Number<double, DType::f64>;
using F32 = Number<float, DType::f32>;
using I64 = Number<std::int64_t, DType::i64>;
using I32 = Number<std::int32_t, DType::i32>;
using U8 = Number<std::uint8_t, DType::u8>;

// A backend that sums in an order of its own gets values whose sum is exact in any order, in every type.
inline thread_local bool any_order = false;

template <class E>
E element(int rank, std::size_t i, std::uint64_t salt = 0) {
  const std::uint64_t h = mix(mix(i + (salt << 40)) + static_cast<std::uint64_t>(rank));
  using Wide = decltype(E{}.wide());
  if constexpr (std::is_integral_v<Wide>) {
    return E::from(static_cast<Wide>(h));  // sums wrap
  } else if (any_order) {
    return E::from(static_cast<Wide>(static_cast<double>(h % 17) - 8.0));
  } else {
    // Magnitudes from 1e-3 to 1e3: sums depend on their order.
    const double scale = std::pow(10.0, static_cast<double>(h % 7) - 3.0);
    return E::from(static_cast<Wide>((static_cast<double>(h >> 20 & 0xfffff) / 524288.0 - 1.0) * scale));
  }
}

template <class E>
std::vector<E> elements(int rank, std::size_t count, std::uint64_t salt = 0) {
  std::vector<E> v(count);
  for (std::size_t i = 0; i < count; ++i) v[i] = element<E>(rank, i, salt);
  return v;
}

template <class W>
W combine(Op op, W a, W b) {
  if (op == Op::min) return b < a ? b : a;
  if (op == Op::max) return b > a ? b : a;
  if constexpr (std::is_integral_v<W>) {
    return static_cast<W>(static_cast<std::uint64_t>(a) + static_cast<std::uint64_t>(b));
  } else {
    return a + b;
  }
}

template <class E>
std::vector<E> reduced(int ranks, std::size_t count, Op op, std::uint64_t salt = 0) {
  std::vector<E> v(count);
  for (std::size_t i = 0; i < count; ++i) {
    auto sum = element<E>(0, i, salt).wide();
    for (int r = 1; r < ranks; ++r) sum = combine(op, sum, element<E>(r, i, salt).wide());
    v[i] = E::from(sum);
  }
  return v;
}

template <class E>
Buffer buffer(std::vector<E>& v) {
  return {v.data(), v.size(), E::dtype};
}
template <class E>
Buffer buffer(E* p, std::size_t count) {
  return {p, count, E::dtype};
}

// Bits, not values: -0 and NaN count too.
template <class E>
bool same(const E* a, const std::vector<E>& b) {
  return b.empty() || std::memcmp(a, b.data(), b.size() * sizeof(E)) == 0;
}
template <class E>
bool same(const std::vector<E>& a, const std::vector<E>& b) {
  return a.size() == b.size() && same(a.data(), b);
}

}  // namespace trireme::test
