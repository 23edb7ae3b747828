// The fused CPU block against the same tower out of ATen operators with autograd.
#include "framework/models/clip.h"

#include <ATen/Parallel.h>
#include <gtest/gtest.h>

namespace trireme::nn {
namespace {

double relative(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).abs().max() / b.abs().max().clamp_min(1e-30)).item<double>();
}

struct Outcome {
  at::Tensor image, text;
  std::vector<at::Tensor> grads;
};

Outcome run(const ClipConfig& config, at::ScalarType type, bool fused) {
  Parameters params(5, type, at::kCPU);
  const Clip model(config, 2.0, params);
  at::manual_seed(3);
  const at::Tensor pixels = at::randn({7, 3, config.image_size, config.image_size}, at::kDouble).to(type);
  const at::Tensor ids = at::randint(0, 600, {7, config.context}, at::kLong);
  const std::vector<std::int64_t> end{2, 1, 7, 4, 3, 9, 5};
  Outcome o{model.encode_image(pixels, fused), model.encode_text(ids, end, fused), {}};
  const at::Tensor weight = at::randn(o.image.sizes(), at::kDouble).to(type);
  torch::autograd::backward({(o.image * weight).sum() + (o.text * weight).square().sum()}, {});
  for (const auto& p : params.all())
    if (p.name != "logit_scale") {
      EXPECT_TRUE(p.value.grad().defined()) << p.name;
      o.grads.push_back(p.value.grad());
    }
  return o;
}

void compare(bool quick_gelu, at::ScalarType type, double tolerance) {
  ClipConfig config;
  config.image_size = 24;
  config.vision_width = 64;
  config.vision_layers = 3;
  config.vision_heads = 2;
  config.text_width = 48;
  config.text_layers = 2;
  config.text_heads = 3;
  config.embed_dim = 40;
  config.context = 12;
  config.vocab = 600;
  config.quick_gelu = quick_gelu;
  const Outcome fused = run(config, type, true), plain = run(config, type, false);
  EXPECT_LE(relative(fused.image.detach(), plain.image.detach()), tolerance);
  EXPECT_LE(relative(fused.text.detach(), plain.text.detach()), tolerance);
  ASSERT_EQ(fused.grads.size(), plain.grads.size());
  for (std::size_t i = 0; i < fused.grads.size(); ++i)
    EXPECT_LE(relative(fused.grads[i], plain.grads[i]), tolerance) << "parameter " << i;
}

TEST(FusedBlock, EqualsAutogradInF64) { compare(false, at::kDouble, 1e-12); }
TEST(FusedBlock, EqualsAutogradInF64QuickGelu) { compare(true, at::kDouble, 1e-12); }
TEST(FusedBlock, EqualsAutogradInF32) { compare(false, at::kFloat, 2e-5); }
TEST(FusedBlock, EqualsAutogradInF32QuickGelu) { compare(true, at::kFloat, 2e-5); }

// A causal tower must not see what stands after the pooled position.
TEST(FusedBlock, PaddingHasNoInfluence) {
  ClipConfig config;
  Parameters params(5, at::kDouble, at::kCPU);
  const Clip model(config, 2.0, params);
  at::Tensor ids = at::randint(0, 600, {3, config.context}, at::kLong);
  const std::vector<std::int64_t> end{4, 9, 1};
  const at::Tensor before = model.encode_text(ids, end, true).detach();
  for (int i = 0; i < 3; ++i) ids[i].narrow(0, end[i] + 1, config.context - end[i] - 1).fill_(17);
  EXPECT_TRUE(at::equal(before, model.encode_text(ids, end, true).detach()));
}

TEST(FusedBlock, ThreadsDoNotChangeTheGradients) {
  ClipConfig config;
  config.vision_layers = config.text_layers = 1;
  at::set_num_threads(1);
  const Outcome one = run(config, at::kDouble, true);
  at::set_num_threads(2);
  const Outcome two = run(config, at::kDouble, true);
  at::set_num_threads(1);
  for (std::size_t i = 0; i < one.grads.size(); ++i) EXPECT_LE(relative(one.grads[i], two.grads[i]), 1e-13);
}

}  // namespace
}  // namespace trireme::nn
