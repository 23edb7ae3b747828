// CLIP's ResNet as OpenCLIP builds it (ModifiedResNet; Radford et al., arXiv 2103.00020): a stem of three convolutions,
// average pools in place of strides, attention pooling. Parameter names and layouts are OpenCLIP's.
#pragma once
#include "framework/models/clip_config.h"
#include "framework/nn/batch_norm.h"

namespace trireme::nn {

class ResNet {
 public:
  // Adds its parameters and buffers as `visual....`.
  ResNet(const ClipConfig& config, Parameters& params);

  // pixels [b, 3, s, s] -> [b, embed_dim]. `training` as in BatchNorm.
  at::Tensor features(const at::Tensor& pixels, const Training* training) const;
  void step_statistics(const at::Tensor& skip) const;  // BatchNorm::step of all
  double flops() const;                                // of one image's forward, multiply-adds x 2

 private:
  struct Layer {
    at::Tensor weight;
    BatchNorm norm;
  };
  struct Block {
    Layer conv1, conv2, conv3, shortcut;  // shortcut: undefined where the input passes as it is
    std::int64_t stride = 1;
  };
  Layer layer(const std::string& conv, const std::string& norm, std::int64_t in, std::int64_t out, std::int64_t kernel,
              Parameters& params, double weight = 1);
  static at::Tensor apply(const Layer& l, const at::Tensor& x, std::int64_t stride, const Training* training);
  static at::Tensor apply(const Block& b, const at::Tensor& x, const Training* training);
  at::Tensor attention_pool(const at::Tensor& x) const;

  std::int64_t heads_ = 1, image_size_ = 0;
  std::vector<Layer> stem_;
  std::vector<Block> blocks_;
  at::Tensor position_, q_w_, q_b_, k_w_, k_b_, v_w_, v_b_, out_w_, out_b_;
  std::vector<BatchNorm> norms_;  // of all layers
};

}  // namespace trireme::nn
