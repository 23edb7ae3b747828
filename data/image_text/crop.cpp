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

// 16 x 16 bytes on their side: four rounds of interleaving the two halves.
void transpose(const std::uint8_t* in, std::uint8_t* out) {
  alignas(64) std::uint8_t other[lanes * lanes];
  const auto round = [](const std::uint8_t* __restrict a, std::uint8_t* __restrict b) {
    for (int i = 0; i < lanes / 2; ++i)
      for (int j = 0; j < lanes; ++j) {
        b[2 * (i * lanes + j)] = a[i * lanes + j];
        b[2 * (i * lanes + j) + 1] = a[(i + lanes / 2) * lanes + j];
      }
  };
  round(in, out), round(out, other), round(other, out), round(out, other);
  std::memcpy(out, other, sizeof other);
}

// Sums of levels times weights, rounded: the levels.
inline void to_levels(const Ints& sum, std::uint8_t* out) {
  Ints v = sum >> weight_bits;
  v = v < 0 ? v - v : v;
  v = v > 255 ? v - v + 255 : v;
  const Bytes b = __builtin_convertvector(v, Bytes);
  std::memcpy(out, &b, sizeof b);
}

// Columns of sixteen rows from `rows`, whose last may be the same; bytes [from, to) of each.
void turn(const std::uint8_t* const* rows, int from, int to, Ints* out) {
  alignas(64) std::uint8_t block[lanes * lanes], side[lanes * lanes];
  for (int j = from; j < to; j += lanes) {
    const int n = std::min(lanes, to - j);
    for (int r = 0; r < lanes; ++r) std::memcpy(block + r * lanes, rows[r] + j, std::size_t(n));
    transpose(block, side);
    for (int k = 0; k < n; ++k) {
      Bytes column;
      std::memcpy(&column, side + k * lanes, sizeof column);
      out[j + k] = __builtin_convertvector(column, Ints);
    }
  }
}

// Rows [first, last) of the region to planes[3, rows, wide], rows counted from `first`.
void pass_across(const std::uint8_t* pixels, const Crop& crop, int first, int last, int size, Scratch& s) {
  const int wide = padded(size), plane_rows = padded(last - first);
  s.turned.resize(std::size_t(crop.width) * 3);
  s.planes.resize(std::size_t(3) * plane_rows * wide);
  int left = crop.width, right = 0;
  for (const auto& t : s.across.at) left = std::min(left, t.first), right = std::max(right, t.first + t.count);
  alignas(64) std::uint8_t block[3][lanes * lanes] = {}, side[lanes * lanes];
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
        to_levels(r, block[0] + x * lanes), to_levels(g, block[1] + x * lanes), to_levels(b, block[2] + x * lanes);
      }
      for (int c = 0; c < 3; ++c) {
        transpose(block[c], side);
        std::uint8_t* out = s.planes.data() + (std::size_t(c) * plane_rows + (y - first)) * wide + x0;
        for (int q = 0; q < lanes; ++q) std::memcpy(out + std::size_t(q) * wide, side + q * lanes, lanes);
      }
    }
  }
}

// One output row of one plane.
void pass_down(const std::uint8_t* rows, const std::int32_t* weights, int count, int wide, std::uint8_t* out) {
  for (int x = 0; x < wide; x += lanes) {
    Ints sum = Ints{} + (1 << (weight_bits - 1));
    for (int k = 0; k < count; ++k) {
      Bytes b;
      std::memcpy(&b, rows + std::size_t(k) * wide + x, sizeof b);
      sum += __builtin_convertvector(b, Ints) * weights[k];
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
