#include "comm/reduce.h"

#include "comm/clones.h"
#include "comm/copy.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <type_traits>

#define TRIREME_INLINE __attribute__((always_inline)) inline

namespace trireme {
namespace {

TRIREME_INLINE float widen_f16(std::uint16_t h) {
  const std::uint32_t sign = static_cast<std::uint32_t>(h & 0x8000u) << 16;
  const std::uint32_t magnitude = static_cast<std::uint32_t>(h & 0x7fffu) << 13;
  const std::uint32_t normal = magnitude + (112u << 23);
  // Subnormal: put the mantissa under 2^-14 and subtract it, so that no f32 subnormal (flushed by some
  // callers) occurs.
  const float tiny = std::bit_cast<float>(magnitude + (113u << 23)) - std::bit_cast<float>(113u << 23);
  std::uint32_t bits = magnitude < (1u << 23) ? std::bit_cast<std::uint32_t>(tiny) : normal;
  bits = magnitude >= (31u << 23) ? magnitude + (224u << 23) : bits;
  return std::bit_cast<float>(bits | sign);
}

TRIREME_INLINE std::uint16_t narrow_f16(float f) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  const std::uint32_t sign = (bits >> 16) & 0x8000u;
  const std::uint32_t magnitude = bits & 0x7fffffffu;
  const std::uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  // Adding 0.5 leaves the subnormal's bits, correctly rounded, at the end of the mantissa.
  const std::uint32_t tiny =
      std::bit_cast<std::uint32_t>(std::bit_cast<float>(magnitude) + std::bit_cast<float>(126u << 23)) - (126u << 23);
  std::uint32_t half = magnitude < (113u << 23) ? tiny : normal;
  half = magnitude >= 0x477ff000u ? 0x7c00u : half;  // 65520 and above round to infinity
  half = magnitude > 0x7f800000u ? 0x7e00u : half;
  return static_cast<std::uint16_t>(half | sign);
}

TRIREME_INLINE float widen_bf16(std::uint16_t h) { return std::bit_cast<float>(static_cast<std::uint32_t>(h) << 16); }

TRIREME_INLINE std::uint16_t narrow_bf16(float f) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(f);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  return static_cast<std::uint16_t>(nan ? (bits >> 16) | 0x40u : rounded);
}

struct Sum {
  template <class T>
  static TRIREME_INLINE T apply(T a, T b) {
    if constexpr (std::is_integral_v<T>) {
      using U = std::make_unsigned_t<T>;
      return static_cast<T>(static_cast<U>(static_cast<U>(a) + static_cast<U>(b)));
    } else {
      return a + b;
    }
  }
};
struct Min {
  template <class T>
  static TRIREME_INLINE T apply(T a, T b) {
    return (b < a) | (b != b) ? b : a;
  }
};
struct Max {
  template <class T>
  static TRIREME_INLINE T apply(T a, T b) {
    return (b > a) | (b != b) ? b : a;
  }
};

// How an element is stored (T) and what it is computed in (A).
template <class T>
struct Plain {
  using Stored = T;
  using Wide = T;
  static TRIREME_INLINE T widen(T v) { return v; }
  static TRIREME_INLINE T narrow(T v) { return v; }
};
struct Half {
  using Stored = std::uint16_t;
  using Wide = float;
  static TRIREME_INLINE float widen(std::uint16_t v) { return widen_f16(v); }
  static TRIREME_INLINE std::uint16_t narrow(float v) { return narrow_f16(v); }
};
struct Brain {
  using Stored = std::uint16_t;
  using Wide = float;
  static TRIREME_INLINE float widen(std::uint16_t v) { return widen_bf16(v); }
  static TRIREME_INLINE std::uint16_t narrow(float v) { return narrow_bf16(v); }
};

