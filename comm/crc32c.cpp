#include "comm/crc32c.h"

#include <array>
#include <cstring>
#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace trireme {
namespace {

constexpr std::array<std::uint32_t, 256> make_table() {
  std::array<std::uint32_t, 256> t{};
  for (std::uint32_t i = 0; i < 256; ++i) {
    std::uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = c & 1 ? (c >> 1) ^ 0x82F63B78u : c >> 1;
    t[i] = c;
  }
  return t;
}
constexpr auto table = make_table();

std::uint32_t crc_table(const unsigned char* p, std::size_t n, std::uint32_t c) {
  while (n--) c = table[(c ^ *p++) & 0xff] ^ (c >> 8);
  return c;
}

#if defined(__x86_64__)
constexpr std::size_t lane = 4096;  // bytes

// What `lane` zero bytes make of a sum: linear in its bits, so four tables by byte.
struct Skip {
  std::uint32_t by_byte[4][256] = {};
  Skip() {
    for (int bit = 0; bit < 32; ++bit) {
      std::uint32_t c = std::uint32_t{1} << bit;
      for (std::size_t i = 0; i < lane; ++i) c = table[c & 0xff] ^ (c >> 8);
      for (int b = 0; b < 256; ++b)
        if (b >> (bit % 8) & 1) by_byte[bit / 8][b] ^= c;
    }
  }
  std::uint32_t operator()(std::uint32_t c) const {
    return by_byte[0][c & 0xff] ^ by_byte[1][c >> 8 & 0xff] ^ by_byte[2][c >> 16 & 0xff] ^ by_byte[3][c >> 24];
  }
};

__attribute__((target("sse4.2"))) std::uint64_t next(std::uint64_t crc, const unsigned char* p) {
  std::uint64_t word;
  std::memcpy(&word, p, 8);
  return _mm_crc32_u64(crc, word);
}

// The instruction takes three cycles and can begin every cycle: three lanes side by side, then joined.
__attribute__((target("sse4.2"))) std::uint32_t crc_hardware(const unsigned char* p, std::size_t n, std::uint32_t c) {
  std::uint64_t a = c;
  if (n >= 3 * lane) {
    static const Skip skip;
    for (; n >= 3 * lane; n -= 3 * lane, p += 3 * lane) {
      std::uint64_t b = 0, d = 0;
      for (std::size_t i = 0; i < lane; i += 8)
        a = next(a, p + i), b = next(b, p + lane + i), d = next(d, p + 2 * lane + i);
      a = skip(skip(std::uint32_t(a)) ^ std::uint32_t(b)) ^ d;
    }
  }
  for (; n >= 8; n -= 8, p += 8) a = next(a, p);
  for (; n; --n) a = _mm_crc32_u8(std::uint32_t(a), *p++);
  return std::uint32_t(a);
}
#endif

}  // namespace

std::uint32_t crc32c(const void* data, std::size_t bytes, std::uint32_t seed) {
  const auto* p = static_cast<const unsigned char*>(data);
  std::uint32_t c = ~seed;
#if defined(__x86_64__)
  static const bool hardware = __builtin_cpu_supports("sse4.2");
  if (hardware) return ~crc_hardware(p, bytes, c);
#endif
  return ~crc_table(p, bytes, c);
}

}  // namespace trireme
