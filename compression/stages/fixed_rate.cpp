#include "compression/stages/fixed_rate.h"

#include "comm/reduce.h"

#include <algorithm>

namespace trireme::coding {
namespace {

DType half_type(Encoder encoder) { return encoder == fp16 ? DType::f16 : DType::bf16; }

// Saturates: what is finite stays finite.
void encode_half(Encoder encoder, const float* v, std::size_t dim, std::uint8_t* codes) {
  narrow(half_type(encoder), v, codes, dim);
  for (std::size_t i = 0; i < dim; ++i) {
    std::uint16_t h;
    std::memcpy(&h, codes + 2 * i, 2);
    h = saturated(encoder, h);
    std::memcpy(codes + 2 * i, &h, 2);
  }
}

void encode_int8(const float* v, std::size_t dim, std::uint8_t* scales, std::uint8_t* codes) {
  for (std::size_t first = 0; first < dim; first += rate_block, scales += 8) {
    const std::size_t end = std::min(dim, first + rate_block);
    const auto [low, high] = std::minmax_element(v + first, v + end);
    const float least = *low == 0 ? 0 : *low, scale = int8_scale(*low, *high);
    std::memcpy(scales, &scale, 4);
    std::memcpy(scales + 4, &least, 4);
    for (std::size_t i = first; i < end; ++i)
      codes[i] = static_cast<std::uint8_t>(rate_code(int8_row32, v[i], scale, least));
  }
}

void encode_scaled(Encoder encoder, const float* v, std::size_t dim, std::uint8_t* scales, std::uint8_t* codes) {
  float most = 0;
  for (std::size_t i = 0; i < dim; ++i) most = std::max(most, std::abs(v[i]));
  const float scale = scale_for(most, encoder == fp8 ? largest_fp8 : largest_int4);
  std::memcpy(scales, &scale, 4);
  if (encoder == int4) std::fill_n(codes, code_bytes(int4, dim), std::uint8_t{0});
  for (std::size_t i = 0; i < dim; ++i) {
    const std::uint32_t code = rate_code(encoder, v[i], scale, 0);
    if (encoder == fp8)
      codes[i] = static_cast<std::uint8_t>(code);
    else
      codes[i / 2] = static_cast<std::uint8_t>(codes[i / 2] | code << (i % 2 * 4));
  }
}

}  // namespace

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

float scale_at(const std::uint8_t* from) {
  float scale;
  std::memcpy(&scale, from, sizeof scale);
  if (!is_finite(scale)) bad_stream("a scale is not finite");
  return scale;
}

void decode_row(Encoder encoder, const std::uint8_t* scales, const std::uint8_t* codes, std::size_t dim, float* to) {
  if (encoder == int8_row32) {
    for (std::size_t first = 0; first < dim; first += rate_block, scales += 8) {
      const float scale = scale_at(scales), least = scale_at(scales + 4);
      for (std::size_t i = first; i < std::min(dim, first + rate_block); ++i)
        to[i] = rate_value(int8_row32, codes[i], scale, least);
    }
    return;
  }
  const float scale = scale_at(scales);
  for (std::size_t i = 0; i < dim; ++i)
    to[i] = rate_value(encoder, encoder == fp8 ? codes[i] : codes[i / 2] >> (i % 2 * 4) & 15, scale, 0);
}

}  // namespace

void decode_fixed_rate(Encoder encoder, std::span<const std::uint8_t> bytes, std::size_t n, std::size_t dim,
                       float* rows, std::size_t stride) {
  const std::uint8_t* scales = bytes.data();
  const std::uint8_t* codes = scales + n * scale_bytes(encoder, dim);
  for (std::size_t r = 0; r < n; ++r) {
    float* to = rows + r * stride;
    if (encoder == fp16 || encoder == bf16) {
      widen(half_type(encoder), codes, to, dim);
      for (std::size_t i = 0; i < dim; ++i)
        if (!is_finite(to[i])) bad_stream("a value is not finite");
    } else {
      decode_row(encoder, scales, codes, dim, to);
    }
    scales += scale_bytes(encoder, dim);
    codes += code_bytes(encoder, dim);
  }
}

}  // namespace trireme::coding
