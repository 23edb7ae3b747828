// MM-DiT in FLUX's layout: vectors of diffusers (tests/reference/make_dit_vectors.py; other folders through
// TRIREME_DIT_VECTORS), hooks, text anchoring by log-sum-exp, chosen tokens, folders.
#include "comm/error.h"
#include "comm/local/self.h"
#include "data/json.h"
#include "framework/formats/safetensors.h"
#include "framework/models/dit/block_cache.h"
#include "framework/models/dit/denoiser.h"
#include "framework/models/dit/mm_dit_blocks.h"
#include "framework/models/dit/sequence_parallel.h"
#include "framework/models/dit/token_set.h"
#include "tests/fault/program.h"
#include "tests/unit/dit_vectors.h"
#include "tests/unit/said.h"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>

#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme::test {
namespace {

using nlohmann::json;

TEST(MmDit, GivesWhatDiffusersGives) {
  for (const char* name : {"flux", "flux_schnell"}) {
    const DitCase v(name);
    StreamWatch watch;
    DitHooks hooks;
    hooks.blocks = &watch;
    const at::Tensor y = v.run(hooks);
    EXPECT_LT(error(y, v.file.tensor("velocity")), 1e-4) << name;
    EXPECT_LT(error(watch.in.image, v.file.tensor("in.image")), 1e-5) << name;
    EXPECT_LT(error(watch.in.text, v.file.tensor("in.text")), 1e-5) << name;
    EXPECT_LT(error(watch.first.image, v.file.tensor("out.transformer_blocks.0.image")), 1e-5) << name;
    EXPECT_LT(error(watch.first.text, v.file.tensor("out.transformer_blocks.0.text")), 1e-5) << name;
    const std::string last =
        name == std::string("flux") ? "out.single_transformer_blocks.1." : "out.single_transformer_blocks.0.";
    EXPECT_LT(error(watch.out.image, v.file.tensor(last + "image")), 2e-5) << name;
    EXPECT_LT(error(watch.out.text, v.file.tensor(last + "text")), 2e-5) << name;
    EXPECT_EQ(std::int64_t(watch.layers.size()), v.model->info().layers);
    EXPECT_TRUE(same(y, v.run())) << "a cache that reuses nothing changed the forward";
  }
}

TEST(MmDit, IsAsCloseInBf16AsDiffusersIs) {
  for (const char* name : {"flux", "flux_schnell"}) {
    const DitCase v(name, at::kBFloat16);
    const at::Tensor truth = v.file.tensor("velocity");
    const double theirs = (v.file.tensor("velocity_bf16") - truth).pow(2).mean().sqrt().item<double>();
    const double ours = (v.run().to(at::kFloat) - truth).pow(2).mean().sqrt().item<double>();
    EXPECT_LT(ours, 1.1 * theirs) << name;  // both are draws of rounding
  }
}

// The fused parts against their formulas in f64: rows of modulation in f32, sums without a gate, norms over all heads.
TEST(DitParts, AreTheirFormulas) {
  const at::NoGradGuard none;
  const std::int64_t heads = 3, width = heads * 10, n = 7;
  const auto wide = [](const at::Tensor& t) { return t.to(at::kDouble); };
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const double limit = type == at::kFloat ? 2e-6 : 0.04;
    const at::Tensor x = at::randn({2, n, width}).to(type), y = at::randn({2, n, width}).to(type);
    const auto m = at::randn({2, 3, width}).unbind(1);
    for (const bool gate : {false, true}) {
      const at::Tensor sum = wide(x) + (gate ? wide(m[2]).unsqueeze(1) : at::ones({1}, at::kDouble)) * wide(y);
      const at::Tensor normed = at::layer_norm(wide(sum.to(type)), {width}, {}, {}, 1e-5);
      const auto got = dit::gated_modulated(x, gate ? m[2] : at::Tensor(), y, m[0], m[1], 1e-5);
      EXPECT_LT((wide(got.sum) - sum).abs().max().item<double>(), limit);
      EXPECT_LT((wide(got.modulated) - normed * (1 + wide(m[1]).unsqueeze(1)) - wide(m[0]).unsqueeze(1))
                    .abs()
                    .max()
                    .item<double>(),
                2 * limit);
    }
    const at::Tensor qkv = at::randn({2, n, 3 * width}).to(type), before = qkv.clone(), angle = at::randn({n, 5});
    const dit::QkNorm norm{at::randn({width}).to(type), at::randn({width}).to(type)};
    ASSERT_TRUE(dit::norm_rows(qkv, norm, heads, {angle.cos(), angle.sin()}, false, 1e-6));
    const auto parts = before.chunk(3, 2);
    const auto rms = [&](const at::Tensor& t, const at::Tensor& w) {
      return at::rms_norm(wide(t), {width}, wide(w), 1e-6);
    };
    const at::Tensor turn = at::complex(angle.cos().to(at::kDouble), angle.sin().to(at::kDouble)).unsqueeze(1);
    const at::Tensor q =
        at::view_as_real(at::view_as_complex(rms(parts[0], norm.q).view({2, n, heads, 5, 2})) * turn).flatten(2);
    const at::Tensor truth = at::cat({q, rms(parts[1], norm.k), wide(parts[2])}, 2);
    EXPECT_LT((wide(qkv) - truth).abs().max().item<double>(), limit);
  }
  // Not for the kernel: another type, and gradients that are wanted.
  const dit::QkNorm weights{at::ones({width}), {}};
  EXPECT_FALSE(dit::norm_rows(at::randn({1, n, width}, at::kDouble), weights, heads, {}, false, 1e-6));
  const at::AutoGradMode gradients(true);
  EXPECT_FALSE(dit::norm_rows(at::randn({1, n, width}).requires_grad_(), weights, heads, {}, false, 1e-6));
}

