#include "framework/kernels/dit_pointwise.h"

#include <cmath>
#include <vector>

namespace trireme::kernels {
namespace {

template <class T, class M>
void sum_row(const ModulateJob<T, M>& job, std::int64_t row, float* values) {
  const T* x = job.x + row * job.width;
  const std::int64_t b = row / job.tokens;
  for (std::int64_t c = 0; c < job.width; ++c) values[c] = widened(x[c]);
  if (!job.add) return;
  const T* add = job.add + row * job.width;
  const M* gate = job.gate ? job.gate + b * job.gate_stride : nullptr;
  T* sum = job.sum + row * job.width;
  for (std::int64_t c = 0; c < job.width; ++c) {
    narrowed(values[c] + (gate ? widened(gate[c]) : 1) * widened(add[c]), sum[c]);
    values[c] = widened(sum[c]);
  }
}

template <class T, class M>
void modulate_host(const ModulateJob<T, M>& job) {
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
      const M *shift = job.shift + b * job.stride, *scale = job.scale + b * job.stride;
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

template <class T>
void norm_rows_host(const RowNormJob<T>& job) {
  const std::int64_t width = job.heads * job.head_dim, pairs = job.head_dim / 2;
#pragma omp parallel for
  for (std::int64_t row = 0; row < job.batch * job.tokens; ++row) {
    const std::int64_t entry = row / job.tokens * job.table_stride + row % job.tokens * pairs;
    for (int k = 0; k < 2 && job.weight[k]; ++k) {
      T* x = job.x + row * job.row_stride + k * width;
      const T* weight = job.weight[k];
      double square = 0;
      for (std::int64_t c = 0; c < width; ++c) square += double(widened(x[c])) * widened(x[c]);
      const auto rstd = float(1 / std::sqrt(square / double(width) + job.eps));
      const bool rotate = job.cos && (k == 0 || job.rotate_second);
      for (std::int64_t p = 0; p < width / 2; ++p) {
        const float a = widened(x[2 * p]) * rstd * widened(weight[2 * p]);
        const float b = widened(x[2 * p + 1]) * rstd * widened(weight[2 * p + 1]);
        const float cos = rotate ? job.cos[entry + p % pairs] : 1, sin = rotate ? job.sin[entry + p % pairs] : 0;
        narrowed(a * cos - b * sin, x[2 * p]);
        narrowed(b * cos + a * sin, x[2 * p + 1]);
      }
    }
  }
}

}  // namespace

Kernel<ModulateJob<float, float>> modulate_f32("modulate", modulate_host<float, float>);
Kernel<ModulateJob<BrainFloat, BrainFloat>> modulate_bf16("modulate", modulate_host<BrainFloat, BrainFloat>);
Kernel<ModulateJob<BrainFloat, float>> modulate_bf16_by_f32("modulate", modulate_host<BrainFloat, float>);
Kernel<RowNormJob<float>> norm_rows_f32("norm_rows", norm_rows_host<float>);
Kernel<RowNormJob<BrainFloat>> norm_rows_bf16("norm_rows", norm_rows_host<BrainFloat>);
Kernel<QkJob<float>> norm_and_rotate_f32("norm_and_rotate", norm_and_rotate_host<float>);
Kernel<QkJob<BrainFloat>> norm_and_rotate_bf16("norm_and_rotate", norm_and_rotate_host<BrainFloat>);

}  // namespace trireme::kernels
