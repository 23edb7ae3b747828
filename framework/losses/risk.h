// DRRho risk over any per-sample loss (arXiv 2505.06699): the worst weighted mean of l - l_ref over distributions near
// the uniform one, l_ref being the losses of a frozen reference model (0 without one). Over all ranks of a group.
//
//   mean            (1/B) sum_i x_i,  x = l - l_ref
//   cvar            mean of the largest round(fraction B) of x: selection; of equal ones the lower row
//   kl_penalised    tau log (1/B) sum_i exp(x_i / tau)
//   kl_constrained  min over tau >= tau_min of the same + tau rho
#pragma once
#include "comm/communicator.h"
#include "framework/config/config.h"

#include <string>

#include <ATen/core/Tensor.h>

namespace trireme {

struct RiskConfig {
  std::string kind = "mean";
  double tau = 1, tau_min = 0.01, rho = 0.1, fraction = 0.5;
  std::string reference;  // whose losses are l_ref; the recipe reads it
  void fields(Fields&);
};

struct RiskResult {
  at::Tensor value;    // f64 scalar, equal on all ranks
  at::Tensor weights;  // [b], as `losses`: the gradient of `value` by each local x_i; over all ranks they sum to 1
  at::Tensor tau;      // f64 scalar: that of the KL kinds; undefined for the others
};

// losses, reference [b]: this rank's rows, detached, f32 or f64; reference may be undefined. All ranks have equal b.
// One all-gather of b values, summed in f64, so that the result is the same bits on any number of ranks.
// kl_constrained is solved on the host: on a GPU it waits for the step so far. NaN among the losses gives a NaN value.
RiskResult risk(Communicator& comm, const RiskConfig& config, const at::Tensor& losses,
                const at::Tensor& reference = {});

// A rank's share of the value, which also has its gradient: `losses` [b] on the graph.
at::Tensor risk_share(const RiskResult& risk, const at::Tensor& losses, int ranks);

// Rows of the `count` largest of x [B], ascending i64; of equal ones the lower row, NaN counts as the largest.
at::Tensor largest_rows(const at::Tensor& x, std::int64_t count);

}  // namespace trireme