// E4: what is easily swapped fails.
TEST(MmDit, SwappedPartsAreSeen) {
  const DitCase v("flux");
  const at::Tensor truth = v.file.tensor("velocity");
  const auto with = [&](const std::string& tensor, const std::function<at::Tensor(const at::Tensor&)>& change) {
    const auto model = make_denoiser(v.model->config(), [&](const DitWeight& w) {
      for (const auto& [name, value] : v.model->weights())
        if (name == w.name) return name == tensor ? change(value) : value.clone();
      throw Error(ExitCode::bug, "test", w.name);
    });
    return error(model->forward(v.x, v.t, v.c), truth);
  };
  const auto halves = [](const at::Tensor& t) { return at::cat({t.chunk(2)[1], t.chunk(2)[0]}); };
  const auto columns = [](const at::Tensor& t) { return at::cat({t.chunk(2, 1)[1], t.chunk(2, 1)[0]}, 1); };
  EXPECT_LT(with("", [](const at::Tensor& t) { return t; }), 1e-4);
  EXPECT_GT(with("norm_out.linear.weight", halves), 0.05);                              // shift, scale
  EXPECT_GT(with("time_text_embed.timestep_embedder.linear_1.weight", columns), 0.01);  // sines first
  DitHooks image_first;  // positions of the text given to the image's end
  image_first.rope = v.model->rope(v.model->grid(v.x.sizes()), 5, {0, 3, 1, {}});
  EXPECT_GT(error(v.run(image_first), truth), 0.001);
}

at::Tensor truth_of_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& bias,
                              double scale) {
  const at::Tensor logits = at::matmul(q.to(at::kDouble), k.to(at::kDouble).transpose(2, 3)) * scale + bias;
  return at::matmul(logits.softmax(-1), v.to(at::kDouble));
}

// T3
TEST(JointAttention, MergesByLogSumExp) {
  at::manual_seed(3);
  struct Shape {
    std::int64_t queries, keys, begin, end, head;
  };
  for (const Shape s : {Shape{40, 40, 0, 7, 128}, {17, 33, 26, 33, 32}, {5, 20, 4, 9, 16}, {3, 8, 0, 8, 16}})
    for (const double bias : {1.3863, 2.7726, -3.0}) {
      const at::Tensor q = 3 * at::randn({2, 3, s.queries, s.head}), k = at::randn({2, 3, s.keys, s.head}),
                       v = at::randn({2, 3, s.keys, s.head});
      const double scale = 1 / std::sqrt(double(s.head));
      at::Tensor b = at::zeros({s.keys}, at::kDouble);
      b.narrow(0, s.begin, s.end - s.begin).fill_(bias);
      const at::Tensor truth = truth_of_attention(q, k, v, b, scale);
      const nn::AttentionScores merged{scale, bias, false}, masked{scale, bias, true};
      EXPECT_LT(error(nn::joint_attention(q, k, v, s.begin, s.end, merged), truth), 1e-5);
      EXPECT_LT(error(nn::joint_attention(q, k, v, s.begin, s.end, masked), truth), 1e-5);
      const auto bf = [](const at::Tensor& t) { return t.to(at::kBFloat16); };
      const auto off = [&](const at::Tensor& y) {
        return (y.to(at::kDouble) - truth).pow(2).mean().sqrt().item<double>();
      };
      const double theirs = off(nn::joint_attention(bf(q), bf(k), bf(v), s.begin, s.end, masked));
      EXPECT_LT(off(nn::joint_attention(bf(q), bf(k), bf(v), s.begin, s.end, merged)), 1.2 * theirs);
    }
}

