#include "framework/kernels/dit_pointwise.h"

#include <cmath>
#include <vector>

namespace trireme::kernels {
namespace {

template <class T>
void sum_row(const ModulateJob<T>& job, std::int64_t row, float* values) {
  const T* x = job.x + row * job.width;
  const std::int64_t b = row / job.tokens;
  for (std::int64_t c = 0; c < job.width; ++c) values[c] = widened(x[c]);
  if (!job.add) return;
  const T *add = job.add + row * job.width, *gate = job.gate + b * job.stride;
  T* sum = job.sum + row * job.width;
  for (std::int64_t c = 0; c < job.width; ++c) {
    narrowed(values[c] + widened(gate[c]) * widened(add[c]), sum[c]);
    values[c] = widened(sum[c]);
  }
}

template <class T>
void modulate_host(const ModulateJob<T>& job) {
#pragma omp parallel
  {
    std::vector<float> values(static_cast<std::size_t>(job.width));
#pragma omp for
    for (std::int64_t row = 0; row < job.batch * job.tokens; ++row) {
      sum_row(job, row, values.data());
      if (!job.y) continue;
      double mean = 0, square = 0;
      for (const float v : values) mean += v;
      mean /= double(job.width);
      for (const float v : values) square += (v - mean) * (v - mean);
      const auto m = float(mean), rstd = float(1 / std::sqrt(square / double(job.width) + job.eps));
      const std::int64_t b = row / job.tokens;
      const T *shift = job.shift + b * job.stride, *scale = job.scale + b * job.stride;
      T* y = job.y + row * job.width;
      for (std::int64_t c = 0; c < job.width; ++c)
        narrowed((values[std::size_t(c)] - m) * rstd * (1 + widened(scale[c])) + widened(shift[c]), y[c]);
    }
  }
}

template <class T>
void head_host(const QkJob<T>& job, T* x, const T* weight, const float* cos, const float* sin) {
  double square = 0;
  for (std::int64_t c = 0; c < job.head_dim; ++c) square += double(widened(x[c])) * widened(x[c]);
  const auto rstd = float(1 / std::sqrt(square / double(job.head_dim) + job.eps));
  for (std::int64_t p = 0; p < job.head_dim / 2; ++p) {
    const float a = widened(x[2 * p]) * rstd * widened(weight[2 * p]);
    const float b = widened(x[2 * p + 1]) * rstd * widened(weight[2 * p + 1]);
    narrowed(cos ? a * cos[p] - b * sin[p] : a, x[2 * p]);
    narrowed(cos ? b * cos[p] + a * sin[p] : b, x[2 * p + 1]);
  }
}

template <class T>
void norm_and_rotate_host(const QkJob<T>& job) {
#pragma omp parallel for
  for (std::int64_t row = 0; row < job.batch * job.tokens; ++row) {
    const std::int64_t token = row % job.tokens;
    const std::int64_t entry = row / job.tokens * job.table_stride + token * job.head_dim / 2;
    const float *cos = job.cos ? job.cos + entry : nullptr, *sin = job.cos ? job.sin + entry : nullptr;
    const bool first = token < job.split;
    T* q = job.qkv + row * 3 * job.heads * job.head_dim;
    for (std::int64_t h = 0; h < job.heads; ++h) {
      head_host(job, q + h * job.head_dim, first ? job.q_first : job.q_second, cos, sin);
      head_host(job, q + (job.heads + h) * job.head_dim, first ? job.k_first : job.k_second,
                job.rotate_k ? cos : nullptr, sin);
    }
  }
}

}  // namespace

Kernel<ModulateJob<float>> modulate_f32("modulate", modulate_host<float>);
Kernel<ModulateJob<BrainFloat>> modulate_bf16("modulate", modulate_host<BrainFloat>);
Kernel<QkJob<float>> norm_and_rotate_f32("norm_and_rotate", norm_and_rotate_host<float>);
Kernel<QkJob<BrainFloat>> norm_and_rotate_bf16("norm_and_rotate", norm_and_rotate_host<BrainFloat>);

}  // namespace trireme::kernels
