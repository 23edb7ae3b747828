// Layout: u8 (log2 lanes | log2 classes << 4); classes of the rows, 1 or 2 bits each; of each class its table: u8 least
// symbol, u8 span - 1, u8 most frequent symbol - least, a level of 5 bits a symbol (0: it does not occur); a u32 for
// each group but the last, its words; a u32 for each lane, its state; the words, u16, in the order in which the decoder
// asks.
#include "compression/stages/symbols.h"

#include <algorithm>
#include <array>
#include <memory>

namespace trireme::coding {
namespace {

// Encoding: x becomes floor(x / f) * 4096 + x mod f + first = x + bias + floor(x / f) * complement. The quotient is the
// upper half of x * inverse; for f = 1 that is x - 1, for which the bias makes up.
struct Coder {
  std::uint64_t inverse;
  std::uint32_t bias;
  std::uint16_t frequency, complement;
};
using Coders = std::array<Coder, most_symbols>;
using Counts = SymbolCounts;

Coder coder_of(std::uint32_t frequency, std::uint32_t first) {
  if (frequency == 0) return {};
  const std::uint32_t complement = rans_total - frequency;
  return {frequency == 1 ? ~std::uint64_t{0} : ~std::uint64_t{0} / frequency + 1,
          frequency == 1 ? first + complement : first, static_cast<std::uint16_t>(frequency),
          static_cast<std::uint16_t>(complement)};
}

// Frequencies that a table of levels means, in the order of the symbols. False where they are no frequencies.
bool frequencies(const std::uint8_t* level, std::uint32_t span, std::uint32_t top, std::uint32_t* frequency) {
  std::uint32_t sum = 0;
  for (std::uint32_t s = 0; s < span; ++s) sum += frequency[s] = s == top ? 0 : level_frequency(level[s]);
  if (sum >= rans_total) return false;
  frequency[top] = rans_total - sum;
  return true;
}

std::uint32_t choose_levels(const std::uint32_t* count, std::uint32_t span, std::uint8_t* level) {
  const auto top = static_cast<std::uint32_t>(std::max_element(count, count + span) - count);
  std::uint32_t total = 0, share[most_symbols];
  for (std::uint32_t s = 0; s < span; ++s) total += count[s];
  for (std::uint32_t s = 0; s < span; ++s) level[s] = level_below(share[s] = share_256(count[s], total));
  settle_levels(count, share, span, top, level);
  return top;
}

void write_table(const Counts& count, Bytes& out, Coders& coders) {
  std::uint32_t low = 0, high = most_symbols - 1;
  while (low < high && count[low] == 0) ++low;  // a class without rows has a table as well
  while (high > low && count[high] == 0) --high;
  const std::uint32_t span = high - low + 1;
  std::uint8_t level[most_symbols] = {};
  const std::uint32_t top = count[high] ? choose_levels(count.data() + low, span, level) : 0;
  out.push_back(static_cast<std::uint8_t>(low));
  out.push_back(static_cast<std::uint8_t>(span - 1));
  out.push_back(static_cast<std::uint8_t>(top));
  BitWriter bits(out);
  for (std::uint32_t s = 0; s < span; ++s) bits.write(level[s], level_bits);
  bits.finish();
  std::uint32_t frequency[most_symbols];
  frequencies(level, span, top, frequency);
  for (std::uint32_t s = 0, first = 0; s < span; first += frequency[s++])
    coders[low + s] = coder_of(frequency[s], first);
}

std::vector<Counts> count_by_class(const Symbols& in, std::uint32_t period) {
  if (in.counts) return {in.counts, in.counts + in.classes};
  std::vector<Counts> counts(in.classes, Counts{});
  for (std::uint32_t first = 0, row = 0; first < in.count; first += period, ++row) {
    Counts parts[4] = {};
    count_symbols(in.at + first, std::min(in.count - first, period), parts);
    Counts& count = counts[in.classes > 1 ? in.class_of_row[row] : 0];
    for (const Counts& p : parts)
      for (std::uint32_t s = 0; s < most_symbols; ++s) count[s] += p[s];
  }
  return counts;
}

// The symbols of one group from `end` down to `first`, their words down from words[at]. Returns where the words begin.
std::size_t encode_group(const Symbols& in, std::uint32_t period, const Coders* coders, std::uint64_t first,
                         std::uint64_t end, std::uint32_t lanes, std::uint32_t* state, std::uint16_t* words,
                         std::size_t at) {
  const std::uint32_t mask = lanes - 1;
  for (std::uint64_t stop = end; stop > first;) {  // row by row
    const std::uint64_t row = (stop - 1) / period, begin = std::max(first, row * period);
    const Coder* const coder = coders[in.classes > 1 ? in.class_of_row[row] : 0].data();
    for (std::uint64_t i = stop; i-- > begin;) {
      std::uint32_t& s = state[static_cast<std::uint32_t>(i - first) & mask];
      const Coder& c = coder[in.at[i]];
      std::uint32_t x = s;
      const bool emit = (x >> (32 - rans_bits)) >= c.frequency;
      words[at - 1] = static_cast<std::uint16_t>(x);
      at -= emit;
      x = emit ? x >> 16 : x;
      const auto whole = static_cast<std::uint32_t>((static_cast<unsigned __int128>(c.inverse) * x) >> 64);
      s = x + c.bias + whole * c.complement;
    }
    stop = begin;
  }
  return at;
}

}  // namespace

std::size_t encode_rans(const Symbols& in, std::uint32_t lanes_log2, std::span<const std::uint8_t> late, Bytes& out) {
  const Lanes lanes = lanes_of(lanes_log2, in.count);
  const std::uint32_t period = in.period ? in.period : in.count, rows = (in.count + period - 1) / period;
  out.push_back(static_cast<std::uint8_t>(lanes_log2 | bits_for(in.classes) << 4));
  BitWriter classes(out);
  for (std::uint32_t r = 0; in.classes > 1 && r < rows; ++r) classes.write(in.class_of_row[r], bits_for(in.classes));
  classes.finish();
  std::vector<Coders> coders(in.classes);
  const auto counts = count_by_class(in, period);
  for (std::uint32_t c = 0; c < in.classes; ++c) write_table(counts[c], out, coders[c]);

  std::vector<std::uint32_t> state(std::size_t{1} << lanes_log2);
  for (std::size_t l = 0; l < state.size(); ++l) {
    std::uint32_t word = 0;
    for (std::size_t b = 0; b < 2; ++b)
      if (2 * l + b < late.size()) word |= std::uint32_t{late[2 * l + b]} << (8 * b);
    state[l] = rans_low | word;
  }
  // Written from the end, as the last symbol comes first; one more, which a symbol without a word may overwrite.
  const auto words = std::make_unique_for_overwrite<std::uint16_t[]>(in.count + 1);
  std::size_t at = in.count + 1;
  std::vector<std::uint32_t> group_words(lanes.groups);
  for (std::uint32_t g = lanes.groups; g-- > 0;) {
    const std::uint64_t first = std::min<std::uint64_t>(in.count, g * lanes.per_group),
                        end = std::min<std::uint64_t>(in.count, first + lanes.per_group);
    const std::size_t before = at;
    at = encode_group(in, period, coders.data(), first, end, lanes.in_group,
                      state.data() + std::size_t{g} * lanes.in_group, words.get(), at);
    group_words[g] = static_cast<std::uint32_t>(before - at);
  }
  for (std::uint32_t g = 0; g + 1 < lanes.groups; ++g) put(out, group_words[g]);
  const auto append = [&](const auto* from, std::size_t n) {
    put(out, std::span(reinterpret_cast<const std::uint8_t*>(from), n * sizeof *from));
  };
  append(state.data(), state.size());
  append(words.get() + at, in.count + 1 - at);
  return std::min(late.size(), 2 * state.size());
}

namespace {

// Of each slot: symbol | (frequency - 1) << 8 | (slot - first slot of the symbol) << 20.
using Slots = std::array<std::uint32_t, rans_total>;

void read_table(Reader& in, std::uint32_t largest, Slots& slots) {
  const std::uint32_t low = in.get<std::uint8_t>(), span = in.get<std::uint8_t>() + 1u, top = in.get<std::uint8_t>();
  if (low + span - 1 > largest || top >= span) bad_stream("a symbol is too large");
  BitReader bits(in.take(bytes_of_bits(std::uint64_t{level_bits} * span)));
  std::uint8_t level[most_symbols];
  for (std::uint32_t s = 0; s < span; ++s) level[s] = static_cast<std::uint8_t>(bits.read(level_bits));
  std::uint32_t frequency[most_symbols];
  if (!frequencies(level, span, top, frequency)) bad_stream("frequencies add up to more than all");
  std::uint32_t slot = 0;
  for (std::uint32_t s = 0; s < span; ++s)
    for (std::uint32_t k = 0; k < frequency[s]; ++k) slots[slot++] = (low + s) | (frequency[s] - 1) << 8 | k << 20;
}

// The state behind a symbol of slot `e`, before it asks for a word.
inline std::uint32_t after(std::uint32_t x, std::uint32_t e) {
  return ((e >> 8 & 0xfff) + 1) * (x >> rans_bits) + (e >> 20);
}

// A turn of n lanes within a row, with a word for each at hand: no branches, which nobody could foretell.
inline const std::uint8_t* decode_turn(const Slots& table, std::uint32_t n, std::uint32_t* state,
                                       const std::uint8_t* word, std::uint8_t* out) {
  for (std::uint32_t l = 0; l < n; ++l) {
    const std::uint32_t e = table[state[l] & (rans_total - 1)], x = after(state[l], e);
    std::uint16_t next;
    std::memcpy(&next, word, 2);
    const bool refill = x < rans_low;
    out[l] = static_cast<std::uint8_t>(e);
    word += refill ? 2 : 0;
    state[l] = refill ? x << 16 | next : x;
  }
  return word;
}

// One group: symbols first to end of the stream, from its words. Returns where the words end.
const std::uint8_t* decode_group(const Slots* slots, const std::uint8_t* class_of_row, std::uint32_t period,
                                 std::uint64_t first, std::uint64_t end, std::uint32_t lanes, std::uint32_t* state,
                                 const std::uint8_t* word, const std::uint8_t* words_end, std::uint8_t* out) {
  std::uint32_t row = static_cast<std::uint32_t>(first / period), column = static_cast<std::uint32_t>(first % period);
  const Slots* table = slots + (class_of_row ? class_of_row[row] : 0);
  for (std::uint64_t i = first; i < end; i += lanes) {
    const std::uint32_t n = static_cast<std::uint32_t>(std::min<std::uint64_t>(lanes, end - i));
    if (column == period) {
      column = 0;
      ++row;
      if (class_of_row) table = slots + class_of_row[row];
    }
    if (n <= period - column && words_end - word >= std::ptrdiff_t{2} * n) {
      word = decode_turn(*table, n, state, word, out + i);
      column += n;
      continue;
    }
    for (std::uint32_t l = 0; l < n; ++l) {
      if (column == period) {
        column = 0;
        ++row;
        if (class_of_row) table = slots + class_of_row[row];
      }
      ++column;
      std::uint32_t x = state[l];
      const std::uint32_t e = (*table)[x & (rans_total - 1)];
      out[i + l] = static_cast<std::uint8_t>(e);
      x = after(x, e);
      if (x < rans_low) {
        if (words_end - word < 2) bad_stream("a part ends too early");
        std::uint16_t next;
        std::memcpy(&next, word, 2);
        word += 2;
        x = x << 16 | next;
      }
      state[l] = x;
    }
  }
  return word;
}

}  // namespace

void decode_rans(std::span<const std::uint8_t> bytes, std::uint32_t count, std::uint32_t period, std::uint32_t largest,
                 std::uint8_t* out, Bytes& late) {
  const std::uint32_t allowed = period ? most_classes : 1;
  if (period == 0) period = count;
  const std::uint32_t rows = (count + period - 1) / period;
  Reader in(bytes);
  const std::uint8_t shape = in.get<std::uint8_t>();
  const std::uint32_t log2 = shape & 15u, classes_log2 = shape >> 4, classes = 1u << classes_log2;
  if (log2 > most_lanes_log2 || classes > allowed) bad_stream("it has too many lanes or classes");
  std::vector<std::uint8_t> class_of_row;
  if (classes > 1) {
    BitReader bits(in.take(bytes_of_bits(std::uint64_t{classes_log2} * rows)));
    class_of_row.resize(rows);
    for (auto& c : class_of_row) c = static_cast<std::uint8_t>(bits.read(classes_log2));
  }
  std::vector<Slots> slots(classes);
  for (auto& s : slots) read_table(in, largest, s);
  const Lanes lanes = lanes_of(log2, count);
  std::vector<std::uint32_t> group_words, state(std::size_t{1} << log2);
  for (std::uint32_t g = 0; g + 1 < lanes.groups; ++g) group_words.push_back(in.get<std::uint32_t>());
  std::memcpy(state.data(), in.take(4 * state.size()).data(), 4 * state.size());
  for (const std::uint32_t x : state)
    if (x < rans_low) bad_stream("a lane's state is too small");
  for (std::uint32_t g = 0; g < lanes.groups; ++g) {
    const std::uint64_t first = std::min<std::uint64_t>(count, g * lanes.per_group),
                        end = std::min<std::uint64_t>(count, first + lanes.per_group);
    const auto words = g + 1 < lanes.groups ? in.take(std::size_t{2} * group_words[g]) : in.rest();
    const std::uint8_t* const last = words.data() + words.size();
    if (decode_group(slots.data(), classes > 1 ? class_of_row.data() : nullptr, period, first, end, lanes.in_group,
                     state.data() + std::size_t{g} * lanes.in_group, words.data(), last, out) != last)
      bad_stream("a part has bytes left over");
  }
  late.clear();
  for (const std::uint32_t x : state) {
    if (x >> 16 != 1) bad_stream("a lane does not end where it began");
    late.push_back(static_cast<std::uint8_t>(x));
    late.push_back(static_cast<std::uint8_t>(x >> 8));
  }
}

}  // namespace trireme::coding