TEST(JointAttention, PartsKnowTheirSum) {
  at::manual_seed(4);
  const at::Tensor q = at::randn({1, 2, 9, 16}), k = at::randn({1, 2, 300, 16}), v = at::randn({1, 2, 300, 16});
  const auto part = nn::attention_part(q, k, v, 0.25);
  EXPECT_LT(error(part.lse, (at::matmul(q, k.transpose(2, 3)) * 0.25).logsumexp(-1)), 1e-5);
  EXPECT_EQ(part.lse.scalar_type(), at::kFloat);
}

// Bytes of the host that are allocated while it lives, at most.
struct PeakMemory final : c10::MemoryReportingInfoBase {
  void reportMemoryUsage(void*, std::int64_t bytes, std::size_t, std::size_t, c10::Device) override {
    peak = std::max(peak, now += bytes);
  }
  bool memoryProfilingEnabled() const override { return true; }
  std::int64_t now = 0, peak = 0;
};

TEST(JointAttention, ByQueriesInTheMemoryItSays) {
  at::manual_seed(5);
  const auto draw = [](std::int64_t n) { return at::randn({1, n, 2, 16}).transpose(1, 2); };
  const at::Tensor q = draw(2500), k = draw(3000), v = draw(3000);  // scores of 114 MiB
  const auto memory = std::make_shared<PeakMemory>();
  nn::AttentionPart part;
  {
    const c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, memory);
    part = nn::attention_by_queries(q, k, v, 0.25);
  }
  const auto bytes = [](const at::Tensor& t) { return t.numel() * 8; };
  EXPECT_LE(memory->peak, (std::int64_t(64) << 20) + bytes(k) + bytes(v) + 4 * bytes(q));
  const at::Tensor truth = truth_of_attention(q, k, v, at::zeros({3000}, at::kDouble), 0.25);
  EXPECT_LT(error(part.out, truth), 1e-6);
  const at::Tensor scores = at::matmul(q.to(at::kDouble), k.to(at::kDouble).transpose(2, 3)) * 0.25;
  EXPECT_LT(error(part.lse, scores.logsumexp(-1)), 1e-5);
  EXPECT_EQ(part.out.scalar_type(), at::kFloat);
}

TEST(MmDit, BiasOfTheTextIsOneForBothForms) {
  const DitCase v("flux");
  DitHooks merged, masked;
  merged.text_bias = masked.text_bias = 1.3863;
  masked.form = DitHooks::Bias::bias;
  const at::Tensor y = v.run(merged);
  EXPECT_LT(error(y, v.run(masked)), 1e-5);
  EXPECT_GT(error(y, v.run()), 0.01);
}

// E6
TEST(MmDit, NeutralHooksChangeNothing) {
  const DitCase v("flux");
  const at::Tensor y = v.run();
  DitHooks own;
  own.rope = v.model->rope(v.model->grid(v.x.sizes()), v.c.text.size(1));
  EXPECT_TRUE(same(y, v.run(own)));
  DitHooks bias;
  bias.form = DitHooks::Bias::bias;
  EXPECT_TRUE(same(y, v.run(bias)));
  TokenSet all;
  DitHooks cached;
  cached.tokens = &all;
  EXPECT_TRUE(same(y, v.run(cached)));
}

// S1, S6
TEST(TokenSets, AllTokensAreTheDenseStep) {
  const DitCase v("flux");
  const std::int64_t tokens = v.model->grid(v.x.sizes()).tokens();
  for (const auto keys : {TokenSet::Keys::post_rope, TokenSet::Keys::pre_rope}) {
    TokenSet set(keys);
    DitHooks hooks;
    hooks.tokens = &set;
    const at::Tensor dense = v.run(hooks);
    EXPECT_LT(error(dense, v.run()), 1e-6);
    set.choose(at::arange(tokens).expand({2, tokens}).contiguous());
    EXPECT_LT(error(v.run(hooks), dense), 1e-6);
    // Of a batch twice as large: the same choice for both halves.
    set.choose(at::arange(tokens).expand({1, tokens}).contiguous());
    EXPECT_LT(error(v.run(hooks), dense), 1e-6);
  }
}

