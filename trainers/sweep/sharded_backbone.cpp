#include "trainers/sweep/sharded_backbone.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <ATen/ATen.h>

namespace trireme::sweep {
namespace {

// Every tensor of a layer begins on 16 bytes, as vector loads want it.
std::int64_t aligned(std::int64_t bytes) { return (bytes + 15) / 16 * 16; }

std::string without(std::string name, std::string_view end) {
  if (name.ends_with(end)) name.resize(name.size() - end.size());
  return name;
}

}  // namespace

CausalLm without_layers(const CausalLmConfig& config, const CausalLm::Source& source, at::TensorOptions options) {
  return CausalLm(config,
                  [&](const LmWeight& w) { return w.layer < 0 ? source(w) : at::empty({1}, options).expand(w.shape); });
}

ShardedBackbone::ShardedBackbone(CausalLm& model, nn::AdapterStore& store, Communicator& ranks,
                                 const CausalLm::Source& source)
    : model_(model), store_(store), ranks_(ranks), type_(model.dtype()) {
  const at::NoGradGuard no_grad;
  const std::int64_t layers = model.config().layers, each = std::int64_t(at::elementSize(type_));
  std::map<std::string, std::int64_t> target_of;
  for (std::size_t t = 0; t < store.targets().size(); ++t) target_of[store.targets()[t].name] = std::int64_t(t);
  pieces_.resize(std::size_t(layers));
  std::vector<std::vector<at::Tensor>> values(static_cast<std::size_t>(layers));
  std::int64_t most = 0;
  std::vector<std::int64_t> ends(std::size_t(layers), 0);
  for (auto& [weight, value] : model.weights()) {
    if (weight.layer < 0) continue;
    const auto l = std::size_t(weight.layer);
    Piece piece{weight, ends[l]};
    piece.bias = weight.name.ends_with(".bias");
    const auto found = target_of.find(without(without(weight.name, ".weight"), ".bias"));
    if (found != target_of.end()) piece.target = found->second;
    ends[l] = aligned(ends[l] + value.numel() * each);
    most = std::max(most, ends[l]);
    pieces_[l].push_back(piece);
    values[l].push_back(source ? at::Tensor() : value);
  }
  const std::int64_t ranks_now = ranks.size(), unit = 16 * ranks_now;
  share_ = (most + unit - 1) / unit * 16;
  const auto bytes = at::TensorOptions().dtype(at::kByte).device(model.device());
  for (auto& whole : wholes_) whole.bytes = at::zeros({share_ * ranks_now}, bytes);
  for (std::int64_t l = 0; l < layers; ++l) {
    Whole& whole = wholes_[l % 2];
    const auto at = std::size_t(l);
    whole.bytes.zero_();
    for (std::size_t i = 0; i < pieces_[at].size(); ++i)
      view(pieces_[at][i], l).copy_(source ? source(pieces_[at][i].weight) : values[at][i]);
    shares_.push_back(whole.bytes.narrow(0, ranks.rank() * share_, share_).clone());
    values[at].clear();
    point(l);  // the model lets its own copy go
  }
  for (auto& whole : wholes_) whole.layer = -1;
  model_.set_checkpointing(true);
  model_.set_before_layer([this](std::int64_t layer) { before_layer(layer); });
}

ShardedBackbone::~ShardedBackbone() {
  for (auto& whole : wholes_) whole.coming.wait();
  model_.set_before_layer({});
}

at::Tensor ShardedBackbone::view(const Piece& piece, std::int64_t layer) const {
  std::int64_t n = 1;
  for (const auto d : piece.weight.shape) n *= d;
  const auto bytes = n * std::int64_t(at::elementSize(type_));
  return wholes_[layer % 2].bytes.narrow(0, piece.offset, bytes).view(type_).view(piece.weight.shape);
}

void ShardedBackbone::point(std::int64_t layer) {
  std::map<std::int64_t, std::pair<at::Tensor, at::Tensor>> projections;
  for (const auto& piece : pieces_[std::size_t(layer)]) {
    const at::Tensor value = view(piece, layer);
    model_.set_weight(piece.weight, value);
    if (piece.target < 0) continue;
    auto& [weight, bias] = projections[piece.target];
    (piece.bias ? bias : weight) = value;
  }
  for (const auto& [target, both] : projections) store_.set_base(target, both.first, both.second);
}

void ShardedBackbone::gather(std::int64_t layer) {
  if (held_ || layer < 0 || layer >= std::int64_t(shares_.size())) return;
  Whole& whole = wholes_[layer % 2];
  if (whole.layer == layer) return;
  whole.coming.wait();
  whole.layer = layer;
  whole.coming = ranks_.all_gather(buffer_of(shares_[std::size_t(layer)]), buffer_of(whole.bytes));
  ++gathers_;
}

// Forward goes up, backward down from the last layer: the direction says which layer is next.
void ShardedBackbone::before_layer(std::int64_t layer) {
  gather(layer);
  wholes_[layer % 2].coming.wait();
  point(layer);
  const bool up = layer == 0 ? last_ != 1 : layer > last_;
  last_ = layer;
  gather(up ? layer + 1 : layer - 1);
}

void ShardedBackbone::empty_pass(bool backward) {
  const auto layers = std::int64_t(shares_.size());
  for (std::int64_t l = 0; l < layers; ++l) before_layer(l);
  if (backward)
    for (std::int64_t l = layers - 1; l >= 0; --l) before_layer(l);
}

std::int64_t ShardedBackbone::bytes_received() const { return gathers_ * share_ * (ranks_.size() - 1); }

}  // namespace trireme::sweep
