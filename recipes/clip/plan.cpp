#include "recipes/clip/plan.h"

#include <ATen/ATen.h>

namespace trireme::fastclip {
namespace {

struct Numbers {
  double columns = 0;    // of the table, a side
  double scalars = 0;    // gathered, a sample
  double features = 2;   // gathered, of the two towers
  double reduced = 2;    // whose gradients reduce_scatter sends
  double reference = 0;  // gathered of the reference's two
};

Numbers numbers_of(const LossConfig& loss, const ReferenceConfig& reference) {
  const bool scalars = loss.reduction == "scalars";
  Numbers n;
  if (loss.name == "rgcl")
    n.columns = 5, n.scalars = 12;
  else if (loss.name == "siglip")
    n.reduced = 1;
  else if (loss.name == "mbcl")
    n.scalars = scalars ? 2 : 0;
  else
    n.columns = 1, n.scalars = 2;
  if (reference.uses("shift")) n.reference = 2;
  // Distillation gathers its own rows, and has two softmaxes.
  if (reference.uses("distill")) n.features += 2, n.reduced += 4, n.reference += 2, n.scalars += scalars ? 4 : 0;
  return n;
}

std::string text(double v) { return std::to_string(std::int64_t(v)); }

}  // namespace

void plan_clip(Plan& plan, const nn::ClipConfig& model, const LossConfig& loss, const ReferenceConfig& reference,
               std::int64_t samples, int ranks, const TrainConfig& train) {
  nn::Parameters params = nn::Parameters::unset(train.precision == "f64" ? at::kDouble : at::kFloat, at::kMeta);
  const nn::Clip towers(model, 0, params);
  plan.parameters = params.all();
  nn::lock_towers(model, plan.parameters);

  const Numbers n = numbers_of(loss, reference);
  const double size = train.precision == "f64" ? 8 : 4, k = ranks, b = double(train.batch_size / ranks),
               d = double(model.embed_dim);
  const std::string bytes = " x " + text(size);
  if (n.columns > 0)
    for (const bool sharded : {true, false})
      plan.memory.push_back({sharded ? "u table, sharded" : "u table, replicated",
                             2 * n.columns * double(samples) * size / (sharded ? k : 1),
                             "2 sides of " + text(n.columns) + " x " + std::to_string(samples) + " samples" + bytes +
                                 (sharded ? " / K" : ""),
                             sharded == (loss.u_table == "sharded")});

  const auto rows = [&](const std::string& what, double towers, bool used = true) {
    plan.sent.push_back(
        {what, (k - 1) * b * towers * d * size, "(K-1) b " + text(towers) + "d, d = " + text(d) + bytes, used});
  };
  rows("features, all-gather", n.features);
  if (n.reference > 0) rows("reference features, all-gather", n.reference);
  if (n.scalars > 0)
    plan.sent.push_back({"scalars, all-gather", (k - 1) * b * n.scalars * size, "(K-1) b " + text(n.scalars) + bytes});
  if (n.columns > 0 && loss.u_table == "sharded")
    plan.sent.push_back({"u table, all-to-all (mean)", (k - 1) / k * b * 2 * n.columns * size,
                         "(K-1)/K b " + text(2 * n.columns) + bytes});
  rows("feature gradients, reduce-scatter", n.reduced, loss.reduction == "reduce_scatter");
}

}  // namespace trireme::fastclip
