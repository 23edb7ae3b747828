// links: comm
// `trireme bench sampling`: of a method with a sketch, its time is not that of the refinement's steps.
#include "tests/fault/program.h"

#include <nlohmann/json.hpp>

namespace trireme::test {
namespace {

TEST(SamplingBench, TheSketchIsTimedApart) {
  TempFolder folder;
  write_text(folder.path / "config.json",
             R"({"_class_name": "FluxTransformer2DModel", "patch_size": 1, "in_channels": 48, "num_layers": 1,
                 "num_single_layers": 1, "attention_head_dim": 32, "num_attention_heads": 2, "joint_attention_dim": 24,
                 "pooled_projection_dim": 16, "guidance_embeds": false, "axes_dims_rope": [8, 12, 12],
                 "trireme": {"patch": 4, "base_side": 4, "base_text": 3, "latent_factor": 1}})");
  write_text(folder.path / "job.yaml",
             "model: config.json\nweights: random\nprompts: [one]\nsize: [32, 48]\nsteps: 6\nthreads: 1\n"
             "supergen: {loop_step: 4, refine_steps: 4, sketch: [16, 16]}\n"
             "arms: {plain: [], tiles: [method=supergen], bare: [method=supergen, supergen.refine_steps=6]}\n");
  const Words words{"bench", "sampling", "--ranks", "1", "--blocks", "1", "--problem", "job.yaml"};
  Words json = words;
  json.push_back("--json");
  const Outcome o = run_program(json, {folder.path});
  ASSERT_EQ(o.code, 0) << o;
  const auto rows = nlohmann::json::parse(o.out).at("rows");
  ASSERT_EQ(rows.size(), 3u) << o;
  const auto &plain = rows[0], &tiles = rows[1], &bare = rows[2];
  ASSERT_FALSE(tiles.contains("skipped")) << tiles;
  EXPECT_EQ(tiles["sketch_steps"], 6);
  EXPECT_EQ(tiles["steps"], 4);
  EXPECT_EQ(tiles["tokens"], 8 * 12);
  const double step = tiles["step_ms"], sketch = tiles["sketch_step_ms"], both = tiles["picture_ms"];
  EXPECT_NEAR(both, 6 * sketch + 4 * step, 1e-9 * both);
  for (const auto& other : {plain, bare}) {
    EXPECT_FALSE(other.contains("sketch_step_ms") || other.contains("sketch_steps")) << other;
    EXPECT_EQ(other["steps"], 6);
    EXPECT_NEAR(double(other["picture_ms"]), 6 * double(other["step_ms"]), 1e-9 * double(other["picture_ms"]));
  }
  const Outcome text = run_program(words, {folder.path});
  EXPECT_NE(text.out.find("tiles "), std::string::npos) << text;
  EXPECT_NE(text.out.find(" sketch_step_ms="), std::string::npos) << text;
}

}  // namespace
}  // namespace trireme::test
