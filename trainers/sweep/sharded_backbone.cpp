#include "trainers/sweep/sharded_backbone.h"

#include "comm/error.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/nn/fp8_matrix.h"

#include <algorithm>
#include <optional>

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

CausalLm without_layers(const LmWeights& weights) {
  const at::Tensor none = at::empty({1}, weights.options);
  return CausalLm(weights.config,
                  [&](const LmWeight& w) { return w.layer < 0 ? weights.read(w) : none.expand(w.shape); });
}

ShardedBackbone::ShardedBackbone(CausalLm& model, nn::AdapterStore& store, Communicator& ranks,
                                 const CausalLm::Source& source, bool fp8)
    : model_(model), store_(store), ranks_(ranks) {
  const at::NoGradGuard no_grad;
  if (!source) throw Error(ExitCode::bug, "ShardedBackbone", "there is nothing to read layers from");
  agree(ranks, attempt([&] {
          plan(fp8);
          const auto bytes = at::TensorOptions().dtype(at::kByte).device(model.device());
          for (auto& whole : wholes_) whole.bytes = at::zeros({share_ * ranks.size()}, bytes);
          for (std::int64_t l = 0; l < model.config().layers; ++l) {
            fill(l, source);
            shares_.push_back(wholes_[l % 2].bytes.narrow(0, ranks.rank() * share_, share_).clone());
            point(l);
          }
        }));
  std::vector<ConstBuffer> mine;
  for (const auto& share : shares_) mine.push_back(buffer_of(share));
  frozen_ = open_shares(ranks, std::move(mine));
  model_.set_checkpointing(true);
  model_.set_before_layer([this](std::int64_t layer) { before_layer(layer); });
}

ShardedBackbone::~ShardedBackbone() {
  for (auto& whole : wholes_) whole.coming.wait();
  model_.set_before_layer({});
}

// Where everything lies in its layer's bytes.
void ShardedBackbone::plan(bool fp8) {
  std::map<std::string, std::int64_t> target_of;
  for (std::size_t t = 0; t < store_.targets().size(); ++t) target_of[store_.targets()[t].name] = std::int64_t(t);
  pieces_.resize(std::size_t(model_.config().layers));
  std::vector<std::int64_t> ends(pieces_.size());
  for (const auto& [weight, value] : model_.weights()) {
    if (weight.layer < 0) continue;
    const auto l = std::size_t(weight.layer);
    Piece piece{weight, -1, weight.name.ends_with(".bias"), {}};
    const auto found = target_of.find(without(without(weight.name, ".weight"), ".bias"));
    if (found != target_of.end()) piece.target = found->second;
    const auto add = [&](std::vector<std::int64_t> shape, at::ScalarType type) {
      std::int64_t bytes = std::int64_t(at::elementSize(type));
      for (const auto d : shape) bytes *= d;
      piece.spans.push_back({ends[l], std::move(shape), type});
      ends[l] = aligned(ends[l] + bytes);
    };
    if (fp8 && piece.target >= 0 && !piece.bias) {
      add(weight.shape, at::kFloat8_e4m3fn);
      add({weight.shape[0]}, at::kFloat);
    } else {
      add(weight.shape, model_.dtype());
    }
    pieces_[l].push_back(std::move(piece));
  }
  const std::int64_t unit = 16 * ranks_.size();
  for (const auto end : ends) share_ = std::max(share_, (end + unit - 1) / unit * 16);
}

void ShardedBackbone::fill(std::int64_t layer, const CausalLm::Source& value_of) {
  wholes_[layer % 2].bytes.zero_();
  for (const auto& piece : pieces_[std::size_t(layer)]) {
    const at::Tensor value = value_of(piece.weight);
    if (piece.spans.size() == 1) {
      view(piece.spans[0], layer).copy_(value);
      continue;
    }
    const at::Tensor none = at::empty({1}, value.options()).expand(piece.weight.shape);  // a shape without memory
    model_.set_weight(piece.weight, none);
    store_.set_base(piece.target, none, {});
    const nn::Fp8Rows codes = nn::fp8_rows(value);
    view(piece.spans[0], layer).copy_(codes.values);
    view(piece.spans[1], layer).copy_(codes.scales);
  }
}

at::Tensor ShardedBackbone::view(const Span& span, std::int64_t layer) const {
  std::int64_t bytes = std::int64_t(at::elementSize(span.type));
  for (const auto d : span.shape) bytes *= d;
  return place(layer).narrow(0, span.offset, bytes).view(span.type).view(span.shape);
}

const at::Tensor& ShardedBackbone::place(std::int64_t layer) const {
  return stages_ && owner(layer) == ranks_.rank() ? shares_[std::size_t(layer)] : wholes_[layer % 2].bytes;
}

