#include "framework/models/resnet.h"

#include <cmath>

namespace trireme::nn {
namespace {

constexpr std::int64_t expansion = 4;

}  // namespace

ResNet::Layer ResNet::layer(const std::string& conv, const std::string& norm, std::int64_t in, std::int64_t out,
                            std::int64_t kernel, Parameters& params, double weight) {
  Layer l;
  l.weight = params.uniform("visual." + conv + ".weight", {out, in, kernel, kernel},
                            1 / std::sqrt(double(in * kernel * kernel)));
  l.norm = BatchNorm("visual." + norm + ".", out, params, weight);
  norms_.push_back(l.norm);
  return l;
}

ResNet::ResNet(const ClipConfig& c, Parameters& params) : heads_(c.vision_heads), image_size_(c.image_size) {
  const std::int64_t w = c.vision_width;
  stem_ = {layer("conv1", "bn1", 3, w / 2, 3, params), layer("conv2", "bn2", w / 2, w / 2, 3, params),
           layer("conv3", "bn3", w / 2, w, 3, params)};
  std::int64_t in = w;
  for (std::size_t stage = 0; stage < c.resnet_layers.size(); ++stage)
    for (std::int64_t i = 0; i < c.resnet_layers[stage]; ++i) {
      const std::int64_t planes = w << stage, out = planes * expansion;
      const std::string n = "layer" + std::to_string(stage + 1) + "." + std::to_string(i) + ".";
      Block b;
      b.stride = stage > 0 && i == 0 ? 2 : 1;
      b.conv1 = layer(n + "conv1", n + "bn1", in, planes, 1, params);
      b.conv2 = layer(n + "conv2", n + "bn2", planes, planes, 3, params);
      b.conv3 = layer(n + "conv3", n + "bn3", planes, out, 1, params, /*weight=*/0);  // a block begins as nothing
      if (b.stride > 1 || in != out) b.shortcut = layer(n + "downsample.0", n + "downsample.1", in, out, 1, params);
      blocks_.push_back(std::move(b));
      in = out;
    }
  const std::int64_t d = w * 32, grid = c.image_size / 32;
  const double std = std::pow(double(d), -0.5);
  const std::string pool = "visual.attnpool.";
  position_ = params.normal(pool + "positional_embedding", {grid * grid + 1, d}, std);
  const auto projection = [&](const char* name, std::int64_t out, at::Tensor& weight, at::Tensor& bias) {
    weight = params.normal(pool + name + ".weight", {out, d}, std);
    bias = params.uniform(pool + name + ".bias", {out}, std, "no_decay");
  };
  projection("k_proj", d, k_w_, k_b_);
  projection("q_proj", d, q_w_, q_b_);
  projection("v_proj", d, v_w_, v_b_);
  projection("c_proj", c.embed_dim, out_w_, out_b_);
}

at::Tensor ResNet::apply(const Layer& l, const at::Tensor& x, std::int64_t stride, const Training* training) {
  const std::int64_t padding = l.weight.size(2) / 2;
  return l.norm(at::conv2d(x, l.weight, {}, stride, padding), training);
}

at::Tensor ResNet::apply(const Block& b, const at::Tensor& x, const Training* training) {
  const auto smaller = [&](const at::Tensor& t) { return b.stride > 1 ? at::avg_pool2d(t, b.stride) : t; };
  at::Tensor y = at::relu(apply(b.conv1, x, 1, training));
  y = smaller(at::relu(apply(b.conv2, y, 1, training)));
  y = apply(b.conv3, y, 1, training);
  return at::relu(y + (b.shortcut.weight.defined() ? apply(b.shortcut, smaller(x), 1, training) : x));
}

// One query, the mean of all places, over the mean and all places.
at::Tensor ResNet::attention_pool(const at::Tensor& x) const {
  const std::int64_t b = x.size(0), d = x.size(1);
  const at::Tensor places = x.flatten(2).transpose(1, 2);
  const at::Tensor tokens = at::cat({places.mean(1, /*keepdim=*/true), places}, 1) + position_.to(x.scalar_type());
  const auto heads = [&](const at::Tensor& t) { return t.view({b, t.size(1), heads_, d / heads_}).transpose(1, 2); };
  const at::Tensor q = heads(at::linear(tokens.narrow(1, 0, 1), q_w_, q_b_)), k = heads(at::linear(tokens, k_w_, k_b_)),
                   v = heads(at::linear(tokens, v_w_, v_b_));
  const at::Tensor a = at::scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape({b, d});
  return at::linear(a, out_w_, out_b_);
}

at::Tensor ResNet::features(const at::Tensor& pixels, const Training* training) const {
  at::Tensor x = pixels;
  for (std::size_t i = 0; i < stem_.size(); ++i) x = at::relu(apply(stem_[i], x, i == 0 ? 2 : 1, training));
  x = at::avg_pool2d(x, 2);
  for (const auto& b : blocks_) x = apply(b, x, training);
  return attention_pool(x);
}

void ResNet::step_statistics(const at::Tensor& skip) const {
  for (const auto& n : norms_) n.step(skip);
}

double ResNet::flops() const {
  double side = double(image_size_) / 2, sum = 0;
  const auto conv = [&](const Layer& l, double places) { sum += 2 * double(l.weight.numel()) * places; };
  for (const auto& l : stem_) conv(l, side * side);
  side /= 2;
  for (const auto& b : blocks_) {
    const double after = side / double(b.stride);
    conv(b.conv1, side * side);
    conv(b.conv2, side * side);
    conv(b.conv3, after * after);
    if (b.shortcut.weight.defined()) conv(b.shortcut, after * after);
    side = after;
  }
  const double d = double(position_.size(1)), t = side * side + 1;
  return sum + 4 * d * d * t + 4 * d * t + 2 * d * d + 2 * double(out_w_.numel());
}

}  // namespace trireme::nn
