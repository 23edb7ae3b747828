#include "framework/kernels/attention_merge.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace trireme::kernels {
namespace {

template <class T>
T* row_of(const HeadRows<T>& x, std::int64_t b, std::int64_t h, std::int64_t r) {
  return x.data + b * x.of_batch + h * x.of_head + r * x.of_row;
}

template <class T>
void merge_host(const MergeJob<T>& job) {
#pragma omp parallel for
  for (std::int64_t i = 0; i < job.batch * job.heads * job.rows; ++i) {
    const std::int64_t r = i % job.rows, h = i / job.rows % job.heads, b = i / job.rows / job.heads;
    const float la = job.a_lse[i] + job.bias, lb = job.b_lse[i], most = std::max(la, lb);
    const float ea = std::exp(la - most), eb = std::exp(lb - most), sum = ea + eb;
    job.lse[i] = most + std::log(sum);
    const T *x = row_of(job.a, b, h, r), *y = row_of(job.b, b, h, r);
    T* out = row_of(job.out, b, h, r);
    for (std::int64_t c = 0; c < job.head_dim; ++c)
      narrowed(ea / sum * widened(x[c]) + eb / sum * widened(y[c]), out[c]);
  }
}

void put_rows_host(const PutRowsJob& job) {
  for (int k = 0; k < 2; ++k)
    for (std::int64_t b = 0; b < job.batch; ++b)
      for (std::int64_t i = 0; i < job.before + job.rows + job.after; ++i)
        std::memcpy(job.to[k] + b * job.to_batch + place_of_row(job, b, i) * job.to_row,
                    job.from[k] + b * job.from_batch + i * job.from_row, std::size_t(job.bytes));
}

}  // namespace

Kernel<MergeJob<float>> merge_attention_f32("merge_attention", merge_host<float>);
Kernel<MergeJob<BrainFloat>> merge_attention_bf16("merge_attention", merge_host<BrainFloat>);
Kernel<PutRowsJob> put_rows("put_rows", put_rows_host);

}  // namespace trireme::kernels
