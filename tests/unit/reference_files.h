// Where reference files lie, and a PNG writer that works byte by byte (stored deflate blocks), so that the tests share
// no code with the decoder's library.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

namespace trireme::test {

using Bytes = std::vector<std::uint8_t>;

// A file of tests/reference; ctest says where the sources are.
inline std::string reference_file(const std::string& name) {
  const char* source = std::getenv("TRIREME_SOURCE");
  return (std::filesystem::path(source ? source : ".") / "tests" / "reference" / name).string();
}

inline std::uint32_t crc32(const std::uint8_t* p, std::size_t n) {
  std::uint32_t c = ~0u;
  for (std::size_t i = 0; i < n; ++i) {
    c ^= p[i];
    for (int k = 0; k < 8; ++k) c = c & 1 ? 0xEDB88320u ^ c >> 1 : c >> 1;
  }
  return ~c;
}

inline void put32(Bytes& out, std::uint32_t v) {
  for (int shift = 24; shift >= 0; shift -= 8) out.push_back(std::uint8_t(v >> shift));
}

inline void put_chunk(Bytes& out, std::string_view type, const Bytes& data) {
  put32(out, std::uint32_t(data.size()));
  const std::size_t start = out.size();
  out.insert(out.end(), type.begin(), type.end());
  out.insert(out.end(), data.begin(), data.end());
  put32(out, crc32(out.data() + start, out.size() - start));
}

inline Bytes stored_zlib(const Bytes& data) {
  Bytes out{0x78, 0x01};
  std::uint32_t a = 1, b = 0;
  for (auto v : data) a = (a + v) % 65521, b = (b + a) % 65521;
  std::size_t at = 0;
  do {
    const std::size_t n = std::min<std::size_t>(65535, data.size() - at);
    out.push_back(at + n == data.size());
    for (std::size_t v : {n & 255, n >> 8, ~n & 255, ~n >> 8 & 255}) out.push_back(std::uint8_t(v));
    out.insert(out.end(), data.begin() + at, data.begin() + at + n);
    at += n;
  } while (at < data.size());
  put32(out, b << 16 | a);
  return out;
}

struct PngForm {
  int color, depth;  // as in the PNG header: 0 grey, 2 RGB, 3 palette, 4 grey+alpha, 6 RGBA
  bool interlaced = false;
  Bytes palette = {}, alpha = {};  // PLTE and tRNS
};

inline int channels(int color) { return color == 2 ? 3 : color == 4 ? 2 : color == 6 ? 4 : 1; }

// samples: height x width x channels.
inline Bytes write_png(const PngForm& f, int width, int height, const std::vector<int>& samples) {
  Bytes out{0x89, 'P', 'N', 'G', '\r', '\n', 0x1a, '\n'}, header, raw;
  put32(header, std::uint32_t(width));
  put32(header, std::uint32_t(height));
  for (int v : {f.depth, f.color, 0, 0, int(f.interlaced)}) header.push_back(std::uint8_t(v));
  put_chunk(out, "IHDR", header);
  if (!f.palette.empty()) put_chunk(out, "PLTE", f.palette);
  if (!f.alpha.empty()) put_chunk(out, "tRNS", f.alpha);
  struct Pass {
    int x, y, dx, dy;
  };
  const std::vector<Pass> adam7 = {{0, 0, 8, 8}, {4, 0, 8, 8}, {0, 4, 4, 8}, {2, 0, 4, 4},
                                   {0, 2, 2, 4}, {1, 0, 2, 2}, {0, 1, 1, 2}};
  const int n = channels(f.color);
  for (const Pass& p : f.interlaced ? adam7 : std::vector<Pass>{{0, 0, 1, 1}})
    for (int y = p.y; y < height; y += p.dy) {
      if (p.x >= width) continue;
      raw.push_back(0);  // no filter
      const std::size_t row = raw.size();
      int bit = 0;
      for (int x = p.x; x < width; x += p.dx)
        for (int c = 0; c < n; ++c, bit += f.depth) {
          const int v = samples[std::size_t(y * width + x) * n + c];
          raw.resize(row + std::size_t(bit + f.depth + 7) / 8);
          if (f.depth == 16)
            raw[row + bit / 8] = std::uint8_t(v >> 8), raw[row + bit / 8 + 1] = std::uint8_t(v);
          else
            raw[row + bit / 8] |= std::uint8_t(v << (8 - f.depth - bit % 8));
        }
    }
  put_chunk(out, "IDAT", stored_zlib(raw));
  put_chunk(out, "IEND", {});
  return out;
}

}  // namespace trireme::test
