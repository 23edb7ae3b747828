// Column sums over rows in fixed blocks, added in block order: the same bits on any number of threads.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

namespace trireme::kernels {

inline constexpr std::int64_t rows_per_block = 64;

// f(begin, end, sums): handles rows [begin, end) and adds its column sums to sums[0..columns), which starts at 0.
template <class T, class F>
void sum_columns_by_block(std::int64_t rows, std::int64_t columns, T* total, const F& f) {
  const std::int64_t blocks = (rows + rows_per_block - 1) / rows_per_block;
  std::vector<T> partial(blocks * columns, T(0));
#pragma omp parallel for schedule(static)
  for (std::int64_t k = 0; k < blocks; ++k)
    f(k * rows_per_block, std::min(rows, (k + 1) * rows_per_block), partial.data() + k * columns);
  for (std::int64_t c = 0; c < columns; ++c) total[c] = T(0);
  for (std::int64_t k = 0; k < blocks; ++k)
    for (std::int64_t c = 0; c < columns; ++c) total[c] += partial[k * columns + c];
}

}  // namespace trireme::kernels
