#include "recipes/clip/plan.h"

#include <ATen/ATen.h>

namespace trireme::fastclip {
namespace {

struct Numbers {
  double columns = 0;  // of the table, a side
  double scalars = 0;  // gathered, a sample
  double reduced = 0;  // features whose gradients reduce_scatter sends, of the two
};

Numbers numbers_of(const LossConfig& loss) {
  if (loss.name == "rgcl") return {5, 12, 2};
  if (loss.name == "siglip") return {0, 0, 1};
  if (loss.name == "mbcl") return {0, loss.reduction == "scalars" ? 2.0 : 0.0, 2};
  return {1, 2, 2};
}

std::string text(double v) { return std::to_string(std::int64_t(v)); }

}  // namespace

void plan_clip(Plan& plan, const nn::ClipConfig& model, const LossConfig& loss, std::int64_t samples,
               std::int64_t reference_width, int ranks, const TrainConfig& train) {
  nn::Parameters params = nn::Parameters::unset(train.precision == "f64" ? at::kDouble : at::kFloat, at::kMeta);
  const nn::Clip towers(model, 0, params);
  plan.parameters = params.all();
  nn::lock_towers(model, plan.parameters);

  const Numbers n = numbers_of(loss);
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

  plan.sent.push_back({"features, all-gather", (k - 1) * b * 2 * d * size, "(K-1) b 2d, d = " + text(d) + bytes});
  if (reference_width > 0)
    plan.sent.push_back({"reference features, all-gather", (k - 1) * b * 2 * double(reference_width) * size,
                         "(K-1) b 2d, d = " + std::to_string(reference_width) + bytes});
  if (n.scalars > 0)
    plan.sent.push_back({"scalars, all-gather", (k - 1) * b * n.scalars * size, "(K-1) b " + text(n.scalars) + bytes});
  if (n.columns > 0 && loss.u_table == "sharded")
    plan.sent.push_back({"u table, all-to-all (mean)", (k - 1) / k * b * 2 * n.columns * size,
                         "(K-1)/K b " + text(2 * n.columns) + bytes});
  plan.sent.push_back({"feature gradients, reduce-scatter", (k - 1) * b * n.reduced * d * size,
                       "(K-1) b " + text(n.reduced) + "d" + bytes, loss.reduction == "reduce_scatter"});
}

}  // namespace trireme::fastclip
