// Rows as codecs meet them, and short ways to code them.
#pragma once
#include "compression/codecs/bounded.h"

#include <cmath>
#include <cstdlib>
#include <map>
#include <random>

namespace trireme::test {

// Which part of a count that several processes share (tests/nightly).
inline unsigned part_of_night() {
  const char* part = std::getenv("TRIREME_PART");
  return part ? unsigned(std::atoi(part)) : 0;
}

inline const std::vector<std::string>& kinds() {
  static const std::vector<std::string> all = {"embedding", "few",  "normal",  "heavy",
                                               "tiny",      "huge", "shifted", "uniform"};
  return all;
}

// embedding: ids of a heavy-tailed popularity; frequent rows have grown, the others lie near zero.
inline std::vector<float> make_rows(const std::string& kind, std::size_t n, std::size_t dim, unsigned seed) {
  std::mt19937 random(seed * 7919 + 13);
  std::normal_distribution<float> normal;
  std::uniform_real_distribution<float> uniform(-1, 1);
  std::vector<float> v(n * dim);
  if (kind == "embedding" || kind == "few") {
    const unsigned table = kind == "few" ? 9 : 20000;
    for (std::size_t r = 0; r < n; ++r) {
      const auto id = unsigned(std::exp(std::log(double(table)) * (random() / 4294967296.0)));
      std::mt19937 row(id * 31 + seed);
      std::normal_distribution<float> weight(0, 0.01f + 0.2f / float(1 + id % 97));
      for (std::size_t i = 0; i < dim; ++i) v[r * dim + i] = weight(row);
    }
    return v;
  }
  for (auto& x : v) {
    x = normal(random);
    if (kind == "heavy") x = std::copysign(std::exp(3 * std::abs(x)), x);
    if (kind == "tiny") x *= 1e-30f;
    if (kind == "huge") x *= 1e36f;
    if (kind == "shifted") x = 100 + x;
    if (kind == "uniform") x = uniform(random);
  }
  return v;
}

struct Coded {
  std::vector<std::uint8_t> code;
  std::vector<std::uint64_t> sizes;
};

inline TableChunk chunk_of(const std::vector<float>& rows, std::size_t n, std::size_t dim, float bound) {
  TableChunk c;
  c.rows = rows.data();
  c.n = n;
  c.dim = dim;
  c.bound = bound;
  return c;
}

inline Coded encode_chunks(const BoundedOptions& o, const std::vector<TableChunk>& chunks) {
  const Bounded codec(o);
  std::size_t room = 0, used = 0;
  for (const auto& c : chunks) room += codec.max_bytes(c.n, c.dim);
  Coded r{std::vector<std::uint8_t>(room), std::vector<std::uint64_t>(chunks.size())};
  codec.encode(chunks, {r.code.data(), room, DType::u8}, {r.sizes.data(), r.sizes.size(), DType::i64});
  for (const auto s : r.sizes) used += s;
  r.code.resize(used);
  return r;
}

inline Coded encode(const BoundedOptions& o, const std::vector<float>& rows, std::size_t n, std::size_t dim,
                    float bound) {
  return encode_chunks(o, {chunk_of(rows, n, dim, bound)});
}

inline std::vector<float> decode(const BoundedOptions& o, const Coded& c, std::size_t n, std::size_t dim) {
  std::vector<float> rows(n * dim, 42);
  const CodedChunk chunk{c.code.data(), c.code.size(), rows.data(), n, dim};
  Bounded(o).decode({&chunk, 1});
  return rows;
}

}  // namespace trireme::test
