#include "framework/kernels/orthonormal.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace trireme::kernels {
namespace {

double dot(const float* a, const float* b, std::int64_t n) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < n; ++i) sum += double(a[i]) * double(b[i]);
  return sum;
}

// Products of rows in, factors of rows out: row k becomes the sum over j <= k of a[k][j] times row j.
void eliminate(std::vector<double>& a, std::int64_t r) {
  std::vector<double> square, scale;  // of a row as it was; of what is left of it
  for (std::int64_t k = 0; k < r; ++k) square.push_back(a[k * r + k]);
  for (std::int64_t k = 0; k < r; ++k) {
    const double left = a[k * r + k];
    const bool dependent = left <= 1e-12 * square[k];  // a NaN is not: the step is then skipped
    scale.push_back(dependent ? 0 : 1 / std::sqrt(left));
    for (std::int64_t i = k + 1; i < r; ++i) {
      const double factor = a[i * r + k] * (dependent ? 0 : 1 / left);
      for (std::int64_t j = 0; j < r; ++j) a[i * r + j] -= factor * a[k * r + j];
      a[i * r + k] = -factor;
    }
  }
  for (std::int64_t k = 0; k < r; ++k) {
    a[k * r + k] = 1;
    for (std::int64_t j = 0; j <= k; ++j) a[k * r + j] *= scale[k];
  }
}

void orthonormalize_one(const RowMatrix& rows) {
  const std::int64_t r = rows.count, n = rows.length;
  std::vector<double> a(r * r);
  for (std::int64_t i = 0; i < r; ++i)
    for (std::int64_t j = 0; j <= i; ++j) a[i * r + j] = a[j * r + i] = dot(rows.data + i * n, rows.data + j * n, n);
  eliminate(a, r);
  constexpr std::int64_t columns = 512;
  for (std::int64_t first = 0; first < n; first += columns) {
    const std::int64_t here = std::min(columns, n - first);
    for (std::int64_t k = r - 1; k >= 0; --k) {  // the rows before it are still as they were
      double sum[columns] = {};
      for (std::int64_t j = 0; j <= k; ++j) {
        const float* row = rows.data + j * n + first;
        for (std::int64_t i = 0; i < here; ++i) sum[i] += a[k * r + j] * row[i];
      }
      for (std::int64_t i = 0; i < here; ++i) rows.data[k * n + first + i] = float(sum[i]);
    }
  }
}

void orthonormalize_all(const OrthonormalJob& job) {
  for (std::int64_t k = 0; k < job.count; ++k) orthonormalize_one(job.matrices[k]);
}

// By its bits, whatever the flags of this file let the compiler assume.
bool finite(float x) { return (__builtin_bit_cast(std::uint32_t, x) & 0x7f800000u) != 0x7f800000u; }

void restart_all(const RestartJob& job) {
  for (std::int64_t k = 0; k < job.count; ++k) {
    const RowMatrix& rows = job.matrices[k];
    for (std::int64_t r = 0; r < rows.count; ++r) {
      float* row = rows.data + r * rows.length;
      const float square = float(dot(row, row, rows.length));
      if (!finite(square)) *job.lost = 1;
      if (square > 0 && finite(square)) continue;
      std::copy_n(rows.start + r * rows.length, rows.length, row);
    }
  }
}

}  // namespace

constinit Kernel<OrthonormalJob> orthonormalize("orthonormalize", orthonormalize_all);
constinit Kernel<RestartJob> restart_rows("restart_rows", restart_all);

}  // namespace trireme::kernels