TEST(TokenSets, ChosenTokensMeetTheKeysOfTheOthers) {
  const DitCase v("flux");
  TokenSet set;
  DitHooks hooks;
  hooks.tokens = &set;
  const at::Tensor dense = v.run(hooks);
  // Unchanged input: the chosen tokens see what they saw, so their velocity is the dense one; others' is 0.
  const at::Tensor active = at::tensor({0, 3, 4, 7, 11, 1, 2, 5, 6, 9}).view({2, 5});
  set.choose(active);
  const at::Tensor sparse = dit::patchify(v.run(hooks), 2, 1), all = dit::patchify(dense, 2, 1);
  const at::Tensor rows = active.unsqueeze(2).expand({2, 5, 16});
  EXPECT_LT(error(sparse.gather(1, rows), all.gather(1, rows)), 1e-5);
  EXPECT_EQ(sparse.scatter(1, rows, 0).abs().sum().item<double>(), 0);
  // Another x: only then do they differ from the dense step of it; and a dense step resets everything.
  DitCase moved("flux");
  moved.x = v.x + 0.5;
  set.choose(active);
  moved.run(hooks);
  set.dense();
  TokenSet fresh;
  DitHooks anew;
  anew.tokens = &fresh;
  EXPECT_TRUE(same(v.run(hooks), v.run(anew)));
  set.choose(active);
  fresh.choose(active);
  EXPECT_TRUE(same(moved.run(hooks), moved.run(anew)));
  EXPECT_EQ(set.bytes(), 2 * 2 * (12 + 5) * 32 * 4 * 4);
}

TEST(TokenSets, RefuseWhatWasNotComputedBefore) {
  const DitCase v("flux");
  TokenSet set;
  DitHooks hooks;
  hooks.tokens = &set;
  set.choose(at::tensor({0, 1}).view({1, 2}));
  EXPECT_THROW(v.run(hooks), UsageError);
  set.dense();
  v.run(hooks);
  set.choose(at::tensor({0, 1, 0, 1, 0, 1}).view({3, 2}));
  EXPECT_THROW(v.run(hooks), UsageError);
  set.choose(at::tensor({0, 12}).view({1, 2}));
  EXPECT_THROW(v.run(hooks), std::exception);
}

// Post-rope keys under another temperature: rescaled, they are those of the new tables (S0 for a gain alone). Text
// first and last; text is never rescaled.
TEST(TokenSets, KeysCanBeRescaled) {
  at::manual_seed(5);
  for (const bool text_first : {true, false})
    for (const auto type : {at::kFloat, at::kBFloat16}) {
      const at::Tensor k = at::randn({2, 9, 2, 8}), v = at::randn({2, 9, 2, 8}).to(type);
      const RopeTable table = dit::rope_table({1, 2, 3}, {}, {4, 2, 2}, 1e4, at::kCPU);
      const at::Tensor old_gain = at::tensor({1.2, 1.1, 1.0, 1.3}).to(at::kFloat),
                       now = at::tensor({1.1, 1.0, 1.0, 1.2}).to(at::kFloat);
      const auto keys = [&](const at::Tensor& gain) {
        const RopeTable image{table.cos * gain, table.sin * gain};
        const RopeTable all = text_first ? dit::joined({}, 3, image, 6) : dit::joined(image, 6, {}, 3);
        return dit::apply_rope(k, all);
      };
      TokenSet set;
      set.update(0, keys(old_gain).to(type), v, 3, text_first);
      const std::int64_t before = set.memory();
      set.rescale_keys(now / old_gain);
      set.choose(at::tensor({1, 4}, at::kLong).view({1, 2}));
      const at::Tensor fresh = keys(now).to(type);
      const auto some = [&](const at::Tensor& x) {
        const at::Tensor image = x.narrow(1, text_first ? 3 : 0, 6).index_select(1, at::tensor({1, 4}, at::kLong));
        const at::Tensor text = x.narrow(1, text_first ? 0 : 6, 3);
        return text_first ? at::cat({text, image}, 1) : at::cat({image, text}, 1);
      };
      const auto all = set.update(0, some(fresh), some(v), 3, text_first);
      EXPECT_LT(error(all.k, fresh), type == at::kFloat ? 1e-6 : 0.04);  // rounded twice
      EXPECT_TRUE(same(all.v, v));
      EXPECT_NE(set.memory(), before);  // the choice is new memory
      const std::int64_t after = set.memory();
      set.choose(at::tensor({0, 5}, at::kLong).view({1, 2}));
      set.dense();
      set.update(0, fresh, v, 3, text_first);
      EXPECT_EQ(set.memory(), after);
    }
}

