// The towers on a GPU in low precision: flash attention of packed sequences against padded attention in f32, forward
// and backward, and a whole CLIP against itself on the host.
#include "comm/device.h"
#include "framework/models/clip.h"
#include "framework/nn/packed_attention.h"

#include <ATen/autocast_mode.h>
#include <gtest/gtest.h>

namespace trireme::nn {
namespace {

bool no_gpu() { return !device_runtime() || device_runtime()->count() == 0; }

double off(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble), y = b.detach().to(at::kCPU, at::kDouble);
  return ((x - y).norm() / y.norm()).item<double>();
}

struct Case {
  std::vector<std::int64_t> lengths;
  bool causal, pooled;
};

// -> output and gradients.
std::vector<at::Tensor> attend(const Case& c, at::Device device, at::ScalarType type) {
  at::manual_seed(6);
  const std::int64_t heads = 3, w = heads * 64, n = std::ssize(c.lengths);
  const Sequences s(c.lengths, device);
  const auto draw = [&](std::int64_t rows, std::int64_t width) {  // the same values in every type
    return at::randn({rows, width}).to(at::kBFloat16).to(device, type).requires_grad_();
  };
  const at::Tensor q = draw(c.pooled ? n : s.total, c.pooled ? w : 3 * w), kv = draw(s.total, 2 * w);
  const at::Tensor y = c.pooled ? pooled_attention(q, kv, s, heads) : packed_attention(q, s, heads, c.causal);
  torch::autograd::backward({y}, {at::randn(y.sizes()).to(at::kBFloat16).to(device, type)});
  std::vector<at::Tensor> all{y, q.grad()};
  if (c.pooled) all.push_back(kv.grad());
  return all;
}

TEST(Gpu, FlashAttentionOfPackedSequences) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const std::vector<std::int64_t> equal(40, 50);
  std::vector<std::int64_t> mixed{1, 77, 2, 3, 64, 65, 20};
  for (std::int64_t i = 0; i < 60; ++i) mixed.push_back(15 + i % 11);
  const std::vector<Case> cases = {
      {equal, false, false}, {equal, true, false}, {mixed, true, false}, {equal, false, true}, {mixed, true, true}};
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto want = attend(cases[i], at::kCPU, at::kDouble);
    for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const auto got = attend(cases[i], {at::kCUDA, 0}, type);
      const double bound = type == at::kFloat ? 1e-5 : type == at::kHalf ? 2e-3 : 1e-2;
      for (std::size_t k = 0; k < want.size(); ++k)
        EXPECT_LE(off(got[k], want[k]), bound) << "case " << i << ", tensor " << k << ", " << c10::toString(type);
    }
  }
}

std::vector<at::Tensor> clip(at::Device device, bool bf16) {
  ClipConfig config;
  config.vision_heads = config.text_heads = 3;
  config.vocab = 600;
  Parameters params(5, at::kFloat, device);
  const Clip model(config, 2.0, params);
  at::manual_seed(8);
  const std::int64_t b = 48;
  const at::Tensor pixels = at::randn({b, 3, config.image_size, config.image_size}).to(device);
  const at::Tensor ids = at::randint(0, 600, {b, config.context}, at::kLong).to(device);
  std::vector<std::int64_t> end;
  for (std::int64_t i = 0; i < b; ++i) end.push_back(3 + i * 5 % 28);
  at::autocast::set_autocast_enabled(device.type(), bf16);
  at::autocast::set_autocast_dtype(device.type(), at::kBFloat16);
  std::vector<at::Tensor> all{model.encode_image(pixels, false), model.encode_text(ids, end, false)};
  at::autocast::set_autocast_enabled(device.type(), false);
  at::autocast::clear_cache();
  const at::Tensor weight = at::randn(all[0].sizes()).to(device);
  torch::autograd::backward({(all[0] * weight).sum() + (all[1] * weight).square().sum()}, {});
  for (const auto& p : params.all())
    if (p.name != "logit_scale") all.push_back(p.value.grad());
  return all;
}

TEST(Gpu, TowersAreThoseOfTheHost) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const auto want = clip(at::kCPU, false), exact = clip({at::kCUDA, 0}, false), half = clip({at::kCUDA, 0}, true);
  double worst = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    EXPECT_LE(off(exact[i], want[i]), 2e-5) << "tensor " << i;
    EXPECT_LE(off(half[i], want[i]), 0.05) << "tensor " << i;
    worst = std::max(worst, off(half[i], want[i]));
  }
  EXPECT_LE(off(half[0], want[0]), 0.01);
  EXPECT_LE(off(half[1], want[1]), 0.01);
  std::printf("bf16: features %.1e and %.1e, the worst gradient %.1e of its length off f32\n", off(half[0], want[0]),
              off(half[1], want[1]), worst);
}

}  // namespace
}  // namespace trireme::nn
