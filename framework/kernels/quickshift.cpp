#include "framework/kernels/quickshift.h"

#include <algorithm>

namespace trireme::kernels {
namespace {

// Of the rows of a window around a pixel.
template <class Row>
void each_row(const QuickshiftJob& job, std::int64_t pixel, std::int64_t reach, Row row) {
  const std::int64_t own = pixel / job.columns;
  for (std::int64_t r = std::max<std::int64_t>(0, own - reach); r <= std::min(job.rows - 1, own + reach); ++r) row(r);
}

void on_host(const QuickshiftJob& job) {
  const std::int64_t n = job.pixels();
  for (std::int64_t b = 0; b < job.batch; ++b) {
    for (std::int64_t p = 0; p < n; ++p) {
      double sum = 0;
      each_row(job, p, job.reach(), [&](std::int64_t r) { sum += quickshift_pixel::density_of_row(job, b, p, r); });
      quickshift_pixel::set_density(job, b, p, sum);
    }
    for (std::int64_t p = 0; p < n; ++p) {
      quickshift_pixel::Nearest nearest{0, -1};
      each_row(job, p, job.link_reach(), [&](std::int64_t r) {
        const auto of_row = quickshift_pixel::nearest_of_row(job, b, p, r);
        if (of_row.pixel >= 0) nearest.offer(of_row.pixel, of_row.d2);
      });
      quickshift_pixel::set_parent(job, b, p, nearest);
    }
    std::int32_t *parent = job.parent() + b * n, *labels = job.labels + b * n, segments = 0;
    for (std::int64_t p = 0; p < n; ++p) labels[p] = quickshift_pixel::root(parent, static_cast<std::int32_t>(p));
    for (std::int64_t p = 0; p < n; ++p) {
      const bool is_root = labels[p] == p;
      parent[p] = segments;  // of a root: how many stand before it
      segments += is_root;
    }
    for (std::int64_t p = 0; p < n; ++p) labels[p] = parent[labels[p]];
    job.segments[b] = segments;
  }
}

}  // namespace

constinit Kernel<QuickshiftJob> quickshift("quickshift", on_host);

}  // namespace trireme::kernels
