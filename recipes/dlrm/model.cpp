#include "recipes/dlrm/model.h"

#include "framework/nn/interaction.h"
#include "framework/nn/linear.h"

#include <cmath>

namespace trireme::dlrm {
namespace {

std::vector<std::int64_t> widths(std::int64_t first, std::vector<std::int64_t> hidden, std::int64_t last) {
  hidden.insert(hidden.begin(), first);
  hidden.push_back(last);
  return hidden;
}

}  // namespace

Mlp::Mlp(nn::Parameters& params, const std::string& prefix, const std::vector<std::int64_t>& widths, bool relu_at_end)
    : relu_at_end_(relu_at_end) {
  for (std::size_t i = 0; i + 1 < widths.size(); ++i) {
    const std::int64_t in = widths[i], out = widths[i + 1];
    const std::string name = prefix + "." + std::to_string(2 * i);
    weights_.push_back(params.normal(name + ".weight", {out, in}, std::sqrt(2.0 / double(in + out))));
    biases_.push_back(params.normal(name + ".bias", {out}, std::sqrt(1.0 / double(out)), "no_decay"));
  }
}

at::Tensor Mlp::operator()(at::Tensor x) const {
  for (std::size_t i = 0; i < weights_.size(); ++i)
    x = nn::linear(x, weights_[i], biases_[i], relu_at_end_ || i + 1 < weights_.size());
  return x;
}

Model::Model(const Shape& shape, nn::Parameters& params)
    : shape_(shape),
      bottom_(params, "bot_l", widths(shape.dense, shape.bottom, shape.dim), true),
      top_(params, "top_l", widths(shape.interactions(), shape.top, 1), false) {}

at::Tensor Model::top(const at::Tensor& x, const at::Tensor& rows, const at::Tensor& place,
                      std::function<void(const at::Tensor&)> known) const {
  return top_(nn::interaction(x.to(rows.scalar_type()), rows, place, std::move(known))).squeeze(1);
}

std::string table_name(std::int64_t k) { return "emb_l." + std::to_string(k) + ".weight"; }

}  // namespace trireme::dlrm
