// Encoder, second half: symbol streams, each with tables by class and interleaved rANS (rans.cpp has the layout).
#pragma once
#include "compression/codecs/bounded_encode.cuh"

namespace trireme::coding {

__device__ inline std::uint32_t row_of(const DeviceStream& t, std::uint32_t r) { return t.row_of ? t.row_of[r] : r; }

// Memory of a stream of up to `count` symbols in up to `classes` classes.
__device__ inline void take_tables(DeviceStream& t, Arena& arena, std::uint32_t classes) {
  t.counts = arena.take<std::uint32_t>(classes * most_symbols);
  t.coders = arena.take<DeviceCoder>(classes * most_symbols);
  t.levels = arena.take<std::uint8_t>(classes * most_symbols);
}
__device__ inline void take_lanes(DeviceStream& t, Arena& arena, std::uint32_t log2) {
  t.state = arena.take<std::uint32_t>(std::size_t{1} << log2);
  t.group_words = arena.take<std::uint32_t>((std::size_t{1} << log2) / group_lanes + 1);
}

// ---- classes of rows, as row_classes.cpp ----

__device__ inline std::uint32_t distance_of(const std::uint8_t* row, std::uint32_t dim, std::uint32_t centre,
                                            std::uint32_t shift) {
  std::uint32_t sum = 0;
  if (dim % 4 == 0) {
    const std::uint32_t n = dim / 4, four = centre * 0x01010101u;
    std::uint32_t k = shift % n;
    for (std::uint32_t i = 0; i < n; ++i) {
      sum += __vsadu4(reinterpret_cast<const std::uint32_t*>(row)[k], four);
      k = k + 1 == n ? 0 : k + 1;
    }
  } else {
    for (std::uint32_t i = 0; i < dim; ++i) sum += row[i] > centre ? row[i] - centre : centre - row[i];
  }
  return min(sum, distance_bins - 1);
}

// Adds a row's symbols but `centre`. Those nearest to it, most of them, are counted by the row, so that few threads
// meet.
__device__ inline void count_row(const std::uint8_t* row, std::uint32_t words, std::uint32_t centre,
                                 std::uint32_t shift, std::uint32_t* counts) {
  constexpr int near = 3;
  std::uint32_t n[2 * near] = {}, k = shift % words;
  for (std::uint32_t i = 0; i < words; ++i) {
    const std::uint32_t word = reinterpret_cast<const std::uint32_t*>(row)[k];
    k = k + 1 == words ? 0 : k + 1;
    std::uint32_t others = ~__vcmpeq4(word, centre * 0x01010101u);
    if (!others) continue;
    for (int d = 0; d < 2 * near; ++d) {
      const std::uint32_t symbol = centre + static_cast<std::uint32_t>(d < near ? d - near : d - near + 1);
      if (symbol >= most_symbols) continue;
      const std::uint32_t equal = __vcmpeq4(word, symbol * 0x01010101u);
      n[d] += __popc(equal) / 8;
      others &= ~equal;
    }
    for (std::uint32_t b = 0; others && b < 4; ++b)
      if (others >> (8 * b) & 1) atomicAdd(&counts[word >> (8 * b) & 255], 1u);
  }
  for (int d = 0; d < 2 * near; ++d)
    if (n[d]) atomicAdd(&counts[centre + static_cast<std::uint32_t>(d < near ? d - near : d - near + 1)], n[d]);
}

// Counts of four classes, into t.counts; the code of zero is what the others leave over.
__device__ inline void count_symbols(EncodeShared& s, DeviceStream& t, std::uint32_t rows, std::uint32_t centre,
                                     const std::uint32_t* rows_of_class) {
  for (std::uint32_t i = threadIdx.x; i < most_classes * most_symbols; i += block_threads) t.counts[i] = 0;
  __syncthreads();
  const std::uint32_t dim = t.period;
  const auto add = [&](std::uint32_t c, std::uint32_t symbol) {
    if (symbol != centre) atomicAdd(&t.counts[c * most_symbols + symbol], 1u);
  };
  if (dim % 4 == 0) {
    for (std::uint32_t r = threadIdx.x; r < rows; r += block_threads)
      count_row(t.symbols + std::size_t{row_of(t, r)} * dim, dim / 4, centre, r,
                t.counts + t.class_of_row[r] * most_symbols);
  } else {
    for (std::uint32_t i = threadIdx.x; i < t.count; i += block_threads) {
      const std::uint32_t r = i / dim;
      add(t.class_of_row[r], t.symbols[std::size_t{row_of(t, r)} * dim + i % dim]);
    }
  }
  __syncthreads();
  const unsigned lane = threadIdx.x % 32, c = threadIdx.x / 32;
  if (c < most_classes) {
    std::uint32_t others = 0;
    for (std::uint32_t symbol = lane; symbol < most_symbols; symbol += 32)
      others += t.counts[c * most_symbols + symbol];
    others = warp_sum(others);
    if (lane == 0) t.counts[c * most_symbols + centre] = rows_of_class[c] * dim - others;
  }
  __syncthreads();
}

// What classes `first` to `last` of the four cost as one, by one warp.
__device__ inline unsigned long long cost_of(const DeviceStream& t, std::uint32_t first, std::uint32_t last) {
  const unsigned lane = threadIdx.x % 32;
  const auto count = [&](std::uint32_t symbol) {
    std::uint32_t sum = 0;
    for (std::uint32_t c = first; c <= last; ++c) sum += t.counts[c * most_symbols + symbol];
    return sum;
  };
  std::uint32_t total = 0, low = most_symbols, high = 0;
  for (std::uint32_t symbol = lane; symbol < most_symbols; symbol += 32) {
    const std::uint32_t n = count(symbol);
    total += n;
    if (n) low = min(low, symbol), high = symbol;
  }
  total = warp_sum(total), low = warp_min(low), high = warp_max(high);
  if (total == 0) return table_bits_256(1);
  const std::uint32_t log2_total = log2_256(total);
  unsigned long long bits = 0;
  for (std::uint32_t symbol = lane; symbol < most_symbols; symbol += 32)
    bits += symbol_bits_256(count(symbol), log2_total);
  return warp_sum(bits) + table_bits_256(high - low + 1);
}

// Classes, counts of the classes, and their number. t: symbols, row_of, period, count are set; bins: shared, 1024.
__device__ inline void classify(EncodeShared& s, DeviceStream& t, std::uint8_t* classes, std::uint32_t* distance,
                                std::uint32_t* bins, std::uint32_t centre) {
  __shared__ std::uint32_t rows_of_class[most_classes];
  const std::uint32_t rows = t.count / t.period;
  bins[threadIdx.x] = 0;
  if (threadIdx.x < most_classes) rows_of_class[threadIdx.x] = 0;
  __syncthreads();
  for (std::uint32_t r = threadIdx.x; r < rows; r += block_threads) {
    distance[r] = distance_of(t.symbols + std::size_t{row_of(t, r)} * t.period, t.period, centre, r);
    atomicAdd(&bins[distance[r]], 1u);
  }
  __syncthreads();
  std::uint32_t total;
  const std::uint32_t nearer = block_scan(bins[threadIdx.x], s.sums, total);
  bins[threadIdx.x] = nearer;
  __syncthreads();
  for (std::uint32_t r = threadIdx.x; r < rows; r += block_threads) {
    const std::uint32_t c = class_of(bins[distance[r]], rows);
    classes[r] = static_cast<std::uint8_t>(c);
    atomicAdd(&rows_of_class[c], 1u);
  }
  __syncthreads();
  t.class_of_row = classes;
  count_symbols(s, t, rows, centre, rows_of_class);
  const unsigned warp = threadIdx.x / 32;
  constexpr std::uint32_t parts[7][2] = {{0, 3}, {0, 1}, {2, 3}, {0, 0}, {1, 1}, {2, 2}, {3, 3}};
  if (warp < 7) {
    const unsigned long long cost = cost_of(t, parts[warp][0], parts[warp][1]);
    if (threadIdx.x % 32 == 0) s.cost[warp] = cost;
  }
  __syncthreads();
  const unsigned long long one = s.cost[0], two = s.cost[1] + s.cost[2] + 256ull * rows,
                           four = s.cost[3] + s.cost[4] + s.cost[5] + s.cost[6] + 512ull * rows;
  const std::uint32_t n = one <= two && one <= four ? 1 : two <= four ? 2 : 4;
  if (threadIdx.x == 0) t.classes = n;
  for (std::uint32_t i = threadIdx.x; n < 4 && i < most_symbols; i += block_threads) {
    std::uint32_t* count = t.counts + i;
    const std::uint32_t low = count[0] + count[most_symbols], high = count[2 * most_symbols] + count[3 * most_symbols];
    count[0] = n == 1 ? low + high : low;
    count[most_symbols] = high;
  }
  for (std::uint32_t r = threadIdx.x; n < 4 && r < rows; r += block_threads) classes[r] = n == 1 ? 0 : classes[r] / 2;
  __syncthreads();
}

// Counts of symbols that lie one after another, in one class.
__device__ inline void count_bytes(std::uint32_t* counts, const std::uint8_t* symbols, std::uint32_t n) {
  for (std::uint32_t i = threadIdx.x; i < most_symbols; i += block_threads) counts[i] = 0;
  __syncthreads();
  for (std::uint32_t i = threadIdx.x; i < n; i += block_threads) atomicAdd(&counts[symbols[i]], 1u);
  __syncthreads();
}

// settle_levels for 32 symbols, one a lane: bit k says that symbol k takes the higher of its two levels. Every lane
// carries the error along; what the others hold comes by shuffles, which do not wait for it.
__device__ inline std::uint32_t higher_levels(std::uint32_t share, std::uint32_t frequencies, std::int32_t& carried) {
  std::uint32_t higher = 0;
  std::int32_t error = carried;
#pragma unroll
  for (std::uint32_t k = 0; k < 32; ++k) {
    const std::uint32_t both = __shfl_sync(all_lanes, frequencies, k);
    const auto low = static_cast<std::int32_t>(256 * (both & 0xffff)),
               high = static_cast<std::int32_t>(256 * (both >> 16));
    const std::int32_t wanted = error + static_cast<std::int32_t>(__shfl_sync(all_lanes, share, k));
    const bool up = high - wanted < wanted - low;
    higher |= (up ? 1u : 0u) << k;
    error = wanted - (up ? high : low);
  }
  carried = error;
  return higher;
}

// The levels of symbols low to low + span, by one warp; as settle_levels.
__device__ inline void choose_levels(const std::uint32_t* count, std::uint32_t span, std::uint32_t top,
                                     std::uint32_t total, std::uint8_t* level) {
  const unsigned lane = threadIdx.x % 32;
  std::int32_t carried = 0;
  std::uint32_t sum = 0;
  for (std::uint32_t begin = 0; begin < span; begin += 32) {
    const std::uint32_t i = begin + lane;
    const bool counts = i < span && i != top && count[i];
    const std::uint32_t share = counts ? share_256(count[i], total) : 0, l = counts ? level_below(share) : 0,
                        next = counts && l + 1 == levels ? 0xffffu : level_frequency(counts ? l + 1 : 0);
    const std::uint32_t higher = higher_levels(share, level_frequency(l) | next << 16, carried),
                        mine = counts ? l + (higher >> lane & 1) : 0;
    if (i < span) level[i] = static_cast<std::uint8_t>(mine);
    sum += level_frequency(mine);
  }
  sum = warp_sum(sum);
  __syncwarp();
  if (lane == 0) lower_levels(span, top, sum, level);
  __syncwarp();
}

// The table of one class, by one warp.
__device__ inline void make_table(DeviceStream& t, std::uint32_t c) {
  const unsigned lane = threadIdx.x % 32;
  const std::uint32_t* count = t.counts + c * most_symbols;
  std::uint32_t low = most_symbols - 1, high = 0, total = 0, most = 0;
  for (std::uint32_t symbol = lane; symbol < most_symbols; symbol += 32)
    if (count[symbol]) {
      low = min(low, symbol), high = symbol;
      total += count[symbol];
      most = max(most, count[symbol]);
    }
  low = warp_min(low), high = warp_max(high), total = warp_sum(total), most = warp_max(most);
  if (total == 0) high = low = most_symbols - 1;
  std::uint32_t top = most_symbols;
  for (std::uint32_t symbol = lane; symbol < most_symbols; symbol += 32)
    if (total && count[symbol] == most) top = min(top, symbol);
  top = total ? warp_min(top) - low : 0;
  const std::uint32_t span = high - low + 1;
  std::uint8_t* level = t.levels + c * most_symbols;
  DeviceCoder* coder = t.coders + c * most_symbols + low;
  choose_levels(count + low, span, top, total, level);
  if (lane == 0) t.low[c] = low, t.span[c] = span, t.top[c] = top;
  std::uint32_t sum = 0, before = 0;
  for (std::uint32_t i = lane; i < span; i += 32) sum += level_frequency(level[i]);
  sum = warp_sum(sum);  // that of `top` is 0
  for (std::uint32_t begin = 0; begin < span; begin += 32) {
    const std::uint32_t i = begin + lane, frequency = i >= span  ? 0
                                                      : i == top ? rans_total - sum
                                                                 : level_frequency(level[i]);
    const std::uint32_t upto = warp_scan(frequency);
    if (i < span) coder[i] = make_coder(frequency, before + upto - frequency);
    before += __shfl_sync(all_lanes, upto, 31);
  }
}

// ---- rANS ----

// In registers: from shared memory they would be read again after each store.
struct SymbolSource {
  const std::uint8_t* symbols;
  const std::uint32_t* row_of;
  const std::uint8_t* class_of_row;  // none: one class
  std::uint32_t period;
};
struct Position {
  std::uint32_t row;
  std::int32_t column;
  __device__ void back(std::uint32_t symbols, std::uint32_t period) {
    column -= static_cast<std::int32_t>(symbols);
    while (column < 0 && row > 0) column += static_cast<std::int32_t>(period), --row;
  }
};
// A symbol and its class, apart, so that nothing waits for them before they are used.
struct Loaded {
  std::uint32_t symbol, of_class;
  __device__ std::uint32_t coder() const { return of_class * most_symbols + symbol; }
};
__device__ inline Loaded symbol_at(const SymbolSource& t, const Position& at) {
  const std::uint32_t row = t.row_of ? t.row_of[at.row] : at.row;
  const auto column = static_cast<std::uint32_t>(max(at.column, 0));  // before the first: any
  return {t.symbols[std::size_t{row} * t.period + column], t.class_of_row ? t.class_of_row[at.row] : 0u};
}

// One group of lanes, by one warp, from the last symbol to the first.
__device__ inline void encode_group(DeviceStream& t, std::uint32_t g) {
  const unsigned lane = threadIdx.x % 32;
  const SymbolSource source{t.symbols, t.row_of, t.classes > 1 ? t.class_of_row : nullptr, t.period};
  const DeviceCoder* const coders = t.coders;
  std::uint16_t* const words = t.words;
  const std::uint32_t count = t.count, period = t.period;
  const Lanes lanes = lanes_of(t.log2, count);
  const std::uint32_t in_group = lanes.in_group,
                      first = static_cast<std::uint32_t>(min(std::uint64_t{count}, g * lanes.per_group)),
                      end = static_cast<std::uint32_t>(min(std::uint64_t{count}, first + lanes.per_group)),
                      steps = (end - first + in_group - 1) / in_group, mine = g * in_group + lane;
  const bool in = lane < in_group;
  std::uint32_t x = rans_low;
  for (std::uint32_t b = 0; in && b < 2; ++b)
    if (2 * mine + b < t.late_bytes) x |= static_cast<std::uint32_t>(t.late[2 * mine + b]) << (8 * b);
  const std::uint32_t last = first + (steps ? steps - 1 : 0) * in_group + lane;
  Position at{0, 0};
  if (in) at = {last / period, static_cast<std::int32_t>(last % period)};
  // What does not depend on x is fetched ahead: the symbol two steps, its coder one.
  Loaded symbol = in && last < end ? symbol_at(source, at) : Loaded{0, 0};
  std::uint32_t word = end;
  DeviceCoder next = coders[symbol.coder()];
  at.back(in_group, period);
  symbol = symbol_at(source, at);
  const unsigned higher = ~((2u << lane) - 1);
  for (std::uint32_t step = steps; step-- > 0;) {
    const DeviceCoder c = next;
    next = coders[symbol.coder()];
    at.back(in_group, period);
    symbol = symbol_at(source, at);
    const bool active = in && first + step * in_group + lane < end,
               emit = active && (x >> (32 - rans_bits)) >= c.frequency;
    const unsigned all = __ballot_sync(all_lanes, emit);
    if (emit) words[word - 1 - __popc(all & higher)] = static_cast<std::uint16_t>(x);
    x = emit ? x >> 16 : x;
    word -= __popc(all);
    const std::uint32_t whole = divide(x, c);
    if (active) x += whole * (rans_total - c.frequency) + c.first;
  }
  if (in) t.state[mine] = x;
  if (lane == 0) t.group_words[g] = end - word;
}

__device__ inline std::uint32_t groups_of(const DeviceStream& t) { return lanes_of(t.log2, t.count).groups; }
__device__ inline std::uint32_t class_bytes(const DeviceStream& t) {
  return (t.count / t.period * bits_for(t.classes) + 7) / 8;
}
__device__ inline std::uint32_t table_bytes(const DeviceStream& t, std::uint32_t c) {
  return 3 + (level_bits * t.span[c] + 7) / 8;
}

// All streams of the chunk: tables a warp each, then groups a warp each; then their lengths.
__device__ inline void encode_streams(EncodeShared& s) {
  const unsigned warp = threadIdx.x / 32;
  std::uint32_t task = 0;
  for (std::uint32_t k = 0; k < s.streams; ++k)
    for (std::uint32_t c = 0; c < s.stream[k].classes; ++c, ++task)
      if (task % block_warps == warp) make_table(s.stream[k], c);
  __syncthreads();
  task = 0;
  for (std::uint32_t k = 0; k < s.streams; ++k)
    for (std::uint32_t g = 0; g < groups_of(s.stream[k]); ++g, ++task)
      if (task % block_warps == warp) encode_group(s.stream[k], g);
  __syncthreads();
  if (threadIdx.x < s.streams) {
    DeviceStream& t = s.stream[threadIdx.x];
    const std::uint32_t groups = groups_of(t);
    std::uint32_t bytes = 1 + class_bytes(t) + 4 * (groups - 1) + (4u << t.log2);
    for (std::uint32_t c = 0; c < t.classes; ++c) bytes += table_bytes(t, c);
    for (std::uint32_t g = 0; g < groups; ++g) bytes += 2 * t.group_words[g];
    t.bytes = bytes;
  }
  __syncthreads();
}

// Its bytes, as they travel.
__device__ inline void put_stream(const DeviceStream& t, std::uint8_t* to) {
  const std::uint32_t class_log2 = bits_for(t.classes), packed = class_bytes(t), rows = t.count / t.period;
  if (threadIdx.x == 0) to[0] = static_cast<std::uint8_t>(t.log2 | class_log2 << 4);
  ++to;
  for (std::uint32_t i = threadIdx.x; i < packed; i += block_threads) {
    const std::uint32_t each = 8 / class_log2;
    std::uint32_t byte = 0;
    for (std::uint32_t k = 0; k < each; ++k)
      if (i * each + k < rows) byte |= static_cast<std::uint32_t>(t.class_of_row[i * each + k]) << (k * class_log2);
    to[i] = static_cast<std::uint8_t>(byte);
  }
  to += packed;
  for (std::uint32_t c = 0; c < t.classes; ++c) {
    const std::uint8_t* level = t.levels + c * most_symbols;
    for (std::uint32_t i = threadIdx.x; i < table_bytes(t, c); i += block_threads) {
      std::uint32_t byte = i == 0 ? t.low[c] : i == 1 ? t.span[c] - 1 : t.top[c];
      for (std::uint32_t b = 0; i >= 3 && b < 8; ++b) {
        const std::uint32_t bit = 8 * (i - 3) + b;
        if (b == 0) byte = 0;
        if (bit < level_bits * t.span[c]) byte |= (level[bit / level_bits] >> (bit % level_bits) & 1u) << b;
      }
      to[i] = static_cast<std::uint8_t>(byte);
    }
    to += table_bytes(t, c);
  }
  const std::uint32_t groups = groups_of(t);
  const auto put_words = [&](const std::uint32_t* from, std::uint32_t n) {
    for (std::uint32_t i = threadIdx.x; i < 4 * n; i += block_threads)
      to[i] = static_cast<std::uint8_t>(from[i / 4] >> (8 * (i % 4)));
    to += 4 * n;
  };
  put_words(t.group_words, groups - 1);
  put_words(t.state, 1u << t.log2);
  const Lanes lanes = lanes_of(t.log2, t.count);
  const unsigned lane = threadIdx.x % 32;
  const std::uint16_t* const words = t.words;
  for (std::uint32_t g = threadIdx.x / 32; g < groups; g += block_warps) {  // a warp a group; at most 32 groups
    const std::uint32_t end = static_cast<std::uint32_t>(min(std::uint64_t{t.count}, (g + 1) * lanes.per_group)),
                        n = t.group_words[g], before = warp_sum(lane < g ? t.group_words[lane] : 0);
    std::uint8_t* const part = to + 2 * std::size_t{before};
    for (std::uint32_t i = lane; i < n; i += 32) {
      const std::uint16_t word = words[end - n + i];
      part[2 * i] = static_cast<std::uint8_t>(word);
      part[2 * i + 1] = static_cast<std::uint8_t>(word >> 8);
    }
  }
}

}  // namespace trireme::coding