// Layer by layer, each rank's share of one let go as soon as its owner has it, the ranks' layers in turn: no rank has
// all of its own before the others let go of theirs.
CausalLm ShardedBackbone::hold_stages() {
  const at::NoGradGuard no_grad;
  if (store_.has_fp8_base()) throw Error(ExitCode::bug, "hold_stages", "stages are not made of FP8 codes");
  let_go();
  frozen_.reset();
  const std::int64_t ranks = ranks_.size(), layers = std::ssize(pieces_) / ranks, first = ranks_.rank() * layers;
  for (std::int64_t i = 0; i < std::ssize(pieces_); ++i) {
    const std::int64_t l = i % ranks * layers + i / ranks;
    at::Tensor& share = shares_[std::size_t(l)];
    const at::Tensor& whole = wholes_[l % 2].bytes;
    ranks_.all_gather(buffer_of(share), buffer_of(whole)).wait();
    share = owner(l) == ranks_.rank() ? whole.clone() : at::Tensor();
  }
  stages_ = true;
  std::map<std::string, at::Tensor> values;
  for (const auto& [weight, value] : model_.weights())
    if (weight.layer < 0) values[weight.name] = value;
  for (std::int64_t l = 0; l < layers; ++l)
    for (const auto& piece : pieces_[std::size_t(first + l)]) {
      std::string name = piece.weight.name;
      const std::string number = std::to_string(first + l);
      name.replace(name.find("." + number + ".") + 1, number.size(), std::to_string(l));
      values[name] = view(piece.spans[0], first + l);
    }
  CausalLmConfig config = model_.config();
  config.layers = layers;
  return CausalLm(config, [&](const LmWeight& w) { return values.at(w.name); });
}

void ShardedBackbone::point(std::int64_t layer) {
  struct Base {
    at::Tensor weight, bias;
    std::optional<nn::Fp8Rows> codes = {};
  };
  std::map<std::int64_t, Base> bases;
  for (const auto& piece : pieces_[std::size_t(layer)]) {
    const auto part = [&](std::size_t i) { return view(piece.spans[i], layer); };
    if (piece.spans.size() > 1) {
      bases[piece.target].codes = nn::Fp8Rows{part(0), part(1)};
      continue;
    }
    const at::Tensor value = part(0);
    model_.set_weight(piece.weight, value);
    if (piece.target >= 0) (piece.bias ? bases[piece.target].bias : bases[piece.target].weight) = value;
  }
  for (const auto& [target, base] : bases)
    base.codes ? store_.set_fp8_base(target, *base.codes, base.bias) : store_.set_base(target, base.weight, base.bias);
}

void ShardedBackbone::gather(std::int64_t layer) {
  if (held_ || layer < 0 || layer >= std::int64_t(pieces_.size())) return;
  Whole& whole = wholes_[layer % 2];
  if (whole.layer == layer) return;
  whole.coming.wait();
  whole.layer = layer;
  const auto piece = std::size_t(layer);
  ++gathers_;
  if (stages_) {
    whole.coming = ranks_.broadcast(buffer_of(place(layer)), owner(layer));
    if (owner(layer) != ranks_.rank()) received_ += share_ * ranks_.size();
    return;
  }
  whole.coming = collected_ ? ranks_.all_gather(buffer_of(shares_[piece]), buffer_of(whole.bytes))
                            : frozen_->gather(piece, buffer_of(whole.bytes));
  received_ += share_ * (ranks_.size() - 1);
}

// Forward goes up, backward down from the last layer: the direction says which layer is next.
void ShardedBackbone::before_layer(std::int64_t layer) {
  const bool up = layer == 0 ? last_ != 1 : layer > last_;
  last_ = layer;
  gather(layer);
  wholes_[layer % 2].coming.wait();
  point(layer);
  gather(up ? layer + 1 : layer - 1);
}

void ShardedBackbone::let_go() {
  for (auto& whole : wholes_) {
    whole.coming.wait();
    whole.coming = {};
    whole.layer = -1;
  }
  last_ = -1;
}

// Each layer once forward and once backward, but for the two that are there when a pass turns round.
void ShardedBackbone::replayed(bool backward) {
  const auto layers = std::int64_t(pieces_.size()),
             gathers = layers + (backward ? std::max<std::int64_t>(0, layers - 2) : 0);
  gathers_ += gathers;
  received_ += gathers * share_ * (ranks_.size() - 1);
}

void ShardedBackbone::gather_pass(bool backward) {
  const auto layers = std::int64_t(pieces_.size());
  for (std::int64_t l = 0; l < layers; ++l) before_layer(l);
  if (backward)
    for (std::int64_t l = layers - 1; l >= 0; --l) before_layer(l);
}

}  // namespace trireme::sweep
