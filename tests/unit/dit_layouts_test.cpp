// SD3, Wan and HunyuanVideo: vectors of diffusers (tests/reference/make_dit_vectors.py; other folders through
// TRIREME_DIT_VECTORS), hooks, folders, image to video, whole pipelines of diffusers.
#include "comm/error.h"
#include "comm/local/self.h"
#include "data/json.h"
#include "framework/formats/hf_folder.h"
#include "framework/models/dit/image_to_video.h"
#include "framework/models/dit/level_modulations.h"
#include "framework/models/dit/parts.h"
#include "framework/models/dit/sequence_parallel.h"
#include "framework/models/dit/token_set.h"
#include "tests/fault/program.h"
#include "tests/unit/dit_vectors.h"
#include "tests/unit/said.h"

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme::test {
namespace {

using nlohmann::json;

const Words layouts{"sd3", "sd35", "wan", "wan_i2v", "wan_i2v_clip", "hunyuan_video", "hunyuan_video_i2v"};

// The same weights, some of them changed.
std::unique_ptr<Denoiser> changed(const DitCase& v, const std::function<at::Tensor(const DitWeight&, at::Tensor)>& f) {
  std::map<std::string, at::Tensor> all;
  for (const auto& [name, value] : v.model->weights()) all[name] = value;
  return make_denoiser(v.model->config(), [&](const DitWeight& w) { return f(w, all.at(w.name).clone()); });
}

TEST(DitLayouts, GiveWhatDiffusersGives) {
  for (const auto& name : layouts) {
    const DitCase v(name);
    StreamWatch watch;
    DitHooks hooks;
    hooks.blocks = &watch;
    const at::Tensor y = v.run(hooks);
    EXPECT_LT(error(y, v.file.tensor("velocity")), 1e-4) << name;
    const json& c = v.model->config();
    const std::int64_t singles = c.value("num_single_layers", std::int64_t(0));
    const std::string stem = name.starts_with("wan") ? "blocks." : "transformer_blocks.";
    const std::string last = singles ? "single_transformer_blocks." + std::to_string(singles - 1)
                                     : stem + std::to_string(c.at("num_layers").get<std::int64_t>() - 1);
    const auto agrees = [&](const at::Tensor& ours, const std::string& theirs) {
      if (!v.file.has(theirs) || !ours.defined()) return;
      EXPECT_LT(error(ours, v.file.tensor(theirs)), 1e-5) << name << " " << theirs;
    };
    agrees(watch.in.image, "in.image");
    agrees(watch.in.text, "in.text");
    agrees(watch.first.image, "out." + stem + "0.image");
    agrees(watch.first.text, "out." + stem + "0.text");
    agrees(watch.out.image, "out." + last + ".image");
    agrees(watch.out.text, "out." + last + ".text");
    EXPECT_EQ(std::int64_t(watch.layers.size()), v.model->info().layers);
    EXPECT_TRUE(same(y, v.run())) << name << ": a cache that reuses nothing changed the forward";
  }
}

TEST(DitLayouts, AreAsCloseInBf16AsDiffusersIs) {
  for (const auto& name : layouts) {
    const DitCase v(name, at::kBFloat16);
    const at::Tensor truth = v.file.tensor("velocity"), y = v.run();
    EXPECT_EQ(y.scalar_type(), at::kBFloat16);
    const auto off = [&](const at::Tensor& a) {
      return (a.to(at::kFloat) - truth).pow(2).mean().sqrt().item<double>();
    };
    EXPECT_LT(off(y), 1.1 * off(v.file.tensor("velocity_bf16"))) << name;  // both are draws of rounding
  }
}

// E4: what is easily swapped fails.
TEST(DitLayouts, SwappedPartsAreSeen) {
  const auto halves = [](const at::Tensor& t, std::int64_t d) {
    return at::cat({t.chunk(2, d)[1], t.chunk(2, d)[0]}, d);
  };
  struct Swap {
    std::string layout, tensor;
    std::int64_t dimension;
  };
  for (const Swap& s :
       {Swap{"sd3", "transformer_blocks.1.norm1_context.linear.weight", 0},
        {"sd3", "norm_out.linear.weight", 0},
        {"sd35", "transformer_blocks.0.attn2.to_out.0.weight", 1},
        {"wan", "scale_shift_table", 1},
        {"wan", "blocks.0.scale_shift_table", 1},
        {"wan", "condition_embedder.time_embedder.linear_1.weight", 1},
        {"wan_i2v", "patch_embedding.weight", 1},
        {"wan_i2v_clip", "blocks.0.attn2.add_k_proj.weight", 0},
        {"hunyuan_video", "norm_out.linear.weight", 0},
        {"hunyuan_video", "proj_out.weight", 0},
        {"hunyuan_video", "context_embedder.token_refiner.refiner_blocks.0.norm_out.linear.weight", 0}}) {
    const DitCase v(s.layout);
    const auto with = [&](const std::string& tensor) {
      const at::NoGradGuard none;
      return error(
          changed(v, [&](const DitWeight& w,
                         const at::Tensor& t) { return w.name == tensor ? halves(t, s.dimension).contiguous() : t; })
              ->forward(v.x, v.t, v.c),
          v.file.tensor("velocity"));
    };
    EXPECT_LT(with(""), 1e-4) << s.layout;
    EXPECT_GT(with(s.tensor), 0.003) << s.layout << " " << s.tensor;
  }
}

// E6, S1
TEST(DitLayouts, NeutralHooksChangeNothing) {
  for (const auto& name : layouts) {
    const DitCase v(name);
    const at::Tensor y = v.run();
    const Grid grid = v.model->grid(v.x.sizes());
    DitHooks own;
    own.rope = v.model->rope(grid, v.c.text.size(1));
    EXPECT_TRUE(same(y, v.run(own))) << name;
    for (const auto keys : {TokenSet::Keys::post_rope, TokenSet::Keys::pre_rope}) {
      TokenSet set(keys);
      DitHooks hooks;
      hooks.tokens = &set;
      EXPECT_LT(error(v.run(hooks), y), 1e-6) << name;
      set.choose(at::arange(grid.tokens()).expand({v.x.size(0), grid.tokens()}).contiguous());
      EXPECT_LT(error(v.run(hooks), y), 1e-6) << name;
    }
  }
}

// What time and condition make is the same made for all levels at once: of every layout that has such a part.
TEST(DitLayouts, ModulationsOfAllLevelsAreThoseOfEach) {
  const at::NoGradGuard none;
  const std::vector<double> levels{1, 0.7, 0.25, 0};
  for (const std::string name : {"flux", "flux_schnell", "hunyuan_video", "hunyuan_video_i2v", "sd3", "wan"}) {
    const DitCase v(name);
    LevelModulations modulations;
    at::Tensor first;
    for (const double sigma : {1.0, 0.25, 0.7}) {
      const at::Tensor t = at::full_like(v.t, sigma);
      const Conditioning with = modulations.at(*v.model, v.c, levels, sigma);
      EXPECT_EQ(with.modulation.defined(), name.starts_with("flux") || name.starts_with("hunyuan")) << name;
      if (!with.modulation.defined()) continue;
      EXPECT_LT(error(v.model->forward(v.x, t, with), v.model->forward(v.x, t, v.c)), 1e-5) << name << " " << sigma;
      if (!first.defined()) first = with.modulation;
      EXPECT_TRUE(first.is_alias_of(with.modulation)) << "made once";
    }
    EXPECT_FALSE(modulations.at(*v.model, v.c, levels, 0.5).modulation.defined()) << "no level of this picture";
    Conditioning other = v.c;
    if (other.pooled.defined()) other.pooled = other.pooled * 2;
    const Conditioning of_other = modulations.at(*v.model, other, levels, 0.7);
    if (first.defined()) {
      EXPECT_GT(error(v.model->forward(v.x, at::full_like(v.t, 0.7), of_other),
                      v.model->forward(v.x, at::full_like(v.t, 0.7), v.c)),
                1e-4)
          << name;
      Conditioning narrow = of_other;
      narrow.modulation = narrow.modulation.narrow(1, 0, narrow.modulation.size(1) - 1);
      EXPECT_THROW(v.model->forward(v.x, v.t, narrow), UsageError);
    }
    const at::AutoGradMode wanted(true);
    EXPECT_FALSE(modulations.at(*v.model, v.c, levels, 0.7).modulation.defined());
  }
}

TEST(DitLayouts, ChosenTokensMeetTheKeysOfTheOthers) {
  for (const auto& name : layouts) {
    const DitCase v(name);
    const DenoiserInfo& i = v.model->info();
    TokenSet set;
    DitHooks hooks;
    hooks.tokens = &set;
    const at::Tensor dense = dit::patchify(v.run(hooks), i.patch, i.patch_frames);
    const at::Tensor active = at::tensor({0, 3, 4, 7, 11, 1, 2, 5, 6, 9}).view({2, 5});
    set.choose(active);
    const at::Tensor sparse = dit::patchify(v.run(hooks), i.patch, i.patch_frames);
    const at::Tensor rows = active.unsqueeze(2).expand({2, 5, dense.size(2)});
    EXPECT_LT(error(sparse.gather(1, rows), dense.gather(1, rows)), 1e-5) << name;
    EXPECT_EQ(sparse.scatter(1, rows, 0).abs().sum().item<double>(), 0) << name;
  }
}

// T7; and the layouts that have joint attention, whatever their order.
TEST(DitLayouts, TextIsAnchoredWhereItIsJoint) {
  for (const auto& name : layouts) {
    const DitCase v(name);
    DitHooks merged, masked;
    merged.text_bias = masked.text_bias = 1.3863;
    masked.form = DitHooks::Bias::bias;
    if (v.model->info().joint_text) {
      EXPECT_LT(error(v.run(merged), v.run(masked)), 1e-5) << name;
      EXPECT_GT(error(v.run(merged), v.run()), 0.01) << name;
    } else {
      EXPECT_SAYS(said([&] { v.run(merged); }), "joint attention");
    }
  }
}

// One rank: the ways of the hook without other ranks.
struct AloneInGroup : SequenceParallel {
  explicit AloneInGroup(bool first) : text_first(first) {}
  std::pair<std::int64_t, std::int64_t> slice(std::int64_t tokens) const override { return {0, tokens}; }
  at::Tensor attention(const nn::TokenPair& q, const nn::TokenPair& k, const nn::TokenPair& v,
                       const nn::AttentionScores& scores, std::int64_t) override {
    if (!k.text.defined()) return nn::joint_attention(q.image, k.image, v.image, 0, 0, scores);
    const auto both = [](const nn::TokenPair& p) { return at::cat({p.text, p.image}, 2); };
    return nn::joint_attention(both(q), both(k), both(v), 0, k.text.size(2), scores);
  }
  at::Tensor gather(const at::Tensor& x, std::int64_t) override { return x; }
  Communicator& ranks() const override { return *alone; }
  bool text_first;
  std::unique_ptr<Communicator> alone = make_self();
};

TEST(DitLayouts, AGroupOfOneRankIsThePlainModel) {
  for (const auto& name : layouts) {
    const DitCase v(name);
    AloneInGroup one(v.model->info().text_first);
    DitHooks hooks;
    hooks.parallel = &one;
    EXPECT_LT(error(v.run(hooks), v.run()), 1e-5) << name;
  }
}

TEST(DitLayouts, OffsetsShiftAndWrapPositions) {
  for (const char* name : {"wan", "hunyuan_video"}) {
    const DitCase v(name);
    const Grid canvas{3, 6, 8};
    const RopeTables all = v.model->rope(canvas, 5), part = v.model->rope({2, 3, 4}, 5, {1, 4, 6, canvas});
    EXPECT_FALSE(part.text.cos.defined());
    for (std::int64_t f = 0; f < 2; ++f)
      for (std::int64_t r = 0; r < 3; ++r)
        for (std::int64_t c = 0; c < 4; ++c)
          EXPECT_TRUE(
              same(part.image.sin[(f * 3 + r) * 4 + c], all.image.sin[((f + 1) * 6 + (r + 4) % 6) * 8 + (c + 6) % 8]));
  }
}

// E5
TEST(DitLayouts, FoldersComeBack) {
  const TempFolder temp;
  for (const auto& name : layouts) {
    const std::string out = (temp.path / name).string();
    const DitCase v(name);
    export_denoiser(*v.model, out, 100'000);
    EXPECT_TRUE(same(denoiser_from_folder(out, at::kCPU, at::kFloat)->forward(v.x, v.t, v.c), v.run())) << name;
    EXPECT_EQ(HfFolder(out, "diffusion_pytorch_model").names(),
              HfFolder(dit_vectors(name), "diffusion_pytorch_model").names());
  }
}

TEST(DitLayouts, RefuseFoldersThatDoNotFit) {
  const TempFolder temp;
  for (const char* name : {"sd35", "wan"}) {
    const DitCase v(name);
    const auto written = [&](const std::string& without, bool surplus) {
      const std::string out = (temp.path / "model").string();
      HfWriter writer(out, 1 << 30, "diffusion_pytorch_model");
      for (const auto& [tensor, value] : v.model->weights())
        if (tensor != without) writer.add({tensor, value});
      if (surplus) writer.add({"blocks.77.to_q.weight", at::ones({2, 2})});
      writer.finish(v.model->config().dump());
      return said([&] { denoiser_from_folder(out, at::kCPU, at::kFloat); });
    };
    EXPECT_EQ(written("", false), "nothing");
    EXPECT_SAYS(written("proj_out.bias", false), "proj_out.bias");
    EXPECT_SAYS(written("", true), "blocks.77.to_q.weight");
  }
}

// Any value under any key: a model or one line, never a crash.
TEST(DitLayouts, RefuseConfigsThatDoNotFit) {
  const auto said_of = [](const json& config) {
    return said([&] {
      make_denoiser(config, [](const DitWeight& w) {
        double elements = 1;
        for (const auto n : w.shape) elements *= double(n);
        if (elements > 1e6) throw DataError("test", "is large", "");
        return at::zeros(w.shape);
      });
    });
  };
  for (const auto& name : layouts) {
    const DitCase v(name);
    const auto with = [&](const char* key, const json& value) {
      json config = v.model->config();
      config[key] = value;
      return said_of(config);
    };
    EXPECT_EQ(said_of(v.model->config()), "nothing");
    EXPECT_SAYS(with("num_layers", -1), "num_layers");
    EXPECT_SAYS(with("num_attention_heads", "many"), "num_attention_heads");
    EXPECT_SAYS(with("out_channels", 99), "out_channels");
    for (const json& wild : {json(), json(0), json("x"), json::array({1}), json::array({1, 0, 0}), json::object(),
                             json(-3.5), json(1e300), json(true)})
      for (const auto& [key, value] : v.model->config().items())
        if (key != "_class_name") with(key.c_str(), wild);
  }
}

TEST(DitLayouts, ATrainedModelHasGradientsEverywhere) {
  for (const auto& name : layouts) {
    const DitCase v(name);
    std::vector<std::pair<std::string, at::Tensor>> leaves;
    const auto model = changed(v, [&](const DitWeight& w, const at::Tensor& t) {
      return leaves.emplace_back(w.name, t.requires_grad_()).second;
    });
    const at::Tensor y = model->forward(v.x, v.t, v.c);
    EXPECT_LT(error(y.detach(), v.file.tensor("velocity")), 1e-4) << name;
    y.pow(2).sum().backward();
    const std::string last = "transformer_blocks." + std::to_string(v.model->info().layers - 1) + ".attn.";
    for (const auto& [tensor, leaf] : leaves) {
      // Queries of the text in SD3's last block: nothing reads what they give.
      if (name.starts_with("sd3") && tensor.starts_with(last) &&
          (tensor.find("add_q_proj") != std::string::npos || tensor.ends_with("norm_added_q.weight")))
        continue;
      ASSERT_TRUE(leaf.grad().defined()) << name << " " << tensor;
      EXPECT_GT(leaf.grad().abs().max().item<double>(), 0) << name << " " << tensor;
    }
  }
}

TEST(DitLayouts, RandomWeightsOfAnyShape) {
  for (const auto& name : layouts) {
    const DitCase v(name);
    const auto one = random_denoiser(v.model->config(), 5, at::kCPU, at::kFloat);
    const auto two = random_denoiser(v.model->config(), 5, at::kCPU, at::kFloat);
    const at::Tensor y = one->forward(v.x, v.t, v.c);
    EXPECT_TRUE(same(y, two->forward(v.x, v.t, v.c))) << name;
    EXPECT_GT(y.std().item<double>(), 1e-3) << name;
    EXPECT_TRUE(y.isfinite().all().item<bool>()) << name;
  }
}

// The table that diffusers computes, in the file with 8 bits.
TEST(Sd3, PositionsAreThoseOfDiffusers) {
  const DitCase v("sd3");
  const auto drawn = random_denoiser(v.model->config(), 1, at::kCPU, at::kFloat);
  const auto table = [](const Denoiser& m) {
    for (const auto& [name, value] : m.weights())
      if (name == "pos_embed.pos_embed") return value;
    return at::Tensor();
  };
  EXPECT_LT((table(*drawn) - table(*v.model)).abs().max().item<double>(), 0.005);
}

TEST(Sd3, RefusesMoreTokensThanPositions) {
  const DitCase v("sd3");
  const auto most = v.model->config().at("pos_embed_max_size").get<std::int64_t>();
  EXPECT_SAYS(said([&] {
                v.model->forward(at::zeros({v.x.size(0), 4, 1, 2 * most + 2, 4}), v.t, v.c);
              }),
              std::to_string(most + 1) + " tokens a side");
}

TEST(ImageToVideo, FirstFrameAndMaskStandWhereTheModelReadsThem) {
  const at::Tensor first = at::arange(2 * 4 * 6, at::kFloat).view({1, 4, 1, 2, 6}) + 1;
  const DitCase wan("wan_i2v"), hunyuan("hunyuan_video_i2v"), plain("wan");
  for (const bool is_wan : {true, false}) {
    const DenoiserInfo& info = (is_wan ? wan : hunyuan).model->info();
    const at::Tensor c = first_frame_condition(info, first, 3);
    ASSERT_EQ(c.sizes(), (at::IntArrayRef{1, info.image_channels, 3, 2, 6}));
    const std::int64_t masks = is_wan ? 4 : 1;
    const at::Tensor mask = c.narrow(1, is_wan ? 0 : 4, masks), latent = c.narrow(1, is_wan ? 4 : 0, 4);
    EXPECT_TRUE(same(latent.narrow(2, 0, 1), first));
    EXPECT_EQ(latent.narrow(2, 1, 2).abs().sum().item<double>(), 0);
    EXPECT_TRUE(same(mask.narrow(2, 0, 1), at::ones({1, masks, 1, 2, 6})));
    EXPECT_EQ(mask.narrow(2, 1, 2).abs().sum().item<double>(), 0);
    EXPECT_SAYS(said([&] { first_frame_condition(info, first.narrow(1, 0, 3), 3); }), "no latent");
  }
  EXPECT_SAYS(said([&] { first_frame_condition(plain.model->info(), first, 3); }), "takes no picture");
}

// The program completes the first frame as the model reads it.
TEST(ImageToVideo, SampleTakesAFirstFrame) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the program is not built with sanitizers";
#endif
  const TempFolder temp;
  for (const char* name : {"wan_i2v", "hunyuan_video_i2v"}) {
    const DitCase v(name);
    const at::Tensor first = v.x.narrow(2, 0, 1);
    const auto sampled = [&](const std::string& out, const NamedTensor& picture) {
      std::vector<NamedTensor> all{{"prompt_embeds", v.c.text}, {"latents", v.x}, picture};
      if (v.c.pooled.defined()) all.push_back({"pooled", v.c.pooled});
      write_safetensors(out + ".safetensors", all);
      write_text(out + ".yaml", "model: " + dit_vectors(name) + "\nembeds: " + out + ".safetensors\nsteps: 2\n" +
                                    "guidance: 1\ndevice: cpu\nframes: " + std::to_string(v.x.size(2)) + "\nsize: [" +
                                    std::to_string(8 * v.x.size(3)) + ", " + std::to_string(8 * v.x.size(4)) + "]\n");
      const Outcome o = run_program({"sample", out + ".yaml", "--out", out}, {});
      EXPECT_EQ(o.code, 0) << o;
      return Safetensors(out + "/plain/00000.safetensors").tensor("latents");
    };
    const std::string at = (temp.path / name).string();
    const at::Tensor whole =
        sampled(at + "1", {"image_latents", first_frame_condition(v.model->info(), first, v.x.size(2))});
    EXPECT_TRUE(same(sampled(at + "2", {"first_frame", first}), whole)) << name;
    EXPECT_FALSE(same(sampled(at + "3", {"first_frame", 2 * first}), whole)) << name;
  }
}

// The whole way of FluxPipeline and WanPipeline, from the same embeddings and noise.
TEST(Pipelines, EndWhereDiffusersEnds) {
  for (const char* name : {"flux", "wan"}) {
    const auto model = denoiser_from_folder(dit_vectors(name), at::kCPU, at::kFloat);
    const Safetensors file(dit_vectors(name) + "/pipeline.safetensors");
    const json settings = parse_json(read_text(dit_vectors(name) + "/pipeline.json"));
    const auto sigmas = settings.at("sigmas").get<std::vector<double>>();
    const double guidance = settings.at("guidance").get<double>();
    at::Tensor x = file.tensor("noise");
    const std::int64_t batch = x.size(0);
    const at::NoGradGuard none;
    for (std::size_t i = 0; i + 1 < sigmas.size(); ++i) {
      const at::Tensor t = at::full({batch}, sigmas[i]);
      Conditioning c{file.tensor("prompt_embeds"), {}, {}, {}, {}};
      if (file.has("pooled")) c.pooled = file.tensor("pooled");
      if (model->info().distilled_guidance) c.guidance = at::full({batch}, guidance);
      at::Tensor v = model->forward(x, t, c);
      if (file.has("negative_prompt_embeds")) {
        c.text = file.tensor("negative_prompt_embeds");
        const at::Tensor without = model->forward(x, t, c);
        v = without + guidance * (v - without);
      }
      x = x + (sigmas[i + 1] - sigmas[i]) * v;
    }
    EXPECT_LT((x - file.tensor("latents")).abs().max().item<double>(), 1e-4) << name;
  }
}

// The same through the program: embeds in, latents out.
TEST(Pipelines, SampleEndsWhereDiffusersEnds) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the program is not built with sanitizers";
#endif
  const TempFolder temp;
  for (const char* name : {"flux", "wan"}) {
    const std::string model = dit_vectors(name), out = (temp.path / name).string();
    const Safetensors file(model + "/pipeline.safetensors");
    const json settings = parse_json(read_text(model + "/pipeline.json"));
    std::vector<NamedTensor> embeds{{"latents", file.tensor("noise")}};
    for (const char* part : {"prompt_embeds", "pooled", "negative_prompt_embeds"})
      if (file.has(part)) embeds.push_back({part, file.tensor(part)});
    write_safetensors(out + ".safetensors", embeds);
    const at::Tensor noise = file.tensor("noise"), truth = file.tensor("latents");
    const auto pixels = [&](std::int64_t axis) { return std::to_string(8 * noise.size(axis)); };
    json job = {{"model", model},
                {"embeds", out + ".safetensors"},
                {"steps", settings.at("steps")},
                {"guidance", settings.at("guidance")},
                {"frames", noise.size(2)},
                {"batch", noise.size(0)},
                {"device", "cpu"}};
    std::string text;
    for (const auto& [key, value] : job.items()) text += key + ": " + value.dump() + "\n";
    text += "size: [" + pixels(3) + ", " + pixels(4) + "]\n";
    if (settings.contains("mu_mode")) text += "mu_mode: " + settings.at("mu_mode").get<std::string>() + "\n";
    if (settings.contains("shift")) text += "shift: " + settings.at("shift").dump() + "\n";
    write_text(out + ".yaml", text);
    const auto sampled = [&](const std::string& folder, const Words& more) {
      Words words{"sample", out + ".yaml", "--out", folder};
      words.insert(words.end(), more.begin(), more.end());
      const Outcome o = run_program(words, {});
      EXPECT_EQ(o.code, 0) << o;
      std::vector<at::Tensor> all;
      for (std::int64_t i = 0; i < noise.size(0); ++i)
        all.push_back(Safetensors(folder + "/plain/0000" + std::to_string(i) + ".safetensors").tensor("latents"));
      return at::stack(all);
    };
    const at::Tensor alone = sampled(out, {}), ring = sampled(out + "2", {"sequence=ring", "--ranks", "2"});
    EXPECT_LT((alone - truth).abs().max().item<double>(), 1e-4) << name;
    EXPECT_LT((ring - truth).abs().max().item<double>(), 1e-4) << name;
    EXPECT_FALSE(same(ring, alone)) << name << ": ranks that share nothing give the same bits";
  }
}

Outcome exported(const std::string& from, const std::string& to, const Words& more = {}) {
  Words words{"export", from, "--format", "diffusers", "--out", to};
  words.insert(words.end(), more.begin(), more.end());
  return run_program(words, {});
}

// From a folder of diffusers and back, in other shards and another type, every layout.
TEST(Export, WritesAFolderOfDiffusersAnew) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the program is not built with sanitizers";
#endif
  const TempFolder temp;
  for (const std::string name : {"flux", "sd3", "wan", "hunyuan_video"}) {
    const std::string from = dit_vectors(name), to = (temp.path / name).string();
    const bool half = name == "sd3";
    const Outcome o = exported(from, to, {"--shard-kib", "40", "--precision", half ? "bf16" : "file"});
    ASSERT_EQ(o.code, 0) << o;
    EXPECT_NE(o.out.find("from_pretrained('" + to + "')"), std::string::npos) << o;
    EXPECT_TRUE(fs::exists(to + "/diffusion_pytorch_model.safetensors.index.json")) << name;
    const auto before = denoiser_from_folder(from, at::kCPU, {}), after = denoiser_from_folder(to, at::kCPU, {});
    EXPECT_EQ(after->dtype(), half ? at::kBFloat16 : before->dtype());
    EXPECT_EQ(parse_json(read_text(to + "/config.json")), parse_json(read_text(from + "/config.json")));
    const auto a = before->weights(), b = after->weights();
    ASSERT_EQ(a.size(), b.size());
    for (std::size_t i = 0; i < a.size(); ++i)
      EXPECT_TRUE(a[i].first == b[i].first && same(a[i].second.to(after->dtype()), b[i].second)) << a[i].first;
  }
}

