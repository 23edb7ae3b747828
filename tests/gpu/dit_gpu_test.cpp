// Diffusion transformers on a GPU: fused kernels against their host twins, attention that returns its sum, forwards
// against the host's, recorded forwards against plain ones, and memory that holds no scores.
#include "comm/device.h"
#include "comm/local/self.h"
#include "framework/base/tensor.h"
#include "framework/device_info.h"
#include "framework/graphed_denoiser.h"
#include "framework/models/dit/parts.h"
#include "framework/models/dit/token_set.h"
#include "framework/nn/joint_attention.h"
#include "framework/step_graph.h"
#include "recipes/supergen/refiner.h"

#include <cmath>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

bool no_gpu() { return !device_runtime() || device_runtime()->count() == 0; }

const at::Device gpu(at::kCUDA, 0);

double off(const at::Tensor& a, const at::Tensor& truth) {
  const at::Tensor t = truth.to(at::kCPU, at::kDouble);
  return ((a.to(at::kCPU, at::kDouble) - t).abs().max() / t.std()).item<double>();
}

// Graphs replay the very kernels: to the bit. A failure says how far off.
void expect_same(const at::Tensor& recorded, const at::Tensor& plain, const std::string& what) {
  EXPECT_TRUE(recorded.equal(plain)) << what << ": off by " << off(recorded, plain) << " deviations, "
                                     << recorded.ne(plain).sum().item<std::int64_t>() << " of " << plain.numel()
                                     << " values";
}

at::Tensor draw(at::IntArrayRef shape, at::ScalarType type = at::kFloat) {
  return at::randn(shape).to(at::kBFloat16).to(type);
}

TEST(DitOnGpu, AdaLayerNormIsThatOfTheHost) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const at::NoGradGuard none;
  at::manual_seed(1);
  for (const std::int64_t width : {30, 64, 3072, 5120})
    for (const auto type : {at::kFloat, at::kBFloat16}) {
      const at::Tensor x = draw({2, 7, width}, type), y = draw({2, 7, width}, type), m = draw({2, 3 * width}, type);
      const auto parts = dit::cut(m, 3), there = dit::cut(m.to(gpu), 3);
      const double limit = type == at::kFloat ? 1e-5 : 0.03;
      EXPECT_LT(off(dit::modulated(x.to(gpu), there[0], there[1]), dit::modulated(x, parts[0], parts[1])), limit);
      EXPECT_TRUE(dit::gated(x.to(gpu), there[2], y.to(gpu)).cpu().equal(dit::gated(x, parts[2], y)) ||
                  type == at::kFloat);
      const auto a = dit::gated_modulated(x.to(gpu), there[2], y.to(gpu), there[0], there[1]);
      const auto b = dit::gated_modulated(x, parts[2], y, parts[0], parts[1]);
      EXPECT_LT(off(a.sum, b.sum), limit);
      EXPECT_LT(off(a.modulated, b.modulated), limit);
    }
}

// Wan: rows of modulation in f32, a sum without a gate, and a norm over all heads with rotation.
TEST(DitOnGpu, WanPartsAreThoseOfTheHost) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const at::NoGradGuard none;
  at::manual_seed(6);
  for (const std::int64_t heads : {3, 12, 40})
    for (const auto type : {at::kFloat, at::kBFloat16}) {
      const std::int64_t width = heads * 128;
      const double limit = type == at::kFloat ? 1e-5 : 0.1;
      const at::Tensor x = draw({2, 7, width}, type), y = draw({2, 7, width}, type), m = draw({2, 3, width});
      const auto host = m.unbind(1), there = m.to(gpu).unbind(1);
      const auto a = dit::gated_modulated(x.to(gpu), there[2], y.to(gpu), there[0], there[1], 1e-5);
      const auto b = dit::gated_modulated(x, host[2], y, host[0], host[1], 1e-5);
      EXPECT_LT(off(a.sum, b.sum), limit);
      EXPECT_LT(off(a.modulated, b.modulated), limit);
      EXPECT_TRUE(dit::gated_modulated(x.to(gpu), {}, y.to(gpu), there[0], there[1]).sum.cpu().equal(x + y));
      const at::Tensor qkv = draw({2, 7, 3 * width}, type), on_gpu = qkv.to(gpu, type, false, /*copy=*/true);
      const dit::QkNorm norm{draw({width}, type), draw({width}, type)};
      const at::Tensor angle = at::randn({7, 64});
      const RopeTable table{angle.cos(), angle.sin()}, table_there{table.cos.to(gpu), table.sin.to(gpu)};
      for (const bool late : {false, true}) {
        ASSERT_TRUE(dit::norm_rows(qkv, norm, heads, table, !late, 1e-6));
        ASSERT_TRUE(dit::norm_rows(on_gpu, {norm.q.to(gpu), norm.k.to(gpu)}, heads, table_there, !late, 1e-6));
        EXPECT_LT(off(on_gpu, qkv), limit) << heads;
      }
    }
}

