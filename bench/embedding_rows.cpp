#include "bench/embedding_rows.h"

#include "data/rng.h"

#include <algorithm>
#include <cmath>

namespace trireme::bench {
namespace {

constexpr std::size_t table = 36084;
constexpr double exponent = 1.05, shift = 1, least = 0.0055, growth = 0.27, spread = 0.5;

}  // namespace

std::vector<float> embedding_rows(std::size_t batches, std::size_t rows, std::size_t dim, std::uint64_t seed) {
  std::vector<double> upto(table);
  double all = 0;
  for (std::size_t i = 0; i < table; ++i) upto[i] = all += std::pow(double(i + 1) + shift, -exponent);
  std::vector<float> values(table * dim), out(batches * rows * dim);
  for (std::size_t i = 0; i < table; ++i) {
    Rng rng(seed, "row", i);
    const double share = std::pow(double(i + 1) + shift, -exponent) / all,
                 deviation = least * std::pow(1 + 2048 * share, growth) * std::exp(spread * rng.normal());
    for (std::size_t k = 0; k < dim; ++k) values[i * dim + k] = float(deviation * rng.normal());
  }
  for (std::size_t r = 0; r < batches * rows; ++r) {
    Rng rng(seed, "id", r);
    const auto id = std::size_t(std::lower_bound(upto.begin(), upto.end() - 1, all * rng.uniform()) - upto.begin());
    std::copy_n(values.data() + id * dim, dim, out.data() + r * dim);
  }
  return out;
}

}  // namespace trireme::bench