struct Half : SequenceParallel {  // one rank: the ways of the hook without other ranks
  std::pair<std::int64_t, std::int64_t> slice(std::int64_t tokens) const override { return {0, tokens}; }
  at::Tensor attention(const nn::TokenPair& q, const nn::TokenPair& k, const nn::TokenPair& v,
                       const nn::AttentionScores& scores, std::int64_t) override {
    const auto both = [](const nn::TokenPair& p) { return at::cat({p.text, p.image}, 2); };
    return nn::joint_attention(both(q), both(k), both(v), 0, k.text.size(2), scores);
  }
  at::Tensor gather(const at::Tensor& x, std::int64_t) override { return x; }
  Communicator& ranks() const override { return *alone; }
  std::unique_ptr<Communicator> alone = make_self();
};

TEST(MmDit, AGroupOfOneRankIsThePlainModel) {
  const DitCase v("flux");
  Half one;
  DitHooks hooks;
  hooks.parallel = &one;
  EXPECT_LT(error(v.run(hooks), v.run()), 1e-6);
}

TEST(MmDit, OffsetsShiftAndWrapPositions) {
  const DitCase v("flux");
  const Grid canvas{1, 6, 8};
  const RopeTables all = v.model->rope(canvas, 5), part = v.model->rope({1, 3, 4}, 5, {0, 4, 6, canvas});
  for (std::int64_t r = 0; r < 3; ++r)
    for (std::int64_t c = 0; c < 4; ++c)
      EXPECT_TRUE(same(part.image.sin[r * 4 + c], all.image.sin[(r + 4) % 6 * 8 + (c + 6) % 8]));
}

