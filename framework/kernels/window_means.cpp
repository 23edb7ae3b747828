#include "framework/kernels/window_means.h"

#include <algorithm>
#include <bit>
#include <cmath>

namespace trireme::kernels {
namespace {

inline double widened(float v) { return v; }
inline double widened(double v) { return v; }
inline double widened(std::uint16_t v) { return std::bit_cast<float>(std::uint32_t(v) << 16); }  // bf16

template <class T>
double sum_of_run(const T* a, const T* b, std::int64_t n) {
  constexpr std::int64_t lanes = 8;
  double lane[lanes] = {}, sum = 0;
  std::int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    for (std::int64_t k = 0; k < lanes; ++k) lane[k] += std::abs(widened(a[i + k]) - (b ? widened(b[i + k]) : 0.0));
  for (; i < n; ++i) sum += std::abs(widened(a[i]) - (b ? widened(b[i]) : 0.0));
  for (const double v : lane) sum += v;
  return sum;
}

// One part of one window: its lines (plane, row) part, part + parts, ...
template <class T>
void sum_part(const WindowMeansJob& job, std::int64_t window, std::int64_t part) {
  double* sums = job.partial + (window * parts_of_a_window + part) * job.differences;
  std::fill_n(sums, job.differences, 0.0);
  const std::int64_t row0 = job.row_start[window / job.column_starts],
                     column = job.column_start[window % job.column_starts];
  if (row0 < 0 || column < 0) return;
  const std::int64_t first = std::min(job.window_columns, job.columns - column);
  for (std::int64_t line = part; line < job.planes * job.window_rows; line += parts_of_a_window) {
    const std::int64_t row = (row0 + line % job.window_rows) % job.rows;
    const std::int64_t at = (line / job.window_rows * job.rows + row) * job.columns;
    for (std::int64_t d = 0; d < job.differences; ++d) {
      const T *a = static_cast<const T*>(job.a[d]) + at, *b = job.b[d] ? static_cast<const T*>(job.b[d]) + at : nullptr;
      sums[d] += sum_of_run(a + column, b ? b + column : nullptr, first) + sum_of_run(a, b, job.window_columns - first);
    }
  }
}

template <class T>
void run(const WindowMeansJob& job) {
  const std::int64_t windows = job.row_starts * job.column_starts;
#pragma omp parallel for schedule(static)
  for (std::int64_t i = 0; i < windows * parts_of_a_window; ++i)
    sum_part<T>(job, i / parts_of_a_window, i % parts_of_a_window);
  const double size = static_cast<double>(job.planes * job.window_rows * job.window_columns);
  for (std::int64_t w = 0; w < windows; ++w)
    for (std::int64_t d = 0; d < job.differences; ++d) {
      double sum = 0;
      for (std::int64_t p = 0; p < parts_of_a_window; ++p)
        sum += job.partial[(w * parts_of_a_window + p) * job.differences + d];
      job.means[w * job.differences + d] = static_cast<float>(sum / size);
    }
}

void on_host(const WindowMeansJob& job) {
  if (job.dtype == DType::f64) return run<double>(job);
  if (job.dtype == DType::bf16) return run<std::uint16_t>(job);
  run<float>(job);
}

}  // namespace

constinit Kernel<WindowMeansJob> window_means("window_means", on_host);

}  // namespace trireme::kernels
