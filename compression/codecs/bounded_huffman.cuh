// Encoder: canonical Huffman codes in sub-streams (huffman.cpp has the layout). A warp makes the book of a stream; then
// a warp takes a sub-stream and each of its lanes 32 symbols.
#pragma once
#include "compression/codecs/bounded_streams.cuh"

namespace trireme::coding {

// Counts of a stream's symbols, what the tree needs, and of each symbol its code | length << 16.
struct DeviceBook {
  std::uint32_t count[most_symbols], weight[most_symbols], entry[most_symbols];
  std::uint16_t leaf[most_symbols], parent[2 * most_symbols];
  std::uint8_t length[most_symbols], depth[most_symbols], below[most_symbols];  // length: from the least symbol on
  std::uint32_t low, span, bytes;                                               // bytes: of the whole stream
  std::uint64_t bits;
};

// What a book is for.
struct HuffmanStream {
  const std::uint8_t* symbols;
  const std::uint32_t* row_of;  // as DeviceStream's
  std::uint32_t count, period;
};

// ---- the book ----

// Counts of `rows` rows of codes, most of them `centre`.
__device__ inline void count_rows(DeviceBook& b, const HuffmanStream& t, std::uint32_t centre) {
  for (std::uint32_t i = threadIdx.x; i < most_symbols; i += block_threads) b.count[i] = 0;
  __syncthreads();
  const std::uint32_t rows = t.count / t.period;
  if (t.period % 4 == 0) {
    for (std::uint32_t r = threadIdx.x; r < rows; r += block_threads)
      count_row(t.symbols + std::size_t{t.row_of ? t.row_of[r] : r} * t.period, t.period / 4, centre, r, b.count);
  } else {
    for (std::uint32_t i = threadIdx.x; i < t.count; i += block_threads) {
      const std::uint32_t r = i / t.period,
                          symbol = t.symbols[std::size_t{t.row_of ? t.row_of[r] : r} * t.period + (i - r * t.period)];
      if (symbol != centre) atomicAdd(&b.count[symbol], 1u);
    }
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    std::uint32_t others = 0;
    for (std::uint32_t i = threadIdx.x; i < most_symbols; i += 32) others += b.count[i];
    others = warp_sum(others);
    if (threadIdx.x == 0) b.count[centre] = t.count - others;
  }
  __syncthreads();
}

// tree_depths of huffman.cpp, by one thread: counts are those from the least symbol on.
__device__ inline void tree_depths(DeviceBook& b, const std::uint32_t* count, std::uint32_t leaves) {
  std::uint32_t leaf = 0, inner = 0, made = 0;
  const auto take = [&] {
    if (leaf < leaves && (inner == made || count[b.leaf[leaf]] <= b.weight[inner])) {
      b.parent[leaf] = static_cast<std::uint16_t>(made);
      return count[b.leaf[leaf++]];
    }
    b.parent[most_symbols + inner] = static_cast<std::uint16_t>(made);
    return b.weight[inner++];
  };
  while (made + 1 < leaves) {
    const std::uint32_t one = take(), two = take();
    b.weight[made++] = one + two;
  }
  b.below[made - 1] = 0;
  for (std::uint32_t k = made - 1; k-- > 0;)
    b.below[k] = static_cast<std::uint8_t>(b.below[b.parent[most_symbols + k]] + 1);
}

// The end of huffman_lengths, by one thread; nothing to do where no code is too long.
__device__ inline void limit_depths(DeviceBook& b, std::uint32_t leaves) {
  constexpr std::uint32_t kraft = 1u << longest_code;
  std::uint32_t sum = 0;
  for (std::uint32_t k = 0; k < leaves; ++k) {
    if (b.depth[k] > longest_code) b.depth[k] = longest_code;
    sum += kraft >> b.depth[k];
  }
  for (std::uint32_t k = 0; sum > kraft;) {
    if (b.depth[k] == longest_code) {
      ++k;
      continue;
    }
    sum -= (kraft >> b.depth[k]) / 2;
    ++b.depth[k];
  }
  for (std::uint32_t k = leaves; k-- > 0;)
    while (b.depth[k] > 1 && sum + (kraft >> b.depth[k]) <= kraft) sum += kraft >> b.depth[k]--;
}

// Leaves by count and symbol. Returns their number.
__device__ inline std::uint32_t sort_leaves(DeviceBook& b, const std::uint32_t* count, std::uint32_t span) {
  std::uint32_t mine = 0;
  for (std::uint32_t i = threadIdx.x % 32; i < span; i += 32) {
    const std::uint32_t n = count[i];
    if (n == 0) continue;
    std::uint32_t rank = 0;
    for (std::uint32_t k = 0; k < span; ++k) {
      const std::uint32_t other = count[k];
      rank += other && (other < n || (other == n && k < i)) ? 1 : 0;
    }
    b.leaf[rank] = static_cast<std::uint16_t>(i);
    ++mine;
  }
  return warp_sum(mine);
}

// Canonical codes, first bit lowest, and the bits of the stream.
__device__ inline void assign_codes(DeviceBook& b, const std::uint32_t* count, std::uint32_t span) {
  std::uint64_t bits = 0;
  for (std::uint32_t i = threadIdx.x % 32; i < span; i += 32) {
    const std::uint32_t length = b.length[i];
    std::uint32_t code = 0;
    for (std::uint32_t k = 0; length && k < span; ++k) {
      const std::uint32_t other = b.length[k];
      if (other && other < length) code += 1u << (length - other);
      if (other == length && k < i) ++code;
    }
    b.entry[b.low + i] = length ? __brev(code) >> (32 - length) | length << 16 : 0;
    bits += std::uint64_t{count[i]} * length;
  }
  bits = warp_sum(bits);
  if (threadIdx.x % 32 == 0) b.bits = bits;
}

__device__ inline std::uint32_t parts_of(std::uint32_t count) { return (count + sub_stream - 1) / sub_stream; }
__device__ inline std::uint32_t lengths_bytes(std::uint32_t span) { return (4 * span + 7) / 8; }

// By one warp, from its counts.
__device__ inline void make_book(DeviceBook& b, std::uint32_t symbols) {
  const unsigned lane = threadIdx.x % 32;
  std::uint32_t low = most_symbols - 1, high = 0;
  for (std::uint32_t i = lane; i < most_symbols; i += 32)
    if (b.count[i]) low = min(low, i), high = i;
  low = warp_min(low), high = warp_max(high);
  const std::uint32_t span = high - low + 1, *count = b.count + low;
  if (lane == 0) b.low = low, b.span = span, b.bits = 0, b.bytes = 2;
  __syncwarp();
  if (span == 1) return;
  const std::uint32_t leaves = sort_leaves(b, count, span);
  __syncwarp();
  if (lane == 0) tree_depths(b, count, leaves);
  __syncwarp();
  std::uint32_t deepest = 0;
  for (std::uint32_t k = lane; k < leaves; k += 32) {
    b.depth[k] = static_cast<std::uint8_t>(b.below[b.parent[k]] + 1);
    deepest = max(deepest, std::uint32_t{b.depth[k]});
  }
  deepest = warp_max(deepest);
  for (std::uint32_t i = lane; i < span; i += 32) b.length[i] = 0;
  __syncwarp();
  if (lane == 0 && deepest > longest_code) limit_depths(b, leaves);
  __syncwarp();
  for (std::uint32_t k = lane; k < leaves; k += 32) b.length[b.leaf[k]] = b.depth[k];
  __syncwarp();
  assign_codes(b, count, span);
  __syncwarp();
  const std::uint32_t parts = parts_of(symbols);
  if (lane == 0)
    b.bytes = static_cast<std::uint32_t>(2 + lengths_bytes(span) + (parts > 1 ? 2 * parts : 0) + (b.bits + 7) / 8);
}

// ---- codes ----

constexpr std::uint32_t run = 32;  // symbols of a lane
static_assert(run * 32 == sub_stream);

// `n` symbols from number `first` on, a multiple of 32, four a word.
__device__ inline void load_run(const HuffmanStream& t, std::uint32_t first, std::uint32_t n,
                                std::uint32_t (&words)[run / 4]) {
  const bool whole = t.row_of ? t.period % 4 == 0 : true;
  std::uint32_t row = t.row_of && n ? first / t.period : 0, column = t.row_of ? first - row * t.period : first;
#pragma unroll
  for (std::uint32_t w = 0; w < run / 4; ++w) {
    words[w] = 0;
    if (4 * w >= n) continue;
    if (whole && 4 * w + 4 <= n) {
      words[w] = *reinterpret_cast<const std::uint32_t*>(
          t.symbols + (t.row_of ? std::size_t{t.row_of[row]} * t.period : 0) + column);
      column += 4;
      if (t.row_of && column == t.period) column = 0, ++row;
      continue;
    }
    for (std::uint32_t b = 0; b < 4 && 4 * w + b < n; ++b) {
      const std::size_t at = (t.row_of ? std::size_t{t.row_of[row]} * t.period : 0) + column;
      words[w] |= std::uint32_t{t.symbols[at]} << (8 * b);
      if (++column == t.period && t.row_of) column = 0, ++row;
    }
  }
}

// Codes of one run, from `bit` on; words that others write into as well are joined.
__device__ inline void put_run(const DeviceBook& b, const std::uint32_t (&symbols)[run / 4], std::uint32_t n,
                               std::uint64_t bit, std::uint32_t* words) {
  std::uint32_t* at = words + bit / 32;
  std::uint32_t filled = static_cast<std::uint32_t>(bit % 32);
  std::uint64_t held = 0;
  bool first = true;
#pragma unroll
  for (std::uint32_t k = 0; k < run; ++k) {
    if (k >= n) continue;
    const std::uint32_t entry = b.entry[symbols[k / 4] >> (8 * (k % 4)) & 255];
    held |= std::uint64_t{entry & 0xffff} << filled;
    filled += entry >> 16;
    if (filled < 32) continue;
    if (first)
      atomicOr(at, static_cast<std::uint32_t>(held));
    else
      *at = static_cast<std::uint32_t>(held);
    first = false;
    ++at;
    held >>= 32;
    filled -= 32;
  }
  if (filled && held) atomicOr(at, static_cast<std::uint32_t>(held));
}

// Words whose first byte lies before `to`, so that they lie as `to` does, to bytes `to` to `to` + bytes.
__device__ inline void put_words(const std::uint32_t* words, std::uint8_t* to, std::size_t bytes) {
  const std::uint32_t skipped = static_cast<std::uint32_t>(reinterpret_cast<std::size_t>(to) % 4);
  for (std::size_t i = threadIdx.x; 4 * i < skipped + bytes; i += block_threads) {
    const std::uint32_t word = words[i];
    if (4 * i >= skipped && 4 * i + 4 <= skipped + bytes) {
      *reinterpret_cast<std::uint32_t*>(to + 4 * i - skipped) = word;
      continue;
    }
    for (std::uint32_t b = 0; b < 4; ++b)
      if (4 * i + b >= skipped && 4 * i + b < skipped + bytes)
        to[4 * i + b - skipped] = static_cast<std::uint8_t>(word >> (8 * b));
  }
}

// All bytes of a stream. words: room for its codes and one more. On its own: its registers are many.
__device__ __noinline__ void put_huffman(EncodeShared& s, const DeviceBook& b, HuffmanStream t, std::uint32_t* words,
                                         std::uint8_t* to) {
  if (threadIdx.x == 0) to[0] = static_cast<std::uint8_t>(b.low), to[1] = static_cast<std::uint8_t>(b.span - 1);
  to += 2;
  if (b.span == 1) return;  // all threads
  for (std::uint32_t i = threadIdx.x; i < lengths_bytes(b.span); i += block_threads)
    to[i] = static_cast<std::uint8_t>(b.length[2 * i] | (2 * i + 1 < b.span ? b.length[2 * i + 1] << 4 : 0));
  to += lengths_bytes(b.span);
  const std::uint32_t parts = parts_of(t.count);
  std::uint8_t* const sizes = to;
  if (parts > 1) to += 2 * parts;
  std::uint64_t bit = 8 * (reinterpret_cast<std::size_t>(to) % 4);
  for (std::uint64_t i = threadIdx.x; 32 * i < bit + b.bits; i += block_threads) words[i] = 0;
  __syncthreads();
  const unsigned lane = threadIdx.x % 32;
  for (std::uint32_t begin = 0; begin < parts; begin += block_warps) {
    const std::uint32_t part = begin + threadIdx.x / 32;
    const std::uint64_t first = std::uint64_t{part} * sub_stream + run * lane;
    const std::uint32_t n = first < t.count ? static_cast<std::uint32_t>(min(std::uint64_t{run}, t.count - first)) : 0;
    std::uint32_t symbols[run / 4], mine = 0, total;
    load_run(t, static_cast<std::uint32_t>(min(first, std::uint64_t{t.count})), n, symbols);
#pragma unroll
    for (std::uint32_t k = 0; k < run; ++k)
      if (k < n) mine += b.entry[symbols[k / 4] >> (8 * (k % 4)) & 255] >> 16;
    const std::uint32_t of_part = warp_sum(mine), before = block_scan(mine, s.sums, total);
    if (n) put_run(b, symbols, n, bit + before, words);
    if (lane == 0 && parts > 1 && part < parts) {
      sizes[2 * part] = static_cast<std::uint8_t>(of_part);
      sizes[2 * part + 1] = static_cast<std::uint8_t>(of_part >> 8);
    }
    bit += total;
  }
  __syncthreads();
  put_words(words, to, static_cast<std::size_t>((b.bits + 7) / 8));
  __syncthreads();
}

}  // namespace trireme::coding
