// Decoder: symbol streams, a warp a group of lanes. Every length, offset and index is checked before it is used; what
// is wrong is told to the whole block at once, and nothing is read or written outside.
#pragma once
#include "compression/codecs/bounded_device.h"
#include "compression/stages/block.cuh"

namespace trireme::coding {

// A reader of one thread. Beyond the end it says 0 and remembers.
struct DeviceReader {
  const std::uint8_t* at;
  const std::uint8_t* end;
  bool bad;
  __device__ std::size_t left() const { return static_cast<std::size_t>(end - at); }
  __device__ const std::uint8_t* take(std::uint64_t n) {
    if (n > left()) {
      bad = true;
      return at;
    }
    const std::uint8_t* part = at;
    at += n;
    return part;
  }
  __device__ std::uint32_t byte() {
    const std::uint8_t* part = take(1);
    return bad ? 0 : *part;
  }
  __device__ std::uint32_t word() {
    const std::uint8_t* part = take(4);
    std::uint32_t w = 0;
    for (int b = 0; b < 4 && !bad; ++b) w |= static_cast<std::uint32_t>(part[b]) << (8 * b);
    return w;
  }
  __device__ std::uint32_t number() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift <= 28; shift += 7) {
      const std::uint32_t b = byte();
      value |= static_cast<std::uint64_t>(b & 127) << shift;
      if (!(b & 128)) {
        bad = bad || value >> 32;
        return static_cast<std::uint32_t>(value);
      }
    }
    bad = true;
    return 0;
  }
};

struct SymbolTable {
  std::uint8_t symbol[rans_total];        // of each slot
  std::uint32_t frequency[most_symbols];  // | first slot << 16; of the symbols from the least on
};

struct DeviceSource {
  std::uint32_t count, period, largest, log2, classes;
  const std::uint8_t* class_bits;
  const std::uint8_t* table_at[most_classes];  // the levels
  std::uint32_t low[most_classes], span[most_classes], top[most_classes];
  const std::uint8_t *group_words, *states, *words, *end;
  SymbolTable* table;  // [classes]
  std::uint8_t* classes_of_row;
  std::uint8_t* out;   // [count]
  std::uint8_t* late;  // [2 lanes]
};

// By one thread: where its parts lie. False: it cannot be one.
__device__ inline bool parse_stream(DeviceSource& t, const std::uint8_t* bytes, std::uint64_t size) {
  DeviceReader in{bytes, bytes + size, false};
  const std::uint32_t shape = in.byte(), class_log2 = shape >> 4;
  t.log2 = shape & 15;
  t.classes = 1u << class_log2;
  if (in.bad || t.log2 > most_lanes_log2 || class_log2 > 2) return false;
  const std::uint64_t rows = (t.count + t.period - 1) / t.period;
  t.class_bits = in.take((rows * class_log2 + 7) / 8);
  for (std::uint32_t c = 0; c < t.classes; ++c) {
    t.low[c] = in.byte(), t.span[c] = in.byte() + 1, t.top[c] = in.byte();
    if (in.bad || t.low[c] + t.span[c] - 1 > t.largest || t.top[c] >= t.span[c]) return false;
    t.table_at[c] = in.take((level_bits * t.span[c] + 7) / 8);
  }
  const std::uint32_t groups = lanes_of(t.log2, t.count).groups;
  t.group_words = in.take(4 * (groups - 1));
  t.states = in.take(4u << t.log2);
  t.words = in.at;
  t.end = in.end;
  return !in.bad && in.left() % 2 == 0;
}

__device__ inline std::uint32_t word_at(const std::uint8_t* p) {
  return p[0] | static_cast<std::uint32_t>(p[1]) << 8 | static_cast<std::uint32_t>(p[2]) << 16 |
         static_cast<std::uint32_t>(p[3]) << 24;
}

// One class's table, by one warp. False: its frequencies are none.
__device__ inline bool read_table(DeviceSource& t, std::uint32_t c) {
  const unsigned lane = threadIdx.x % 32;
  SymbolTable& table = t.table[c];
  std::uint32_t sum = 0;
  for (std::uint32_t i = lane; i < t.span[c]; i += 32) {
    const std::uint32_t f = i == t.top[c] ? 0 : level_frequency(get_bits(t.table_at[c], level_bits * i, level_bits));
    table.frequency[i] = f;
    sum += f;
  }
  sum = warp_sum(sum);
  if (sum >= rans_total) return false;
  __syncwarp();
  if (lane == 0) table.frequency[t.top[c]] = rans_total - sum;
  __syncwarp();
  std::uint32_t before = 0;
  for (std::uint32_t begin = 0; begin < t.span[c]; begin += 32) {
    const std::uint32_t i = begin + lane, f = i < t.span[c] ? table.frequency[i] : 0;
    std::uint32_t upto = f;
    for (unsigned step = 1; step < 32; step *= 2) {
      const std::uint32_t other = __shfl_up_sync(all_lanes, upto, step);
      if (lane >= step) upto += other;
    }
    if (i < t.span[c]) table.frequency[i] = f | (before + upto - f) << 16;
    before += __shfl_sync(all_lanes, upto, 31);
  }
  __syncwarp();
  for (std::uint32_t i = 0; i < t.span[c]; ++i) {
    const std::uint32_t f = table.frequency[i];
    for (std::uint32_t k = lane; k < (f & 0xffff); k += 32) table.symbol[(f >> 16) + k] = static_cast<std::uint8_t>(i);
  }
  return true;
}

