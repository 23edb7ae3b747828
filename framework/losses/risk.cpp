#include "framework/losses/risk.h"

#include "framework/losses/similarity.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>

namespace trireme {
namespace {

// How far softmax(beta x) is from uniform (KL divergence), and the variance of x under it. x: f64, its largest is 0.
struct Tilted {
  double divergence, variance;
};

Tilted tilted(const at::Tensor& x, double beta) {
  const double* p = x.const_data_ptr<double>();
  const auto n = x.numel();
  double z = 0, first = 0, second = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    const double w = std::exp(beta * p[i]);
    if (w == 0) continue;
    z += w, first += w * p[i], second += w * p[i] * p[i];
  }
  const double mean = first / z;
  return {beta * mean - std::log(z / double(n)), std::max(0.0, second / z - mean * mean)};
}

// The derivative of the objective by tau is rho - KL, and KL grows with beta = 1/tau by beta Var: Newton's method in
// beta, kept within an interval that halves at least every other step.
double best_tau(const at::Tensor& gathered, double rho, double tau_min) {
  const at::Tensor on_host = gathered.cpu();
  const at::Tensor x = (on_host - on_host.max()).contiguous();
  if (!at::isfinite(x).all().item<bool>()) return std::numeric_limits<double>::quiet_NaN();
  double low = 0, high = 1 / tau_min;
  if (tilted(x, high).divergence <= rho) return tau_min;
  double beta = std::min(high, std::sqrt(2 * rho / std::max(tilted(x, 0).variance, 1e-300)));
  for (int k = 0; k < 200 && high - low > 1e-15 * high; ++k) {
    const Tilted t = tilted(x, beta);
    (t.divergence < rho ? low : high) = beta;
    const double next = beta - (t.divergence - rho) / (beta * t.variance);
    const bool halve = k % 2 == 1 || !(next > low && next < high);
    const double before = std::exchange(beta, halve ? (low + high) / 2 : next);
    if (!halve && std::abs(next - before) <= 1e-15 * before) break;
  }
  return 1 / beta;
}

}  // namespace

void RiskConfig::fields(Fields& f) {
  f.choice("kind", kind, {"mean", "cvar", "kl_penalised", "kl_constrained"},
           "of the losses over the batch: their mean; the mean of the largest; tau log mean exp(loss / tau) at a given "
           "tau, or at the best one for a radius");
  f("tau", tau, "kl_penalised: the smaller, the more the largest losses count", {.min = 1e-6});
  f("tau_min", tau_min, "kl_constrained: the least tau", {.min = 1e-6});
  f("rho", rho, "kl_constrained: radius, the KL divergence of the weights from equal ones", {.min = 1e-6});
  f("fraction", fraction, "cvar: share of the batch that counts", {.min = 1e-9, .max = 1});
  f.resume_may_change(true);  // a place: what lies there is compared
  f("reference", reference,
    "run folder or .safetensors of a frozen model of the same shape: its losses are subtracted");
  f.require(reference.empty() || kind != "mean", "reference", "changes nothing in a mean", "choose another risk.kind");
}

at::Tensor largest_rows(const at::Tensor& x, std::int64_t count) {
  const at::Tensor order = std::get<1>(x.sort(/*stable=*/true, /*dim=*/0, /*descending=*/true));
  return std::get<0>(order.narrow(0, 0, count).sort());
}

RiskResult risk(Communicator& comm, const RiskConfig& config, const at::Tensor& losses, const at::Tensor& reference) {
  const auto b = losses.size(0);
  const at::Tensor mine = (reference.defined() ? losses - reference : losses).detach();
  const at::Tensor x = fastclip::gather_scalars(comm, mine.unsqueeze(0))[0].to(at::kDouble);
  const auto count = x.size(0);
  RiskResult r;
  at::Tensor weights;
  if (config.kind == "mean") {
    r.value = x.mean();
    weights = at::full_like(x, 1 / double(count));
  } else if (config.kind == "cvar") {
    const auto top = std::clamp<std::int64_t>(std::llround(config.fraction * double(count)), 1, count);
    const at::Tensor rows = largest_rows(x, top);
    r.value = x.index_select(0, rows).mean();
    weights = at::zeros_like(x).index_fill(0, rows, 1 / double(top));
  } else {
    const bool constrained = config.kind == "kl_constrained";
    const double tau = constrained ? best_tau(x, config.rho, config.tau_min) : config.tau;
    r.tau = at::full({}, tau, x.options());
    r.value = tau * (at::logsumexp(x / tau, 0) - std::log(double(count))) + (constrained ? tau * config.rho : 0);
    weights = at::softmax(x / tau, 0);
  }
  r.weights = weights.narrow(0, comm.rank() * b, b).to(losses.scalar_type());
  return r;
}

at::Tensor risk_share(const RiskResult& risk, const at::Tensor& losses, int ranks) {
  const at::Tensor weighted = (risk.weights * losses).sum();
  return weighted - weighted.detach() + (risk.value / double(ranks)).to(losses.scalar_type());
}

}  // namespace trireme
