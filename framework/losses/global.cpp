// FastCLIP v0, v1, v3 and DRRho-CLIP's form, with one temperature (brief equations: arXiv 2407.01445, 2505.06699).
#include "comm/error.h"
#include "framework/losses/similarity.h"

#include <cmath>

#include <ATen/ATen.h>

namespace trireme::fastclip {
namespace {

// Scaled margins: [s e1, -s r1] against [e2, r2], so that one product gives s (s_ij - q_ij).
struct Margins {
  Gathered all;
  Similarity sides[2];
  at::Tensor diagonal;  // [B], f64: those of the pairs
};

at::Tensor pairs_of(const Gathered& g) { return (g.image.to(at::kDouble) * g.text.to(at::kDouble)).sum(1); }

Margins margins_of(Communicator& comm, const Rows& rows, const at::Tensor& scale) {
  const Gathered all = gather_rows(comm, rows.image, rows.text);
  const at::Tensor diagonal = pairs_of(all);
  if (!rows.reference_image.defined())
    return {all, {{rows.image * scale, all.text}, {rows.text * scale, all.image}}, diagonal * scale};
  const Gathered reference = gather_rows(comm, rows.reference_image, rows.reference_text);
  return {all,
          {{at::cat({rows.image * scale, rows.reference_image * -scale}, 1), at::cat({all.text, reference.text}, 1)},
           {at::cat({rows.text * scale, rows.reference_text * -scale}, 1), at::cat({all.image, reference.image}, 1)}},
          (diagonal - pairs_of(reference)) * scale};
}

}  // namespace

void check_pairs(std::int64_t global) {
  if (global < 2) throw UsageError("batch_size", "a contrastive loss needs at least 2 pairs");
}

LossResult combined(const LossResult& x, const at::Tensor& a, const LossResult& y, const at::Tensor& b) {
  const auto sum = [&](const at::Tensor& u, const at::Tensor& v) {
    return u.defined() && v.defined() ? a * u + b * v : u.defined() ? a * u : v.defined() ? b * v : u;
  };
  return {sum(x.loss, y.loss),
          sum(x.d_image, y.d_image),
          sum(x.d_text, y.d_text),
          sum(x.d_log_scale, y.d_log_scale),
          sum(x.d_bias, y.d_bias),
          x.entries.defined() ? x.entries : y.entries,
          x.objective.defined() ? x.objective : y.objective,
          x.mean_log_u.defined() ? x.mean_log_u : y.mean_log_u};
}

LossResult global_loss(Communicator& comm, const Rows& rows, const at::Tensor& log_scale, const at::Tensor& old,
                       double gamma, const GlobalLossOptions& o) {
  const Exactly exactly;
  const auto b = rows.image.size(0), global = b * comm.size(), first = b * comm.rank();
  check_pairs(global);
  const bool linear = o.estimator.domain == Estimator::linear;
  const at::Tensor scale = o.scale > 0 ? at::full({}, o.scale, rows.image.options())
                                       : log_scale.detach().exp().to(rows.image.scalar_type()),
                   tau = 1 / scale, log_eps = at::full({}, std::log(o.eps), scale.options());
  Margins m = margins_of(comm, rows, scale);
  const at::Tensor own = own_columns(comm, rows.image), diagonal = m.diagonal.to(rows.image.scalar_type()),
                   diagonal_here = diagonal.narrow(0, first, b);

  // First sweep: log g, and with it log u of the local anchors.
  std::vector<at::Tensor> here;
  for (int a = 0; a < 2; ++a) {
    m.sides[a].leave_out(own);
    m.sides[a].leave_out_equal(rows.captions, own);
    const at::Tensor now = log_means(m.sides[a], {}, m.diagonal.narrow(0, first, b), linear ? global - 1 : global);
    // An anchor without a negative (masked) says nothing of its u.
    here.push_back(linear ? at::where(at::isneginf(now), old[a][0], o.estimator.update(old[a][0], now, gamma))
                          : o.estimator.update(old[a][0], at::logaddexp(now, log_eps), gamma));
  }
  const at::Tensor mine = at::stack(here).to(diagonal.scalar_type()), log_u = gather_scalars(comm, mine);

  // Second sweep: P_ij = X_ij / (u_i + eps) by rows for local anchors, and by columns for all anchors of the other
  // side.
  const at::Tensor shift = (linear ? at::logaddexp(log_u, log_eps) : log_u) + m.diagonal.unsqueeze(0);
  const Exponents exponents[2] = {{.row = shift[0].narrow(0, first, b), .column = shift[1], .column_moment = linear},
                                  {.row = shift[1].narrow(0, first, b), .column = shift[0], .column_moment = linear}};
  const Pulled w = pull(comm, m.sides, exponents, rows, m.all, o.reduction);
  const at::Tensor by_row = w.side[0].by_row + w.side[1].by_row, by_column = w.side[0].by_column + w.side[1].by_column;
  const at::Tensor moment_here = (w.side[0].moment + w.side[1].moment).sum() - at::dot(diagonal_here, by_row),
                   moment_elsewhere = w.side[0].column_moment + w.side[1].column_moment - at::dot(diagonal, by_column);

  // The linear form weighs anchors here and elsewhere by a half each, the log form those here alone; where columns are
  // not computed their anchors' own ranks count them twice. Moments carry the scale.
  const double pairs = double(b) * double(global - 1), half = linear ? 0.5 : 1;
  const bool both = linear && o.reduction == Reduction::scalars;
  const at::Tensor mean = (both ? 0.5 * (by_row.sum() + by_column.sum()) : by_row.sum()) / pairs,
                   d = (both ? 0.5 * (moment_here + moment_elsewhere) : moment_here) / pairs;
  const at::Tensor c = (o.multiply_tau ? at::ones({}, scale.options()) : scale) * (half / pairs);
  const at::Tensor mean_here = mean_visited(mine), r = by_row.unsqueeze(1);
  LossResult result;
  result.d_image = c * (w.image - r * rows.text);
  result.d_text = c * (w.text - r * rows.image);
  result.loss = linear ? mean : d;
  result.d_log_scale = d;
  if (o.multiply_tau) {
    const double exact = linear ? 0.5 : double(global - 1) / (2.0 * double(global));
    result.d_log_scale = tau * (d * (o.exact_tau_gradient ? exact : 1) - (o.rho + mean_here));
    result.loss = tau * (result.loss + o.rho + mean_here);
  }
  if (o.scale > 0) result.d_log_scale = at::Tensor();
  result.entries = log_u.unsqueeze(1);
  result.mean_log_u = mean_visited(log_u);
  result.objective = 2 * tau * (result.mean_log_u + (o.multiply_tau ? o.rho : 0));
  return result;
}

}  // namespace trireme::fastclip
