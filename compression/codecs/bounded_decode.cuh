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

// As in rans.cpp. Of each slot: symbol | (frequency - 1) << 8 | (slot - first slot of the symbol) << 20.
struct SymbolTable {
  std::uint32_t slot[rans_total];
};

struct DeviceSource {
  std::uint32_t count, period, largest, log2, classes;
  std::uint32_t late_bytes;  // [2 lanes]; of Huffman 0
  const std::uint8_t* class_bits;
  const std::uint8_t* table_at[most_classes];  // the levels
  std::uint32_t low[most_classes], span[most_classes], top[most_classes];
  const std::uint8_t *group_words, *states, *words, *end;
  SymbolTable* table;      // [classes]
  std::uint32_t* symbols;  // [classes][256] frequency | first slot << 16, of the symbols from the least on
  std::uint8_t* classes_of_row;
  std::uint8_t* out;   // [count]
  std::uint8_t* late;  // [late_bytes]
};

// The code of a chunk of a part; no bytes where its sizes leave it none. Each warp for itself.
__device__ inline void find_in_part(DeviceDecode::Chunk& c) {
  const std::uint64_t header = 8 * (1 + std::uint64_t{c.of}), room = c.bytes - header;
  if (c.number >= c.of || c.bytes < header) {
    c.bytes = 0;
    return;
  }
  const auto* sizes = reinterpret_cast<const std::uint64_t*>(c.code + 8);
  const std::uint64_t size = sizes[c.number];
  unsigned long long before = 0;
  bool good = size <= room;
  for (std::uint32_t k = threadIdx.x % 32; k < c.number; k += 32) {
    const std::uint64_t other = sizes[k];
    good = good && other <= room && other % 4 == 0;
    before += other;
  }
  before = warp_sum(before);
  good = __all_sync(all_lanes, good) && before <= room && size <= room - before;
  c.code += header + (good ? before : 0);
  c.bytes = good ? static_cast<std::uint32_t>(size) : 0;
}

