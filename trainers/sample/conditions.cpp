#include "trainers/sample/conditions.h"

#include "comm/error.h"
#include "data/scenes/range.h"
#include "framework/base/tensor.h"
#include "framework/formats/safetensors.h"
#include "framework/models/dit/image_to_video.h"
#include "framework/models/dit/prompts.h"

#include <optional>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme::sample {
namespace {

bool wants_negative(const SampleConfig& c, const DenoiserInfo& m) { return c.guidance != 1 && !m.distilled_guidance; }

at::Tensor guidance_of(const Sampling& s, const SampleContext& context) {
  const auto pictures = std::int64_t(s.prompts.size());
  return at::full({pictures}, s.guidance, at::TensorOptions(context.device).dtype(at::kFloat));
}

at::Tensor noise_of(const Sampling& s, at::IntArrayRef shape, const SampleContext& context) {
  return drawn_noise(s.prompts, 0, shape, context.device);
}

// A file of rows, a row a prompt.
class Embeddings final : public Conditions {
 public:
  Embeddings(const SampleConfig& c, const DenoiserInfo& m)
      : path_(c.embeds), file_(c.embeds), model_(m), count_(c.count) {
    for (const auto& name : file_.names())
      if (name != "prompt_embeds" && name != "pooled" && name != "negative_prompt_embeds" &&
          name != "negative_pooled" && name != "image_latents" && name != "first_frame" && name != "image_embeds" &&
          name != "latents")
        throw DataError(path_, "holds a tensor '" + name + "' that no picture is drawn from",
                        "keep prompt_embeds, pooled, negative_prompt_embeds, negative_pooled, image_latents or "
                        "first_frame, image_embeds and latents alone");
    text_ = rows("prompt_embeds", 3, m.text_width, true);
    const std::int64_t n = text_.size(0);
    pooled_ = rows("pooled", 2, m.pooled_width, m.pooled_width > 0);
    if (wants_negative(c, m)) {
      negative_ = rows("negative_prompt_embeds", 3, m.text_width, true);
      negative_pooled_ = rows("negative_pooled", 2, m.pooled_width, m.pooled_width > 0);
    }
    first_frame_ = file_.has("first_frame");
    if (first_frame_ && file_.has("image_latents"))
      throw DataError(path_, "holds both image_latents and first_frame", "keep one: the latter is completed here");
    image_ = rows(first_frame_ ? "first_frame" : "image_latents", 0, 0, m.image_channels > 0);
    image_tokens_ = rows("image_embeds", 3, 0, false);
    noise_ = rows("latents", 0, 0, false);
    for (const auto& t : {pooled_, negative_, negative_pooled_, image_, image_tokens_, noise_})
      if (t.defined() && t.size(0) != n)
        throw DataError(path_, "its tensors have " + std::to_string(n) + " and " + std::to_string(t.size(0)) + " rows",
                        "a row a prompt in each");
    if (noise_.defined() && c.count > 1)
      throw UsageError(c.embeds, "its latents are the noise of one picture a prompt", "count: 1");
    texts_ = prompts_of(c);
    if (!texts_.empty() && std::int64_t(texts_.size()) != n)
      throw UsageError("prompts", std::to_string(texts_.size()) + " beside " + std::to_string(n) + " rows in " + path_,
                       "one a row, or leave prompts out");
    for (std::int64_t i = std::int64_t(texts_.size()); i < n; ++i) texts_.push_back("embeds " + std::to_string(i));
  }

  const std::vector<std::string>& texts() const override { return texts_; }

  void fill(Sampling& s, at::IntArrayRef shape, const SampleContext& context) const override {
    s.condition = {taken(text_, s, context), taken(pooled_, s, context), guidance_of(s, context),
                   picture(s, shape, context), taken(image_tokens_, s, context)};
    s.no_condition = {taken(negative_, s, context),
                      taken(negative_pooled_, s, context),
                      {},
                      s.condition.image,
                      s.condition.image_tokens};
    if (!noise_.defined()) {
      s.x = noise_of(s, shape, context);
      return;
    }
    s.x = taken(noise_, s, context, at::kFloat);
    if (s.x.dim() == 4) s.x = s.x.unsqueeze(2);
    if (s.x.sizes().slice(1) != shape)
      throw DataError(path_, "its latents are not of the size asked for", "latents of [rows, C, F, H, W] at that size");
  }

