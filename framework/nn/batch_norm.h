// Batch normalisation of [b, c, h, w] over all but c, as torch.nn.BatchNorm2d (Ioffe and Szegedy, arXiv 1502.03167),
// names of its parameters and buffers included; over the rows of all ranks where asked.
#pragma once
#include "framework/nn/parameters.h"
#include "framework/nn/training.h"

#include <memory>

namespace trireme::nn {

class BatchNorm {
 public:
  BatchNorm() = default;
  BatchNorm(const std::string& prefix, std::int64_t channels, Parameters& params, double weight = 1);

  // Training: by the batch's statistics, and running ones move, as yet aside. With `training->statistics` collective,
  // in forward and in backward; equal numbers of rows on all ranks. Else by the running statistics.
  at::Tensor operator()(const at::Tensor& x, const Training* training) const;
  // What running statistics moved to since the last call counts from now on; not with `skip` (f32 scalar) 1.
  void step(const at::Tensor& skip) const;

 private:
  struct Running {
    at::Tensor mean, var, batches;  // the buffers
    at::Tensor next_mean, next_var;
    std::int64_t seen = 0;
  };
  at::Tensor w_, b_;
  std::shared_ptr<Running> running_;
};

}  // namespace trireme::nn
