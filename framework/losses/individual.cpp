// FastCLIP v2 (RGCL with a moving average): one temperature for each sample and side.
#include "framework/losses/similarity.h"

#include <cmath>
#include <limits>

#include <ATen/ATen.h>

namespace trireme::fastclip {
namespace {

enum Column { log_u, tau, bound, m, v };

constexpr double fresh = -80.590478;  // log 1e-35
constexpr double never = -std::numeric_limits<double>::infinity();

// One side's local anchors, f64: log u and bound as they will be stored, log(u + eps) + bound, and who has no negative
// (masked) and so says nothing of its u and tau.
struct Anchors {
  at::Tensor log_u, bound, shift, alone;
};

at::Tensor shift_of(const at::Tensor& log_u, const at::Tensor& bound, double eps) {
  return at::logaddexp(log_u, at::full({}, std::log(eps), log_u.options())) + bound;
}

Anchors visit(Similarity& side, const at::Tensor& old, const at::Tensor& diagonal, std::int64_t global, double gamma,
              const IndividualLossOptions& o) {
  // Pairs and similarities are scaled by the same number: what it is rounded by then falls out of their differences.
  const at::Tensor inverse_tau = 1 / old[tau], scaled_diagonal = diagonal * inverse_tau.to(at::kDouble);
  Anchors a;
  // The largest exponent, the pair's own 0 included.
  std::vector<at::Tensor> largest;
  side.sweep([&](const at::Tensor& tile, std::int64_t, std::int64_t) { largest.push_back(tile.amax({1})); });
  a.bound = at::maximum(old[bound], (at::cat(largest) * inverse_tau - scaled_diagonal).clamp_min(0));
  const at::Tensor now = log_means(side, inverse_tau, scaled_diagonal, global - 1);
  a.alone = at::isneginf(now);
  // Whether an entry is fresh is told by what is stored, not by what a larger bound makes of it. The rule sees u
  // itself.
  const at::Tensor moved = (old[log_u] + old[bound] - a.bound).clamp_min(fresh) + a.bound,
                   known = at::where(old[log_u] < fresh, at::full({}, never, now.options()), moved);
  a.log_u = at::where(a.alone, known, o.estimator.update(known, now, gamma)) - a.bound;
  a.shift = shift_of(a.log_u, a.bound, o.eps);
  return a;
}

// Adam of each temperature, its gradient clamped; [3, b]: tau, m, v. moment: sum over j of z_ij X_ij / (u_i + eps).
at::Tensor stepped(const at::Tensor& old, const Anchors& a, const at::Tensor& moment, std::int64_t global,
                   std::int64_t epoch, const IndividualLossOptions& o) {
  const double beta1 = epoch ? o.beta1 : 0, beta2 = epoch ? o.beta2 : 0;
  const at::Tensor gradient =
      (a.shift.to(moment.scalar_type()) + o.rho - moment / double(global - 1)).clamp(-5, 5).masked_fill_(a.alone, 0);
  const at::Tensor first = beta1 * old[m] + (1 - beta1) * gradient,
                   second = beta2 * old[v] + (1 - beta2) * gradient.square();
  const at::Tensor mean = first / (1 - std::pow(beta1, double(epoch + 1))),
                   square = second / (1 - std::pow(beta2, double(epoch + 1)));
  const at::Tensor step = mean / ((o.adam_sqrt ? square.sqrt() : square) + o.adam_eps);
  return at::stack({(old[tau] - o.lr_tau * step).clamp(o.tau_min, o.tau_max), first, second});
}

}  // namespace

LossResult individual_loss(Communicator& comm, const Rows& rows, const at::Tensor& old, double gamma,
                           std::int64_t epoch, const IndividualLossOptions& o) {
  const Exactly exactly;
  const auto b = rows.image.size(0), global = b * comm.size(), first = b * comm.rank();
  check_pairs(global);
  const Gathered all = gather_rows(comm, rows.image, rows.text);
  const auto type = rows.image.scalar_type();
  const at::Tensor exact = (all.image.to(at::kDouble) * all.text.to(at::kDouble)).sum(1), diagonal = exact.to(type),
                   own = own_columns(comm, rows.image);
  Similarity sides[2] = {{rows.image, all.text}, {rows.text, all.image}};
  Anchors here[2];
  for (int a = 0; a < 2; ++a) {
    sides[a].leave_out(own);
    sides[a].leave_out_equal(rows.captions, own);
    here[a] = visit(sides[a], old[a], exact.narrow(0, first, b), global, gamma, o);
  }
  const at::Tensor known =
      gather_scalars(comm, at::stack({here[0].log_u.to(type), here[1].log_u.to(type), here[0].bound.to(type),
                                      here[1].bound.to(type), old[0][tau], old[1][tau]}))
          .view({3, 2, global});
  const at::Tensor &log_us = known[0], &bounds = known[1], &taus = known[2];
  // W_ij = X_ij / (u_i + eps), by the authors' code over tau_i too.
  const at::Tensor scales = 1 / taus, log_denominator = shift_of(log_us.to(at::kDouble), bounds, o.eps);
  at::Tensor shift = log_denominator + exact * scales.to(at::kDouble);
  if (!o.multiply_tau) shift = shift + taus.to(at::kDouble).log();
  Exponents exponents[2];
  for (int a = 0; a < 2; ++a)
    exponents[a] = {.row = shift[a].narrow(0, first, b),
                    .column = shift[1 - a],
                    .row_scale = 1 / old[a][tau],
                    .column_scale = scales[1 - a]};
  const Pulled w = pull(comm, sides, exponents, rows, all, o.reduction);

  const double pairs = double(b) * double(global - 1);
  const bool away = o.reduction == Reduction::scalars;
  const at::Tensor r = (w.side[0].by_row + w.side[1].by_row).unsqueeze(1);
  LossResult result;
  result.d_image = (w.image - r * rows.text) / (2 * pairs);
  result.d_text = (w.text - r * rows.image) / (2 * pairs);
  result.loss = at::zeros({}, diagonal.options());
  at::Tensor entries[2];
  for (int a = 0; a < 2; ++a) {
    const Weighted& side = w.side[a];
    const at::Tensor tau_here = old[a][tau], z = (side.moment - diagonal.narrow(0, first, b) * side.by_row) / tau_here;
    entries[a] = stepped(old[a], here[a], o.multiply_tau ? z : tau_here * z, global, epoch, o);
    result.loss.add_(at::dot(tau_here, side.by_row), (away ? 0.5 : 1) / pairs);
    if (away) result.loss.add_(at::dot(taus[1 - a], side.by_column), 0.5 / pairs);
  }
  const at::Tensor sent = gather_scalars(comm, at::cat({entries[0], entries[1]})).view({2, 3, global});
  result.entries = at::stack({log_us, sent.select(1, 0), bounds, sent.select(1, 1), sent.select(1, 2)}, 1);
  result.mean_log_u = mean_visited(log_us + bounds);
  result.objective = 2 * (taus * (log_denominator.to(type) + o.rho)).mean();
  return result;
}

}  // namespace trireme::fastclip