TEST(Export, TellsWhatIsNoFolderOfADenoiser) {
#ifdef __SANITIZE_ADDRESS__
  GTEST_SKIP() << "the program is not built with sanitizers";
#endif
  const TempFolder temp;
  fs::create_directories(temp.path / "pipeline" / "transformer");
  write_text(temp.path / "pipeline" / "model_index.json", "{}");
  fs::create_directories(temp.path / "other");
  write_text(temp.path / "other" / "config.json", R"({"_class_name": "AutoencoderKL"})");
  write_safetensors((temp.path / "other" / "diffusion_pytorch_model.safetensors").string(),
                    std::vector<NamedTensor>{{"a", at::zeros({1})}});
  const auto refused = [&](const std::string& from, const Words& more, int code, const char* what) {
    const Outcome o = exported(from, (temp.path / "none").string(), more);
    EXPECT_EQ(o.code, code) << o;
    EXPECT_EQ(o.errors().size(), 1u) << o;
    EXPECT_NE(o.err.find(what), std::string::npos) << o;
  };
  refused((temp.path / "nowhere").string(), {}, 2, "neither a run nor a transformer's folder");
  refused((temp.path / "pipeline").string(), {}, 3, "/transformer");
  refused((temp.path / "other").string(), {}, 2, "WanTransformer3DModel");
  refused(dit_vectors("wan"), {"--raw"}, 2, "is of a run");
}

}  // namespace
}  // namespace trireme::test
