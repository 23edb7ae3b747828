#include "compression/stages/row_index.h"

#include <algorithm>
#include <array>

namespace trireme::coding {
namespace {

void encode_symbols(Entropy entropy, const Bytes& symbols, bool few_lanes, Bytes& out) {
  const Symbols in{symbols.data(), static_cast<std::uint32_t>(symbols.size())};
  Bytes stream;
  if (entropy == Entropy::huffman)
    encode_huffman(in, stream);
  else
    encode_rans(in, few_lanes ? few_lanes_log2(in.count) : fast_lanes_log2(in.count), {}, stream);
  put_number(out, static_cast<std::uint32_t>(stream.size()));
  put(out, stream);
}

void decode_symbols(Entropy entropy, Reader& in, std::uint32_t largest, Bytes& out) {
  const auto stream = in.take(in.number());
  const auto count = static_cast<std::uint32_t>(out.size());
  Bytes late;
  if (entropy == Entropy::huffman)
    decode_huffman(stream, count, largest, out.data());
  else
    decode_rans(stream, count, 0, largest, out.data(), late);
  for (const std::uint8_t b : late)
    if (b) bad_stream("a part has bytes left over");
}

std::vector<std::uint32_t> repeats_of(const Dedup& of) {
  std::vector<std::uint32_t> repeats(of.unique.size());
  for (const std::uint32_t u : of.index) ++repeats[u];
  for (auto& r : repeats) --r;
  return repeats;
}

// Bits of each form, in 1/256.
std::uint64_t entropy_256(std::span<const std::uint32_t> counts, std::uint32_t total) {
  std::uint64_t bits = table_bits_256(static_cast<std::uint32_t>(counts.size())) + 256 * 32;
  for (const std::uint32_t c : counts) bits += symbol_bits_256(c, log2_256(std::max(total, 1u)));
  return bits;
}

struct Weights {
  std::array<std::uint32_t, weight_classes> rows{}, repeats{};  // of each class
};
Weights weigh(std::span<const std::uint32_t> repeats) {
  Weights w;
  for (const std::uint32_t r : repeats) {
    ++w.rows[weight_class(r)];
    w.repeats[weight_class(r)] += r;
  }
  return w;
}

IndexForm choose_form(const Dedup& of, std::span<const std::uint32_t> repeats, Entropy entropy) {
  const auto n = static_cast<std::uint32_t>(of.index.size()), unique = static_cast<std::uint32_t>(of.unique.size());
  const std::uint64_t number = bits_for(unique), repeated = n - unique;
  std::array<std::uint64_t, 4> bits{256 * number * n, 256 * (n + number * repeated), ~std::uint64_t{0},
                                    ~std::uint64_t{0}};
  if (entropy != Entropy::none && unique <= most_symbols) {
    std::vector<std::uint32_t> counts(repeats.begin(), repeats.end());
    for (auto& c : counts) ++c;
    bits[symbols] = entropy_256(counts, n);
  }
  if (entropy != Entropy::none && repeated) {
    const Weights w = weigh(repeats);
    bits[weighted] = 256 * std::uint64_t{n} + entropy_256(w.rows, unique) +
                     entropy_256(w.repeats, static_cast<std::uint32_t>(repeated));
    for (std::size_t c = 1; c < weight_classes; ++c)
      bits[weighted] += 256 * std::uint64_t{bits_for(w.rows[c])} * w.repeats[c];
  }
  return static_cast<IndexForm>(std::min_element(bits.begin(), bits.end()) - bits.begin());
}

void encode_weighted(const Dedup& of, std::span<const std::uint32_t> repeats, Entropy entropy, bool few_lanes,
                     IndexCode& out, BitWriter& bits) {
  Bytes weight(repeats.size()), repeat;
  std::vector<std::uint32_t> place(repeats.size());  // of a unique row among those of its class
  std::array<std::uint32_t, weight_classes> size{};
  for (std::size_t u = 0; u < repeats.size(); ++u) {
    weight[u] = static_cast<std::uint8_t>(weight_class(repeats[u]));
    place[u] = size[weight[u]]++;
  }
  for (std::size_t r = 0; r < of.index.size(); ++r) {
    const std::uint32_t u = of.index[r];
    if (of.unique[u] == r) continue;
    repeat.push_back(weight[u]);
    bits.write(place[u], bits_for(size[weight[u]]));
  }
  encode_symbols(entropy, weight, few_lanes, out.streams);
  encode_symbols(entropy, repeat, few_lanes, out.streams);
}

IndexCode encode_form(const Dedup& of, std::span<const std::uint32_t> repeats, IndexForm form, Entropy entropy,
                      bool few_lanes) {
  IndexCode out;
  out.form = form;
  BitWriter bits(out.bits);
  const std::uint32_t number = bits_for(static_cast<std::uint32_t>(of.unique.size()));
  const auto is_first = [&](std::size_t r) { return of.unique[of.index[r]] == r; };
  if (form == first_bit || form == weighted)
    for (std::size_t r = 0; r < of.index.size(); ++r) bits.write(is_first(r) ? 1 : 0, 1);
  if (form == symbols) {
    encode_symbols(entropy, Bytes(of.index.begin(), of.index.end()), few_lanes, out.streams);
  } else if (form == weighted) {
    encode_weighted(of, repeats, entropy, few_lanes, out, bits);
  } else {
    for (std::size_t r = 0; r < of.index.size(); ++r)
      if (form == plain || !is_first(r)) bits.write(of.index[r], number);
  }
  bits.finish();
  return out;
}

}  // namespace

IndexCode encode_index(const Dedup& of, Entropy entropy, bool smallest) {
  const auto repeats = repeats_of(of);
  if (!smallest) return encode_form(of, repeats, choose_form(of, repeats, entropy), entropy, false);
  IndexCode best;
  for (const IndexForm form : {plain, first_bit, symbols, weighted}) {
    if (form >= symbols && entropy == Entropy::none) break;
    if (form == symbols && of.unique.size() > most_symbols) continue;
    if (form == weighted && of.unique.size() == of.index.size()) continue;
    IndexCode code = encode_form(of, repeats, form, entropy, true);
    if (form == plain || code.streams.size() + code.bits.size() < best.streams.size() + best.bits.size())
      best = std::move(code);
  }
  return best;
}

IndexDecoder::IndexDecoder(IndexForm form, std::size_t n, std::uint32_t unique, Entropy entropy, Reader& in)
    : form_(form), n_(n), unique_(unique) {
  const std::uint64_t repeated = n - unique, number = bits_for(unique);
  std::uint64_t bits = form == symbols ? 0 : form == plain ? number * n : n;
  if (form >= symbols && entropy == Entropy::none) bad_stream("its index has streams that nothing codes");
  if (form == symbols) {
    if (unique > most_symbols) bad_stream("its index has too many rows for one symbol each");
    index_.resize(n);
    decode_symbols(entropy, in, unique - 1, index_);
  } else if (form == first_bit) {
    bits += number * repeated;
  } else if (form == weighted) {
    if (repeated == 0) bad_stream("its index has no repeated row");
    weight_.resize(unique);
    repeat_.resize(repeated);
    decode_symbols(entropy, in, weight_classes - 1, weight_);
    decode_symbols(entropy, in, weight_classes - 1, repeat_);
    std::array<std::uint32_t, weight_classes> size{};
    for (const std::uint8_t w : weight_) ++size[w];
    for (const std::uint8_t w : repeat_) {
      if (w == 0 || size[w] == 0) bad_stream("its index names a row that is not there");
      bits += bits_for(size[w]);
    }
  }
  bytes_ = coding::bytes_of_bits(bits);
}

void IndexDecoder::decode(std::span<const std::uint8_t> bytes, std::uint32_t* index) const {
  if (bytes.size() != bytes_) bad_stream("its index has another length");
  BitReader bits(bytes);
  const std::uint32_t number = bits_for(unique_);
  if (form_ == symbols) {
    std::copy(index_.begin(), index_.end(), index);
    return;
  }
  if (form_ == plain) {
    for (std::size_t r = 0; r < n_; ++r)
      if ((index[r] = bits.read(number)) >= unique_) bad_stream("its index names a row that is not there");
    return;
  }
  std::vector<std::uint8_t> first(n_);
  std::size_t seen = 0;
  for (auto& f : first) seen += f = static_cast<std::uint8_t>(bits.read(1));
  if (seen != unique_) bad_stream("its index has another number of new rows");
  if (form_ == weighted) return decode_weighted(bits, first, index);
  std::uint32_t next = 0;
  for (std::size_t r = 0; r < n_; ++r) {
    index[r] = first[r] ? next++ : bits.read(number);
    if (index[r] >= unique_) bad_stream("its index names a row that is not there");
  }
}

void IndexDecoder::decode_weighted(BitReader& bits, std::span<const std::uint8_t> first, std::uint32_t* index) const {
  std::array<std::vector<std::uint32_t>, weight_classes> rows;
  for (std::uint32_t u = 0; u < unique_; ++u) rows[weight_[u]].push_back(u);
  std::uint32_t next = 0;
  std::size_t repeated = 0;
  for (std::size_t r = 0; r < n_; ++r) {
    if (first[r]) {
      index[r] = next++;
      continue;
    }
    const auto& of = rows[repeat_[repeated++]];
    const std::uint32_t place = bits.read(bits_for(static_cast<std::uint32_t>(of.size())));
    if (place >= of.size()) bad_stream("its index names a row that is not there");
    index[r] = of[place];
  }
}

}  // namespace trireme::coding
