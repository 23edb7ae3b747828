#include "compression/stages/fixed_rate.h"

#include "comm/reduce.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

namespace trireme::coding {
namespace {

constexpr std::size_t block = 32;  // of int8_row32
constexpr float largest_fp8 = 448, largest_int4 = 7, largest = std::numeric_limits<float>::max();

std::size_t scale_bytes(Encoder encoder, std::size_t dim) {  // of a row
  return encoder == fp8 || encoder == int4 ? 4 : encoder == int8_row32 ? 8 * ((dim + block - 1) / block) : 0;
}
std::size_t code_bytes(Encoder encoder, std::size_t dim) {  // of a row
  return encoder == int4 ? (dim + 1) / 2 : encoder == fp16 || encoder == bf16 ? 2 * dim : dim;
}

// A scale that can be divided by, else 0: the row is as good as zero.
float scale_for(float most, float levels) {
  const float scale = most / levels;
  return scale >= std::numeric_limits<float>::min() ? scale : 0;
}

float most_of(const float* v, std::size_t n) {
  float most = 0;
  for (std::size_t i = 0; i < n; ++i) most = std::max(most, std::abs(v[i]));
  return most;
}

// e4m3: 1 sign, 4 exponent (bias 7) and 3 mantissa bits; |x| <= 448 but for rounding.
std::uint8_t to_fp8(float x) {
  const auto bits = std::bit_cast<std::uint32_t>(x);
  const auto sign = static_cast<std::uint8_t>(bits >> 24 & 0x80);
  const float size = std::abs(x);
  if (size < 0x1p-6f) return static_cast<std::uint8_t>(sign | static_cast<int>(std::nearbyint(size * 0x1p9f)));
  const std::uint32_t rounded = (bits & 0x7fffffffu) + 0x7ffffu + (bits >> 20 & 1u);
  return static_cast<std::uint8_t>(sign | std::min((rounded >> 20) - (120u << 3), 0x7eu));
}

float from_fp8(std::uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const float size = exponent ? std::ldexp(static_cast<float>(8 + mantissa), exponent - 10)
                              : std::ldexp(static_cast<float>(mantissa), -9);
  return code & 0x80 ? -size : size;
}

float clamped(float x) { return std::clamp(x, -largest, largest); }

float scale_at(const std::uint8_t* from) {
  float scale;
  std::memcpy(&scale, from, sizeof scale);
  if (!std::isfinite(scale)) bad_stream("a scale is not finite");
  return scale;
}

// Saturates: what is finite stays finite.
void encode_half(Encoder encoder, const float* v, std::size_t dim, std::uint8_t* codes) {
  narrow(encoder == fp16 ? DType::f16 : DType::bf16, v, codes, dim);
  const std::uint16_t beyond = encoder == fp16 ? 0x7c00 : 0x7f80;
  for (std::size_t i = 0; i < dim; ++i) {
    std::uint16_t h;
    std::memcpy(&h, codes + 2 * i, 2);
    if ((h & beyond) == beyond) --h;
    std::memcpy(codes + 2 * i, &h, 2);
  }
}

void encode_int8(const float* v, std::size_t dim, std::uint8_t* scales, std::uint8_t* codes) {
  for (std::size_t first = 0; first < dim; first += block, scales += 8) {
    const auto [low, high] = std::minmax_element(v + first, v + std::min(dim, first + block));
    const float least = *low, scale = scale_for(*high / 2 - *low / 2, 127.5f);
    std::memcpy(scales, &scale, 4);
    std::memcpy(scales + 4, &least, 4);
    for (std::size_t i = first; i < std::min(dim, first + block); ++i)
      codes[i] = static_cast<std::uint8_t>(
          scale == 0 ? 0 : std::clamp(std::nearbyint(v[i] / scale - least / scale), 0.0f, 255.0f));
  }
}

void encode_scaled(Encoder encoder, const float* v, std::size_t dim, std::uint8_t* scales, std::uint8_t* codes) {
  const float scale = scale_for(most_of(v, dim), encoder == fp8 ? largest_fp8 : largest_int4);
  std::memcpy(scales, &scale, 4);
  if (encoder == int4) std::fill_n(codes, code_bytes(int4, dim), std::uint8_t{0});
  for (std::size_t i = 0; i < dim; ++i) {
    const float x = scale == 0 ? 0 : v[i] / scale;
    if (encoder == fp8) {
      codes[i] = to_fp8(x);
    } else {
      const int q = static_cast<int>(std::nearbyint(x)) + 8;
      codes[i / 2] = static_cast<std::uint8_t>(codes[i / 2] | q << (i % 2 * 4));
    }
  }
}

}  // namespace

std::size_t fixed_rate_bytes(Encoder encoder, std::size_t n, std::size_t dim) {
  return n * (scale_bytes(encoder, dim) + code_bytes(encoder, dim));
}

void encode_fixed_rate(Encoder encoder, const Rows& rows, std::uint8_t* out) {
  std::uint8_t* scales = out;
  std::uint8_t* codes = out + rows.n * scale_bytes(encoder, rows.dim);
  for (std::size_t r = 0; r < rows.n; ++r) {
    if (encoder == fp16 || encoder == bf16)
      encode_half(encoder, rows.row(r), rows.dim, codes);
    else if (encoder == int8_row32)
      encode_int8(rows.row(r), rows.dim, scales, codes);
    else
      encode_scaled(encoder, rows.row(r), rows.dim, scales, codes);
    scales += scale_bytes(encoder, rows.dim);
    codes += code_bytes(encoder, rows.dim);
  }
}

namespace {

void decode_row(Encoder encoder, const std::uint8_t* scales, const std::uint8_t* codes, std::size_t dim, float* to) {
  static const auto fp8_values = [] {
    std::array<float, 256> v;
    for (std::size_t c = 0; c < 256; ++c) v[c] = from_fp8(static_cast<std::uint8_t>(c));
    return v;
  }();
  if (encoder == int8_row32) {
    for (std::size_t first = 0; first < dim; first += block, scales += 8) {
      const float scale = scale_at(scales), least = scale_at(scales + 4);
      for (std::size_t i = first; i < std::min(dim, first + block); ++i)
        to[i] = clamped(least + static_cast<float>(codes[i]) * scale);
    }
    return;
  }
  const float scale = scale_at(scales);
  for (std::size_t i = 0; i < dim; ++i) {
    const float value =
        encoder == fp8 ? fp8_values[codes[i]] : static_cast<float>((codes[i / 2] >> (i % 2 * 4) & 15) - 8);
    to[i] = clamped(value * scale);
  }
}

}  // namespace

void decode_fixed_rate(Encoder encoder, std::span<const std::uint8_t> bytes, std::size_t n, std::size_t dim,
                       float* rows, std::size_t stride) {
  const std::uint8_t* scales = bytes.data();
  const std::uint8_t* codes = scales + n * scale_bytes(encoder, dim);
  for (std::size_t r = 0; r < n; ++r) {
    float* to = rows + r * stride;
    if (encoder == fp16 || encoder == bf16) {
      widen(encoder == fp16 ? DType::f16 : DType::bf16, codes, to, dim);
      for (std::size_t i = 0; i < dim; ++i)
        if (!std::isfinite(to[i])) bad_stream("a value is not finite");
    } else {
      decode_row(encoder, scales, codes, dim, to);
    }
    scales += scale_bytes(encoder, dim);
    codes += code_bytes(encoder, dim);
  }
}

}  // namespace trireme::coding
