// Contrastive losses over all ranks with closed-form gradients: FastCLIP's global contrastive losses v0 to v3 (arXiv
// 2407.01445), DRRho-CLIP's log-space form with a reference model (arXiv 2505.06699), OpenCLIP's mini-batch loss,
// distillation, and SigLIP's (arXiv 2303.15343). Features are gathered once; the gradient of the other ranks' rows is
// recovered from scalars of each sample (Reduction::scalars), or computed by them and sent (reduce_scatter).
//
// Returned values are per worker, as the authors' code defines them: averaged over the K ranks they are the global
// ones. (The framework sums over ranks; the recipe divides by K.) All calls are collective.
#pragma once
#include "comm/communicator.h"
#include "framework/losses/estimator.h"

#include <ATen/core/Tensor.h>

namespace trireme::fastclip {

// This rank's rows of the global batch: rank k's are rows [k*b, (k+1)*b). All of one type, f32 or f64, detached.
struct Rows {
  at::Tensor image, text;                                // [b, d], unit length
  at::Tensor reference_image = {}, reference_text = {};  // [b, d_ref] of a frozen model; undefined: none
  at::Tensor captions = {};  // [B] i64, on all ranks: equal numbers are no negatives of each other; undefined: all are
};

enum class Reduction { scalars, reduce_scatter };

struct LossResult {
  at::Tensor loss;             // scalar
  at::Tensor d_image, d_text;  // [b, d]: gradients of the local feature rows
  at::Tensor d_log_scale;      // scalar: dL/dt, t = log(1/tau); undefined where t is not used
  at::Tensor d_bias = {};      // scalar (SigLIP)
  at::Tensor entries = {};     // [2, columns, B]: new table entries of all rows, equal on all ranks (global losses)
  at::Tensor objective = {};   // scalar, over all rows, equal on all ranks: the value that is minimised, rho included
  at::Tensor mean_log_u = {};  // scalar, likewise, over both sides
};

// a r + b, of two results; what only one has stays.
LossResult combined(const LossResult& x, const at::Tensor& a, const LossResult& y, const at::Tensor& b);

// Over all ranks: throws UsageError for less than two, where each loss is a constant.
void check_pairs(std::int64_t global);

struct GlobalLossOptions {
  bool multiply_tau = true;  // v3 (rgclg); off: v0 and v1 (gcl)
  double rho = 6.5, eps = 1e-14;
  // The derivative of the objective itself; off: the authors' code, which weighs one term twice.
  bool exact_tau_gradient = false;
  Estimator estimator = {};
  Reduction reduction = Reduction::scalars;
  double scale = 0;  // in place of 1/tau, constant; 0: 1/tau
};

// One temperature. Margins (s_ij - s_ii) - (q_ij - q_ii), q of the reference rows if there are any. `old` [2, 1, b]:
// table entries (log u) of the local rows, image side first. gamma: weight of the new estimate.
LossResult global_loss(Communicator& comm, const Rows& rows, const at::Tensor& log_scale, const at::Tensor& old,
                       double gamma, const GlobalLossOptions& options);

struct IndividualLossOptions {
  double rho = 7, eps = 1e-14;
  double lr_tau = 0.0133, beta1 = 0.9, beta2 = 0.999, adam_eps = 1e-8, tau_min = 0.01, tau_max = 1;
  bool adam_sqrt = true;      // off: the authors' code before 2024-10-03
  bool multiply_tau = false;  // RGCL itself; off: the authors' code, whose gradients carry 1/tau_i
  Estimator estimator = {};
  Reduction reduction = Reduction::scalars;
};

// FastCLIP v2: a temperature of each sample and side, stepped here by an Adam of its own. `old` [2, 5, b]: columns
// log u (of u exp(-bound)), tau, bound, m, v. `epoch`: 0 has no momentum; bias is corrected by one visit an epoch.
LossResult individual_loss(Communicator& comm, const Rows& rows, const at::Tensor& old, double gamma,
                           std::int64_t epoch, const IndividualLossOptions& options);

// Symmetric softmax cross-entropy over the global batch.
LossResult mini_batch_loss(Communicator& comm, const Rows& rows, const at::Tensor& log_scale,
                           Reduction reduction = Reduction::scalars);

// Cross-entropy from the reference's softmax, at `teacher_scale`, to the model's, pairs included (brief: MobileCLIP's).
LossResult distillation_loss(Communicator& comm, const Rows& rows, const at::Tensor& log_scale, double teacher_scale,
                             Reduction reduction = Reduction::scalars);

// A sigmoid for each pair of an image here and a text anywhere: logits s_ij / tau + bias, sum divided by b.
LossResult siglip_loss(Communicator& comm, const Rows& rows, const at::Tensor& log_scale, const at::Tensor& bias,
                       Reduction reduction = Reduction::scalars);

}  // namespace trireme::fastclip
