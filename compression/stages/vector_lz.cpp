#include "compression/stages/vector_lz.h"

#include <algorithm>

namespace trireme::coding {
namespace {

struct Match {
  std::size_t length = 0, distance = 0;
};

// The longest run before row i that begins at most `window` rows back and ends before i; of equals the farthest.
Match longest(const std::uint8_t* block, std::size_t n, std::size_t width, std::size_t i, std::size_t window) {
  Match best;
  for (std::size_t from = i > window ? i - window : 0; from < i; ++from) {
    std::size_t length = 0;
    while (from + length < i && i + length < n &&
           std::memcmp(block + (from + length) * width, block + (i + length) * width, width) == 0)
      ++length;
    if (length > best.length) best = {length, i - from};
  }
  return best;
}

struct Block {
  std::size_t tokens = 0;
  Bytes flags, data;
};

Block encode_block(const std::uint8_t* rows, std::size_t n, std::size_t width, std::size_t window, LzCounts* counts) {
  Block b;
  BitWriter flags(b.flags);
  for (std::size_t i = 0; i < n; ++b.tokens) {
    const Match m = longest(rows, n, width, i, window);
    flags.write(m.length > 0, 1);
    if (m.length == 0) {
      put(b.data, std::span(rows + i++ * width, width));
      continue;
    }
    b.data.push_back(static_cast<std::uint8_t>(m.length));
    b.data.push_back(static_cast<std::uint8_t>(m.distance));
    i += m.length;
    if (counts) ++counts->matches, counts->covered += m.length;
  }
  flags.finish();
  return b;
}

}  // namespace

bool encode_vector_lz(const std::uint8_t* rows, std::size_t n, std::size_t width, std::uint32_t window,
                      std::size_t most, Bytes& out, LzCounts* counts) {
  Bytes sizes, body;
  for (std::size_t first = 0; first < n; first += lz_block) {
    const Block b =
        encode_block(rows + first * width, std::min<std::size_t>(lz_block, n - first), width, window, counts);
    put(out, static_cast<std::uint16_t>(b.tokens));
    if (first + lz_block < n) put(sizes, static_cast<std::uint32_t>(b.data.size()));
    put(body, b.flags);
    put(body, b.data);
    if (out.size() + sizes.size() + body.size() > most) return false;
  }
  put(out, sizes);
  put(out, body);
  return true;
}

namespace {

void decode_block(std::size_t tokens, std::span<const std::uint8_t> flag_bytes, Reader& data, std::size_t n,
                  std::size_t width, std::uint8_t* rows) {
  BitReader flags(flag_bytes);
  std::size_t i = 0;
  for (std::size_t t = 0; t < tokens; ++t) {
    if (!flags.read(1)) {
      if (i == n) bad_stream("a part has rows left over");
      std::memcpy(rows + i++ * width, data.take(width).data(), width);
      continue;
    }
    const std::size_t length = data.get<std::uint8_t>(), distance = data.get<std::uint8_t>();
    if (length == 0 || length > distance || distance > i || length > n - i)
      bad_stream("a match lies outside its block");
    std::memcpy(rows + i * width, rows + (i - distance) * width, length * width);
    i += length;
  }
  if (i != n) bad_stream("a part ends too early");
}

}  // namespace

void decode_vector_lz(std::span<const std::uint8_t> bytes, std::size_t n, std::size_t width, std::uint8_t* rows) {
  Reader in(bytes);
  const std::size_t blocks = (n + lz_block - 1) / lz_block;
  Reader tokens(in.take(2 * blocks)), sizes(in.take(blocks ? 4 * (blocks - 1) : 0));
  for (std::size_t first = 0; first < n; first += lz_block) {
    const std::size_t count = tokens.get<std::uint16_t>();
    const auto flags = in.take(bytes_of_bits(count));
    Reader data(first + lz_block < n ? in.take(sizes.get<std::uint32_t>()) : in.rest());
    decode_block(count, flags, data, std::min<std::size_t>(lz_block, n - first), width, rows + first * width);
    if (data.left()) bad_stream("a part has bytes left over");
  }
  if (in.left()) bad_stream("a part has bytes left over");
}

}  // namespace trireme::coding
