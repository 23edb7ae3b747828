// Encoder, first half: values to codes, unique rows by first appearance, and how rows name theirs.
#pragma once
#include "compression/codecs/bounded_encode.cuh"

namespace trireme::coding {

__device__ inline std::int32_t code_of(float x, float step) { return __float2int_rn(__fdiv_rn(x, step)); }
__device__ inline bool misses(float x, std::int32_t code, float step, float eb) {
  return misses_bound(x, __fmul_rn(static_cast<float>(code), step), eb);
}

// Range of pieces, by the first warp.
__device__ inline PieceRange merge(const PieceRange* pieces, std::uint32_t count) {
  const unsigned lane = threadIdx.x % 32;
  PieceRange r{3.40282347e38f, -3.40282347e38f, 0, 0};
  for (std::uint32_t p = lane; p < count; p += 32) {
    const PieceRange one = pieces[p];
    r.nonfinite |= one.nonfinite;
    if (!one.any) continue;
    r.any = 1;
    r.min = one.min < r.min ? one.min : r.min;
    r.max = one.max > r.max ? one.max : r.max;
  }
  r.min = warp_min(r.min), r.max = warp_max(r.max);
  r.any = warp_max(r.any), r.nonfinite = warp_max(r.nonfinite);
  if (!r.any) r.min = r.max = 0;
  return r;
}

__device__ inline void plan_chunk(EncodeShared& s, const DeviceChunk& c, const PieceRange* pieces, bool relative) {
  if (threadIdx.x < 32) {
    const PieceRange own = merge(pieces + c.first_piece, c.pieces),
                     all = merge(pieces + c.first_of_scope, c.pieces_of_scope);
    if (threadIdx.x == 0) {
      s.bound = bound_for(all.min, all.max, c.bound_at ? *c.bound_at : c.bound, relative);
      s.nonfinite = own.nonfinite;
      if (own.nonfinite && s.bound.plan != Plan::raw) s.bound.plan = Plan::raw;
      if (s.bound.plan == Plan::codes) {
        s.code_min = code_of(own.min, 2 * s.bound.eb);  // rounding keeps the order
        s.span = static_cast<std::uint32_t>(code_of(own.max, 2 * s.bound.eb) - s.code_min) + 1;
      }
      s.missed = 0;
    }
  }
  __syncthreads();
}

__device__ inline bool in_fours(const DeviceChunk& c) {
  return c.dim % 4 == 0 && c.stride % 4 == 0 && reinterpret_cast<std::size_t>(c.rows) % 16 == 0;
}

// code_of without a division: x times 1 / step is at most 2^-22 |code| away from the quotient, so that only near the
// middle between two codes the division decides. Sums with 1.5 * 2^23 round to integers.
struct Quantizer {
  static constexpr float middle = 12582912.0f;
  float step, inverse, eb, limit;
  std::int32_t min_code;
  bool strict;
  __device__ Quantizer(const EncodeShared& s, bool is_strict) {
    eb = s.bound.eb, step = 2 * eb, inverse = __fdiv_rn(1.0f, step);
    min_code = s.code_min, strict = is_strict;
    const std::int32_t last = s.code_min + static_cast<std::int32_t>(s.span) - 1,
                       largest = 1 + (last > -s.code_min ? last : -s.code_min);
    limit = step > 1e-30f && step < 1e30f ? 0.5f - static_cast<float>(largest) * 0x1p-21f : -1.0f;
  }
  // Its code less the least one. Is it above the bound?
  __device__ std::uint32_t operator()(float x, bool& missed) const {
    const float quotient = __fmul_rn(x, inverse), sum = quotient + middle;
    float whole = sum - middle;
    std::int32_t code = __float_as_int(sum) - 0x4b400000;
    if (!(__builtin_fabsf(quotient - whole) <= limit)) {
      code = code_of(x, step);
      whole = static_cast<float>(code);
    }
    missed = strict && misses_bound(x, __fmul_rn(whole, step), eb);
    return static_cast<std::uint32_t>(code - min_code);
  }
};

__device__ inline std::uint32_t four_codes(const float4& x, const Quantizer& quantizer, std::uint32_t& missed) {
  const float v[4] = {x.x, x.y, x.z, x.w};
  std::uint32_t word = 0;
  for (int k = 0; k < 4; ++k) {
    bool misses;
    word |= quantizer(v[k], misses) << (8 * k);
    missed += misses ? 1 : 0;
  }
  return word;
}

// Codes of 8 or 16 bits into `codes` (none: they are only counted), values that miss the bound into s.missed.
__device__ inline void quantize_block(EncodeShared& s, const DeviceChunk& c, bool strict, std::uint8_t* codes) {
  const Quantizer quantizer(s, strict);
  const std::uint32_t values = c.n * c.dim;
  const bool wide = s.wide;
  std::uint32_t missed = 0;
  if (codes && !wide && in_fours(c)) {
    constexpr int ahead = 4;  // loads under way
    const std::uint32_t fours = c.dim / 4, all = values / 4;
    const bool dense = c.stride == c.dim;
    for (std::uint32_t begin = threadIdx.x; begin < all; begin += ahead * block_threads) {
      float4 x[ahead];
      for (int k = 0; k < ahead; ++k) {
        const std::uint32_t i = min(begin + k * block_threads, all - 1), r = dense ? 0 : i / fours;
        x[k] = *reinterpret_cast<const float4*>(c.rows + std::size_t{r} * c.stride + (i - r * fours) * 4);
      }
      for (int k = 0; k < ahead; ++k)
        if (begin + k * block_threads < all)
          reinterpret_cast<std::uint32_t*>(codes)[begin + k * block_threads] = four_codes(x[k], quantizer, missed);
    }
  } else {
    for (std::uint32_t i = threadIdx.x; i < values; i += block_threads) {
      const std::uint32_t r = i / c.dim;
      bool misses;
      const std::uint32_t code = quantizer(c.rows[static_cast<std::size_t>(r) * c.stride + (i - r * c.dim)], misses);
      missed += misses ? 1 : 0;
      if (!codes) continue;
      if (wide)
        reinterpret_cast<std::uint16_t*>(codes)[i] = static_cast<std::uint16_t>(code);
      else
        codes[i] = static_cast<std::uint8_t>(code);
    }
  }
  if (missed) atomicAdd(&s.missed, missed);
  __syncthreads();
}

// The values that miss, in order: u32 indices, then f32 values. Rare, so the rows are read once more.
__device__ inline void put_outliers(EncodeShared& s, const DeviceChunk& c, std::uint8_t* to) {
  const float eb = s.bound.eb, step = 2 * eb;
  const std::uint32_t values = c.n * c.dim, each = (values + block_threads - 1) / block_threads,
                      first = min(values, threadIdx.x * each), end = min(values, first + each);
  const auto value = [&](std::uint32_t i) {
    const std::uint32_t r = i / c.dim;
    return c.rows[static_cast<std::size_t>(r) * c.stride + (i - r * c.dim)];
  };
  std::uint32_t mine = 0, total;
  for (std::uint32_t i = first; i < end; ++i) mine += misses(value(i), code_of(value(i), step), step, eb) ? 1 : 0;
  std::uint32_t at = block_scan(mine, s.sums, total);
  const auto put = [&](std::size_t where, std::uint32_t word) {
    for (int b = 0; b < 4; ++b) to[where + b] = static_cast<std::uint8_t>(word >> (8 * b));
  };
  if (threadIdx.x == 0) put(0, total);
  for (std::uint32_t i = first; i < end; ++i) {
    const float x = value(i);
    if (!misses(x, code_of(x, step), step, eb)) continue;
    put(4 + 4 * std::size_t{at}, i);
    put(4 + 4 * std::size_t{total} + 4 * std::size_t{at}, __float_as_uint(x));
    ++at;
  }
  __syncthreads();
}

// ---- unique rows ----

// Rows of `width` bytes, `stride` bytes apart; in words where both allow it.
struct ByteRows {
  const std::uint8_t* at;
  std::size_t stride;
  std::uint32_t width;
  bool words;
};
__device__ inline std::uint32_t scattered(std::uint32_t h) {
  h ^= h >> 15;
  h *= 0x85ebca6bu;
  return h ^ h >> 13;
}
__device__ inline std::uint32_t hash_row(const ByteRows& rows, std::uint32_t r) {
  const std::uint8_t* row = rows.at + r * rows.stride;
  std::uint32_t h = 0;
  if (rows.words) {
    const std::uint32_t n = rows.width / 4;
    std::uint32_t k = r % n;  // each row begins elsewhere: neighbours fall on other banks
    for (std::uint32_t i = 0; i < n; ++i) {
      h += (reinterpret_cast<const std::uint32_t*>(row)[k] + k) * (0x9e3779b1u + 0x632be5aau * k);
      k = k + 1 == n ? 0 : k + 1;
    }
  } else {
    for (std::uint32_t i = 0; i < rows.width; ++i) h = (h ^ row[i]) * 0x01000193u;
  }
  return scattered(h);
}
__device__ inline bool equal_rows(const ByteRows& rows, std::uint32_t a, std::uint32_t b) {
  const std::uint8_t *x = rows.at + a * rows.stride, *y = rows.at + b * rows.stride;
  if (rows.words) {
    const std::uint32_t n = rows.width / 4;
    std::uint32_t k = a % n;
    for (std::uint32_t i = 0; i < n; ++i) {
      if (reinterpret_cast<const std::uint32_t*>(x)[k] != reinterpret_cast<const std::uint32_t*>(y)[k]) return false;
      k = k + 1 == n ? 0 : k + 1;
    }
    return true;
  }
  for (std::uint32_t i = 0; i < rows.width; ++i)
    if (x[i] != y[i]) return false;
  return true;
}

// A slot of the hash table holds one of its equal rows, in the end the first: the order of the threads leaves no trace.
template <class Rows>
__device__ inline void dedup_block(EncodeShared& s, DeviceRows& d, const Rows& rows, std::uint32_t n) {
  constexpr std::uint32_t none = 0xffffffffu;
  for (std::uint32_t i = threadIdx.x; i <= d.slot_mask; i += block_threads) d.slots[i] = none;
  for (std::uint32_t i = threadIdx.x; i < n; i += block_threads) d.repeats[i] = none;  // counts of rows, less one
  __syncthreads();
  for (std::uint32_t r = threadIdx.x; r < n; r += block_threads) {
    std::uint32_t at = hash_row(rows, r) & d.slot_mask;
    for (;; at = (at + 1) & d.slot_mask) {
      // Read first: rows that repeat often would queue for the atomics.
      std::uint32_t there = *static_cast<volatile std::uint32_t*>(&d.slots[at]);
      if (there == none) there = atomicCAS(&d.slots[at], none, r);
      if (there == none) break;
      if (!equal_rows(rows, r, there)) continue;
      if (r < there) atomicMin(&d.slots[at], r);
      break;
    }
    d.index[r] = at;
  }
  __syncthreads();
  std::uint32_t before = 0;
  for (std::uint32_t first = 0; first < n; first += block_threads) {
    const std::uint32_t r = first + threadIdx.x;
    const bool is_first = r < n && d.slots[d.index[r]] == r;
    std::uint32_t total;
    const std::uint32_t rank = before + block_scan(is_first ? 1 : 0, s.sums, total);
    if (r < n) d.rank[r] = rank;
    if (is_first) d.unique[rank] = r;
    before += total;
  }
  __syncthreads();
  for (std::uint32_t r = threadIdx.x; r < n; r += block_threads) {
    const std::uint32_t u = d.rank[d.slots[d.index[r]]];
    d.index[r] = u;
    atomicAdd(&d.repeats[u], 1u);
  }
  if (threadIdx.x == 0) s.unique = before;
  __syncthreads();
}

// ---- the index ----

__device__ inline bool is_first(const DeviceRows& d, std::uint32_t r) { return d.unique[d.index[r]] == r; }

// Bits of each form as choose_form (row_index.cpp) counts them, into s.cost[0..3] / 256.
__device__ inline void choose_form_block(EncodeShared& s, const DeviceRows& d, std::uint32_t n, bool streams) {
  const std::uint32_t unique = s.unique, repeated = n - unique, number = bits_for(unique);
  if (threadIdx.x < weight_classes) s.weight_rows[threadIdx.x] = s.weight_repeats[threadIdx.x] = 0;
  if (threadIdx.x < 4) s.cost[threadIdx.x] = ~0ull;
  __syncthreads();
  for (std::uint32_t u = threadIdx.x; streams && u < unique; u += block_threads) {
    const std::uint32_t w = weight_class(d.repeats[u]);
    d.weight[u] = static_cast<std::uint8_t>(w);
    atomicAdd(&s.weight_rows[w], 1u);
    if (w) atomicAdd(&s.weight_repeats[w], d.repeats[u]);
  }
  __syncthreads();
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (warp == 0 && lane == 0) {
    s.cost[plain] = 256ull * number * n;
    s.cost[first_bit] = 256ull * (n + static_cast<std::uint64_t>(number) * repeated);
  }
  if (warp == 1 && streams && unique <= most_symbols) {
    unsigned long long bits = 0;
    for (std::uint32_t u = lane; u < unique; u += 32) bits += symbol_bits_256(d.repeats[u] + 1, log2_256(n));
    bits = warp_sum(bits);
    if (lane == 0) s.cost[symbols] = bits + table_bits_256(unique) + 256 * 32;
  }
  if (warp == 2 && streams && repeated) {
    unsigned long long bits = 0;
    if (lane < weight_classes)
      bits = symbol_bits_256(s.weight_rows[lane], log2_256(unique)) +
             symbol_bits_256(s.weight_repeats[lane], log2_256(repeated)) +
             (lane ? 256ull * bits_for(s.weight_rows[lane]) * s.weight_repeats[lane] : 0);
    bits = warp_sum(bits);
    if (lane == 0) s.cost[weighted] = bits + 2 * (table_bits_256(weight_classes) + 256 * 32) + 256ull * n;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    s.form = plain;
    for (std::uint32_t f = 1; f < 4; ++f)
      if (s.cost[f] < s.cost[s.form]) s.form = f;
  }
  __syncthreads();
}

// Where each unique row stands among those of its weight, into d.place: a warp a class.
__device__ inline void place_by_weight(EncodeShared& s, DeviceRows& d) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (warp > 0 && warp < weight_classes) {
    std::uint32_t before = 0;
    for (std::uint32_t first = 0; first < s.unique; first += 32) {
      const std::uint32_t u = first + lane;
      const bool mine = u < s.unique && d.weight[u] == warp;
      const std::uint32_t all = __ballot_sync(all_lanes, mine);
      if (mine) d.place[u] = before + __popc(all & ((1u << lane) - 1));
      before += __popc(all);
    }
  }
  __syncthreads();
}

