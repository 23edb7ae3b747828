// Rows are taken sixteen at a time and turned on their side, so that both passes add whole vectors. Built for this
// machine's vector units.
#include "data/image_text/resize.h"

#include <algorithm>
#include <cstring>
#include <utility>

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
  // Input pixels [first, second) that any of them sees.
  std::pair<int, int> range() const {
    const TapRange &a = at.front(), &b = at.back();
    return {std::min(a.first, b.first), std::max(a.first + a.count, b.first + b.count)};
  }
};

// What a thread reuses from picture to picture.
struct Scratch {
  Taps across, down;
  std::vector<Ints> turned;          // [3 * width] columns of sixteen rows
  std::vector<std::uint8_t> planes;  // [3, rows, padded size] levels after the first pass
  std::vector<std::uint8_t> levels;
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

// Rows [first, last) to planes[3, rows, wide], rows counted from `first`.
void pass_across(const std::uint8_t* pixels, int pitch, int first, int last, Scratch& s) {
  const int size = int(s.across.at.size()), wide = padded(size), plane_rows = padded(last - first);
  const auto [left, right] = s.across.range();
  s.turned.resize(std::size_t(right) * 3);
  s.planes.resize(std::size_t(3) * plane_rows * wide);
  Bytes block[3][lanes] = {};
  for (int y = first; y < last; y += lanes) {
    const std::uint8_t* rows[lanes];
    for (int r = 0; r < lanes; ++r) rows[r] = pixels + std::size_t(std::min(y + r, last - 1)) * pitch;
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

// Output row of `n` bytes side by side in rows `pitch` apart. Up to the next multiple of sixteen is written.
void pass_down(const std::uint8_t* rows, int pitch, const std::int32_t* weights, int count, int n, std::uint8_t* out) {
  const Ints half = Ints{} + (1 << (weight_bits - 1));
  int x = 0;
  for (; x + lanes <= n; x += lanes) {
    Ints sum = half;
    for (int k = 0; k < count; ++k) {
      Ints row;
      widen(rows + std::size_t(k) * pitch + x, row);
      sum += row * weights[k];
    }
    to_levels(sum, out + x);
  }
  if (x == n) return;
  Ints sum = half;
  for (int k = 0; k < count; ++k) {
    std::uint8_t last[lanes] = {};
    std::memcpy(last, rows + std::size_t(k) * pitch + x, std::size_t(n - x));
    Ints row;
    widen(last, row);
    sum += row * weights[k];
  }
  to_levels(sum, out + x);
}

void across_then_down(const Resample& r, const EmitRow& emit, Scratch& s) {
  const auto [first, last] = s.down.range();
  pass_across(r.pixels, r.pitch, first, last, s);
  const int wide = padded(r.across.out), plane_rows = padded(last - first);
  s.levels.resize(std::size_t(wide));
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < r.down.out; ++y) {
      const TapRange t = s.down.at[std::size_t(y)];
      const auto* rows = s.planes.data() + (std::size_t(c) * plane_rows + std::size_t(t.first - first)) * wide;
      pass_down(rows, wide, s.down.of(y), t.count, wide, s.levels.data());
      emit(c, y, s.levels.data());
    }
}

void down_then_across(const Resample& r, const EmitRow& emit, Scratch& s) {
  const auto [left, right] = s.across.range();
  const int pitch = 3 * right + lanes;
  s.levels.resize(std::size_t(r.down.out) * pitch);
  for (int y = 0; y < r.down.out; ++y) {
    const TapRange t = s.down.at[std::size_t(y)];
    pass_down(r.pixels + std::size_t(t.first) * r.pitch + 3 * left, r.pitch, s.down.of(y), t.count, 3 * (right - left),
              s.levels.data() + std::size_t(y) * pitch + 3 * left);
  }
  pass_across(s.levels.data(), pitch, 0, r.down.out, s);
  const int wide = padded(r.across.out), plane_rows = padded(r.down.out);
  for (int c = 0; c < 3; ++c)
    for (int y = 0; y < r.down.out; ++y) emit(c, y, s.planes.data() + (std::size_t(c) * plane_rows + y) * wide);
}

}  // namespace

void resample(const Resample& r, const EmitRow& emit) {
  thread_local Scratch s;
  s.across.set(r.across, r.mirror);
  s.down.set(r.down, false);
  r.down_first ? down_then_across(r, emit, s) : across_then_down(r, emit, s);
}

Image resize(const Image& in, int width, int height, Filter filter) {
  if (in.width == width && in.height == height) return in;
  Image out{width, height, std::vector<std::uint8_t>(std::size_t(3) * width * height)};
  resample({in.rgb.data(),
            3 * in.width,
            {0, double(in.width), in.width, width, filter},
            {0, double(in.height), in.height, height, filter},
            false,
            down_first(in.width, in.height, width, height)},
           [&](int c, int y, const std::uint8_t* levels) {
             std::uint8_t* to = out.rgb.data() + std::size_t(3) * y * width + c;
             for (int x = 0; x < width; ++x) to[3 * x] = levels[x];
           });
  return out;
}

}  // namespace trireme
