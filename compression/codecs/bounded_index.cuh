// Decoder: which unique row is where (row_index.cpp has the forms).
#pragma once
#include "compression/codecs/bounded_decode.cuh"

namespace trireme::coding {

struct DecodeShared {
  ChunkHeader header;
  std::uint32_t bad;
  std::uint32_t unique, form, streams, outliers, packed_bits;
  std::uint32_t sums[block_warps];
  std::uint32_t weight_rows[weight_classes], weight_first[weight_classes];
  const std::uint8_t* outlier_at;
  const std::uint8_t* codes_at;  // packed codes, or values
  const std::uint8_t* bits_at;   // plain bits behind those of the lanes
  std::uint32_t bits_left;       // bytes there
  DeviceSource source[3];
};

struct Work {
  std::uint8_t* codes;   // of the unique rows or of all, 8 or 16 bits
  std::uint32_t* index;  // [n]
  std::uint32_t* order;  // [n] unique rows by weight
  std::uint8_t *weight, *repeat, *bits, *classes;
};

// Unique rows in the order of their weights, each weight's by number: a warp a weight.
__device__ inline void order_by_weight(DecodeShared& s, const Work& w) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (int pass = 0; pass < 2; ++pass) {
    if (warp < weight_classes) {
      std::uint32_t before = 0;
      for (std::uint32_t first = 0; first < s.unique; first += 32) {
        const std::uint32_t u = first + lane;
        const bool mine = u < s.unique && w.weight[u] == warp;
        const std::uint32_t all = __ballot_sync(all_lanes, mine);
        if (mine && pass) w.order[s.weight_first[warp] + before + __popc(all & ((1u << lane) - 1))] = u;
        before += __popc(all);
      }
      if (!pass && lane == 0) s.weight_rows[warp] = before;
    }
    __syncthreads();
    if (!pass && threadIdx.x == 0)
      for (std::uint32_t k = 0, first = 0; k < weight_classes; first += s.weight_rows[k++]) s.weight_first[k] = first;
    __syncthreads();
  }
}

// All plain bits in one place; those of the lanes come first.
__device__ inline bool gather_bits(DecodeShared& s, const Work& w, std::uint64_t bits) {
  const std::uint64_t bytes = (bits + 7) / 8, lanes = s.streams ? s.source[0].late_bytes : 0, along = min(lanes, bytes);
  if (bytes - along != s.bits_left) return false;
  for (std::uint64_t i = threadIdx.x; i < bytes; i += block_threads)
    w.bits[i] = i < along ? s.source[0].late[i] : s.bits_at[i - along];
  bool zeros = true;
  for (std::uint64_t i = along + threadIdx.x; i < lanes; i += block_threads) zeros = zeros && s.source[0].late[i] == 0;
  for (std::uint32_t k = 1; k < s.streams; ++k)
    for (std::uint32_t i = threadIdx.x; i < s.source[k].late_bytes; i += block_threads)
      zeros = zeros && s.source[k].late[i] == 0;
  return __syncthreads_and(zeros);
}

// Bits of a repeated row's number under the form; rows that repeat are counted from 0.
__device__ inline std::uint32_t repeat_bits(const DecodeShared& s, const Work& w, std::uint32_t k) {
  return s.form == weighted ? bits_for(s.weight_rows[w.repeat[k]]) : bits_for(s.unique);
}

// index[n] from the plain bits. All threads return alike.
__device__ inline bool decode_index(DecodeShared& s, const Work& w, std::uint32_t n) {
  const std::uint32_t number = bits_for(s.unique), repeated = n - s.unique;
  bool good = true;
  std::uint64_t bits = s.form == symbols ? 0 : s.form == plain ? std::uint64_t{number} * n : n;
  if (s.form == first_bit) bits += std::uint64_t{number} * repeated;
  if (s.form == weighted) {
    order_by_weight(s, w);
    std::uint32_t mine = 0, total;
    for (std::uint32_t k = threadIdx.x; k < repeated; k += block_threads) {
      good = good && w.repeat[k] > 0 && s.weight_rows[w.repeat[k]] > 0;
      mine += repeat_bits(s, w, k);
    }
    block_scan(mine, s.sums, total);
    bits += total;
  }
  if (!__syncthreads_and(good) || !gather_bits(s, w, bits)) return false;
  if (s.form == symbols || s.form == plain) {
    for (std::uint32_t r = threadIdx.x; r < n; r += block_threads) {
      const std::uint32_t u = s.form == symbols ? w.repeat[r] : get_bits(w.bits, std::uint64_t{r} * number, number);
      good = good && u < s.unique;
      w.index[r] = u < s.unique ? u : 0;
    }
    return __syncthreads_and(good);
  }
  std::uint32_t firsts = 0, at = n;
  for (std::uint32_t begin = 0; begin < n; begin += block_threads) {
    const std::uint32_t r = begin + threadIdx.x;
    const bool leads = r < n && get_bits(w.bits, r, 1);
    std::uint32_t total, width_total;
    const std::uint32_t before = firsts + block_scan(leads ? 1 : 0, s.sums, total);
    const bool repeats = r < n && !leads && r - before < repeated;
    const std::uint32_t width = repeats ? repeat_bits(s, w, r - before) : 0;
    const std::uint32_t bit = at + block_scan(width, s.sums, width_total);
    std::uint32_t u = before;
    if (repeats && bit + width <= bits) {
      u = get_bits(w.bits, bit, width);
      if (s.form == weighted) {
        const std::uint32_t weight = w.repeat[r - before];
        good = good && u < s.weight_rows[weight];
        u = u < s.weight_rows[weight] ? w.order[s.weight_first[weight] + u] : 0;
      }
    }
    good = good && (r >= n || (u < s.unique && (leads || repeats)));
    if (r < n) w.index[r] = u < s.unique ? u : 0;
    firsts += total;
    at += width_total;
  }
  return __syncthreads_and(good) && firsts == s.unique;
}

}  // namespace trireme::coding
