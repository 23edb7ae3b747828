// The fused CPU block and the block of ATen operators against whole towers, padding and all, with autograd.
#include "framework/models/clip.h"
#include "framework/nn/packed_attention.h"

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
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

// The model as its papers write it: every row of every layer is computed, the pooled one taken at the end.
class Plain {
 public:
  Plain(const ClipConfig& config, const Parameters& params) : c_(config) {
    for (const auto& p : params.all()) p_[p.name] = p.value;
  }
  at::Tensor encode_image(const at::Tensor& pixels, bool) const {
    const auto b = pixels.size(0), w = c_.vision_width;
    const at::Tensor patches =
        at::conv2d(pixels, p("visual.conv1.weight"), {}, c_.patch_size).flatten(2).transpose(1, 2);
    at::Tensor x = at::cat({p("visual.class_embedding").to(patches.scalar_type()).expand({b, 1, w}), patches}, 1) +
                   p("visual.positional_embedding");
    x = tower(norm(x, "visual.ln_pre"), "visual.transformer.", c_.vision_layers, c_.vision_heads, false);
    return unit(at::matmul(norm(x.select(1, 0), "visual.ln_post"), p("visual.proj")));
  }
  at::Tensor encode_text(const at::Tensor& ids, const std::vector<std::int64_t>& end, bool) const {
    at::Tensor x = at::embedding(p("token_embedding.weight"), ids) + p("positional_embedding");
    x = norm(tower(x, "transformer.", c_.text_layers, c_.text_heads, true), "ln_final");
    std::vector<at::Tensor> rows;
    for (std::size_t i = 0; i < end.size(); ++i) rows.push_back(x[std::int64_t(i)][end[i]]);
    return unit(at::matmul(at::stack(rows), p("text_projection")));
  }

 private:
  at::Tensor p(const std::string& name) const { return p_.at(name); }
  at::Tensor norm(const at::Tensor& x, const std::string& n) const {
    return at::layer_norm(x, {x.size(-1)}, p(n + ".weight"), p(n + ".bias"), 1e-5);
  }
  at::Tensor linear(const at::Tensor& x, const std::string& n) const {
    return at::linear(x, p(n + ".weight"), p(n + ".bias"));
  }
  static at::Tensor unit(const at::Tensor& x) {
    const at::Tensor y = x.scalar_type() == at::kDouble ? x : x.to(at::kFloat);
    return y / y.norm(2, {-1}, true);
  }
  at::Tensor tower(at::Tensor x, const std::string& prefix, std::int64_t layers, std::int64_t heads,
                   bool causal) const {
    const auto b = x.size(0), t = x.size(1), w = x.size(2);
    for (std::int64_t i = 0; i < layers; ++i) {
      const std::string n = prefix + "resblocks." + std::to_string(i) + ".";
      const auto qkv = at::linear(norm(x, n + "ln_1"), p(n + "attn.in_proj_weight"), p(n + "attn.in_proj_bias"))
                           .view({b, t, 3, heads, w / heads})
                           .permute({2, 0, 3, 1, 4})
                           .unbind(0);
      const at::Tensor a = at::scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], {}, 0.0, causal);
      x = x + linear(a.transpose(1, 2).reshape({b, t, w}), n + "attn.out_proj");
      const at::Tensor z = linear(norm(x, n + "ln_2"), n + "mlp.c_fc");
      x = x + linear(c_.quick_gelu ? z * at::sigmoid(1.702 * z) : at::gelu(z), n + "mlp.c_proj");
    }
    return x;
  }
  ClipConfig c_;
  std::map<std::string, at::Tensor> p_;
};

template <class Model>
Outcome through(const Model& model, const Parameters& params, const ClipConfig& config, at::ScalarType type, bool fused,
                bool bf16) {
  at::manual_seed(3);
  const at::Tensor pixels = at::randn({7, 3, config.image_size, config.image_size}, at::kDouble).to(type);
  const at::Tensor ids = at::randint(0, 600, {7, config.context}, at::kLong);
  const std::vector<std::int64_t> end{2, 1, 7, 4, 3, 9, 5};
  at::autocast::set_autocast_enabled(at::kCPU, bf16);
  at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
  Outcome o{model.encode_image(pixels, fused), model.encode_text(ids, end, fused), {}};
  at::autocast::set_autocast_enabled(at::kCPU, false);
  at::autocast::clear_cache();
  const at::Tensor weight = at::randn(o.image.sizes(), at::kDouble).to(type);
  torch::autograd::backward({(o.image * weight).sum() + (o.text * weight).square().sum()}, {});
  for (const auto& p : params.all())
    if (p.name != "logit_scale") {
      EXPECT_TRUE(p.value.grad().defined()) << p.name;
      EXPECT_EQ(p.value.grad().scalar_type(), type) << p.name;
      o.grads.push_back(p.value.grad());
    }
  return o;
}

enum class Path { plain, operators, fused };

Outcome run(const ClipConfig& config, at::ScalarType type, Path path, bool bf16 = false) {
  Parameters params(5, type, at::kCPU);
  const Clip model(config, 2.0, params);
  at::NoGradGuard no_grad;
  // Nothing that is 0 or 1 as it was made: a bias that is forgotten would not be noticed.
  for (const auto& p : params.all()) p.value.add_(at::randn(p.value.sizes(), at::kDouble).mul_(0.02).to(type));
  at::AutoGradMode with_grad(true);
  if (path == Path::plain) return through(Plain(config, params), params, config, type, false, bf16);
  return through(model, params, config, type, path == Path::fused, bf16);
}

