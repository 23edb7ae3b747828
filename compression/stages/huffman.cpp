// Layout: u8 least symbol, u8 span - 1; where span > 1: 4 bits a symbol (length of its code), a u16 for each sub-stream
// (its bits) where there are several, the codes. Canonical codes, by length and symbol, read from the lowest bit on.
#include "compression/stages/symbols.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace trireme::coding {
namespace {

constexpr std::uint32_t kraft = 1u << longest_code;

struct Book {
  std::uint8_t length[most_symbols] = {};
  std::uint16_t code[most_symbols] = {};  // its first bit is the lowest
};

std::uint16_t reversed(std::uint32_t code, std::uint32_t bits) {
  std::uint32_t r = 0;
  for (std::uint32_t b = 0; b < bits; ++b) r |= ((code >> b) & 1u) << (bits - 1 - b);
  return static_cast<std::uint16_t>(r);
}

void assign_codes(Book& book, std::uint32_t span) {
  std::uint32_t next = 0;
  for (std::uint32_t bits = 1; bits <= longest_code; ++bits, next <<= 1)
    for (std::uint32_t s = 0; s < span; ++s)
      if (book.length[s] == bits) book.code[s] = reversed(next++, bits);
}

// Depths in the tree of two queues: leaves by count and symbol, and inner nodes as they are made. Of equals a leaf
// first.
void tree_depths(const std::uint32_t* count, std::span<const std::uint16_t> leaves, std::uint8_t* depth) {
  const std::size_t n = leaves.size();
  std::array<std::uint64_t, most_symbols> weight;
  std::array<std::uint16_t, 2 * most_symbols> parent;
  std::size_t leaf = 0, inner = 0, made = 0;
  const auto take = [&](std::size_t node) {
    if (leaf < n && (inner == made || count[leaves[leaf]] <= weight[inner])) {
      parent[leaf] = static_cast<std::uint16_t>(node);
      return std::uint64_t{count[leaves[leaf++]]};
    }
    parent[most_symbols + inner] = static_cast<std::uint16_t>(node);
    return weight[inner++];
  };
  while (made + 1 < n) {
    const std::uint64_t one = take(made), two = take(made);
    weight[made++] = one + two;
  }
  std::array<std::uint8_t, most_symbols> below{};
  for (std::size_t k = made - 1; k-- > 0;) below[k] = static_cast<std::uint8_t>(below[parent[most_symbols + k]] + 1);
  for (std::size_t k = 0; k < n; ++k) depth[k] = static_cast<std::uint8_t>(below[parent[k]] + 1);
}

}  // namespace

void huffman_lengths(const std::uint32_t* count, std::uint32_t span, std::uint8_t* length) {
  std::vector<std::uint16_t> leaves;
  for (std::uint32_t s = 0; s < span; ++s) {
    length[s] = 0;
    if (count[s]) leaves.push_back(static_cast<std::uint16_t>(s));
  }
  std::stable_sort(leaves.begin(), leaves.end(), [&](auto a, auto b) { return count[a] < count[b]; });
  std::array<std::uint8_t, most_symbols> depth{};
  tree_depths(count, leaves, depth.data());
  std::uint32_t sum = 0;
  for (std::size_t k = 0; k < leaves.size(); ++k) {
    depth[k] = static_cast<std::uint8_t>(std::min<std::uint32_t>(depth[k], longest_code));
    sum += kraft >> depth[k];
  }
  // Codes cut to the limit overfill the tree: the rarest that can grow do, and the most frequent take what is left
  // over.
  for (std::size_t k = 0; sum > kraft;) {
    if (depth[k] == longest_code) {
      ++k;
      continue;
    }
    sum -= (kraft >> depth[k]) / 2;
    ++depth[k];
  }
  for (std::size_t k = leaves.size(); k-- > 0;)
    while (depth[k] > 1 && sum + (kraft >> depth[k]) <= kraft) sum += kraft >> depth[k]--;
  for (std::size_t k = 0; k < leaves.size(); ++k) length[leaves[k]] = depth[k];
}

void encode_huffman(const Symbols& in, Bytes& out) {
  std::uint32_t count[most_symbols] = {};
  for (std::uint32_t i = 0; i < in.count; ++i) ++count[in.at[i]];
  std::uint32_t low = 0, high = most_symbols - 1;
  while (count[low] == 0) ++low;
  while (count[high] == 0) --high;
  const std::uint32_t span = high - low + 1;
  out.push_back(static_cast<std::uint8_t>(low));
  out.push_back(static_cast<std::uint8_t>(span - 1));
  if (span == 1) return;
  Book book;
  huffman_lengths(count + low, span, book.length);
  assign_codes(book, span);
  BitWriter lengths(out);
  for (std::uint32_t s = 0; s < span; ++s) lengths.write(book.length[s], 4);
  lengths.finish();
  const std::uint32_t parts = (in.count + sub_stream - 1) / sub_stream;
  for (std::uint32_t p = 0; parts > 1 && p < parts; ++p) {
    std::uint32_t bits = 0;
    for (std::uint32_t i = p * sub_stream; i < std::min(in.count, (p + 1) * sub_stream); ++i)
      bits += book.length[in.at[i] - low];
    put(out, static_cast<std::uint16_t>(bits));
  }
  BitWriter codes(out);
  for (std::uint32_t i = 0; i < in.count; ++i) {
    const std::uint32_t s = in.at[i] - low;
    codes.write(book.code[s], book.length[s]);
  }
  codes.finish();
}

