// The host's twin. Rows are taken sixteen at a time and turned on their side, so that both passes add whole vectors.
// Built for this machine's vector units.
#include "data/image_text/crop.h"

#include "data/image_text/crop_taps.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

namespace trireme {
namespace {

constexpr int lanes = 16;
using Ints = std::int32_t __attribute__((vector_size(4 * lanes)));
using Bytes = std::uint8_t __attribute__((vector_size(lanes)));

// The taps of all output pixels of an axis; mirrored: in reverse order.
struct Taps {
  std::vector<TapRange> at;
  std::vector<std::int32_t> weights;
  int most = 0;

  void set(const ResizeAxis& axis, bool mirror) {
    most = most_taps(stretch_of(axis));
    at.resize(std::size_t(axis.out));
    weights.resize(std::size_t(axis.out) * std::size_t(most));
    for (int i = 0; i < axis.out; ++i) {
      const int from = mirror ? axis.out - 1 - i : i;
      at[std::size_t(i)] = taps_at(axis, from);
      weights_at(axis, from, at[std::size_t(i)], weights.data() + std::size_t(i) * std::size_t(most));
    }
  }
  const std::int32_t* of(int i) const { return weights.data() + std::size_t(i) * std::size_t(most); }
};

// What a thread reuses from picture to picture.
struct Scratch {
  Taps across, down;
  std::vector<Ints> turned;          // [3 * width] columns of sixteen rows
  std::vector<std::uint8_t> planes;  // [3, rows, padded size] levels after the first pass
  std::vector<std::uint8_t> levels;  // [padded size] of one output row
};

int padded(int n) { return (n + lanes - 1) / lanes * lanes; }

#if defined(__has_builtin) && __has_builtin(__builtin_shufflevector)
#define TRIREME_INTERLEAVE(a, b, first)                                                                               \
  __builtin_shufflevector(a, b, first, first + 16, first + 1, first + 17, first + 2, first + 18, first + 3,           \
                          first + 19, first + 4, first + 20, first + 5, first + 21, first + 6, first + 22, first + 7, \
                          first + 23)
#else
#define TRIREME_INTERLEAVE(a, b, first)                                                                           \
  __builtin_shuffle(a, b,                                                                                         \
                    Bytes{first, first + 16, first + 1, first + 17, first + 2, first + 18, first + 3, first + 19, \
                          first + 4, first + 20, first + 5, first + 21, first + 6, first + 22, first + 7, first + 23})
#endif

// 16 x 16 bytes on their side: four rounds of interleaving the two halves.
inline void transpose(Bytes (&v)[lanes]) {
  Bytes w[lanes];
  for (int round = 0; round < 2; ++round) {
    for (int i = 0; i < lanes / 2; ++i) {
      w[2 * i] = TRIREME_INTERLEAVE(v[i], v[i + 8], 0);
      w[2 * i + 1] = TRIREME_INTERLEAVE(v[i], v[i + 8], 8);
    }
    for (int i = 0; i < lanes / 2; ++i) {
      v[2 * i] = TRIREME_INTERLEAVE(w[i], w[i + 8], 0);
      v[2 * i + 1] = TRIREME_INTERLEAVE(w[i], w[i + 8], 8);
    }
  }
}

// Loops over lanes are written out where GCC would go element by element with vector types.
inline void widen(const std::uint8_t* in, Ints& out) {
  std::int32_t v[lanes];
  for (int i = 0; i < lanes; ++i) v[i] = in[i];
  std::memcpy(&out, v, sizeof v);
}

// Sums of levels times weights, rounded: the levels.
inline void to_levels(const Ints& sum, std::uint8_t* out) {
  std::int32_t v[lanes];
  std::memcpy(v, &sum, sizeof v);
  for (int i = 0; i < lanes; ++i) {
    const std::int32_t level = v[i] >> weight_bits;
    out[i] = static_cast<std::uint8_t>(level < 0 ? 0 : level > 255 ? 255 : level);
  }
}

// Columns of sixteen rows from `rows`, whose last may be the same; bytes [from, to) of each.
void turn(const std::uint8_t* const* rows, int from, int to, Ints* out) {
  for (int j = from; j < to; j += lanes) {
    const int n = std::min(lanes, to - j);
    Bytes block[lanes] = {};
    if (n == lanes)
      for (int r = 0; r < lanes; ++r) std::memcpy(&block[r], rows[r] + j, lanes);
    else
      for (int r = 0; r < lanes; ++r) std::memcpy(&block[r], rows[r] + j, std::size_t(n));
    transpose(block);
    for (int k = 0; k < n; ++k) widen(reinterpret_cast<const std::uint8_t*>(&block[k]), out[j + k]);
  }
}

// Rows [first, last) of the region to planes[3, rows, wide], rows counted from `first`.
void pass_across(const std::uint8_t* pixels, const Crop& crop, int first, int last, int size, Scratch& s) {
  const int wide = padded(size), plane_rows = padded(last - first);
  s.turned.resize(std::size_t(crop.width) * 3);
  s.planes.resize(std::size_t(3) * plane_rows * wide);
  int left = crop.width, right = 0;
  for (const auto& t : s.across.at) left = std::min(left, t.first), right = std::max(right, t.first + t.count);
  Bytes block[3][lanes] = {};
  for (int y = first; y < last; y += lanes) {
    const std::uint8_t* rows[lanes];
    for (int r = 0; r < lanes; ++r) rows[r] = pixels + std::size_t(std::min(y + r, last - 1)) * crop.pitch;
    turn(rows, 3 * left, 3 * right, s.turned.data());
    for (int x0 = 0; x0 < size; x0 += lanes) {
      const int n = std::min(lanes, size - x0);
      for (int x = 0; x < n; ++x) {
        const TapRange t = s.across.at[std::size_t(x0 + x)];
        const std::int32_t* w = s.across.of(x0 + x);
        const Ints* column = s.turned.data() + std::size_t(t.first) * 3;
        const Ints half = Ints{} + (1 << (weight_bits - 1));
        Ints r = half, g = half, b = half;
        for (int k = 0; k < t.count; ++k, column += 3)
          r += column[0] * w[k], g += column[1] * w[k], b += column[2] * w[k];
        to_levels(r, reinterpret_cast<std::uint8_t*>(&block[0][x]));
        to_levels(g, reinterpret_cast<std::uint8_t*>(&block[1][x]));
        to_levels(b, reinterpret_cast<std::uint8_t*>(&block[2][x]));
      }
      for (int c = 0; c < 3; ++c) {
        transpose(block[c]);
        std::uint8_t* out = s.planes.data() + (std::size_t(c) * plane_rows + (y - first)) * wide + x0;
        for (int q = 0; q < lanes; ++q) std::memcpy(out + std::size_t(q) * wide, &block[c][q], lanes);
      }
    }
  }
}

// One output row of one plane.
void pass_down(const std::uint8_t* rows, const std::int32_t* weights, int count, int wide, std::uint8_t* out) {
  for (int x = 0; x < wide; x += lanes) {
    Ints sum = Ints{} + (1 << (weight_bits - 1));
    for (int k = 0; k < count; ++k) {
      Ints row;
      widen(rows + std::size_t(k) * wide + x, row);
      sum += row * weights[k];
    }
    to_levels(sum, out + x);
  }
}

std::uint16_t to_bf16(float v) {
  std::uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return std::uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

void write_row(const CropJob& job, std::int64_t row, int c, int y, const std::uint8_t* levels) {
  const int s = job.size;
  const double scale = 1 / (255 * job.statistics.std_dev[c]),
               shift = -job.statistics.mean[c] / job.statistics.std_dev[c];
  const float scale32 = float(scale), shift32 = float(shift);
  const std::size_t at = ((std::size_t(row) * 3 + std::size_t(c)) * s + std::size_t(y)) * s;
  if (job.type == DType::f32) {
    float* out = static_cast<float*>(job.out) + at;
    for (int x = 0; x < s; ++x) out[x] = float(levels[x]) * scale32 + shift32;
  } else if (job.type == DType::bf16) {
    std::uint16_t* out = static_cast<std::uint16_t*>(job.out) + at;
    for (int x = 0; x < s; ++x) out[x] = to_bf16(float(levels[x]) * scale32 + shift32);
  } else if (job.type == DType::f64) {
    double* out = static_cast<double*>(job.out) + at;
    for (int x = 0; x < s; ++x) out[x] = double(levels[x]) * scale + shift;
  } else {
    std::uint8_t* out = static_cast<std::uint8_t*>(job.out) + ((std::size_t(row) * s + std::size_t(y)) * s) * 3 + c;
    for (int x = 0; x < s; ++x) out[3 * x] = levels[x];
  }
}

void on_host(const CropJob& job) {
  thread_local Scratch s;
  if (job.type != DType::f32 && job.type != DType::f64 && job.type != DType::bf16 && job.type != DType::u8)
    throw Error(ExitCode::bug, "crop_resize", "makes no " + std::string(name(job.type)));
  const int wide = padded(job.size);
  s.levels.resize(std::size_t(wide));
  for (std::int64_t i = 0; i < job.rows; ++i) {
    const Crop& crop = job.crops[i];
    s.across.set({crop.left, crop.box_width, crop.width, job.size}, crop.mirror != 0);
    s.down.set({crop.top, crop.box_height, crop.height, job.size}, false);
    const int first = s.down.at.front().first, last = s.down.at.back().first + s.down.at.back().count;
    pass_across(job.bytes + i * job.stride, crop, first, last, job.size, s);
    const int plane_rows = padded(last - first);
    for (int c = 0; c < 3; ++c)
      for (int y = 0; y < job.size; ++y) {
        const TapRange t = s.down.at[std::size_t(y)];
        const auto* rows = s.planes.data() + (std::size_t(c) * plane_rows + (t.first - first)) * wide;
        pass_down(rows, s.down.of(y), t.count, wide, s.levels.data());
        write_row(job, i, c, y, s.levels.data());
      }
  }
}

}  // namespace

constinit Kernel<CropJob> crop_resize("crop_resize", on_host);

}  // namespace trireme
