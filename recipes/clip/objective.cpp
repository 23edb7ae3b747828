#include "recipes/clip/objective.h"

#include <array>
#include <cmath>
#include <limits>

#include <ATen/ATen.h>

namespace trireme::fastclip {
namespace {

constexpr std::array<std::string_view, 5> columns{"log_u", "tau", "bound", "m", "v"};

std::int64_t epochs_of(const Context& c) { return (c.steps + c.steps_per_epoch - 1) / c.steps_per_epoch; }

}  // namespace

Objective::Objective(const LossConfig& loss, const ReferenceConfig& reference, std::int64_t samples, Context& c)
    : loss_(loss),
      reference_(reference),
      reduction_(loss.reduction == "scalars" ? Reduction::scalars : Reduction::reduce_scatter) {
  if (!loss.global_loss()) return;
  std::vector<double> initial{-std::numeric_limits<double>::infinity()};
  if (loss.name == "rgcl") initial.insert(initial.end(), {loss.tau, 0, 0, 0});
  table_.emplace(samples, initial, at::TensorOptions(c.device()).dtype(c.param_type()), c.comm(),
                 loss.u_table == "sharded");
}

Estimator Objective::estimator() const {
  return {loss_.estimator == "scent"  ? Estimator::scent
          : loss_.estimator == "none" ? Estimator::none
                                      : Estimator::moving_average,
          loss_.u_domain == "log" ? Estimator::log : Estimator::linear, loss_.scent_a};
}

LossResult Objective::operator()(const Rows& rows, const at::Tensor& log_scale, const at::Tensor& bias,
                                 const Batch& batch, Context& c) {
  Rows own = rows;
  if (!reference_.uses("shift")) own.reference_image = own.reference_text = at::Tensor();
  const LossResult r = contrastive(own, log_scale, bias, batch, c);
  entries_ = r.entries;
  step_ids_ = batch.global_ids;
  // Per-worker quantities of the papers are averaged over workers; ours are summed.
  const auto share = [&](double weight) { return at::full({}, weight / double(c.size()), rows.image.options()); };
  if (!reference_.uses("distill")) return combined(r, share(loss_.weight), {}, {});
  at::Tensor weight = share(reference_.distill_weight);
  if (loss_.name == "rgclg") weight = weight * (-log_scale.detach()).exp().to(weight.scalar_type());
  return combined(r, share(loss_.weight),
                  distillation_loss(c.comm(), rows, log_scale, reference_.distill_scale, reduction_), weight);
}

LossResult Objective::contrastive(const Rows& rows, const at::Tensor& log_scale, const at::Tensor& bias,
                                  const Batch& batch, Context& c) {
  if (loss_.name == "mbcl") return mini_batch_loss(c.comm(), rows, log_scale, reduction_);
  if (loss_.name == "siglip") return siglip_loss(c.comm(), rows, log_scale, bias, reduction_);
  const std::int64_t epochs = epochs_of(c);
  const double gamma =
      gamma_at(loss_.gamma_schedule, loss_.gamma_min_of(epochs), loss_.decay_epochs_of(epochs), batch.epoch);
  const at::Tensor old = table_->read(c.comm(), batch.global_ids);
  LossResult r;
  if (loss_.name == "rgcl") {
    r = individual(rows, old, gamma, batch, c);
  } else {
    GlobalLossOptions o;
    o.multiply_tau = loss_.name == "rgclg", o.rho = loss_.rho, o.eps = loss_.eps;
    o.exact_tau_gradient = loss_.tau_gradient == "paper";
    o.estimator = estimator(), o.reduction = reduction_;
    if (reference_.uses("shift")) o.scale = reference_.shift_scale;
    r = global_loss(c.comm(), rows, log_scale, old, gamma, o);
  }
  if (c.logs_now()) {
    // The objective itself: the loss is a surrogate whose value says little.
    if (loss_.estimator == "moving_average") c.log("gamma", gamma);
    c.log("objective", r.objective.item<double>());
    c.log("u_mean", std::exp(r.mean_log_u.item<double>()));
    if (loss_.name == "rgcl") c.log("tau", r.entries.select(1, 1).mean().item<double>());
  }
  return r;
}

LossResult Objective::individual(const Rows& rows, const at::Tensor& old, double gamma, const Batch& batch,
                                 Context& c) const {
  const OptimizerConfig& adam = c.config().optimizer;
  IndividualLossOptions o;
  o.rho = loss_.rho, o.eps = loss_.eps, o.tau_min = loss_.tau_min, o.tau_max = loss_.tau_max;
  o.beta1 = adam.beta1, o.beta2 = adam.beta2, o.adam_eps = adam.eps;
  o.lr_tau = loss_.lr_tau < 0 ? c.now.lr : loss_.lr_tau;
  if (loss_.lr_tau >= 0 && loss_.lr_tau_schedule == "cosine" && adam.lr > 0) o.lr_tau *= c.now.lr / adam.lr;
  o.adam_sqrt = loss_.tau_adam_sqrt, o.multiply_tau = loss_.tau_weight == "paper";
  o.estimator = estimator(), o.reduction = reduction_;
  return individual_loss(c.comm(), rows, old, gamma, batch.epoch, o);
}

void Objective::update(Context& c) {
  if (entries_.defined()) table_->write(step_ids_, std::exchange(entries_, {}), c.skip());
}

void Objective::state(Archive& ar) {
  if (table_) table_->state(ar, std::span(columns).first(std::size_t(table_->values().size(1))));
}

}  // namespace trireme::fastclip