// E5
TEST(MmDit, FoldersComeBack) {
  const TempFolder temp;
  const std::string out = (temp.path / "model").string();
  const DitCase v("flux");
  for (const std::int64_t bytes : {std::int64_t(1) << 30, std::int64_t(100'000)}) {
    export_denoiser(*v.model, out, bytes);
    const auto again = denoiser_from_folder(out, at::kCPU, at::kFloat);
    EXPECT_TRUE(same(again->forward(v.x, v.t, v.c), v.run()));
    EXPECT_EQ(std::filesystem::exists(out + "/diffusion_pytorch_model.safetensors.index.json"), bytes < 1 << 20);
    EXPECT_EQ(again->config().at("num_layers"), 2);
  }
}

// Bad folders: one line with file and tensor, exit code 3.
TEST(MmDit, FoldersThatLieAreRefused) {
  const TempFolder temp;
  const std::string out = (temp.path / "model").string(), file = out + "/diffusion_pytorch_model.safetensors";
  const DitCase v("flux_schnell");
  const auto load = [&] { denoiser_from_folder(out, at::kCPU, at::kFloat); };
  const auto with = [&](const std::function<void(std::vector<NamedTensor>&, json&)>& change) {
    std::vector<NamedTensor> tensors;
    for (const auto& [name, value] : v.model->weights()) tensors.push_back({name, value});
    json config = v.model->config();
    change(tensors, config);
    std::filesystem::remove_all(out);
    std::filesystem::create_directory(out);
    write_safetensors(file, tensors);
    write_text(out + "/config.json", config.dump());
    return said(load);
  };
  const auto nothing = [](std::vector<NamedTensor>&, json&) {};
  EXPECT_EQ(with(nothing), "nothing");
  EXPECT_SAYS(with([](auto& t, json&) { t.pop_back(); }), "has no tensor 'proj_out.bias'");
  EXPECT_SAYS(with([](auto& t, json&) {
                t.push_back({"pos_embed", at::ones({2})});
              }),
              "'pos_embed', which config.json has no place");
  EXPECT_SAYS(with([](auto& t, json&) {
                t[0].tensor = at::ones({3, 3});
              }),
              "has the shape [3, 3], config.json asks for");
  EXPECT_SAYS(with([](auto& t, json&) { t[0].tensor = t[0].tensor.to(at::kLong); }), "holds no floating numbers");
  EXPECT_SAYS(with([](auto&, json& c) { c["num_layers"] = 2; }),
              "has no tensor 'transformer_blocks.1.norm1.linear.weight'");
  EXPECT_SAYS(with([](auto&, json& c) { c["num_layers"] = -1; }), "num_layers is no number from");
  EXPECT_SAYS(with([](auto&, json& c) { c["num_attention_heads"] = 1e9; }), "num_attention_heads is no number from");
  EXPECT_SAYS(with([](auto&, json& c) { c["axes_dims_rope"] = {4, 4, 4}; }), "axes of the rotation");
  EXPECT_SAYS(with([](auto&, json& c) { c["in_channels"] = 15; }), "in_channels is no multiple of 4");
  EXPECT_SAYS(with([](auto&, json& c) { c["_class_name"] = "UNet"; }), "unknown name 'UNet'");
  EXPECT_SAYS(with([](auto&, json& c) { c.erase("_class_name"); }), "names no layout");
  EXPECT_SAYS(with([](auto&, json& c) { c["trireme"] = 3; }), "trireme.json is no object");
  with(nothing);
  write_text(out + "/trireme.json", "[1]");
  EXPECT_SAYS(said(load), "is no JSON object");
  std::filesystem::remove(out + "/trireme.json");
  write_text(file, "\xff\xff\xff\xff\xff\xff\xff\x7f{}");
  EXPECT_THROW(load(), DataError);
  std::filesystem::remove(file);
  EXPECT_SAYS(said(load), "has neither diffusion_pytorch_model.safetensors nor");
  EXPECT_SAYS(said([&] { denoiser_from_folder(out + "/none", at::kCPU, at::kFloat); }), "is no folder");
}

TEST(MmDit, InputsThatDoNotFitAreRefused) {
  const DitCase v("flux");
  const auto with = [&](const std::function<void(at::Tensor & x, at::Tensor & t, Conditioning & c)>& change) {
    at::Tensor x = v.x, t = v.t;
    Conditioning c = v.c;
    change(x, t, c);
    return said([&] { v.model->forward(x, t, c); });
  };
  EXPECT_SAYS(with([](auto& x, auto&, auto&) { x = x.narrow(4, 0, 7); }), "whole tokens");
  EXPECT_SAYS(with([](auto& x, auto&, auto&) { x = x.narrow(1, 0, 3); }), "whole tokens");
  EXPECT_SAYS(with([](auto& x, auto&, auto&) { x = x.select(2, 0); }), "4 dimensions");
  EXPECT_SAYS(with([](auto&, auto& t, auto&) { t = t.narrow(0, 0, 1); }), "t is [1], the model wants [2]");
  EXPECT_SAYS(with([](auto&, auto&, auto& c) { c.text.reset(); }), "wants text");
  EXPECT_SAYS(with([](auto&, auto&, auto& c) { c.text = c.text.narrow(2, 0, 20); }), "text is [2, 5, 20]");
  EXPECT_SAYS(with([](auto&, auto&, auto& c) { c.pooled.reset(); }), "wants pooled [2, 20]");
  EXPECT_SAYS(with([](auto&, auto&, auto& c) { c.guidance.reset(); }), "wants guidance [2]");
}

TEST(MmDit, ATrainedModelHasGradientsEverywhere) {
  const DitCase v("flux");
  std::vector<std::pair<std::string, at::Tensor>> leaves;
  const auto model = make_denoiser(v.model->config(), [&](const DitWeight& w) {
    for (const auto& [name, value] : v.model->weights())
      if (name == w.name) return leaves.emplace_back(name, value.clone().requires_grad_()).second;
    throw Error(ExitCode::bug, "test", w.name);
  });
  const at::Tensor y = model->forward(v.x, v.t, v.c);
  EXPECT_LT(error(y.detach(), v.file.tensor("velocity")), 1e-4);
  y.pow(2).sum().backward();
  for (const auto& [name, leaf] : leaves) {
    ASSERT_TRUE(leaf.grad().defined()) << name;
    EXPECT_GT(leaf.grad().abs().max().item<double>(), 0) << name;
  }
}

}  // namespace
}  // namespace trireme::test