// By one thread: where its parts lie. False: it cannot be one.
__device__ inline bool parse_stream(DeviceSource& t, const std::uint8_t* bytes, std::uint64_t size) {
  DeviceReader in{bytes, bytes + size, false};
  const std::uint32_t shape = in.byte(), class_log2 = shape >> 4;
  t.log2 = shape & 15;
  t.classes = 1u << class_log2;
  t.late_bytes = 2u << t.log2;
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

// The frequencies of one class, by one warp. False: they are none.
__device__ inline bool read_frequencies(const DeviceSource& t, std::uint32_t c) {
  const unsigned lane = threadIdx.x % 32;
  std::uint32_t* const symbol = t.symbols + c * most_symbols;
  const std::uint32_t span = t.span[c], top = t.top[c];
  const std::uint8_t* const bits = t.table_at[c];
  std::uint32_t sum = 0;
  for (std::uint32_t i = lane; i < span; i += 32) {
    const std::uint32_t f = i == top ? 0 : level_frequency(get_bits(bits, level_bits * i, level_bits));
    symbol[i] = f;
    sum += f;
  }
  sum = warp_sum(sum);
  if (sum >= rans_total) return false;
  std::uint32_t before = 0;
  for (std::uint32_t begin = 0; begin < span; begin += 32) {
    const std::uint32_t i = begin + lane, f = i >= span ? 0 : i == top ? rans_total - sum : symbol[i];
    const std::uint32_t upto = warp_scan(f);
    if (i < span) symbol[i] = f | (before + upto - f) << 16;
    before += __shfl_sync(all_lanes, upto, 31);
  }
  return true;
}

// The slots of every class of a stream: a warp a symbol.
__device__ inline void fill_slots(const DeviceSource& t) {
  const unsigned lane = threadIdx.x % 32;
  const std::uint32_t classes = t.classes;
  for (std::uint32_t c = 0; c < classes; ++c) {
    std::uint32_t* const slot = t.table[c].slot;
    const std::uint32_t* const symbols = t.symbols + c * most_symbols;
    const std::uint32_t span = t.span[c], low = t.low[c];
    for (std::uint32_t i = threadIdx.x / 32; i < span; i += block_warps) {
      const std::uint32_t f = symbols[i], n = f & 0xffff, entry = (low + i) | (n - 1) << 8;
      for (std::uint32_t k = lane; k < n; k += 32) slot[(f >> 16) + k] = entry | k << 20;
    }
  }
}

// One group, by one warp. False: its words are too few or too many, or a lane does not end where it began.
__device__ inline bool decode_group(const DeviceSource& t, std::uint32_t g) {
  const unsigned lane = threadIdx.x % 32;
  // In registers: from shared memory they would be read again after each store.
  const std::uint32_t count = t.count, period = t.period;
  const SymbolTable* const tables = t.table;
  const std::uint8_t* const classes_of_row = t.classes > 1 ? t.classes_of_row : nullptr;
  std::uint8_t* const out = t.out;
  const Lanes lanes = lanes_of(t.log2, count);
  const std::uint32_t in_group = lanes.in_group,
                      first = static_cast<std::uint32_t>(min(std::uint64_t{count}, g * lanes.per_group)),
                      end = static_cast<std::uint32_t>(min(std::uint64_t{count}, first + lanes.per_group));
  const std::uint32_t group_size = lane + 1 < lanes.groups ? word_at(t.group_words + 4 * lane) : 0;  // of group `lane`
  const std::uint64_t skipped = warp_sum(lane < g ? std::uint64_t{group_size} : 0),
                      all = static_cast<std::uint64_t>(t.end - t.words) / 2;
  const std::uint32_t own = __shfl_sync(all_lanes, group_size, g);
  const std::uint64_t words = g + 1 < lanes.groups ? own : all - min(all, skipped);
  if (skipped + words > all) return false;
  const auto mine = static_cast<std::uint32_t>(words), last = mine ? mine - 1 : 0;
  const std::uint8_t* const word = mine ? t.words + 2 * skipped : t.states;  // something to read, where there is none
  const bool in = lane < in_group;
  std::uint32_t x = in ? word_at(t.states + 4 * (g * in_group + lane)) : rans_low, at = 0;
  bool good = x >= rans_low;
  std::uint32_t row = (first + lane) / period, column = (first + lane) % period;
  std::uint32_t base = classes_of_row && in && first + lane < end ? classes_of_row[row] : 0;
  const unsigned lower = (1u << lane) - 1;
  for (std::uint32_t p = first + lane, begin = first; begin < end; begin += in_group, p += in_group) {
    const bool active = in && p < end;
    const std::uint32_t entry = tables[base].slot[x & (rans_total - 1)];
    // The class of the next symbol does not wait for this one.
    const std::uint32_t old_row = row;
    column += in_group;
    while (column >= period) column -= period, ++row;
    if (classes_of_row && row != old_row && in && p + in_group < end) base = classes_of_row[row];
    const std::uint32_t later = ((entry >> 8 & 0xfff) + 1) * (x >> rans_bits) + (entry >> 20);
    const bool wants = active && later < rans_low;
    x = active ? later : x;
    if (active) out[p] = static_cast<std::uint8_t>(entry);
    // All lanes read, which is faster than to branch. Who asks for too many ends with `at` beyond `mine`.
    const unsigned asking = __ballot_sync(all_lanes, wants);
    const std::uint8_t* const next = word + 2 * std::size_t{min(at + __popc(asking & lower), last)};
    const std::uint32_t more = next[0] | static_cast<std::uint32_t>(next[1]) << 8;
    x = wants ? x << 16 | more : x;
    at += __popc(asking);
  }
  if (in) {
    good = good && x >> 16 == 1;
    std::uint8_t* late = t.late + 2 * (g * in_group + lane);
    late[0] = static_cast<std::uint8_t>(x);
    late[1] = static_cast<std::uint8_t>(x >> 8);
  }
  return __all_sync(all_lanes, good && at == mine);
}
static_assert((1u << most_lanes_log2) / group_lanes <= 32, "a warp reads the sizes of all groups at once");

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
      if (task % block_warps == warp) good = read_frequencies(source[k], c) && good;
  if (!__syncthreads_and(good)) return false;
  for (std::uint32_t k = 0; k < streams; ++k) fill_slots(source[k]);
  __syncthreads();
  task = 0;
  for (std::uint32_t k = 0; k < streams; ++k)
    for (std::uint32_t g = 0; g < lanes_of(source[k].log2, source[k].count).groups; ++g, ++task)
      if (task % block_warps == warp) good = decode_group(source[k], g) && good;
  return __syncthreads_and(good);
}

}  // namespace trireme::coding
