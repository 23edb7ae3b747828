// Decoder: Huffman codes, a thread a sub-stream and up to three symbols a look (huffman.cpp has the layout), and
// vector-LZ (vector_lz.cpp): where tokens lie by sums over their flags, where rows come from by following all matches
// at once in steps that double. Nothing is read or written outside; what is wrong is refused as on the host.
#pragma once
#include "compression/codecs/bounded_index.cuh"

namespace trireme::coding {

// ---- Huffman ----

// A slot: up to three symbols | bits of all << 24 | how many << 28.
static_assert(rans_total == 1u << longest_code, "one kind of table holds both");
constexpr std::uint32_t most_a_look = 3, lanes_busy = 8;  // of a warp: more would wait for each other

__device__ inline std::uint32_t half_at(const std::uint8_t* p) { return p[0] | static_cast<std::uint32_t>(p[1]) << 8; }
__device__ inline std::uint32_t parts_of(const DeviceSource& t) {  // those that have bits
  return t.span[0] == 1 ? 0 : (t.count + sub_stream - 1) / sub_stream;
}

// By one thread: where its parts lie. False: it cannot be one.
__device__ inline bool parse_huffman(DeviceSource& t, const std::uint8_t* bytes, std::uint64_t size) {
  DeviceReader in{bytes, bytes + size, false};
  t.classes = 1, t.log2 = 0, t.late_bytes = 0;
  t.low[0] = in.byte(), t.span[0] = in.byte() + 1;
  if (in.bad || t.low[0] + t.span[0] - 1 > t.largest) return false;
  if (t.span[0] == 1) return in.left() == 0;
  t.table_at[0] = in.take((4 * t.span[0] + 7) / 8);
  const std::uint32_t parts = parts_of(t);
  t.group_words = in.take(parts > 1 ? 2 * parts : 0);
  t.words = in.at, t.end = in.end;
  return !in.bad;
}

// Of each symbol its length | code << 16, by one warp. False: the codes fill no tree.
__device__ inline bool read_lengths(const DeviceSource& t) {
  const unsigned lane = threadIdx.x % 32;
  const std::uint32_t span = t.span[0];
  std::uint32_t sum = 0, longest = 0;
  for (std::uint32_t i = lane; i < span; i += 32) {
    const std::uint32_t length = get_bits(t.table_at[0], 4 * i, 4);
    t.symbols[i] = length;
    sum += length ? (1u << longest_code) >> length : 0;
    longest = max(longest, length);
  }
  sum = warp_sum(sum), longest = warp_max(longest);
  if (sum != 1u << longest_code || longest > longest_code) return false;
  __syncwarp();
  for (std::uint32_t i = lane; i < span; i += 32) {
    const std::uint32_t length = t.symbols[i] & 15;
    std::uint32_t code = 0;
    for (std::uint32_t k = 0; length && k < span; ++k) {
      const std::uint32_t other = t.symbols[k] & 15;
      if (other && other < length) code += 1u << (length - other);
      if (other == length && k < i) ++code;
    }
    if (length) t.symbols[i] = length | __brev(code) >> (32 - length) << 16;
  }
  return true;
}

// First every slot's first symbol, a warp a symbol; then those behind it.
__device__ inline void fill_first(const DeviceSource& t) {
  const unsigned lane = threadIdx.x % 32;
  for (std::uint32_t i = threadIdx.x / 32; i < t.span[0]; i += block_warps) {
    const std::uint32_t length = t.symbols[i] & 15, code = t.symbols[i] >> 16;
    for (std::uint32_t at = code + (lane << length); length && at < rans_total; at += 32u << length)
      t.table->slot[at] = (t.low[0] + i) | length << 24 | 1u << 28;
  }
}
__device__ inline void fill_more(const DeviceSource& t) {
  const std::uint32_t* const symbols = t.symbols;
  std::uint32_t* const slot = t.table->slot;
  const std::uint32_t low = t.low[0];
  for (std::uint32_t at = threadIdx.x; at < rans_total; at += block_threads) {
    std::uint32_t entry = 0, bits = 0, n = 0;
    while (n < most_a_look) {
      const std::uint32_t symbol = slot[at >> bits] & 255, length = symbols[symbol - low] & 15;  // the first stays
      if (bits + length > longest_code) break;
      entry |= symbol << (8 * n++);
      bits += length;
    }
    slot[at] = entry | bits << 24 | n << 28;
  }
}

// Sub-stream `part`, `offset` bits behind the first. Returns its bits.
__device__ inline std::uint32_t decode_part(const DeviceSource& t, std::uint32_t part, std::uint64_t offset) {
  const std::uint32_t* const slot = t.table->slot;
  const std::size_t address = reinterpret_cast<std::size_t>(t.words);
  const auto* const words = reinterpret_cast<const std::uint32_t*>(address / 4 * 4);
  const std::uint64_t limit = (reinterpret_cast<std::size_t>(t.end) - address / 4 * 4 + 3) / 4,
                      begin = 8 * (address % 4) + offset;
  std::uint64_t at = begin / 32;
  const auto word = [&] {
    const std::uint32_t w = at < limit ? words[at] : 0;
    ++at;
    return w;
  };
  const std::uint32_t count = min(sub_stream, t.count - part * sub_stream);
  std::uint32_t* out = reinterpret_cast<std::uint32_t*>(t.out + std::size_t{part} * sub_stream);
  std::uint64_t held = word() >> (begin % 32), found = 0;
  std::uint32_t filled = 32 - static_cast<std::uint32_t>(begin % 32), next = word(), have = 0, used = 0;
  for (std::uint32_t done = 0; done < count;) {
    if (filled < 32) {
      held |= std::uint64_t{next} << filled;
      filled += 32;
      next = word();
    }
    const std::uint32_t entry = slot[held & (rans_total - 1)];
    std::uint32_t n = entry >> 28, bits = entry >> 24 & 15, some = entry & 0xffffff;
    if (n > count - done) n = 1, some &= 255, bits = t.symbols[some - t.low[0]] & 15;
    held >>= bits;
    filled -= bits;
    used += bits;
    done += n;
    found |= std::uint64_t{some} << (8 * have);
    have += n;
    if (have < 4) continue;
    *out++ = static_cast<std::uint32_t>(found);
    found >>= 32;
    have -= 4;
  }
  auto* const rest = reinterpret_cast<std::uint8_t*>(out);
  for (std::uint32_t b = 0; b < have; ++b) rest[b] = static_cast<std::uint8_t>(found >> (8 * b));
  return used;
}

// The sub-streams of all streams side by side.
__device__ inline bool decode_parts(const DeviceSource* source, std::uint32_t streams, std::uint32_t* sums) {
  __shared__ std::uint64_t start[3];  // bits before a stream
  const unsigned lane = threadIdx.x % 32;
  std::uint32_t all = 0;
  for (std::uint32_t k = 0; k < streams; ++k) all += parts_of(source[k]);
  std::uint64_t before = 0;
  bool good = true;
  for (std::uint32_t begin = 0; begin < all; begin += block_warps * lanes_busy) {
    std::uint32_t part = begin + threadIdx.x / 32 * lanes_busy + lane, k = 0;
    const bool here = lane < lanes_busy && part < all;
    while (here && part >= parts_of(source[k])) part -= parts_of(source[k++]);
    const DeviceSource& t = source[k];
    const std::uint32_t parts = here ? parts_of(t) : 0, bits = parts > 1 ? half_at(t.group_words + 2 * part) : 0;
    std::uint32_t total;
    const std::uint64_t at = before + block_scan(bits, sums, total);
    if (here && part == 0) start[k] = at;
    __syncthreads();
    before += total;
    if (!here) continue;
    const std::uint64_t offset = at - start[k], end = offset + decode_part(t, part, offset);
    if (parts > 1 && end - offset != bits) good = false;
    if (part + 1 == parts && (end + 7) / 8 != static_cast<std::uint64_t>(t.end - t.words)) good = false;
  }
  return good;
}

// All streams. All threads return alike: false, something is wrong.
__device__ __noinline__ bool decode_books(const DeviceSource* source, std::uint32_t streams, std::uint32_t* sums) {
  const unsigned warp = threadIdx.x / 32;
  bool good = true;
  for (std::uint32_t k = 0; k < streams; ++k) {
    const DeviceSource& t = source[k];
    if (t.span[0] == 1) {
      for (std::uint32_t i = threadIdx.x; i < t.count; i += block_threads)
        t.out[i] = static_cast<std::uint8_t>(t.low[0]);
    } else if (warp == k) {
      good = read_lengths(t);
    }
  }
  if (!__syncthreads_and(good)) return false;
  for (std::uint32_t k = 0; k < streams; ++k)
    if (source[k].span[0] > 1) fill_first(source[k]);
  __syncthreads();
  for (std::uint32_t k = 0; k < streams; ++k)
    if (source[k].span[0] > 1) fill_more(source[k]);
  __syncthreads();
  return __syncthreads_and(decode_parts(source, streams, sums));
}

// ---- vector-LZ ----

struct LzBlock {
  const std::uint8_t *flags, *data;
  std::uint32_t tokens, bytes, first, rows;
};
constexpr std::uint32_t literal = 1u << 31;  // in Work::index: with the literal's number, else the row that it equals

// Where each token's data begin, into w.order. False: they are not as many bytes as there are.
__device__ inline bool place_data(DecodeShared& s, const Work& w, const LzBlock& b, std::uint32_t width) {
  std::uint32_t before = 0;
  for (std::uint32_t begin = 0; begin < b.tokens; begin += block_threads) {
    const std::uint32_t t = begin + threadIdx.x;
    const bool here = t < b.tokens;
    std::uint32_t total;
    const std::uint32_t at = before + block_scan(!here ? 0 : get_bits(b.flags, t, 1) ? 2 : width, s.sums, total);
    if (here) w.order[t] = at;
    before += total;
  }
  __syncthreads();
  return before == b.bytes;
}

// Where each row of the block comes from, and where the literals' data begin (w.order again). All threads return alike.
__device__ inline bool place_rows(DecodeShared& s, const Work& w, const LzBlock& b, std::uint32_t& literals) {
  const std::uint32_t known = literals;
  std::uint32_t before = 0;
  bool good = true;
  for (std::uint32_t begin = 0; begin < b.tokens; begin += block_threads) {
    const std::uint32_t t = begin + threadIdx.x;
    const bool here = t < b.tokens, match = here && get_bits(b.flags, t, 1);
    const std::uint32_t at = here ? w.order[t] : 0,
                        length = match  ? b.data[at]
                                 : here ? 1
                                        : 0,
                        distance = match ? b.data[at + 1] : 0;
    std::uint32_t rows, more;
    const std::uint32_t row = before + block_scan(length, s.sums, rows),
                        number = literals + block_scan(here && !match ? 1 : 0, s.sums, more);
    if (match) {
      const bool inside = length > 0 && length <= distance && distance <= row && row + length <= b.rows;
      good = good && inside;
      for (std::uint32_t k = 0; inside && k < length; ++k) w.index[b.first + row + k] = row + k - distance;
    } else if (here) {
      good = good && row < b.rows;
      if (row < b.rows) w.index[b.first + row] = literal | number;
      w.order[number - known] = at;
    }
    before += rows;
    literals += more;
  }
  return __syncthreads_and(good) && before == b.rows;
}

// Rows that equal others become those others' literals.
__device__ inline void follow_matches(const Work& w, const LzBlock& b) {
  std::uint32_t* const from = w.index + b.first;
  for (bool done = false; !done;) {
    bool mine = true;
    for (std::uint32_t i = threadIdx.x; i < b.rows; i += block_threads) {
      if (from[i] & literal) continue;
      const std::uint32_t further = from[from[i]];
      from[i] = further;
      mine = mine && (further & literal);
    }
    done = __syncthreads_and(mine);
  }
  for (std::uint32_t i = threadIdx.x; i < b.rows; i += block_threads) from[i] &= ~literal;
}

__device__ inline void copy_literals(const Work& w, const LzBlock& b, std::uint32_t width, std::uint32_t n,
                                     std::uint8_t* to) {
  const std::uint32_t words = width % 4 == 0 ? width / 4 : 0;
  Walk at(words ? words : width);
  for (std::uint32_t i = threadIdx.x; i < n * at.width; i += block_threads, at.next()) {
    const std::uint8_t* const data = b.data + w.order[at.row];
    if (words)
      reinterpret_cast<std::uint32_t*>(to)[i] = word_at(data + 4 * at.column);
    else
      to[i] = data[at.column];
  }
}

// Literals into w.codes, side by side, and the literal of each row into w.index. All threads return alike.
__device__ __noinline__ bool decode_lz(DecodeShared& s, Work w, std::uint32_t n, std::uint32_t width) {
  const std::uint32_t blocks = (n + lz_block - 1) / lz_block;
  const std::uint8_t* const bytes = s.codes_at;
  std::uint64_t at = 6ull * blocks - 4;
  std::uint32_t literals = 0;
  if (at > s.bits_left) return false;
  for (std::uint32_t k = 0; k < blocks; ++k) {
    LzBlock b;
    b.first = k * lz_block, b.rows = min(lz_block, n - b.first);
    b.tokens = half_at(bytes + 2 * k);
    const std::uint32_t flags = (b.tokens + 7) / 8;
    if (b.tokens > b.rows || flags > s.bits_left - at) return false;
    b.flags = bytes + at;
    at += flags;
    const std::uint64_t rest = s.bits_left - at;
    b.bytes = k + 1 < blocks ? word_at(bytes + 2 * blocks + 4 * k) : static_cast<std::uint32_t>(rest);
    if (b.bytes > rest) return false;
    b.data = bytes + at;
    at += b.bytes;
    const std::uint32_t known = literals;
    if (!place_data(s, w, b, width) || !place_rows(s, w, b, literals)) return false;
    follow_matches(w, b);
    copy_literals(w, b, width, literals - known, w.codes + std::size_t{known} * width);
    __syncthreads();
  }
  return true;
}

}  // namespace trireme::coding
