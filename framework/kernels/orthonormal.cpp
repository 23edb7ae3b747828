#include "framework/kernels/orthonormal.h"

#include <algorithm>
#include <cmath>

namespace trireme::kernels {
namespace {

double dot(const float* a, const float* b, std::int64_t n) {
  double sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += double(a[i]) * double(b[i]);
  return sum;
}

void orthonormalize_one(const Rows& rows) {
  const std::int64_t n = rows.length;
  for (std::int64_t k = 0; k < rows.count; ++k) {
    float* row = rows.data + k * n;
    const double before = std::sqrt(dot(row, row, n));
    for (std::int64_t j = 0; j < k; ++j) {
      const float* other = rows.data + j * n;
      const double along = dot(row, other, n);
      for (std::int64_t i = 0; i < n; ++i) row[i] = float(row[i] - along * other[i]);
    }
    const double norm = std::sqrt(dot(row, row, n));
    // What is left of a dependent row is rounding error. A NaN row stays NaN: the step is then skipped.
    const double scale = norm <= 1e-6 * before ? 0 : 1 / norm;
    for (std::int64_t i = 0; i < n; ++i) row[i] = float(row[i] * scale);
  }
}

void orthonormalize_all(const OrthonormalJob& job) {
  for (std::int64_t k = 0; k < job.count; ++k) orthonormalize_one(job.matrices[k]);
}

// By its bits, whatever the flags of this file let the compiler assume.
bool finite(float x) { return (__builtin_bit_cast(std::uint32_t, x) & 0x7f800000u) != 0x7f800000u; }

void restart_all(const RestartJob& job) {
  for (std::int64_t k = 0; k < job.count; ++k) {
    const Rows& rows = job.matrices[k];
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