// SuperGen's tiles: means over windows that wrap, and a whole refinement with reuse, against the host's.
TEST(DitOnGpu, RefinesTilesAsTheHostDoes) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  at::manual_seed(1);
  CanvasConfig shape;
  shape.size = {36, 40}, shape.window = {12, 20}, shape.loop_step = 4;
  RefinerConfig config;
  config.gate.base = 0.07, config.gate.steps = 20, config.guidance = 2, config.halves = 2;
  for (const auto wire : {at::kFloat, at::kBFloat16}) {
    std::vector<std::string> maps[2];
    at::Tensor canvas[2];
    const at::Tensor start = at::randn({1, 4, 3, 36, 40}), weight = at::randn({4, 3, 1, 1}).sign();
    for (int k = 0; k < 2; ++k) {
      const at::Device device = k ? gpu : at::Device(at::kCPU);
      auto alone = make_self();  // which takes host buffers alone
      if (k) alone = device_runtime()->over_host(std::move(alone), 0, {});
      Refiner refiner(config, Canvas(shape), *alone, 1);
      at::Tensor x = start.to(device);
      const at::Tensor w = weight.to(device);
      for (std::int64_t i = 0; i < 20; ++i)
        x = x - refiner.predict(x, i, wire, [&](const at::Tensor& tiles, std::span<const Refiner::Tile> which) {
          return tiles * 0.6 + w * (which[0].half ? 0.1 : 0.3);
        }) / 20;
      maps[k] = refiner.map(0), canvas[k] = x;
    }
    // Decisions lie far enough from their thresholds: rounding otherwise (1 ulp of f32) has turned none on the host.
    EXPECT_EQ(maps[0], maps[1]) << wire;
    EXPECT_NE(maps[0][5].find('.'), std::string::npos) << maps[0][5];
    EXPECT_NE(maps[0][5], maps[0][8]);
    EXPECT_LE((canvas[0] - canvas[1].cpu()).abs().max().item<double>(), wire == at::kFloat ? 1e-5 : 0.02) << wire;
  }
}

// Attention in f64, with a constant on the scores of the first `text` keys.
nn::AttentionPart attention_in_f64(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale,
                                   std::int64_t text = 0, double bias = 0) {
  at::Tensor scores = q.to(at::kDouble).matmul(k.to(at::kDouble).transpose(2, 3)) * scale;
  scores.narrow(3, 0, text) += bias;
  return {scores.softmax(3).matmul(v.to(at::kDouble)), scores.logsumexp(3)};
}

TEST(DitOnGpu, AttentionReturnsItsSum) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  at::manual_seed(2);
  for (const auto type : {at::kFloat, at::kBFloat16})
    for (const std::int64_t keys : {77, 512, 1000}) {
      const at::Tensor q = draw({2, 3, 130, 128}), k = draw({2, 3, keys, 128}), v = draw({2, 3, keys, 128});
      const auto there = [&](const at::Tensor& t) {
        return t.to(gpu, type).transpose(1, 2).contiguous().transpose(1, 2);
      };
      const double scale = 1 / std::sqrt(128.0), limit = type == at::kFloat ? 1e-5 : 0.05;
      const auto ours = nn::attention_part(there(q), there(k), there(v), scale),
                 truth = attention_in_f64(q, k, v, scale);
      ASSERT_EQ(ours.lse.sizes(), truth.lse.sizes());
      EXPECT_LT(off(ours.out, truth.out), limit);
      EXPECT_LT((ours.lse.cpu() - truth.lse).abs().max().item<double>(), type == at::kFloat ? 1e-4 : 1e-2);
      const nn::AttentionScores anchored{scale, 1.3863, false};
      EXPECT_LT(off(nn::joint_attention(there(q), there(k), there(v), 0, 40, anchored),
                    attention_in_f64(q, k, v, scale, 40, anchored.text_bias).out),
                limit);
    }
}

