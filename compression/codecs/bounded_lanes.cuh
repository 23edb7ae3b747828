// Encoder, what dedup_sparse does by 16 bytes: dense values to codes, and rows of codes compared.
#pragma once
#include "compression/codecs/bounded_rows.cuh"

namespace trireme::coding {

// As four_codes, which decides where rounding is unsure: only there can the bound be missed.
__device__ inline std::uint32_t sure_codes(const float4& x, const Quantizer& quantizer, std::uint32_t& missed) {
  const float v[4] = {x.x, x.y, x.z, x.w};
  const auto least = static_cast<std::uint32_t>(quantizer.min_code) + __float_as_uint(Quantizer::middle);
  std::uint32_t code[4];
  bool sure = true;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const float quotient = __fmul_rn(v[k], quantizer.inverse), sum = quotient + Quantizer::middle;
    sure = sure && __builtin_fabsf(quotient - (sum - Quantizer::middle)) <= quantizer.limit;
    code[k] = __float_as_uint(sum) - least;
  }
  if (!sure) return four_codes(x, quantizer, missed);
  return __byte_perm(__byte_perm(code[0], code[1], 0x0040), __byte_perm(code[2], code[3], 0x0040), 0x5410);
}

// Codes of 8 bits of values side by side, as quantize_block.
__device__ inline void quantize_dense(EncodeShared& s, const DeviceChunk& c, bool strict, std::uint8_t* codes) {
  constexpr std::uint32_t ahead = 4;  // loads under way
  const Quantizer quantizer(s, strict);
  const auto* const fours = reinterpret_cast<const float4*>(c.rows);
  auto* const words = reinterpret_cast<std::uint32_t*>(codes);
  const std::uint32_t n = c.n * c.dim / 4;
  std::uint32_t missed = 0;
  for (std::uint32_t begin = threadIdx.x; begin < n; begin += ahead * block_threads) {
    float4 x[ahead];
#pragma unroll
    for (std::uint32_t k = 0; k < ahead; ++k)
      if (begin + k * block_threads < n) x[k] = fours[begin + k * block_threads];
#pragma unroll
    for (std::uint32_t k = 0; k < ahead; ++k)
      if (begin + k * block_threads < n) words[begin + k * block_threads] = sure_codes(x[k], quantizer, missed);
  }
  if (missed) atomicAdd(&s.missed, missed);
  __syncthreads();
}

// Rows of `quads` times 16 bytes, at such an address.
struct QuadRows {
  const uint4* at;
  std::uint32_t quads;
};
__device__ inline std::uint32_t hash_row(const QuadRows& rows, std::uint32_t r) {
  const uint4* const row = rows.at + std::size_t{r} * rows.quads;
  std::uint32_t h = 0, k = r % rows.quads;  // each row begins elsewhere: neighbours fall on other banks
  for (std::uint32_t i = 0; i < rows.quads; ++i) {
    const uint4 v = row[k];
    const std::uint32_t by = 0x9e3779b1u + 0x632be5aau * 4 * k;
    h += (v.x + k) * by + (v.y + k) * (by + 0x632be5aau) + (v.z + k) * (by + 2 * 0x632be5aau) +
         (v.w + k) * (by + 3 * 0x632be5aau);
    k = k + 1 == rows.quads ? 0 : k + 1;
  }
  return scattered(h);
}
__device__ inline bool equal_rows(const QuadRows& rows, std::uint32_t a, std::uint32_t b) {
  const uint4 *const x = rows.at + std::size_t{a} * rows.quads, *const y = rows.at + std::size_t{b} * rows.quads;
  std::uint32_t k = a % rows.quads, differ = 0;
  for (std::uint32_t i = 0; i < rows.quads && !differ; ++i) {
    const uint4 u = x[k], v = y[k];
    differ = (u.x ^ v.x) | (u.y ^ v.y) | (u.z ^ v.z) | (u.w ^ v.w);
    k = k + 1 == rows.quads ? 0 : k + 1;
  }
  return !differ;
}

}  // namespace trireme::coding
