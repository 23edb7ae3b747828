// What the stream of a chunk is made of: constants and small integer functions that host and device share, so that both
// make the same bytes. (C++17: nvcc sees it.) The layout is described in docs/codecs.md.
#pragma once
#include <cstddef>
#include <cstdint>

#ifdef __CUDACC__
#define TRIREME_SHARED __host__ __device__ inline
#else
#define TRIREME_SHARED inline
#endif

namespace trireme::coding {

constexpr std::uint8_t stream_version = 1;
constexpr std::size_t header_bytes = 20, checksum_bytes = 4;

enum Encoder : std::uint8_t {
  raw_values = 0,
  packed_codes = 1,
  constant_value = 2,
  vector_lz = 3,
  huffman = 4,
  dedup_huffman = 5,
  rans = 6,
  dedup_rans = 7,
  dedup_packed = 8,
  dedup_values = 9,  // no loss: rows of f32
  fp16 = 10,
  bf16 = 11,
  fp8 = 12,
  int8_row32 = 13,
  int4 = 14,
  dedup_sparse = 15,
  encoders = 16,
};

enum Flag : std::uint8_t {
  has_outliers = 1,
  has_nonfinite = 2,
  without_loss = 4,
  index_form_low = 8,  // two bits: IndexForm
  has_checksum = 16,
  index_form_high = 32,
  all_flags = 63,
};

// How rows name their unique row.
enum IndexForm : std::uint8_t {
  plain = 0,      // a number of ceil(log2 U) bits a row
  first_bit = 1,  // a bit a row, 1: new; then a number for each repeated row
  symbols = 2,    // a symbol stream of the numbers, U <= 256
  weighted = 3,   // as first_bit, but rows are numbered among those that repeat about as often
};

struct ChunkHeader {
  std::uint32_t bytes = 0;  // of the payload, behind header and checksum, without padding
  std::uint8_t encoder = raw_values;
  std::uint8_t code_width = 0;  // 8 or 16; 0: no codes
  std::uint8_t flags = 0;
  std::uint8_t version = stream_version;
  float eb = 0;  // absolute; step = 2 eb
  std::uint32_t rows = 0;
  std::int32_t code_min = 0;  // constant_value: the bits of the value
};
static_assert(sizeof(ChunkHeader) == header_bytes);

constexpr std::int32_t largest_code = 1 << 16;  // |x| / step beyond this: eb is but a few ulp of x, the values travel

// What becomes of the chunks of one scope.
enum class Plan : std::uint8_t { codes, constant, exact, raw, fixed_rate };
struct Bound {
  Plan plan = Plan::raw;
  float eb = 0;
};
// Of the finite values between min and max (0, 0 where there is none).
TRIREME_SHARED Bound bound_for(float min, float max, float bound, bool relative) {
  Bound b;
  const float spread = max - min, eb = relative ? bound * spread : bound, step = 2 * eb;
  const float largest = -min > max ? -min : max, sum = largest + step;
  constexpr float smallest_normal = 1.17549435e-38f;
  if (bound == 0) {
    b.plan = Plan::exact;
  } else if (spread == 0) {
    b.plan = Plan::constant;
  } else if (spread - spread == 0 && eb >= smallest_normal && sum - sum == 0 &&
             largest / step <= static_cast<float>(largest_code)) {
    b.plan = Plan::codes;
    b.eb = eb;
  }
  return b;
}

// Does x' miss the bound? x' is 0 or between x / 2 and 2 x, so that the difference is exact in f32 (Sterbenz) and the
// answer that of f64.
TRIREME_SHARED bool misses_bound(float x, float there, float eb) { return __builtin_fabsf(x - there) > eb; }

TRIREME_SHARED std::uint32_t floor_log2(std::uint32_t x) {
#ifdef __CUDA_ARCH__
  return 31u - static_cast<std::uint32_t>(__clz(static_cast<int>(x)));
#else
  return 31u - static_cast<std::uint32_t>(__builtin_clz(x));
#endif
}
// Bits to tell `n` things apart.
TRIREME_SHARED std::uint32_t bits_for(std::uint32_t n) { return n <= 1 ? 0 : floor_log2(n - 1) + 1; }

// 256 log2 x, x >= 1, by integers alone: estimates must choose alike everywhere.
TRIREME_SHARED std::uint32_t log2_256(std::uint32_t x) {
  const std::uint32_t whole = floor_log2(x);
  std::uint64_t m = (static_cast<std::uint64_t>(x) << 31) >> whole;  // in [2^31, 2^32)
  std::uint32_t part = 0;
  for (int bit = 0; bit < 8; ++bit) {
    m = (m * m) >> 31;
    part <<= 1;
    if (m >> 32) {
      m >>= 1;
      part |= 1;
    }
  }
  return 256 * whole + part;
}

// ---- rows of codes ----

// Rows whose codes lie far from the code of zero have other frequencies than those near it: up to four classes of equal
// size, by the sum of the distances.
constexpr std::uint32_t distance_bins = 1024, most_classes = 4;
TRIREME_SHARED std::uint32_t class_of(std::uint32_t rows_nearer, std::uint32_t rows) {
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>(most_classes) * rows_nearer / rows);
}
// The code of zero, or the one nearest to it.
TRIREME_SHARED std::uint32_t centre_of(std::int32_t code_min, std::uint32_t span) {
  const std::int32_t last = static_cast<std::int32_t>(span) - 1;
  return static_cast<std::uint32_t>(code_min > 0 ? 0 : -code_min > last ? last : -code_min);
}

// Are repeated rows worth their index? A code takes about half the bits of its span.
TRIREME_SHARED bool worth_an_index(std::uint64_t rows, std::uint64_t unique, std::uint64_t dim, std::uint32_t span) {
  const std::uint64_t repeated = rows - unique;
  return repeated * dim * bits_for(span) > 2 * (rows + repeated * bits_for(static_cast<std::uint32_t>(unique)));
}

// Sparse rows: how far a code lies from that of zero, d steps above it 2 d, below it 2 d - 1. Modulo 256, so any byte
// is a code.
TRIREME_SHARED std::uint8_t sparse_code(std::uint32_t distance, std::uint32_t centre) {
  const std::uint32_t half = distance >> 1;
  return static_cast<std::uint8_t>(centre + (distance & 1 ? ~half : half));
}
constexpr std::size_t most_sparse = std::size_t{1} << 28;  // values: their bits fit 32 bits
TRIREME_SHARED std::size_t sparse_map_bytes(std::size_t dim) { return (dim + 7) / 8; }  // a row

// How often a unique row repeats, as a class: 0 never, else 1 + floor(log2), at most 11.
constexpr std::uint32_t weight_classes = 12;
TRIREME_SHARED std::uint32_t weight_class(std::uint32_t repeats) {
  if (repeats == 0) return 0;
  const std::uint32_t log2 = floor_log2(repeats);
  return log2 < weight_classes - 2 ? 1 + log2 : weight_classes - 1;
}

}  // namespace trireme::coding