nlohmann::json small() {
  return {{"_class_name", "FluxTransformer2DModel"},
          {"in_channels", 64},
          {"num_layers", 2},
          {"num_single_layers", 2},
          {"attention_head_dim", 128},
          {"num_attention_heads", 2},
          {"joint_attention_dim", 64},
          {"pooled_projection_dim", 32},
          {"guidance_embeds", true},
          {"axes_dims_rope", {16, 56, 56}}};
}

struct Inputs {
  at::Tensor x, t;
  Conditioning c;
  Inputs(std::int64_t batch, std::int64_t side, at::ScalarType type)
      : x(draw({batch, 16, 1, side, side}).to(gpu, type)),
        t(at::full({batch}, 0.625).to(gpu)),
        c{draw({batch, 24, 64}).to(gpu, type),
          draw({batch, 32}).to(gpu, type),
          at::full({batch}, 2.0).to(gpu),
          {},
          {}} {}
};

TEST(DitOnGpu, WanForwardIsThatOfTheHost) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const at::NoGradGuard none;
  at::manual_seed(7);
  const nlohmann::json config{{"_class_name", "WanTransformer3DModel"},
                              {"num_layers", 2},
                              {"num_attention_heads", 2},
                              {"ffn_dim", 512},
                              {"text_dim", 64}};
  const auto host = random_denoiser(config, 5, at::kCPU, at::kFloat);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const auto model = make_denoiser(config, [&](const DitWeight& w) {
      for (const auto& [name, value] : host->weights())
        if (name == w.name) return value.to(gpu, type);
      return at::Tensor();
    });
    GraphedDenoiser graphed(*model);
    for (int round = 0; round < 3; ++round) {
      const at::Tensor x = draw({2, 16, 3, 8, 12}), t = at::full({2}, 0.625), text = draw({2, 20, 64});
      const at::Tensor truth = host->forward(x, t, {text, {}, {}, {}, {}});
      const at::Tensor y = model->forward(x.to(gpu, type), t.to(gpu), {text.to(gpu, type), {}, {}, {}, {}});
      EXPECT_LT(off(y, truth), type == at::kFloat ? 1e-3 : 0.15) << type << ", round " << round;
      expect_same(graphed.forward(x.to(gpu, type), t.to(gpu), {text.to(gpu, type), {}, {}, {}, {}}), y,
                  c10::str(type, ", round ", round));
    }
    EXPECT_EQ(graphed.captured(), 1);
  }
}

TEST(DitOnGpu, ForwardIsThatOfTheHost) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const at::NoGradGuard none;
  at::manual_seed(3);
  const auto host = random_denoiser(small(), 5, at::kCPU, at::kFloat);
  for (const auto type : {at::kFloat, at::kBFloat16})
    for (const std::int64_t batch : {1, 2})
      for (const double bias : {0.0, 1.3863}) {
        const auto model = make_denoiser(small(), [&](const DitWeight& w) {
          for (const auto& [name, value] : host->weights())
            if (name == w.name) return value.to(gpu, type);
          return at::Tensor();
        });
        const Inputs in(batch, 16, type);
        const auto back = [](const at::Tensor& t) { return t.to(at::kCPU, at::kFloat); };
        DitHooks hooks;
        hooks.text_bias = bias;
        const at::Tensor truth = host->forward(
            back(in.x), back(in.t), {back(in.c.text), back(in.c.pooled), back(in.c.guidance), {}, {}}, hooks);
        EXPECT_LT(off(model->forward(in.x, in.t, in.c, hooks), truth), type == at::kFloat ? 1e-3 : 0.15)
            << type << ", batch " << batch << ", bias " << bias;
      }
}

