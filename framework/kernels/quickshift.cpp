#include "framework/kernels/quickshift.h"

namespace trireme::kernels {
namespace {

void on_host(const QuickshiftJob& job) {
  const std::int64_t n = job.pixels();
  for (std::int64_t b = 0; b < job.batch; ++b) {
    for (std::int64_t p = 0; p < n; ++p) quickshift_pixel::density(job, b, p);
    for (std::int64_t p = 0; p < n; ++p) quickshift_pixel::parent(job, b, p);
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
