// Contrastive losses over all ranks with closed-form gradients: FastCLIP's global contrastive losses v0, v1 and v3
// (arXiv 2407.01445) and OpenCLIP's mini-batch loss. Features are gathered once; the gradient of the other ranks' rows
// is recovered from two scalars per sample, so no feature gradient is ever communicated.
//
// Returned values are per worker, as the FastCLIP code defines them: averaged over the K ranks they are the global
// ones. (The framework sums over ranks; the recipe divides by K.)
#pragma once
#include "comm/communicator.h"

#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::fastclip {

// log u of every sample, both sides; -inf: never visited. Equal on all ranks.
struct NormalizerTable {
  at::Tensor image, text;  // [n], f32 or f64
  NormalizerTable(std::int64_t n, at::TensorOptions options);
  // log_u [2, B] for the samples `ids` [B]; of equal ids the highest row wins. skip: f32 scalar, 1 = write nothing.
  void write(std::span<const std::int64_t> ids, const at::Tensor& log_u, const at::Tensor& skip);
};

struct GlobalLossOptions {
  bool multiply_tau = true;  // v3 (rgclg); off: v0 and v1 (gcl)
  double rho = 6.5, eps = 1e-14;
  bool exact_tau_gradient =
      false;  // the derivative of RGCL-g itself; off: the authors' code, which weighs one term twice
};

struct LossResult {
  at::Tensor loss;             // scalar
  at::Tensor d_image, d_text;  // [b, d]: gradients of the local feature rows
  at::Tensor d_log_scale;      // scalar: dL/dt, t = log(1/tau)
  at::Tensor log_u;            // [2, B]: new table entries of all rows, equal on all ranks (global losses only)
  at::Tensor mean_log_u;       // scalar, over all B rows and both sides, equal on all ranks (global losses only)
};

// Over all ranks: throws UsageError for less than two, where each loss is a constant.
void check_pairs(std::int64_t global);

// gamma of an epoch: 1 in epoch 0, then cosine from 1 to gamma_min at `decay_epochs`, or gamma_min for "constant".
double gamma_at(std::string_view schedule, double gamma_min, std::int64_t decay_epochs, std::int64_t epoch);

// image, text [b, d]: this rank's unit-length rows, detached; rank k's rows are rows [k*b, (k+1)*b) of the global batch
// whose sample numbers are `global_ids` [B]. The table is read only: write() the result's log_u when the step counts.
LossResult global_loss(Communicator& comm, const at::Tensor& image, const at::Tensor& text, const at::Tensor& log_scale,
                       std::span<const std::int64_t> global_ids, double gamma, const NormalizerTable& table,
                       const GlobalLossOptions& options);

// Symmetric softmax cross-entropy over the global batch. d_image and d_text include what flows back from other ranks.
LossResult mini_batch_loss(Communicator& comm, const at::Tensor& image, const at::Tensor& text,
                           const at::Tensor& log_scale);

}  // namespace trireme::fastclip