// Also of chosen tokens whose number stays, with other inputs, tables and choices than those recorded.
TEST(DitOnGpu, RecordedForwardsAreThePlainOnes) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const at::NoGradGuard none;
  at::manual_seed(4);
  const auto model = random_denoiser(small(), 5, gpu, at::kBFloat16);
  GraphedDenoiser graphed(*model);
  for (int round = 0; round < 4; ++round)
    for (const std::int64_t side : {16, 24}) {
      const Inputs in(1, side, at::kBFloat16);
      const std::string what = c10::str("side ", side, ", round ", round);
      expect_same(graphed.forward(in.x, in.t, in.c), model->forward(in.x, in.t, in.c), what);
      DitHooks hooks;
      hooks.text_bias = 0.7;
      hooks.rope = model->rope({1, side / 2, side / 2}, 24, {0, round, 0, {}});
      expect_same(graphed.forward(in.x, in.t, in.c, hooks), model->forward(in.x, in.t, in.c, hooks), what + ", hooks");
    }
  EXPECT_EQ(graphed.captured(), 4);
  TokenSet recorded, plain;
  DitHooks a, b;
  a.tokens = &recorded;
  b.tokens = &plain;
  for (int round = 0; round < 12; ++round) {
    const Inputs in(1, 16, at::kBFloat16);
    if (round % 3 == 0) {
      recorded.dense();
      plain.dense();
    } else {
      const at::Tensor some = std::get<0>(at::randperm(64).narrow(0, 0, 32).sort()).unsqueeze(0).to(gpu);
      recorded.choose(some);
      plain.choose(some);
    }
    expect_same(graphed.forward(in.x, in.t, in.c, a), model->forward(in.x, in.t, in.c, b),
                c10::str("chosen tokens, round ", round));
  }
  EXPECT_EQ(graphed.captured(), 6);
}

// Neither in torch's generators nor in its allocators, of device and pinned memory; and the shared memory outlives its
// last graph. `invalid`: work that cannot be recorded, after which CUDA itself gives the capture up.
TEST(DitOnGpu, ACaptureThatFailsLeavesNothingBehind) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const at::NoGradGuard none;
  const at::Tensor x = at::ones({1024}, at::TensorOptions(gpu));
  for (const bool invalid : {false, true}) {
    SCOPED_TRACE(invalid);
    auto bad = make_step_graph(0, GraphMemory::shared);
    EXPECT_ANY_THROW(bad->capture([&] {
      const at::Tensor y = x + 1;
      if (invalid) y.cpu();
      throw std::runtime_error("given up");
    }));
    EXPECT_NO_THROW(at::randn({8}, x.options()));
    bad.reset();
    for (int round = 0; round < 2; ++round) {
      at::Tensor y;
      const auto good = make_step_graph(0, GraphMemory::shared);
      EXPECT_GT(good->capture([&] { y = x * 2; }), 0u) << round;
      good->replay();
      EXPECT_EQ(y.sum().item<float>(), 2048) << round;
      EXPECT_EQ(to_device(at::ones({8}), gpu).sum().item<float>(), 8) << round;
    }
  }
}

// T8: text anchoring takes partial outputs and sums, nothing of the scores' or a mask's size.
TEST(DitOnGpu, AnchoringHoldsNoScores) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const at::NoGradGuard none;
  const std::int64_t n = 32768, heads = 4;
  const auto options = at::TensorOptions(gpu).dtype(at::kBFloat16);
  const at::Tensor q = at::randn({1, n, heads, 128}, options).transpose(1, 2);
  nn::joint_attention(q, q, q, 0, 256, {0.088, 1.3, false});
  const double before = peak_device_memory_gib(gpu);
  nn::joint_attention(q, q, q, 0, 256, {0.088, 1.3, false});
  const double more = (peak_device_memory_gib(gpu) - before) * double(1 << 30);
  EXPECT_LT(more, 1.0);  // the first call's peak is not passed
  // A mask alone: n^2 2 bytes = 2 GiB, scores 8 GiB.
  EXPECT_LT(peak_device_memory_gib(gpu) * double(1 << 30), double(n) * double(n));
}

}  // namespace
}  // namespace trireme