 private:
  at::Tensor rows(const char* name, std::int64_t dims, std::int64_t width, bool required) const {
    if (!file_.has(name)) {
      if (required) throw DataError(path_, std::string("has no tensor '") + name + "'", "write it beside the others");
      return {};
    }
    const at::Tensor t = file_.tensor(name);
    if (t.dim() == 0 || t.size(0) == 0 || (dims && t.dim() != dims) || (width && t.size(-1) != width) ||
        !at::isFloatingType(t.scalar_type()))
      throw DataError(path_, std::string("tensor '") + name + "' is not a row a prompt of the model's width",
                      width ? "its last extent must be " + std::to_string(width) : "check its shape");
    if (!at::isfinite(t).all().item<bool>())
      throw DataError(path_, std::string("tensor '") + name + "' holds a number that is not finite", "write it again");
    return t;
  }

  // The whole condition, or the latent of the first frame alone.
  at::Tensor picture(const Sampling& s, at::IntArrayRef shape, const SampleContext& context) const {
    const at::Tensor t = taken(image_, s, context);
    if (!first_frame_) return t;
    return first_frame_condition(model_, t.dim() == 4 ? t.unsqueeze(2) : t, shape[1]);
  }

  at::Tensor taken(const at::Tensor& rows, const Sampling& s, const SampleContext& context,
                   std::optional<at::ScalarType> type = {}) const {
    if (!rows.defined()) return {};
    std::vector<std::int64_t> which;
    for (const auto& p : s.prompts) which.push_back(p.index / count_);
    const at::Tensor some = rows.index_select(0, at::tensor(which, at::kLong));
    return to_device(some.to(type.value_or(context.dtype)), context.device);
  }

  std::string path_;
  Safetensors file_;
  DenoiserInfo model_;
  std::int64_t count_;
  bool first_frame_ = false;
  at::Tensor text_, pooled_, negative_, negative_pooled_, image_, image_tokens_, noise_;
  std::vector<std::string> texts_;
};

void need_prompts(const std::vector<std::string>& texts) {
  if (texts.empty()) throw UsageError("prompts", "nothing is to be drawn", "prompts: [a red circle]");
}

// Of the words that the model was trained on; asked for more, the first ones stay.
std::vector<std::string> known_held_out(const SampleConfig& c, const PromptVocabulary& vocabulary) {
  for (std::int64_t among = c.held_out;; among += among / 4 + 1) {
    const auto scenes = held_out_within({}, std::uint64_t(c.held_out_seed), among);
    std::vector<std::string> texts;
    for (const auto& scene : scenes)
      if (std::ssize(texts) < c.held_out && vocabulary.knows(describe(scene))) texts.push_back(describe(scene));
    if (std::ssize(texts) == c.held_out) return texts;
    if (std::ssize(scenes) < among)
      throw UsageError("held_out", "there are only " + std::to_string(texts.size()) + " such prompts", "ask for fewer");
  }
}

// By the table in the model's folder.
class Sentences final : public Conditions {
 public:
  Sentences(const SampleConfig& c, const DenoiserInfo& m, const nlohmann::json& model)
      : folder_(c.model), negative_(c.negative), guided_(wants_negative(c, m)) {
    const auto vocabulary = PromptVocabulary::from_json(model["trireme"]["prompts"], c.model + "/trireme.json");
    texts_ = c.held_out ? known_held_out(c, vocabulary) : prompts_of(c);
    need_prompts(texts_);
    for (const auto& text : texts_) vocabulary.ids(text);
    if (!negative_.empty()) vocabulary.ids(negative_);
  }
  const std::vector<std::string>& texts() const override { return texts_; }
  void model_loaded(const Denoiser& model) override { encoder_ = prompts_from_folder(folder_, model); }
  void fill(Sampling& s, at::IntArrayRef shape, const SampleContext& context) const override {
    std::vector<std::string> texts;
    for (const auto& p : s.prompts) texts.push_back(p.text);
    s.condition = encoder_->encode(texts);
    s.condition.guidance = guidance_of(s, context);
    if (guided_)
      s.no_condition = negative_.empty() ? encoder_->none(std::int64_t(texts.size()))
                                         : encoder_->encode(std::vector(texts.size(), negative_));
    s.x = noise_of(s, shape, context);
  }

