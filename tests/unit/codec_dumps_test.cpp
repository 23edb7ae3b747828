// links: comm
// Figures on two real dumps of embedding lookups, which are not ours to pass on: TRIREME_EMBEDDINGS names their folder
// (terabyte_table1_2048x64.f32, kaggle_table5_128x32.f32; raw f32, row by row).
#include "compression/stages/chunk.h"
#include "compression/stages/vector_lz.h"
#include "tests/unit/codec_rows.h"

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <set>

#include <gtest/gtest.h>

namespace trireme::test {
namespace {

using namespace coding;

struct Dump {
  std::vector<float> values;
  std::size_t n, dim;
};

Dump load(const char* file, std::size_t n, std::size_t dim) {
  const char* folder = std::getenv("TRIREME_EMBEDDINGS");
  std::ifstream in(folder ? std::string(folder) + "/" + file : std::string(), std::ios::binary);
  const std::vector<char> bytes((std::istreambuf_iterator<char>(in)), {});
  Dump d{std::vector<float>(bytes.size() / 4), n, dim};
  if (!bytes.empty()) std::memcpy(d.values.data(), bytes.data(), bytes.size());
  return d;
}
Dump terabyte() { return load("terabyte_table1_2048x64.f32", 2048, 64); }
Dump kaggle() { return load("kaggle_table5_128x32.f32", 128, 32); }

#define NEEDS_DUMPS                                                                \
  if (terabyte().values.size() != 2048 * 64 || kaggle().values.size() != 128 * 32) \
  GTEST_SKIP() << "TRIREME_EMBEDDINGS names no folder with the dumps"

double ratio(const std::string& codec, const Dump& d, float rel, std::size_t chunk_rows = 0) {
  BoundedOptions o;
  o.codec = codec;
  std::vector<TableChunk> chunks;
  for (std::size_t first = 0; first < d.n; first += chunk_rows ? chunk_rows : d.n) {
    TableChunk c = chunk_of(d.values, chunk_rows ? chunk_rows : d.n, d.dim, rel);
    c.rows += first * d.dim;
    chunks.push_back(c);
  }
  return 4.0 * double(d.values.size()) / double(encode_chunks(o, chunks).code.size());
}

TEST(Dumps, RatiosOfTheSmallest) {
  NEEDS_DUMPS;
  EXPECT_GE(ratio("smallest", terabyte(), 0.01f), 22.3);
  EXPECT_GE(ratio("smallest", terabyte(), 0.03f), 43);
  EXPECT_GE(ratio("smallest", terabyte(), 0.05f), 66);
  EXPECT_GE(ratio("smallest", kaggle(), 0.03f), 93);
  EXPECT_GE(ratio("smallest", terabyte(), 0.03f, 64), 18);
  EXPECT_GE(ratio("auto", terabyte(), 0.03f), 43);
  EXPECT_GE(ratio("auto", terabyte(), 0.03f, 64), 18);
  EXPECT_GE(ratio("dedup_huffman", terabyte(), 0.01f), 21.5);
  EXPECT_GE(ratio("dedup_huffman", terabyte(), 0.03f), 37.9);
  EXPECT_GE(ratio("dedup_huffman", kaggle(), 0.03f), 89);
}

TEST(Dumps, TheSmallestIsNeverBehindThePapersTwo) {
  NEEDS_DUMPS;
  for (const Dump& d : {terabyte(), kaggle()})
    for (const float rel : {0.01f, 0.03f, 0.05f})
      for (const char* codec : {"auto", "smallest"})
        EXPECT_GE(ratio(codec, d, rel), 0.97 * std::max(ratio("vector_lz", d, rel), ratio("huffman", d, rel)));
}

// Brief 11.3: distinct codes, unique rows, Huffman without its book, vector-LZ with 8-byte offsets of each block.
TEST(Dumps, GoldenFigures) {
  NEEDS_DUMPS;
  struct Figure {
    Dump dump;
    float rel;
    std::size_t codes, unique;
    double huffman, lz;
    std::size_t matches, covered;
  };
  for (const auto& f :
       {Figure{terabyte(), 0.01f, 43, 945, 9.34, 4.52, 247, 248},
        Figure{terabyte(), 0.03f, 16, 905, 16.74, 4.56, 261, 262},
        Figure{terabyte(), 0.05f, 11, 758, 22.20, 4.94, 398, 405}, Figure{kaggle(), 0.01f, 39, 7, 6.70, 32.5, 63, 117},
        Figure{kaggle(), 0.03f, 16, 7, 9.53, 32.5, 63, 117}, Figure{kaggle(), 0.05f, 11, 7, 11.99, 32.5, 63, 117}}) {
    const Rows rows{f.dump.values.data(), f.dump.n, f.dump.dim, f.dump.dim};
    Codes codes;
    quantize(rows, bound_for(range_of(rows), f.rel, true).eb, true, codes);
    EXPECT_EQ(std::set<std::int32_t>(codes.wide.begin(), codes.wide.end()).size(), f.codes);
    Bytes narrow_codes, lz, book;
    narrow(codes, narrow_codes);
    Dedup d;
    dedup(narrow_codes.data(), f.dump.n, f.dump.dim, f.dump.dim, d);
    EXPECT_EQ(d.unique.size(), f.unique);
    const double bytes = 4.0 * double(f.dump.values.size());
    encode_huffman({narrow_codes.data(), std::uint32_t(narrow_codes.size())}, book);
    const std::size_t parts = (narrow_codes.size() + sub_stream - 1) / sub_stream;
    EXPECT_NEAR(bytes / double(book.size() - 2 - (codes.span + 1) / 2 - 2 * parts), f.huffman, 0.01 * f.huffman);
    LzCounts counts;
    encode_vector_lz(narrow_codes.data(), f.dump.n, f.dump.dim, 32, ~std::size_t{0}, lz, &counts);
    EXPECT_EQ(counts.matches, f.matches);
    EXPECT_EQ(counts.covered, f.covered);
    EXPECT_NEAR(bytes / double(lz.size() - 2 + 16), f.lz, 0.005 * f.lz);
  }
}

}  // namespace
}  // namespace trireme::test
