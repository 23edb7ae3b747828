// Encoder: vector-LZ (vector_lz.cpp has the layout). Equal rows have equal numbers, since rows were made unique before;
// the longest match of every row is found by all threads at once, and which rows begin a token by jumping ahead in
// steps that double.
#pragma once
#include "compression/codecs/bounded_encode.cuh"

namespace trireme::coding {

// Of block rows [first, first + m) the longest match: length | distance << 8, 0: none; into d.slots. d.repeats: bit k
// of a row says that it equals the row `near + 1 + k` before it.
__device__ inline void find_matches(DeviceRows& d, std::uint32_t first, std::uint32_t m, std::uint32_t window) {
  const std::uint32_t* const number = d.index + first;
  std::uint32_t *const equal = d.repeats, *const best = d.slots;
  for (std::uint32_t i = threadIdx.x; i < m; i += block_threads) best[i] = 0;
  for (std::uint32_t near = (window - 1) / 32 * 32 + 32; near > 0;) {
    near -= 32;
    for (std::uint32_t i = threadIdx.x; i < m; i += block_threads) {
      std::uint32_t mask = 0;
      for (std::uint32_t k = 0; k < 32 && near + 1 + k <= min(window, i); ++k)
        if (number[i - (near + 1 + k)] == number[i]) mask |= 1u << k;
      equal[i] = mask;
    }
    __syncthreads();
    // Distances that still match after `length` rows, those at least as long alone; of equals the farthest.
    for (std::uint32_t i = threadIdx.x; i < m; i += block_threads) {
      std::uint32_t length = 0, left = equal[i], last = 0;
      while (left) {
        ++length;
        last = left;
        if (i + length >= m) break;
        left &= equal[i + length];
        if (length > near) left &= length - near < 32 ? ~0u << (length - near) : 0;
      }
      if (length > (best[i] & 255)) best[i] = length | (near + 1 + floor_log2(last)) << 8;
    }
    __syncthreads();
  }
}

// d.weight[i]: does row i of the block begin a token?
__device__ inline void mark_tokens(DeviceRows& d, std::uint32_t m) {
  std::uint8_t* const begins = d.weight;
  std::uint32_t *jump = d.rank, *next = d.unique;
  for (std::uint32_t i = threadIdx.x; i < m; i += block_threads) {
    begins[i] = i == 0;
    jump[i] = i + max(1u, d.slots[i] & 255);
  }
  __syncthreads();
  for (std::uint32_t step = 1; step < m; step *= 2) {
    for (std::uint32_t i = threadIdx.x; i < m; i += block_threads) {
      const std::uint32_t to = jump[i];
      if (to < m && begins[i]) begins[to] = 1;
      next[i] = to < m ? jump[to] : m;
    }
    __syncthreads();
    std::uint32_t* const old = jump;
    jump = next, next = old;
  }
}

// Tokens of the block in order: d.repeats their rows, d.unique where their data begins, d.bits their flags.
__device__ inline std::uint32_t place_tokens(EncodeShared& s, DeviceRows& d, std::uint32_t m, std::uint32_t width,
                                             std::uint32_t& data) {
  for (std::uint32_t i = threadIdx.x; i < m / 32 + 1; i += block_threads) d.bits[i] = 0;
  __syncthreads();
  std::uint32_t tokens = 0;
  data = 0;
  for (std::uint32_t begin = 0; begin < m; begin += block_threads) {
    const std::uint32_t i = begin + threadIdx.x;
    const bool here = i < m && d.weight[i], match = here && d.slots[i];
    std::uint32_t more, bytes;
    const std::uint32_t t = tokens + block_scan(here ? 1 : 0, s.sums, more),
                        at = data + block_scan(here ? (match ? 2 : width) : 0, s.sums, bytes);
    if (here) d.repeats[t] = i, d.unique[t] = at;
    if (match) put_bits(d.bits, t, 1, 1);
    tokens += more;
    data += bytes;
  }
  __syncthreads();
  return tokens;
}

__device__ inline void put_little(std::uint8_t* to, std::uint32_t value, std::uint32_t bytes) {
  for (std::uint32_t b = 0; b < bytes; ++b) to[b] = static_cast<std::uint8_t>(value >> (8 * b));
}

// Rows of `width` bytes whose numbers dedup_block() found. Returns the bytes; `most` where they are as many or more,
// which are then not all there.
__device__ inline std::uint64_t encode_lz(EncodeShared& s, DeviceRows& d, const std::uint8_t* rows, std::uint32_t n,
                                          std::uint32_t width, std::uint32_t window, std::uint64_t most,
                                          std::uint8_t* to) {
  const std::uint32_t blocks = (n + lz_block - 1) / lz_block;
  std::uint64_t at = 6ull * blocks - 4;
  const unsigned lane = threadIdx.x % 32;
  for (std::uint32_t b = 0; b < blocks; ++b) {
    const std::uint32_t first = b * lz_block, m = min(lz_block, n - first);
    find_matches(d, first, m, window);
    mark_tokens(d, m);
    std::uint32_t data;
    const std::uint32_t tokens = place_tokens(s, d, m, width, data), flags = (tokens + 7) / 8;
    if (at + flags + data >= most) return most;
    if (threadIdx.x == 0) {
      put_little(to + 2 * b, tokens, 2);
      if (b + 1 < blocks) put_little(to + 2 * blocks + 4 * b, data, 4);
    }
    block_copy(to + at, reinterpret_cast<const std::uint8_t*>(d.bits), flags);
    at += flags;
    for (std::uint32_t t = threadIdx.x / 32; t < tokens; t += block_warps) {
      const std::uint32_t i = d.repeats[t], match = d.slots[i];
      std::uint8_t* const data_at = to + at + d.unique[t];
      const std::uint8_t* const row = rows + std::size_t{first + i} * width;
      for (std::uint32_t k = lane; k < (match ? 2 : width); k += 32)
        data_at[k] = match ? static_cast<std::uint8_t>(match >> (8 * k)) : row[k];
    }
    at += data;
    __syncthreads();
  }
  return at;
}

}  // namespace trireme::coding
