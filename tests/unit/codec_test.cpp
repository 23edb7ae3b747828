// links: comm
// The error-bounded codec (compression/codecs/bounded.h) and its stages. TRIREME_BOUND_VALUES=N: the bound is checked
// on N values (default 10^7).
#include "comm/error.h"
#include "compression/codecs/bounded.h"
#include "compression/stages/chunk.h"
#include "compression/stages/symbols.h"
#include "compression/stages/vector_lz.h"
#include "tests/max_difference.h"
#include "tests/unit/codec_rows.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <iostream>
#include <limits>
#include <map>
#include <set>

#include <gtest/gtest.h>

namespace trireme::test {
namespace {

using namespace coding;

const std::vector<std::string> bounded_codecs = {"auto", "smallest",     "packed",        "vector_lz",  "huffman",
                                                 "rans", "dedup_packed", "dedup_huffman", "dedup_rans", "dedup_sparse"};

TEST(BoundedCodec, TheBoundHoldsForEveryValue) {
  const std::size_t dim = 64, n = 2100;
  const char* given = std::getenv("TRIREME_BOUND_VALUES");
  const std::size_t wanted = given ? std::size_t(std::atoll(given)) : 10'000'000;
  std::size_t values = 0;
  double most = 0;
  for (unsigned seed = 1'000'000 * part_of_night(); values < wanted; ++seed)
    for (const auto& kind : kinds()) {
      const auto rows = make_rows(kind, n, dim, seed);
      const float rel = std::vector<float>{0.004f, 0.01f, 0.03f, 0.05f, 0.3f, 0.0005f}[seed % 6];
      const auto codec = std::vector<std::string>{"auto", "packed", "dedup_huffman", "dedup_sparse"}[seed % 4];
      const Coded c = encode({codec}, rows, n, dim, rel);
      const auto back = decode({codec}, c, n, dim);
      const double eb = inspect(c.code).eb;
      for (std::size_t i = 0; i < rows.size(); ++i) {
        const double off = std::abs(double(rows[i]) - double(back[i]));
        ASSERT_LE(off, eb) << kind << " seed " << seed << ", value " << i << " = " << rows[i];
        if (eb > 0) most = nan_max(most, off / eb);
      }
      values += rows.size();
    }
  EXPECT_GT(most, 0.999);  // the bound is used
  std::cout << values << " values of part " << part_of_night() << ", largest error " << most << " of the bound\n";
}

// Rows of a few values beside zeros, in chunks too short for a table of frequencies, are smallest as sparse rows.
TEST(BoundedCodec, SmallestIsNoLongerThanAnyOther) {
  bool sparse = false;
  for (const auto& kind : kinds())
    for (const std::size_t n : {2, 16, 300}) {
      const std::size_t dim = 64;
      const auto rows = make_rows(kind, n, dim, 3);
      for (const float bound : {0.01f, 0.05f, 0.2f}) {
        const Coded smallest = encode({"smallest"}, rows, n, dim, bound);
        sparse = sparse || inspect(smallest.code).encoder == "dedup_sparse";
        for (const auto& codec : bounded_codecs) {
          if (codec == "auto" || codec.ends_with("rans")) continue;  // of other lanes
          EXPECT_LE(smallest.sizes[0], encode({codec}, rows, n, dim, bound).sizes[0]) << kind << n << codec << bound;
        }
      }
    }
  EXPECT_TRUE(sparse);
}

// A bound that no code could hold, and a range beyond f32, do not ask for one.
TEST(BoundedCodec, FixedRatesKnowNoBound) {
  for (const std::string codec : {"fp16", "bf16", "fp8", "int8_row32", "int4"}) {
    const auto rows = make_rows("shifted", 20, 32, 1);
    EXPECT_EQ(inspect(encode({codec}, rows, 20, 32, 1e-9f).code).encoder, codec);
    const std::vector<float> wide = {-3e38f, 3e38f, 1, 2, 3, 4, 5, 6};
    EXPECT_EQ(inspect(encode({codec}, wide, 1, 8, 0.1f).code).encoder, codec);
  }
}

// Codes on both sides of zero, rows of zeros, all distances up to 255, and rows that are no multiple of eight.
TEST(BoundedCodec, SparseRowsComeBack) {
  for (const std::size_t dim : {1, 7, 8, 9, 64, 130})
    for (const int most : {1, 2, 30, 127}) {
      std::mt19937 random(unsigned(dim) + unsigned(most));
      std::vector<float> rows(40 * dim);
      for (std::size_t i = 0; i < rows.size(); ++i)
        rows[i] = i / dim % 5 == 0 || random() % 3 ? 0.0f : float(int(random() % unsigned(2 * most + 1)) - most);
      BoundedOptions o{"dedup_sparse"};
      o.relative = false;
      const Coded c = encode(o, rows, 40, dim, 0.5f);
      EXPECT_EQ(decode(o, c, 40, dim), rows) << dim << " " << most;
    }
}

TEST(BoundedCodec, AnF32BoundIsNotAboveTheDouble) {
  EXPECT_GT(double(float(0.1)), 0.1);  // the nearest is
  EXPECT_EQ(f32_bound(0.1), std::nextafter(float(0.1), 0.0f));
  EXPECT_EQ(f32_bound(0.03), float(0.03));  // the nearest is below
  EXPECT_EQ(f32_bound(0), 0.0f);
  EXPECT_LT(f32_bound(-1), 0.0f);
}

TEST(BoundedCodec, TolerantIsWithinTwoUlp) {
  for (const auto& kind : kinds()) {
    const auto rows = make_rows(kind, 500, 33, 1);
    BoundedOptions o;
    o.strict = false;
    const Coded c = encode(o, rows, 500, 33, 0.01f);
    const auto back = decode(o, c, 500, 33);
    const double eb = inspect(c.code).eb;
    EXPECT_EQ(inspect(c.code).outliers, 0u);
    for (std::size_t i = 0; i < rows.size(); ++i) {
      const float larger = std::abs(rows[i]) > std::abs(back[i]) ? std::abs(rows[i]) : std::abs(back[i]);
      const double ulp = double(std::nextafter(larger, HUGE_VALF)) - larger;
      ASSERT_LE(std::abs(double(rows[i]) - back[i]), eb + 2 * ulp);
    }
  }
}

TEST(BoundedCodec, ScalingByAPowerOfTwoLeavesTheCodes) {
  const auto rows = make_rows("embedding", 300, 16, 3);
  auto scaled = rows;
  for (auto& x : scaled) x *= 0x1p-20f;
  Coded a = encode({"smallest"}, rows, 300, 16, 0.03f), b = encode({"smallest"}, scaled, 300, 16, 0.03f);
  std::fill_n(a.code.begin() + 8, 4, std::uint8_t{0});  // eb
  std::fill_n(b.code.begin() + 8, 4, std::uint8_t{0});
  EXPECT_EQ(a.code, b.code);
}

// What a receiver gets does not depend on the coder, on the width of the codes or on who asks.
TEST(BoundedCodec, EveryCoderGivesTheSameValues) {
  for (const std::size_t dim : {1u, 7u, 16u, 32u, 64u, 128u})
    for (const std::size_t n : {1u, 2u, 31u, 33u, 2047u, 2048u, 2049u, 5000u}) {
      const auto rows = make_rows(n % 2 ? "embedding" : "few", n, dim, unsigned(n));
      std::vector<float> self(rows.size());
      TableChunk chunk = chunk_of(rows, n, dim, 0.02f);
      chunk.self = self.data();
      std::uint64_t size = 1;
      Bounded({}).encode({&chunk, 1}, {}, {&size, 1, DType::i64});
      EXPECT_EQ(size, 0u);
      for (const auto& codec : bounded_codecs) {
        if (n == 5000 && codec == "smallest") continue;  // takes its time
        for (const int width : {0, 16}) {
          BoundedOptions o;
          o.codec = codec;
          o.code_width = width;
          o.checksum = width == 16;
          const Coded c = encode(o, rows, n, dim, 0.02f);
          EXPECT_EQ(c.code, encode(o, rows, n, dim, 0.02f).code);
          EXPECT_LE(c.code.size(), 24 + 4 * rows.size());
          EXPECT_EQ(decode(o, c, n, dim), self) << codec << ", " << n << " x " << dim << ", width " << width;
        }
      }
    }
}

TEST(BoundedCodec, ScopesShareTheirRange) {
  const std::size_t n = 256, dim = 32;
  const auto rows = make_rows("embedding", n, dim, 5);
  const Coded whole = encode({}, rows, n, dim, 0.03f);
  for (const bool together : {true, false}) {
    std::vector<TableChunk> chunks;
    for (const std::size_t k : {2u, 0u, 3u, 1u}) {
      TableChunk c = chunk_of(rows, 64, dim, 0.03f);
      c.rows += k * 64 * dim;
      c.scope = together ? 7 : std::uint32_t(k);
      chunks.push_back(c);
      if (together) chunks.push_back(chunk_of(rows, 0, dim, 0.03f));  // of another scope
    }
    const Bounded codec{BoundedOptions{}};
    std::vector<std::uint8_t> out(8 * codec.max_bytes(64, dim));
    std::vector<std::uint64_t> sizes(chunks.size());
    codec.encode(chunks, {out.data(), out.size(), DType::u8}, {sizes.data(), sizes.size(), DType::i64});
    std::set<float> bounds;
    for (std::size_t k = 0, at = 0; k < chunks.size(); at += sizes[k++])
      if (chunks[k].n) bounds.insert(inspect(std::span(out).subspan(at, sizes[k])).eb);
    EXPECT_TRUE(together ? bounds.size() == 1 : bounds.size() > 1);
    if (together) {
      EXPECT_EQ(*bounds.begin(), inspect(whole.code).eb);
    }
  }
}

TEST(BoundedCodec, ACodecAChunkInOneCall) {
  const std::size_t n = 64, dim = 16;
  const auto rows = make_rows("embedding", n, dim, 3);
  std::vector<Bounded> all;
  for (const auto& codec : Bounded::names()) all.emplace_back(BoundedOptions{codec});
  std::vector<TableChunk> chunks(all.size(), chunk_of(rows, n, dim, 0.03f));
  std::vector<std::uint8_t> expected;
  for (std::size_t k = 0; k < all.size(); ++k) {
    chunks[k].as = &all[k];
    const auto alone = encode(all[k].options(), rows, n, dim, 0.03f).code;
    expected.insert(expected.end(), alone.begin(), alone.end());
  }
  EXPECT_EQ(encode_chunks({}, chunks).code, expected);
}

TEST(BoundedCodec, RowsMayLieApart) {
  const std::size_t n = 100, dim = 24, stride = 40;
  const auto rows = make_rows("embedding", n, dim, 6);
  std::vector<float> apart(n * stride, std::nanf("")), back(n * stride, 42);
  for (std::size_t r = 0; r < n; ++r) std::copy_n(rows.data() + r * dim, dim, apart.data() + r * stride);
  for (const auto& codec : Bounded::names()) {
    const Coded tight = encode({codec}, rows, n, dim, 0.03f);
    TableChunk c = chunk_of(apart, n, dim, 0.03f);
    c.stride = stride;
    EXPECT_EQ(encode_chunks({codec}, {c}).code, tight.code) << codec;
    CodedChunk coded{tight.code.data(), tight.code.size(), back.data(), n, dim, stride};
    Bounded(BoundedOptions{codec}).decode({&coded, 1});
    const auto expected = decode({codec}, tight, n, dim);
    for (std::size_t r = 0; r < n; ++r)
      for (std::size_t i = 0; i < stride; ++i)
        ASSERT_EQ(back[r * stride + i], i < dim ? expected[r * dim + i] : 42) << codec;
  }
}

// ---- edges (brief 7.7) ----

std::string encoder_of(const Coded& c) { return std::string(inspect(c.code).encoder); }

TEST(BoundedCodec, EdgesOfValues) {
  const float inf = HUGE_VALF, nan = std::nanf(""), denormal = 1e-42f;
  struct Case {
    std::vector<float> values;
    float rel;
    std::string encoder;
    bool exact;
  };
  const std::vector<Case> cases = {
      {{3.5f, 3.5f, 3.5f, 3.5f}, 0.01f, "constant", true},
      {{0.0f, 0.0f, 0.0f, 0.0f}, 0.01f, "constant", true},
      {{1, 2, nan, 4}, 0.01f, "raw", true},
      {{1, -inf, inf, 4}, 0.01f, "raw", true},
      {{nan, nan, nan, nan}, 0.01f, "raw", true},
      {{1, 2, 3, -0.0f}, 0, "dedup_values", true},
      {{0, denormal, 2 * denormal, 3 * denormal}, 0.01f, "raw", true},
      {{-3e38f, 3e38f, 0, 1}, 0.01f, "raw", true},
      {{1e6f, 1e6f + 0.0625f, 1e6f + 0.125f, 1e6f}, 0.01f, "raw", true},
      {{1000, 1001, 1002, 1000.013f}, 0.01f, "dedup_rans", false},
      {{0, 1, 0, 1}, 1, "dedup_rans", false},
  };
  for (const auto& c : cases) {
    std::vector<float> rows;  // 4 rows of 32 equal values, twice
    for (int k = 0; k < 2; ++k)
      for (const float x : c.values) rows.insert(rows.end(), 32, x);
    const Coded code = encode({"dedup_rans"}, rows, 8, 32, c.rel);
    const auto back = decode({"dedup_rans"}, code, 8, 32);
    EXPECT_TRUE(encoder_of(code) == c.encoder || (c.encoder[0] == 'd' && encoder_of(code) == "packed"))
        << encoder_of(code) << " for " << c.values[0] << ", " << c.values[1];
    EXPECT_EQ(std::memcmp(back.data(), rows.data(), 4 * rows.size()) == 0, c.exact) << c.values[0];
    EXPECT_EQ(inspect(code.code).nonfinite,
              std::any_of(rows.begin(), rows.end(), [](float x) { return !std::isfinite(x); }));
  }
}

TEST(BoundedCodec, MinusZeroBecomesZeroButWhereNothingIsLost) {
  std::vector<float> rows(64, -0.0f);
  EXPECT_FALSE(std::signbit(decode({}, encode({}, rows, 2, 32, 0.01f), 2, 32)[5]));
  rows[9] = 1;
  EXPECT_FALSE(std::signbit(decode({}, encode({}, rows, 2, 32, 0.01f), 2, 32)[5]));
  EXPECT_TRUE(std::signbit(decode({}, encode({}, rows, 2, 32, 0), 2, 32)[5]));
  EXPECT_TRUE(std::signbit(decode({"raw"}, encode({"raw"}, rows, 2, 32, 0.01f), 2, 32)[5]));
}

TEST(BoundedCodec, NothingToSendIsAHeader) {
  for (const auto& codec : Bounded::names()) {
    const Coded c = encode({codec}, {}, 0, 64, 0.01f);
    EXPECT_EQ(c.code.size(), 20u);
    EXPECT_TRUE(decode({codec}, c, 0, 64).empty());
  }
}

TEST(BoundedCodec, NonFiniteIsRefusedOnRequest) {
  auto rows = make_rows("embedding", 10, 8, 1);
  BoundedOptions o;
  o.refuse_nonfinite = true;
  EXPECT_NO_THROW(encode(o, rows, 10, 8, 0.01f));
  rows[33] = std::nanf("");
  try {
    encode(o, rows, 10, 8, 0.01f);
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::nonfinite);
  }
}

TEST(BoundedCodec, NothingGrowsByMoreThanItsHeader) {
  for (const auto& kind : kinds())
    for (const float rel : {0.0f, 1e-9f, 1e-6f, 1e-4f, 0.01f})
      for (const auto& codec : Bounded::names())
        EXPECT_LE(encode({codec}, make_rows(kind, 65, 5, 9), 65, 5, rel).code.size(), 20 + 4 * 65u * 5u)
            << kind << codec;
}

TEST(BoundedCodec, WhatMakesNoSenseIsRefused) {
  EXPECT_THROW(Bounded(BoundedOptions{"dedup_hufman"}, "a.yaml:3:5"), UsageError);
  BoundedOptions o;
  o.code_width = 12;
  EXPECT_THROW(Bounded{o}, UsageError);
  o = {};
  o.window = 256;
  EXPECT_THROW(Bounded{o}, UsageError);
  EXPECT_THROW(encode({}, std::vector<float>(8, 1), 1, 8, -1), UsageError);
  EXPECT_THROW(encode({}, std::vector<float>(8, 1), 1, 8, std::nanf("")), UsageError);
  // More than a header can count the bytes of; the rows are not looked at.
  TableChunk large;
  large.n = std::size_t{1} << 24, large.dim = 64;
  std::uint64_t size = 0;
  const std::size_t room = Bounded({}).max_bytes(large.n, large.dim);
  EXPECT_THROW(Bounded({}).encode({&large, 1}, {&size, room, DType::u8}, {&size, 1, DType::i64}), UsageError);
  const CodedChunk coded{nullptr, 0, nullptr, large.n, large.dim};
  EXPECT_THROW(Bounded({}).decode({&coded, 1}), UsageError);
}

// ---- stages ----

TEST(Dedup, RowsOfEqualHashStayApart) {
  // 8-byte rows: the hash is one multiplication and a shift, so many rows share a slot; all differ in one bit.
  const std::size_t n = 4096;
  std::vector<std::uint8_t> rows(8 * n);
  for (std::size_t r = 0; r < n; ++r) {
    const std::uint64_t word = std::uint64_t(r % 1024) << 54;  // only the highest bits
    std::memcpy(&rows[8 * r], &word, 8);
  }
  Dedup d;
  dedup(rows.data(), n, 8, 8, d);
  ASSERT_EQ(d.unique.size(), 1024u);
  for (std::size_t r = 0; r < n; ++r) EXPECT_EQ(d.index[r], r % 1024);
  dedup(rows.data(), 1, 8, 8, d);
  EXPECT_EQ(d.unique.size(), 1u);
}

// Bit by bit, from the lengths alone.
std::vector<std::uint8_t> slow_huffman(const std::uint8_t* length, std::uint32_t span, std::uint32_t low,
                                       std::span<const std::uint8_t> bytes, std::size_t count) {
  std::vector<std::uint8_t> out;
  std::size_t bit = 0;
  while (out.size() < count) {
    std::uint32_t code = 0, first = 0;
    for (std::uint32_t bits = 1;; ++bits) {
      code = code << 1 | (bytes[bit / 8] >> (bit % 8) & 1u);
      ++bit;
      std::uint32_t of_length = 0;
      for (std::uint32_t s = 0; s < span; ++s)
        if (length[s] == bits && first + of_length++ == code) out.push_back(std::uint8_t(low + s)), bits = 99;
      if (bits == 99) break;
      first = (first + of_length) << 1;
    }
  }
  return out;
}

TEST(Huffman, LengthsFillTheTreeAndCodesAreCanonical) {
  std::mt19937 random(1);
  for (const std::uint32_t span : {2u, 3u, 16u, 43u, 256u})
    for (const double skew : {0.0, 0.3, 1.0, 4.0}) {
      std::vector<std::uint8_t> symbols(3000);
      for (auto& s : symbols) s = std::uint8_t(std::pow(double(random()) / 4294967296.0, 1 + skew) * span);
      symbols[0] = 0, symbols[1] = std::uint8_t(span - 1);
      std::uint32_t count[256] = {};
      for (const auto s : symbols) ++count[s];
      std::uint8_t length[256] = {};
      huffman_lengths(count, span, length);
      double kraft = 0;
      for (std::uint32_t s = 0; s < span; ++s) {
        EXPECT_EQ(length[s] > 0, count[s] > 0);
        EXPECT_LE(length[s], longest_code);
        if (length[s]) kraft += std::ldexp(1.0, -length[s]);
      }
      EXPECT_EQ(kraft, 1);
      Bytes stream;
      encode_huffman({symbols.data(), std::uint32_t(symbols.size())}, stream);
      const std::size_t codes = 2 + (span + 1) / 2 + 2 * 3;  // three sub-streams
      EXPECT_EQ(slow_huffman(length, span, 0, std::span(stream).subspan(codes), symbols.size()), symbols);
    }
}

TEST(Huffman, FibonacciCountsAreCutToTheLimit) {
  std::uint32_t count[40] = {1, 1};
  for (int s = 2; s < 40; ++s) count[s] = count[s - 1] + count[s - 2];
  std::uint8_t length[40];
  huffman_lengths(count, 40, length);
  double kraft = 0;
  for (const auto l : length) {
    EXPECT_LE(l, longest_code);
    kraft += std::ldexp(1.0, -l);
  }
  EXPECT_EQ(kraft, 1);
}

TEST(Symbols, ComeBackFromBothCoders) {
  std::mt19937 random(2);
  for (const std::uint32_t count : {1u, 2u, 31u, 33u, 1023u, 1024u, 1025u, 70001u})
    for (const std::uint32_t span : {1u, 2u, 17u, 256u})
      for (const std::uint32_t lanes : {0u, 3u, 5u, 7u}) {
        Bytes symbols(count), back(count), late(40), late_back, stream;
        for (auto& s : symbols) s = std::uint8_t(random() % span % (1 + random() % span));
        for (auto& b : late) b = std::uint8_t(random());
        Bytes classes((count + 6) / 7);
        for (auto& c : classes) c = std::uint8_t(random() % 4);
        const Symbols in{symbols.data(), count, 7, lanes == 3 ? 1u : 4u, classes.data()};
        const std::size_t along = encode_rans(in, lanes, late, stream);
        EXPECT_EQ(along, std::min<std::size_t>(40, std::size_t{2} << lanes));
        decode_rans(stream, count, 7, 255, back.data(), late_back);
        EXPECT_EQ(back, symbols);
        EXPECT_TRUE(std::equal(late.begin(), late.begin() + std::ptrdiff_t(along), late_back.begin()));
        stream.clear();
        encode_huffman(in, stream);
        std::fill(back.begin(), back.end(), std::uint8_t{0});
        decode_huffman(stream, count, 255, back.data());
        EXPECT_EQ(back, symbols);
      }
}

// A stream of the index is not made of rows: a GPU's decoder has room for the table of one class.
TEST(Symbols, OfAnIndexHaveOneClass) {
  const Bytes symbols(14, 3), classes = {0, 1};
  Bytes stream, back(14), late;
  encode_rans({symbols.data(), 14, 7, 2, classes.data()}, 0, {}, stream);
  EXPECT_NO_THROW(decode_rans(stream, 14, 7, 255, back.data(), late));
  EXPECT_THROW(decode_rans(stream, 14, 0, 255, back.data(), late), BadStream);
}

// Shannon's bound: rANS needs little more, below one bit a symbol too.
TEST(Rans, LanesMayBeMoreThanSymbols) {
  const Bytes in(40, 7), of_row{0, 1};
  Bytes code, out(in.size()), late;
  encode_rans({in.data(), 40, 20, 2, of_row.data()}, most_lanes_log2, {}, code);
  decode_rans(code, 40, 20, most_symbols - 1, out.data(), late);
  EXPECT_EQ(out, in);
}

TEST(Rans, IsNearTheEntropy) {
  std::mt19937 random(3);
  for (const double p : {0.5, 0.8, 0.95, 0.99}) {
    Bytes symbols(100000), stream;
    for (auto& s : symbols)
      for (s = 0; s < 40 && random() / 4294967296.0 > p; ++s) continue;
    std::map<std::uint8_t, double> share;
    for (const auto s : symbols) share[s] += 1.0 / double(symbols.size());
    double bits = 0;
    for (const auto& [s, q] : share) bits -= q * std::log2(q) * double(symbols.size());
    encode_rans({symbols.data(), std::uint32_t(symbols.size())}, 5, {}, stream);
    EXPECT_LT(double(stream.size()), 1.006 * bits / 8 + 32 * 3 + 40) << p;
  }
}

// The longest match of every start, by trying all.
LzCounts slow_lz(const std::vector<std::uint8_t>& ids, std::size_t window, std::size_t& literals) {
  LzCounts counts;
  literals = 0;
  for (std::size_t first = 0; first < ids.size(); first += lz_block) {
    const std::size_t end = std::min(ids.size(), first + lz_block);
    for (std::size_t i = first; i < end;) {
      std::size_t best = 0;
      for (std::size_t distance = 1; distance <= window && distance <= i - first; ++distance) {
        std::size_t length = 0;
        while (length < distance && i + length < end && ids[i + length] == ids[i + length - distance]) ++length;
        best = std::max(best, length);
      }
      if (best) ++counts.matches, counts.covered += best;
      literals += best == 0;
      i += std::max<std::size_t>(best, 1);
    }
  }
  return counts;
}

TEST(VectorLz, IsTheBruteForceSearch) {
  std::mt19937 random(4);
  for (const std::size_t n : {1u, 100u, 2048u, 2049u, 5000u})
    for (const std::uint32_t window : {1u, 32u, 255u})
      for (const unsigned ids : {2u, 30u, 200u}) {
        const std::size_t width = 6;
        std::vector<std::uint8_t> id(n), rows(n * width), back(n * width);
        for (std::size_t r = 0; r < n; ++r) {
          id[r] = std::uint8_t(random() % ids);
          std::fill_n(rows.begin() + std::ptrdiff_t(r * width), width, id[r]);
        }
        Bytes code;
        LzCounts counts;
        ASSERT_TRUE(encode_vector_lz(rows.data(), n, width, window, ~std::size_t{0}, code, &counts));
        std::size_t literals = 0;
        const LzCounts slow = slow_lz(id, window, literals);
        EXPECT_EQ(counts.covered, slow.covered);
        EXPECT_EQ(counts.matches, slow.matches);
        decode_vector_lz(code, n, width, back.data());
        EXPECT_EQ(back, rows);
      }
}

TEST(Log2, IsTheLogarithm) {
  for (std::uint32_t x = 1; x < 4000000000u; x += 1 + x / 97)
    EXPECT_NEAR(log2_256(x) / 256.0, std::log2(double(x)), 1.0 / 256);
}

}  // namespace
}  // namespace trireme::test
