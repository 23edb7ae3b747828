// TIDE through `trireme sample`: the picture of one rank on 2 and 4 that share its tokens or its guidance; a model
// whose text cannot be anchored.
#include "framework/formats/safetensors.h"
#include "tests/fault/program.h"

#include <cmath>

#include <ATen/ATen.h>

namespace trireme::test {
namespace {

const char* const flux = R"({"_class_name": "FluxTransformer2DModel", "in_channels": 12, "num_layers": 1,
 "num_single_layers": 1, "num_attention_heads": 5, "attention_head_dim": 16, "joint_attention_dim": 24,
 "pooled_projection_dim": 20, "guidance_embeds": false, "axes_dims_rope": [4, 6, 6],
 "trireme": {"base_side": 4, "base_text": 5, "latent_factor": 1, "patch": 2}})";
const char* const wan = R"({"_class_name": "WanTransformer3DModel", "in_channels": 4, "out_channels": 4,
 "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "ffn_dim": 64, "freq_dim": 32, "text_dim": 24})";

at::Tensor latents(const TempFolder& folder, const std::string& arm) {
  return Safetensors((folder.path / "out" / arm / "00000.safetensors").string()).tensor("latents");
}

TEST(TideRanks, GiveThePictureOfOneRank) {
  TempFolder folder;
  write_text(folder.path / "flux.json", flux);
  write_text(folder.path / "job.yaml",
             "model: flux.json\nweights: random\nprompts: [any]\nsize: [18, 10]\nsteps: 3\nguidance: 3\nlatents: true\n"
             "method: tide\narms:\n  one: [ranks_per_picture=1]\n"
             "  ring2: [ranks_per_picture=2, sequence=ring]\n  ring4: [sequence=ring]\n"
             "  ulysses2: [ranks_per_picture=2, sequence=ulysses]\n  ulysses4: [sequence=ulysses]\n"
             "  halves2: [guidance_parallel=true]\n  halves4: [sequence=ring, guidance_parallel=true]\n"
             "  without: [ranks_per_picture=1, tide.text_anchor=false]\n");
  const Outcome o = run_program({"sample", "job.yaml", "--ranks", "4", "--out", "out"}, {folder.path, {}});
  ASSERT_EQ(o.code, 0) << o;
  const at::Tensor one = latents(folder, "one");
  auto difference = [&](const std::string& arm) {
    return ((latents(folder, arm) - one).abs().max() / one.std()).item<double>();
  };
  for (const char* arm : {"ring2", "ring4", "ulysses2", "ulysses4", "halves2", "halves4"})
    EXPECT_LT(difference(arm), 1e-5) << arm;
  EXPECT_GT(difference("without"), 1e-3);
}

// T7
TEST(TideRanks, TextInCrossAttentionIsRefused) {
  TempFolder folder;
  write_text(folder.path / "wan.json", wan);
  write_text(folder.path / "job.yaml",
             "model: wan.json\nweights: random\nprompts: [any]\nsize: [64, 64]\nsteps: 1\nmethod: tide\n");
  const Outcome o = run_program({"sample", "job.yaml", "--ranks", "2", "--out", "out"}, {folder.path, {}});
  EXPECT_EQ(o.code, 2) << o;
  ASSERT_EQ(o.errors().size(), 1u) << o;
  EXPECT_NE(o.errors()[0].find("tide.text_anchor=false"), std::string::npos) << o;
  const Outcome rest =
      run_program({"sample", "job.yaml", "tide.text_anchor=false", "--out", "rest"}, {folder.path, {}});
  EXPECT_EQ(rest.code, 0) << rest;
}

}  // namespace
}  // namespace trireme::test