 private:
  std::vector<std::string> texts_;
  std::string folder_, negative_;
  bool guided_;
  std::unique_ptr<PromptEncoder> encoder_;
};

// For weights that mean nothing: numbers drawn by the prompt's place, of the lengths that the model was made for.
class Drawn final : public Conditions {
 public:
  Drawn(const SampleConfig& c, const DenoiserInfo& m, const nlohmann::json& model)
      : texts_(prompts_of(c)), count_(c.count), model_(m) {
    guided_ = wants_negative(c, m);
    const auto width = model.find("image_dim");
    if (width != model.end() && width->is_number_integer()) picture_width_ = width->get<std::int64_t>();
    need_prompts(texts_);
  }
  const std::vector<std::string>& texts() const override { return texts_; }
  void fill(Sampling& s, at::IntArrayRef shape, const SampleContext& context) const override {
    s.condition = drawn(s, context, 0);
    s.condition.guidance = guidance_of(s, context);
    if (guided_) s.no_condition = drawn(s, context, 1 << 20);
    for (Conditioning* c : {&s.condition, &s.no_condition})
      if (c->text.defined()) draw_picture(*c, s, shape, context);
    s.x = noise_of(s, shape, context);
  }

 private:
  // What a model of image to video begins with: latents beside the noise, and Wan 2.1's tokens of the picture encoder.
  void draw_picture(Conditioning& c, const Sampling& s, at::IntArrayRef shape, const SampleContext& context) const {
    constexpr std::int64_t encoder_tokens = 257;  // of CLIP's ViT-H/14
    std::vector<at::Tensor> latents, tokens;
    for (const auto& p : s.prompts) {
      const std::uint64_t draw = (1 << 21) + 2 * std::uint64_t(p.index / count_);
      if (model_.image_channels)
        latents.push_back(drawn_noise(0, draw, {model_.image_channels, shape[1], shape[2], shape[3]}, context.device));
      if (picture_width_) tokens.push_back(drawn_noise(0, draw + 1, {encoder_tokens, picture_width_}, context.device));
    }
    if (!latents.empty()) c.image = at::stack(latents).to(context.dtype);
    if (!tokens.empty()) c.image_tokens = at::stack(tokens).to(context.dtype);
  }

  Conditioning drawn(const Sampling& s, const SampleContext& context, std::uint64_t first) const {
    std::vector<at::Tensor> text, pooled;
    for (const auto& p : s.prompts) {
      const std::uint64_t draw = 1 + first + 2 * std::uint64_t(p.index / count_);
      text.push_back(drawn_noise(0, draw, {model_.base_text, model_.text_width}, context.device));
      if (model_.pooled_width) pooled.push_back(drawn_noise(0, draw + 1, {model_.pooled_width}, context.device));
    }
    return {at::stack(text).to(context.dtype),
            pooled.empty() ? at::Tensor() : at::stack(pooled).to(context.dtype),
            {},
            {},
            {}};
  }
  std::vector<std::string> texts_;
  std::int64_t count_, picture_width_ = 0;
  DenoiserInfo model_;
  bool guided_;
};

}  // namespace

std::vector<std::string> prompts_of(const SampleConfig& c) {
  if (!c.held_out) return c.prompts;
  std::vector<std::string> texts;
  for (const auto& scene : held_out_within({}, std::uint64_t(c.held_out_seed), c.held_out))
    texts.push_back(describe(scene));
  if (std::ssize(texts) < c.held_out)
    throw UsageError("held_out", "there are only " + std::to_string(texts.size()) + " such prompts", "ask for fewer");
  return texts;
}

std::unique_ptr<Conditions> read_conditions(const SampleConfig& c, const DenoiserInfo& info,
                                            const nlohmann::json& model) {
  if (!c.embeds.empty()) return std::make_unique<Embeddings>(c, info);
  if (c.weights == "random") return std::make_unique<Drawn>(c, info, model);
  if (model.contains("trireme") && model["trireme"].contains("prompts"))
    return std::make_unique<Sentences>(c, info, model);
  throw UsageError("embeds", "the model in " + c.model + " brings no encoder of prompts",
                   "make prompt embeddings with its own and name the file: embeds: FILE.safetensors");
}

}  // namespace trireme::sample