// Words that hold the plain bits of any form.
__device__ inline std::uint32_t index_words(std::uint32_t n, std::uint32_t number) {
  return static_cast<std::uint32_t>((static_cast<std::uint64_t>(n) * (1 + number)) / 32) + 2;
}

// The plain bits of the form, and for `weighted` the classes of repeated rows (d.repeat).
__device__ inline void put_index(EncodeShared& s, DeviceRows& d, std::uint32_t n) {
  const std::uint32_t unique = s.unique, repeated = n - unique, number = bits_for(unique), form = s.form;
  const std::uint32_t words = index_words(n, number);
  for (std::uint32_t i = threadIdx.x; i < words; i += block_threads) d.bits[i] = 0;
  if (form == weighted) place_by_weight(s, d);
  __syncthreads();
  std::uint32_t total = form == symbols ? 0
                        : form == plain ? n * number
                                        : n + (form == first_bit ? repeated * number : 0);
  std::uint32_t before = n;  // bits, of `weighted`
  for (std::uint32_t first = 0; first < n; first += block_threads) {
    const std::uint32_t r = first + threadIdx.x;
    const bool there = r < n, leads = there && is_first(d, r);
    if (there && form == plain) put_bits(d.bits, static_cast<std::uint64_t>(r) * number, d.index[r], number);
    if (leads && (form == first_bit || form == weighted)) put_bits(d.bits, r, 1, 1);
    if (there && !leads && form == first_bit)
      put_bits(d.bits, n + static_cast<std::uint64_t>(r - d.rank[r]) * number, d.index[r], number);
    if (form == weighted) {
      const bool repeats = there && !leads;
      const std::uint32_t u = repeats ? d.index[r] : 0, w = repeats ? d.weight[u] : 0,
                          bits = repeats ? bits_for(s.weight_rows[w]) : 0;
      std::uint32_t sum;
      const std::uint32_t at = before + block_scan(bits, s.sums, sum);
      if (repeats) {
        d.repeat[r - d.rank[r]] = static_cast<std::uint8_t>(w);
        put_bits(d.bits, at, d.place[u], bits);
      }
      before += sum;
    }
  }
  if (threadIdx.x == 0) s.bits = form == weighted ? before : total;
  __syncthreads();
}

}  // namespace trireme::coding
