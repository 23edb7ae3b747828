#include "framework/kernels/binary_loss.h"

namespace trireme::kernels {
namespace {

template <class T>
void on_host(const BinaryLossJob<T>& job) {
  double sum = 0;
  for (std::int64_t i = 0; i < job.n; ++i) {
    T gradient;
    sum += double(binary_loss_of(job.logits[i], job.labels[i], gradient));
    job.gradient[i] = T(double(gradient) / job.divisor);
  }
  *job.loss = T(sum / job.divisor);
}

}  // namespace

constinit Kernel<BinaryLossJob<float>> binary_loss_f32("binary loss", on_host<float>);
constinit Kernel<BinaryLossJob<double>> binary_loss_f64("binary loss", on_host<double>);

}  // namespace trireme::kernels
