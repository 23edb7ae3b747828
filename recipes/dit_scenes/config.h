// Configuration of the recipes `dit_scenes` and `dit_video`.
#pragma once
#include "data/scenes/range.h"
#include "framework/config/config.h"
#include "framework/models/dit/prompts.h"

#include <nlohmann/json_fwd.hpp>

namespace trireme::dit {

struct ModelConfig {
  bool video = false;  // whose layout Wan's is
  std::int64_t heads = 2, head_dim = 64, double_blocks = 1, single_blocks = 5, layers = 6;
  std::vector<std::int64_t> rope_axes{8, 28, 28};
  std::int64_t text_width = 64, text_tokens = 32, factor = 2;
  void fields(Fields& f);
  // As diffusers writes it, and what is ours under "trireme". base_side: tokens of the largest size trained on.
  nlohmann::json document(std::int64_t base_side, const PromptVocabulary& vocabulary) const;
};

struct DataConfig {
  bool video = false;
  std::string source = "scenes";
  std::int64_t samples = 1000000, words = 4096, frames = 1, threads = 0;
  std::vector<std::string> shapes, colors, sizes, textures;
  double jitter = 0.5, motion = 0.5;
  DataConfig();
  void fields(Fields& f);
  bool scenes() const { return source == "scenes"; }
  // The numbers of its words. UsageError naming one that there is not.
  SceneRange range() const;
};

struct LevelConfig {
  std::string kind = "logit_normal";
  double mean = 0, spread = 1;
  void fields(Fields& f);
};

struct SamplingConfig {
  std::int64_t prompts = 128, steps = 20;
  double guidance = 2;
  std::vector<std::int64_t> scales{1, 2};
  void fields(Fields& f);
};

}  // namespace trireme::dit
