#include "comm/copy.h"

#include "comm/clones.h"

#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace trireme {
namespace {

// Unaligned and of any type; the clones cut it to what their instruction set has.
typedef long long Lines __attribute__((vector_size(64), aligned(1), may_alias));

TRIREME_CLONES void copy_lines(void* to, const void* from, std::size_t lines) {
  Lines* out = static_cast<Lines*>(to);
  const Lines* in = static_cast<const Lines*>(from);
  std::size_t i = 0;
  for (; i + 4 <= lines; i += 4) {
    const Lines a = in[i], b = in[i + 1], c = in[i + 2], d = in[i + 3];
    out[i] = a;
    out[i + 1] = b;
    out[i + 2] = c;
    out[i + 3] = d;
  }
  for (; i < lines; ++i) out[i] = in[i];
}

}  // namespace

void copy_bytes(void* to, const void* from, std::size_t bytes) {
  if (bytes == 0 || to == from) return;
  if (bytes < 2048) {
    std::memcpy(to, from, bytes);
    return;
  }
  // The first, partial line is copied on its own, so that stores do not cross lines.
  const std::size_t head = -reinterpret_cast<std::size_t>(to) % sizeof(Lines);
  std::memcpy(to, from, head);
  char* out = static_cast<char*>(to) + head;
  const char* in = static_cast<const char*>(from) + head;
  const std::size_t lines = (bytes - head) / sizeof(Lines), done = lines * sizeof(Lines);
  copy_lines(out, in, lines);
  std::memcpy(out + done, in + done, bytes - head - done);
}

void copy_result(void* to, const void* from, std::size_t bytes, std::size_t whole) {
  constexpr std::size_t beyond_caches = 8u << 20;
#if defined(__x86_64__)
  if (whole >= beyond_caches && bytes >= 4096) {
    const std::size_t head = -reinterpret_cast<std::size_t>(to) % 64;
    std::memcpy(to, from, head);
    __m128i* out = reinterpret_cast<__m128i*>(static_cast<char*>(to) + head);
    const __m128i* in = reinterpret_cast<const __m128i*>(static_cast<const char*>(from) + head);
    const std::size_t lines = (bytes - head) / 64, done = head + lines * 64;
    for (std::size_t i = 0; i < lines; ++i, in += 4, out += 4) {
      const __m128i a = _mm_loadu_si128(in), b = _mm_loadu_si128(in + 1), c = _mm_loadu_si128(in + 2),
                    d = _mm_loadu_si128(in + 3);
      _mm_stream_si128(out, a);
      _mm_stream_si128(out + 1, b);
      _mm_stream_si128(out + 2, c);
      _mm_stream_si128(out + 3, d);
    }
    _mm_sfence();  // what follows may tell another rank that it is there
    std::memcpy(static_cast<char*>(to) + done, static_cast<const char*>(from) + done, bytes - done);
    return;
  }
#endif
  copy_bytes(to, from, bytes);
}

}  // namespace trireme
