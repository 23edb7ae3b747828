#include "recipes/dit_scenes/config.h"

#include "comm/error.h"
#include "comm/nearest.h"

#include <algorithm>

#include <nlohmann/json.hpp>

namespace trireme::dit {
namespace {

constexpr std::int64_t pooled_width = 16;  // of zeros: FLUX's layout wants some

std::vector<int> numbers(const std::vector<std::string>& chosen, const std::vector<std::string_view>& all,
                         const std::string& key) {
  std::vector<int> result;
  for (const auto& word : chosen) {
    const auto at = std::find(all.begin(), all.end(), word == "plain" ? "" : word);
    if (at == all.end() || word.empty()) {
      std::string known;
      for (const auto name : all) known += (known.empty() ? "" : ", ") + std::string(name.empty() ? "plain" : name);
      throw UsageError(key, "'" + word + "' is none", "choose from " + known);
    }
    if (std::count(chosen.begin(), chosen.end(), word) > 1)
      throw UsageError(key, "'" + word + "' is there twice", "name it once");
    result.push_back(int(at - all.begin()));
  }
  if (result.empty()) throw UsageError(key, "is empty", "name at least one");
  return result;
}

std::vector<std::string> words_of(const std::vector<int>& chosen, const std::vector<std::string_view>& all) {
  std::vector<std::string> result;
  for (const int i : chosen) result.emplace_back(all[std::size_t(i)].empty() ? "plain" : all[std::size_t(i)]);
  return result;
}

}  // namespace

void ModelConfig::fields(Fields& f) {
  f("heads", heads, "attention heads", {.min = 1, .max = 256});
  f("head_dim", head_dim, "channels of a head", {.min = 8, .max = 1024});
  if (video) {
    f("layers", layers, "blocks", {.min = 1, .max = 1000});
  } else {
    f("rope_axes", rope_axes, "channels of a head that turn with frame, row and column; even, head_dim in all");
    f("double_blocks", double_blocks, "blocks with weights of their own for text", {.min = 0, .max = 1000});
    f("single_blocks", single_blocks, "blocks whose weights text and picture share", {.min = 0, .max = 1000});
  }
  f("text_width", text_width, "channels of a prompt's token", {.min = 1, .max = 65536});
  f("text_tokens", text_tokens, "tokens of a prompt, padded", {.min = 1, .max = 4096});
  f("factor", factor, "pixels a side of a latent's pixel; a token has twice as many", {.min = 1, .max = 32});
  std::int64_t sum = 0;
  bool even = rope_axes.size() == 3;
  for (const auto a : rope_axes) sum += a, even = even && a % 2 == 0 && a >= 0;
  f.require(video || (even && sum == head_dim), "rope_axes", "are not three even numbers that sum to head_dim");
}

nlohmann::json ModelConfig::document(std::int64_t base_side, const PromptVocabulary& vocabulary) const {
  const std::int64_t channels = 3 * factor * factor;
  nlohmann::json c{{"attention_head_dim", head_dim},
                   {"num_attention_heads", heads},
                   {"trireme",
                    {{"base_side", base_side},
                     {"base_text", text_tokens},
                     {"latent_factor", factor},
                     {"prompts", vocabulary.to_json()}}}};
  if (video)
    c.update({{"_class_name", "WanTransformer3DModel"},
              {"patch_size", {1, 2, 2}},
              {"in_channels", channels},
              {"out_channels", channels},
              {"text_dim", text_width},
              {"freq_dim", 256},
              {"ffn_dim", 4 * heads * head_dim},
              {"num_layers", layers},
              {"cross_attn_norm", true},
              {"qk_norm", "rms_norm_across_heads"},
              {"eps", 1e-6},
              {"rope_max_seq_len", 1024}});
  else
    c.update({{"_class_name", "FluxTransformer2DModel"},
              {"patch_size", 1},
              {"in_channels", 4 * channels},
              {"num_layers", double_blocks},
              {"num_single_layers", single_blocks},
              {"joint_attention_dim", text_width},
              {"pooled_projection_dim", pooled_width},
              {"guidance_embeds", false},
              {"axes_dims_rope", rope_axes}});
  return c;
}

DataConfig::DataConfig() {
  const SceneRange all;
  shapes = words_of(all.shapes, SceneWords::shapes()), colors = words_of(all.colors, SceneWords::colors());
  sizes = words_of(all.sizes, SceneWords::sizes()), textures = words_of(all.textures, SceneWords::textures());
}

void DataConfig::fields(Fields& f) {
  f("source", source, "scenes, drawn while training, or pictures with captions: a prepared set, file or folder");
  f("samples", samples, "scenes an epoch", {.min = 1, .max = 1000000000});
  f("shapes", shapes, "of scenes");
  f("colors", colors, "of scenes: objects and ground");
  f("sizes", sizes, "of scenes");
  f("textures", textures, "of scenes");
  f("jitter", jitter, "of place, turn and phase, which no prompt tells", {.min = 0, .max = 1});
  if (video) {
    f("frames", frames, "of a video", {.min = 1, .max = 1024});
    f("motion", motion, "most that an object moves, in cells", {.min = 0, .max = 3});
  }
  f("words", words, "of captions that the model learns, the most frequent", {.min = 1, .max = 1000000});
  f.resume_may_change(true);
  f("threads", threads, "that draw or decode; 0: on a GPU's host all of the rank's cores, else 1",
    {.min = 0, .max = 1024});
  f.resume_may_change(false);
}

SceneRange DataConfig::range() const {
  SceneRange r;
  r.shapes = numbers(shapes, SceneWords::shapes(), "data.shapes");
  r.colors = numbers(colors, SceneWords::colors(), "data.colors");
  r.sizes = numbers(sizes, SceneWords::sizes(), "data.sizes");
  r.textures = numbers(textures, SceneWords::textures(), "data.textures");
  r.jitter = jitter;
  if (r.colors.size() < 2) throw UsageError("data.colors", "is one", "an object and its ground need two");
  return r;
}

void LevelConfig::fields(Fields& f) {
  f.choice("kind", kind, {"logit_normal", "uniform"}, "distribution of noise levels");
  f("mean", mean, "of logit_normal", {.min = -10, .max = 10});
  f("spread", spread, "standard deviation of logit_normal", {.min = 0, .max = 10});
}

void SamplingConfig::fields(Fields& f) {
  f("prompts", prompts, "held-out prompts that evaluation draws; 0: none", {.min = 0, .max = 1000000});
  f("steps", steps, "of Euler", {.min = 1, .max = 10000});
  f("guidance", guidance, "of the prompt against none; 1: off", {.min = 0, .max = 100});
  f("scales", scales, "of the largest size trained on, at which pictures are drawn and judged");
}

}  // namespace trireme::dit