namespace {

// What the next bits say: symbol and length of its code.
struct Entry {
  std::uint8_t symbol, length;
};
using Table = std::array<Entry, kraft>;

void make_table(std::span<const std::uint8_t> packed, std::uint32_t low, std::uint32_t span, Table& table) {
  Book book;
  BitReader bits(packed);
  std::uint32_t sum = 0;
  for (std::uint32_t s = 0; s < span; ++s) {
    book.length[s] = static_cast<std::uint8_t>(bits.read(4));
    if (book.length[s] > longest_code) bad_stream("a Huffman code is too long");
    if (book.length[s]) sum += kraft >> book.length[s];
  }
  if (sum != kraft) bad_stream("the Huffman codes fill no tree");
  assign_codes(book, span);
  for (std::uint32_t s = 0; s < span; ++s)
    if (book.length[s])
      for (std::uint32_t at = book.code[s]; at < kraft; at += 1u << book.length[s])
        table[at] = {static_cast<std::uint8_t>(low + s), book.length[s]};
}

// `bits`: where the part begins in `codes`. Returns where it ends.
std::uint64_t decode_part(const Table& table, std::span<const std::uint8_t> codes, std::uint64_t bit,
                          std::uint32_t count, std::uint8_t* out) {
  std::size_t at = static_cast<std::size_t>(bit / 8);
  std::uint64_t word = 0;
  std::uint32_t filled = 0;
  const auto fill = [&] {
    if (at + 8 <= codes.size()) {
      std::uint64_t next;
      std::memcpy(&next, codes.data() + at, 8);
      word |= next << filled;
      at += (63 - filled) / 8;
      filled |= 56;
    } else {
      for (; filled <= 56; filled += 8, ++at)
        if (at < codes.size()) word |= static_cast<std::uint64_t>(codes[at]) << filled;
    }
  };
  const auto next = [&] {
    const Entry e = table[word & (kraft - 1)];
    word >>= e.length;
    filled -= e.length;
    return e.symbol;
  };
  fill();
  word >>= bit % 8;
  filled -= static_cast<std::uint32_t>(bit % 8);
  std::uint32_t i = 0;
  for (; i + 4 <= count; i += 4) {
    fill();
    for (std::uint32_t k = 0; k < 4; ++k) out[i + k] = next();
  }
  for (; i < count; ++i) {
    fill();
    out[i] = next();
  }
  return 8 * static_cast<std::uint64_t>(at) - filled;
}

}  // namespace

void decode_huffman(std::span<const std::uint8_t> bytes, std::uint32_t count, std::uint32_t largest,
                    std::uint8_t* out) {
  Reader in(bytes);
  const std::uint32_t low = in.get<std::uint8_t>(), span = in.get<std::uint8_t>() + 1u;
  if (low + span - 1 > largest) bad_stream("a symbol is too large");
  if (span == 1) {
    std::fill_n(out, count, static_cast<std::uint8_t>(low));
  } else {
    Table table;
    make_table(in.take(bytes_of_bits(4 * span)), low, span, table);
    const std::uint32_t parts = (count + sub_stream - 1) / sub_stream;
    const auto lengths = in.take(parts > 1 ? std::size_t{2} * parts : 0);
    const auto codes = in.rest();
    std::uint64_t bit = 0;
    for (std::uint32_t p = 0; p < parts; ++p) {
      const std::uint32_t first = p * sub_stream, n = std::min(sub_stream, count - first);
      const std::uint64_t end = decode_part(table, codes, bit, n, out + first);
      if (end > 8 * std::uint64_t{codes.size()}) bad_stream("a part ends too early");
      std::uint16_t bits = 0;
      if (parts > 1) std::memcpy(&bits, lengths.data() + 2 * p, 2);
      if (parts > 1 && end - bit != bits) bad_stream("a part is as long as it does not say");
      bit = end;
    }
    if (bytes_of_bits(bit) != codes.size()) bad_stream("a part has bytes left over");
  }
  if (in.left()) bad_stream("a part has bytes left over");
}

}  // namespace trireme::coding
