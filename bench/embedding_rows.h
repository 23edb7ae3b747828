// Rows as a trained embedding table gives them to a batch: made up, since real ones are not ours to pass on. Their
// unique rows and the entropies of their codes are those of a real lookup of Criteo Terabyte's table 1 (2048 x 64)
// within 12 %, at relative bounds 0.01, 0.03 and 0.05.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace trireme::bench {

// One batch after another, none like another: ids of a Zipf-Mandelbrot popularity, rows that have grown with it.
std::vector<float> embedding_rows(std::size_t batches, std::size_t rows, std::size_t dim, std::uint64_t seed);

}  // namespace trireme::bench
