#include "framework/kernels/lm_pointwise.h"

#include <algorithm>
#include <cmath>

namespace trireme::kernels {
namespace {

constexpr std::int64_t worth_threads = 32768;  // values

template <class T>
void norm_on_host(const RmsNormJob<T>& job) {
#pragma omp parallel for if (job.rows * job.width >= worth_threads)
  for (std::int64_t r = 0; r < job.rows; ++r) {
    const T* x = job.x + r * job.width;
    if (job.add) {
      T* sum = job.sum + r * job.width;
      for (std::int64_t c = 0; c < job.width; ++c)
        narrowed(widened(x[c]) + widened(job.add[r * job.width + c]), sum[c]);
      x = sum;
    }
    double squares = 0;
    for (std::int64_t c = 0; c < job.width; ++c) squares += static_cast<double>(widened(x[c])) * widened(x[c]);
    const auto factor = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(job.width) + job.eps));
    for (std::int64_t c = 0; c < job.width; ++c)
      narrowed(widened(x[c]) * factor * widened(job.weight[c]), job.y[r * job.width + c]);
  }
}

template <class T>
void norm_backward_on_host(const RmsNormBackwardJob<T>& job) {
  const auto width = static_cast<float>(job.width);
#pragma omp parallel for if (job.rows * job.width >= worth_threads)
  for (std::int64_t r = 0; r < job.rows; ++r) {
    const T *x = job.sum + r * job.width, *dy = job.dy + r * job.width;
    float squares = 0, along = 0;
    for (std::int64_t c = 0; c < job.width; ++c) {
      squares += widened(x[c]) * widened(x[c]);
      along += widened(dy[c]) * widened(job.weight[c]) * widened(x[c]);
    }
    const float factor = 1 / std::sqrt(squares / width + job.eps), back = along * factor * factor * factor / width;
    for (std::int64_t c = 0; c < job.width; ++c) {
      const float before = job.dsum ? widened(job.dsum[r * job.width + c]) : 0.0f;
      narrowed(before + widened(dy[c]) * widened(job.weight[c]) * factor - widened(x[c]) * back,
               job.dx[r * job.width + c]);
    }
  }
}

template <class T>
void rotate_on_host(const RotateJob<T>& job) {
  const std::int64_t half = job.head_dim / 2;
#pragma omp parallel for if (job.tokens * job.heads * job.head_dim >= worth_threads)
  for (std::int64_t t = 0; t < job.tokens; ++t)
    for (std::int64_t h = 0; h < job.heads; ++h) {
      const std::int64_t at = (t * job.heads + h) * job.head_dim;
      for (std::int64_t p = 0; p < half; ++p) {
        const float cos = job.cos[t * job.head_dim + p];
        const float sin = job.back ? -job.sin[t * job.head_dim + p] : job.sin[t * job.head_dim + p];
        const float a = widened(job.x[at + p]), b = widened(job.x[at + half + p]);
        narrowed(a * cos - b * sin, job.y[at + p]);
        narrowed(b * cos + a * sin, job.y[at + half + p]);
      }
    }
}

template <class T>
void swiglu_on_host(const SwigluJob<T>& job) {
#pragma omp parallel for if (job.count >= worth_threads)
  for (std::int64_t i = 0; i < job.count; ++i) {
    const float g = widened(job.gate[i]), u = widened(job.up[i]), s = 1 / (1 + std::exp(-g));
    if (!job.dy) {
      narrowed(g * s * u, job.y[i]);
      continue;
    }
    const float dy = widened(job.dy[i]);
    narrowed(dy * u * s * (1 + g * (1 - s)), job.dgate[i]);
    narrowed(dy * g * s, job.dup[i]);
  }
}

template <class T>
void loss_on_host(const TokenLossJob<T>& job) {
#pragma omp parallel for if (job.rows * job.vocab >= worth_threads)
  for (std::int64_t r = 0; r < job.rows; ++r) {
    T* const row = job.logits + r * job.vocab;
    const std::int64_t label = job.labels[r];
    if (label < 0) {
      for (std::int64_t c = 0; c < job.vocab; ++c) narrowed(0.0f, row[c]);
      job.losses[r] = 0;
      continue;
    }
    float most = -INFINITY, sum = 0;
    for (std::int64_t c = 0; c < job.vocab; ++c) most = std::max(most, widened(row[c]));
    for (std::int64_t c = 0; c < job.vocab; ++c) sum += std::exp(widened(row[c]) - most);
    job.losses[r] = label < job.vocab ? std::log(sum) + most - widened(row[label]) : NAN;
    for (std::int64_t c = 0; c < job.vocab; ++c)
      narrowed(std::exp(widened(row[c]) - most) / sum - (c == label ? 1.0f : 0.0f), row[c]);
  }
}

}  // namespace

constinit Kernel<RmsNormJob<float>> rms_norm_f32("rms_norm", norm_on_host<float>);
constinit Kernel<RmsNormJob<BrainFloat>> rms_norm_bf16("rms_norm", norm_on_host<BrainFloat>);
constinit Kernel<RmsNormBackwardJob<float>> rms_norm_backward_f32("rms_norm_backward", norm_backward_on_host<float>);
constinit Kernel<RmsNormBackwardJob<BrainFloat>> rms_norm_backward_bf16("rms_norm_backward",
                                                                        norm_backward_on_host<BrainFloat>);
constinit Kernel<RotateJob<float>> rotate_halves_f32("rotate_halves", rotate_on_host<float>);
constinit Kernel<RotateJob<BrainFloat>> rotate_halves_bf16("rotate_halves", rotate_on_host<BrainFloat>);
constinit Kernel<SwigluJob<float>> swiglu_f32("swiglu", swiglu_on_host<float>);
constinit Kernel<SwigluJob<BrainFloat>> swiglu_bf16("swiglu", swiglu_on_host<BrainFloat>);
constinit Kernel<TokenLossJob<float>> token_loss_f32("token_loss", loss_on_host<float>);
constinit Kernel<TokenLossJob<BrainFloat>> token_loss_bf16("token_loss", loss_on_host<BrainFloat>);

}  // namespace trireme::kernels