// `out` may equal an input: every iteration reads its elements before it writes, which ivdep tells the
// compiler.
template <class E, class F>
TRIREME_INLINE void run(void* out_, const void* const* in, std::size_t inputs, std::size_t count) {
  using T = typename E::Stored;
  using A = typename E::Wide;
  T* out = static_cast<T*>(out_);
  if (inputs == 2) {
    const T* a = static_cast<const T*>(in[0]);
    const T* b = static_cast<const T*>(in[1]);
#pragma GCC ivdep
    for (std::size_t i = 0; i < count; ++i) out[i] = E::narrow(F::apply(E::widen(a[i]), E::widen(b[i])));
    return;
  }
  if (inputs == 4) {
    const T* a = static_cast<const T*>(in[0]);
    const T* b = static_cast<const T*>(in[1]);
    const T* c = static_cast<const T*>(in[2]);
    const T* d = static_cast<const T*>(in[3]);
#pragma GCC ivdep
    for (std::size_t i = 0; i < count; ++i) {
      const A ab = F::apply(E::widen(a[i]), E::widen(b[i]));
      out[i] = E::narrow(F::apply(F::apply(ab, E::widen(c[i])), E::widen(d[i])));
    }
    return;
  }
  constexpr std::size_t block = 1024;
  alignas(64) A sum[block];
  for (std::size_t begin = 0; begin < count; begin += block) {
    const std::size_t n = std::min(block, count - begin);
    const T* first = static_cast<const T*>(in[0]) + begin;
    for (std::size_t i = 0; i < n; ++i) sum[i] = E::widen(first[i]);
    for (std::size_t k = 1; k < inputs; ++k) {
      const T* next = static_cast<const T*>(in[k]) + begin;
#pragma GCC ivdep
      for (std::size_t i = 0; i < n; ++i) sum[i] = F::apply(sum[i], E::widen(next[i]));
    }
    for (std::size_t i = 0; i < n; ++i) out[begin + i] = E::narrow(sum[i]);
  }
}

using Kernel = void (*)(void*, const void* const*, std::size_t, std::size_t);

#define TRIREME_KERNEL(label, E, F)                                                                    \
  TRIREME_CLONES void label(void* out, const void* const* in, std::size_t inputs, std::size_t count) { \
    run<E, F>(out, in, inputs, count);                                                                 \
  }
#define TRIREME_KERNELS(label, E) \
  TRIREME_KERNEL(label##_sum, E, Sum) TRIREME_KERNEL(label##_min, E, Min) TRIREME_KERNEL(label##_max, E, Max)
#define TRIREME_ROW(label) \
  { label##_sum, label##_min, label##_max }

TRIREME_KERNELS(f64, Plain<double>)
TRIREME_KERNELS(f32, Plain<float>)
TRIREME_KERNELS(f16, Half)
TRIREME_KERNELS(bf16, Brain)
TRIREME_KERNELS(i64, Plain<std::int64_t>)
TRIREME_KERNELS(i32, Plain<std::int32_t>)
TRIREME_KERNELS(u8, Plain<std::uint8_t>)

template <class E>
TRIREME_INLINE void narrow_all(const float* in, void* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    const std::uint16_t h = E::narrow(in[i]);
    std::memcpy(static_cast<char*>(out) + 2 * i, &h, sizeof h);
  }
}
template <class E>
TRIREME_INLINE void widen_all(const void* in, float* out, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) {
    std::uint16_t h;
    std::memcpy(&h, static_cast<const char*>(in) + 2 * i, sizeof h);
    out[i] = E::widen(h);
  }
}
TRIREME_CLONES void narrow_all_f16(const float* in, void* out, std::size_t n) { narrow_all<Half>(in, out, n); }
TRIREME_CLONES void narrow_all_bf16(const float* in, void* out, std::size_t n) { narrow_all<Brain>(in, out, n); }
TRIREME_CLONES void widen_all_f16(const void* in, float* out, std::size_t n) { widen_all<Half>(in, out, n); }
TRIREME_CLONES void widen_all_bf16(const void* in, float* out, std::size_t n) { widen_all<Brain>(in, out, n); }

Kernel pick(Op op, DType dtype) {
  static constexpr Kernel table[][3] = {TRIREME_ROW(f64), TRIREME_ROW(f32), TRIREME_ROW(f16), TRIREME_ROW(bf16),
                                        TRIREME_ROW(i64), TRIREME_ROW(i32), TRIREME_ROW(u8)};
  return table[static_cast<int>(dtype)][static_cast<int>(op)];
}

}  // namespace

void reduce(Op op, DType dtype, void* out, std::span<const void* const> in, std::size_t count) {
  if (count == 0) return;
  if (in.size() == 1) {
    copy_bytes(out, in[0], count * size_of(dtype));
    return;
  }
  pick(op, dtype)(out, in.data(), in.size(), count);
}

void narrow(DType to, const float* in, void* out, std::size_t count) {
  to == DType::f16 ? narrow_all_f16(in, out, count) : narrow_all_bf16(in, out, count);
}
void widen(DType from, const void* in, float* out, std::size_t count) {
  from == DType::f16 ? widen_all_f16(in, out, count) : widen_all_bf16(in, out, count);
}

}  // namespace trireme