// One group, by one warp. False: its words are too few or too many, or a lane does not end where it began.
__device__ inline bool decode_group(const DeviceSource& t, std::uint32_t g) {
  const unsigned lane = threadIdx.x % 32;
  const Lanes lanes = lanes_of(t.log2, t.count);
  const std::uint32_t first = static_cast<std::uint32_t>(min(std::uint64_t{t.count}, g * lanes.per_group)),
                      end = static_cast<std::uint32_t>(min(std::uint64_t{t.count}, first + lanes.per_group));
  std::uint64_t skipped = 0;
  for (std::uint32_t k = 0; k < g; ++k) skipped += word_at(t.group_words + 4 * k);
  const std::uint64_t all = static_cast<std::uint64_t>(t.end - t.words) / 2,
                      mine = g + 1 < lanes.groups ? word_at(t.group_words + 4 * g) : all - min(all, skipped);
  if (skipped + mine > all) return false;
  const std::uint8_t* word = t.words + 2 * skipped;
  const bool in = lane < lanes.in_group;
  std::uint32_t x = in ? word_at(t.states + 4 * (g * lanes.in_group + lane)) : rans_low, at = 0;
  bool good = x >= rans_low;
  std::uint32_t row = (first + lane) / t.period, column = (first + lane) % t.period;
  const unsigned lower = (1u << lane) - 1;
  for (std::uint32_t begin = first; begin < end; begin += lanes.in_group) {
    const std::uint32_t p = begin + lane;
    const bool active = in && p < end;
    bool wants = false;
    if (active) {
      const std::uint32_t c = t.classes > 1 ? t.classes_of_row[row] : 0, slot = x & (rans_total - 1);
      const SymbolTable& table = t.table[c];
      const std::uint32_t symbol = table.symbol[slot];
      t.out[p] = static_cast<std::uint8_t>(t.low[c] + symbol);
      const std::uint32_t f = table.frequency[symbol];
      x = (f & 0xffff) * (x >> rans_bits) + slot - (f >> 16);
      wants = x < rans_low;
    }
    const unsigned asking = __ballot_sync(all_lanes, wants);
    if (wants) {
      const std::uint32_t mine_at = at + __popc(asking & lower);
      good = good && mine_at < mine;
      const std::uint8_t* next = word + 2 * (mine_at < mine ? mine_at : 0);
      x = x << 16 | (mine ? next[0] | static_cast<std::uint32_t>(next[1]) << 8 : 0);
    }
    at += __popc(asking);
    column += lanes.in_group;
    while (column >= t.period) column -= t.period, ++row;
  }
  if (in) {
    good = good && x >> 16 == 1;
    std::uint8_t* late = t.late + 2 * (g * lanes.in_group + lane);
    late[0] = static_cast<std::uint8_t>(x);
    late[1] = static_cast<std::uint8_t>(x >> 8);
  }
  return __all_sync(all_lanes, good && at == mine);
}

// All streams: classes and tables, then groups. All threads return alike: false, something is wrong.
__device__ inline bool decode_streams(DeviceSource* source, std::uint32_t streams) {
  const unsigned warp = threadIdx.x / 32;
  bool good = true;
  for (std::uint32_t k = 0; k < streams; ++k) {
    const DeviceSource& t = source[k];
    const std::uint32_t log2 = bits_for(t.classes), rows = (t.count + t.period - 1) / t.period;
    for (std::uint32_t r = threadIdx.x; log2 && r < rows; r += block_threads)
      t.classes_of_row[r] = static_cast<std::uint8_t>(get_bits(t.class_bits, std::uint64_t{log2} * r, log2));
  }
  std::uint32_t task = 0;
  for (std::uint32_t k = 0; k < streams; ++k)
    for (std::uint32_t c = 0; c < source[k].classes; ++c, ++task)
      if (task % block_warps == warp) good = read_table(source[k], c) && good;
  if (!__syncthreads_and(good)) return false;
  task = 0;
  for (std::uint32_t k = 0; k < streams; ++k)
    for (std::uint32_t g = 0; g < lanes_of(source[k].log2, source[k].count).groups; ++g, ++task)
      if (task % block_warps == warp) good = decode_group(source[k], g) && good;
  return __syncthreads_and(good);
}

}  // namespace trireme::coding