ClipConfig small(bool quick_gelu) {
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
  return config;
}

void compare(bool quick_gelu, at::ScalarType type, double tolerance) {
  at::manual_seed(1);
  const Outcome plain = run(small(quick_gelu), type, Path::plain);
  for (const Path path : {Path::operators, Path::fused}) {
    at::manual_seed(1);
    const Outcome ours = run(small(quick_gelu), type, path);
    EXPECT_LE(relative(ours.image.detach(), plain.image.detach()), tolerance);
    EXPECT_LE(relative(ours.text.detach(), plain.text.detach()), tolerance);
    ASSERT_EQ(ours.grads.size(), plain.grads.size());
    for (std::size_t i = 0; i < ours.grads.size(); ++i)
      EXPECT_LE(relative(ours.grads[i], plain.grads[i]), tolerance) << "path " << int(path) << " parameter " << i;
  }
}

// A residual stream in bf16 costs no more than autocast's own roundings do.
TEST(OperatorBlock, Bf16IsAsCloseAsAutocast) {
  at::manual_seed(1);
  const Outcome exact = run(small(false), at::kFloat, Path::plain);
  at::manual_seed(1);
  const Outcome autocast = run(small(false), at::kFloat, Path::plain, true);
  at::manual_seed(1);
  const Outcome ours = run(small(false), at::kFloat, Path::operators, true);
  const auto error = [&](const Outcome& o) {
    double sum = ((o.image - exact.image).square().sum() + (o.text - exact.text).square().sum()).item<double>();
    for (std::size_t i = 0; i < exact.grads.size(); ++i)
      sum += ((o.grads[i] - exact.grads[i]).norm() / exact.grads[i].norm()).square().item<double>();
    return std::sqrt(sum / double(exact.grads.size()));
  };
  std::printf("root mean square of relative errors: autocast %.2e, ours %.2e\n", error(autocast), error(ours));
  EXPECT_LE(error(ours), 1.5 * error(autocast));
  EXPECT_LE(error(ours), 0.03);
}

// All lengths at once, one query each: against softmax of each sequence alone.
TEST(PackedAttention, PooledEqualsEachSequenceAlone) {
  at::manual_seed(4);
  const std::vector<std::int64_t> lengths{3, 1, 5};
  const at::Tensor q = at::randn({3, 8}, at::kDouble), kv = at::randn({9, 16}, at::kDouble);
  const at::Tensor got = pooled_attention(q, kv, Sequences(lengths, at::kCPU), 2);
  std::int64_t first = 0;
  for (std::int64_t i = 0; i < 3; first += lengths[i++])
    for (std::int64_t h = 0; h < 2; ++h) {
      const at::Tensor k = kv.narrow(0, first, lengths[i]).narrow(1, 4 * h, 4);
      const at::Tensor v = kv.narrow(0, first, lengths[i]).narrow(1, 8 + 4 * h, 4);
      const at::Tensor want = at::mv(v.t(), at::softmax(at::mv(k, q[i].narrow(0, 4 * h, 4)) / 2.0, 0));
      EXPECT_LE((got[i].narrow(0, 4 * h, 4) - want).abs().max().item<double>(), 1e-14) << i;
    }
}

TEST(Blocks, EqualAutogradInF64) { compare(false, at::kDouble, 1e-12); }
TEST(Blocks, EqualAutogradInF64QuickGelu) { compare(true, at::kDouble, 1e-12); }
TEST(Blocks, EqualAutogradInF32) { compare(false, at::kFloat, 2e-5); }
TEST(Blocks, EqualAutogradInF32QuickGelu) { compare(true, at::kFloat, 2e-5); }

// A causal tower must not see what stands after the pooled position.
TEST(Blocks, PaddingHasNoInfluence) {
  ClipConfig config;
  Parameters params(5, at::kDouble, at::kCPU);
  const Clip model(config, 2.0, params);
  at::Tensor ids = at::randint(0, 600, {3, config.context}, at::kLong);
  const std::vector<std::int64_t> end{4, 9, 1};
  const at::Tensor fused = model.encode_text(ids, end, true).detach(),
                   plain = model.encode_text(ids, end, false).detach();
  for (int i = 0; i < 3; ++i) ids[i].narrow(0, end[i] + 1, config.context - end[i] - 1).fill_(17);
  EXPECT_TRUE(at::equal(fused, model.encode_text(ids, end, true).detach()));
  EXPECT_TRUE(at::equal(plain, model.encode_text(ids, end, false).detach()));
}

TEST(FusedBlock, ThreadsDoNotChangeTheGradients) {
  ClipConfig config;
  config.vision_layers = config.text_layers = 1;
  at::set_num_threads(1);
  at::manual_seed(1);
  const Outcome one = run(config, at::kDouble, Path::fused);
  at::set_num_threads(2);
  at::manual_seed(1);
  const Outcome two = run(config, at::kDouble, Path::fused);
  at::set_num_threads(1);
  for (std::size_t i = 0; i < one.grads.size(); ++i) EXPECT_LE(relative(one.grads[i], two.grads[i]), 1e-13);
}

}  // namespace
}  // namespace trireme::nn
