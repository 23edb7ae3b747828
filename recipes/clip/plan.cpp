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

std::vector<Param> parameters_of(nn::ClipConfig model, const LossConfig& loss) {
  model.logit_bias = loss.name == "siglip";
  nn::Parameters params = nn::Parameters::unset(at::kFloat, at::kMeta);
  const nn::Clip towers(model, 0, params);
  return params.all();
}

}  // namespace

void plan_clip(Plan& plan, const nn::ClipConfig& model, const LossConfig& loss, const ReferenceConfig& reference,
               std::int64_t samples, int ranks, const TrainConfig& train) {
  plan.parameters = parameters_of(model, loss);
  nn::lock_towers(model, plan.parameters);

  const bool selects = reference.uses("select"), online = !reference.model.empty();
  const Numbers n = numbers_of(loss, reference);
  const ReferenceSize there = reference.on() ? size_of(reference) : ReferenceSize{};
  const double size = train.precision == "f64" ? 8 : 4, k = ranks, b = double(train.batch_size / ranks),
               m = double(trained_rows(reference, train, ranks)), d = double(model.embed_dim),
               d_ref = there.width ? double(there.width) : d;
  const std::string bytes = " x " + text(size), rows = selects ? "m" : "b",
                    of_rows = selects ? ", m = " + text(m) + " chosen" : "", of_d = ", d = " + text(d),
                    of_ref = ", d_ref = " + text(d_ref) + (there.width ? "" : " as the model: it is not here");
  if (n.columns > 0)
    for (const bool sharded : {true, false})
      plan.memory.push_back({sharded ? "u table, sharded" : "u table, replicated",
                             2 * n.columns * double(samples) * size / (sharded ? k : 1),
                             "2 sides of " + text(n.columns) + " x " + std::to_string(samples) + " samples" + bytes +
                                 (sharded ? " / K" : ""),
                             sharded == (loss.u_table == "sharded")});
  if (online) {
    std::int64_t weights = there.weights;
    if (weights == 0)
      for (const auto& p : plan.parameters) weights += p.value.numel();
    plan.memory.push_back({"reference, weights", double(weights) * size,
                           text(double(weights)) + bytes + (there.weights ? "" : " as the model: it is not here")});
  }

  const auto send = [&](const std::string& what, double numbers, const std::string& formula, bool used = true) {
    plan.sent.push_back({what, (k - 1) * numbers * size, "(K-1) " + formula + bytes, used});
  };
  if (selects && reference.select.method == "rho")
    send("selection, all-gather", b * 2 * (d + d_ref), "b 2(d + d_ref)" + of_d + of_ref);
  else if (selects)
    send("selection, all-gather",
         m / double(reference.select.chunks) * double(reference.select.chunks - 1) * 2 * (d + d_ref),
         "m (1 - 1 / chunks) 2(d + d_ref)" + of_rows + of_d + of_ref);
  if (selects) plan.sent.push_back({"chosen rows, all-gather", (k - 1) * m * 8, "(K-1) m" + of_rows + " x 8"});
  send("features, all-gather", m * n.features * d, rows + " " + text(n.features) + "d" + of_rows + of_d);
  if (n.reference > 0)
    send("reference features, all-gather", m * n.reference * d_ref,
         rows + " " + text(n.reference) + "d_ref" + of_rows + of_ref);
  if (n.scalars > 0) send("scalars, all-gather", m * n.scalars, rows + " " + text(n.scalars) + of_rows);
  if (n.columns > 0 && loss.u_table == "sharded")
    plan.sent.push_back({"u table, all-to-all (mean)", (k - 1) / k * m * 2 * n.columns * size,
                         "(K-1)/K " + rows + " " + text(2 * n.columns) + of_rows + bytes});
  send("feature gradients, reduce-scatter", m * n.reduced * d, rows + " " + text(n.reduced) + "d" + of_rows + of_d,
       loss.reduction == "reduce_scatter");
}

}  // namespace trireme::fastclip
