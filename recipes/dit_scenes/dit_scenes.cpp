// Small diffusion transformers on pictures (FLUX's layout, `dit_scenes`) and videos (Wan's, `dit_video`) of mixed
// sizes, trained by flow matching.
#include "comm/error.h"
#include "data/rng.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/context.h"
#include "framework/init_from.h"
#include "framework/metrics/scene_score.h"
#include "framework/models/dit/flow_training.h"
#include "framework/models/dit/latents.h"
#include "framework/nn/parameters.h"
#include "recipes/dit_scenes/config.h"
#include "recipes/dit_scenes/data.h"

#include <algorithm>
#include <map>
#include <optional>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

using namespace dit;

// u8 [b, 3, F, S, S] -> f32 in [-1, 1] of `side` pixels a side.
at::Tensor pixels_of(const at::Tensor& bytes, std::int64_t side) {
  const at::Tensor x = bytes.to(at::kFloat).mul_(2 / 255.0).sub_(1);
  if (side == x.size(4)) return x;
  const auto b = x.size(0), f = x.size(2), s = x.size(4);
  const at::Tensor frames = x.transpose(1, 2).reshape({b * f, 3, s, s});
  return at::_upsample_bilinear2d_aa(frames, {side, side}, false).view({b, f, 3, side, side}).transpose(1, 2);
}

// f32 [3, H, W] in about [-1, 1], on the host.
Image image_of(const at::Tensor& pixels) {
  const at::Tensor bytes = pixels.permute({1, 2, 0}).add(1).mul(127.5).round().clamp(0, 255).to(at::kByte).contiguous();
  const auto* p = bytes.const_data_ptr<std::uint8_t>();
  return {int(bytes.size(1)), int(bytes.size(0)), std::vector<std::uint8_t>(p, p + bytes.numel())};
}

class DitScenes : public Recipe {
 public:
  explicit DitScenes(bool video) {
    model_config_.video = data_config_.video = video;
    if (video) {
      data_config_.frames = 8, sizes_ = {32, 48};
    }
  }

  void fields(Fields& f) override {
    f.group("model", model_config_, "the network");
    f.group("data", data_config_, "what it learns to draw");
    f.group("levels", levels_, "how noisy what it sees is");
    f.group("sampling", sampling_, "what evaluation draws");
    f("sizes", sizes_, "pixels a side; each step has one of them, and one size alone does not extrapolate");
    f("drop", drop_, "share of samples that are trained without their prompt, for guidance", {.min = 0, .max = 1});
    const std::int64_t token = 2 * model_config_.factor;
    f.require(!sizes_.empty() && std::all_of(sizes_.begin(), sizes_.end(),
                                             [&](auto s) { return s > 0 && s % token == 0 && s <= 4096; }),
              "sizes", "must be multiples of a token, " + std::to_string(token) + " pixels");
  }

  void setup(Context& c) override {
    seed_ = std::uint64_t(c.config().seed);
    const std::int64_t side = largest();
    agree(c.comm("control"), attempt([&] { source_ = open_source(data_config_, seed_, side); }));
    if (!same_on_all(c.comm("control"), source_->identity()))
      throw DataError("data.source", "is not the same on all ranks", "give all nodes the same files");
    const PromptVocabulary vocabulary = vocabulary_of(*source_);
    document_ = model_config_.document(side / (2 * model_config_.factor), vocabulary).dump();
    nn::Parameters parameters(seed_, c.param_type(), c.device());
    const DitWeights source = [&](const DitWeight& w) {
      if (w.kind == DitWeight::matrix) return parameters.normal(w.name, w.shape, w.std);
      return parameters.constant(w.name, w.shape, w.kind == DitWeight::one ? 1 : 0);
    };
    model_ = make_denoiser(nlohmann::json::parse(document_), source);
    prompts_ =
        std::make_unique<PromptTable>(vocabulary, model_->info().text_width, model_->info().pooled_width, source);
    codec_ = latent_codec(model_->info().channels, model_->info().latent_factor);
    params_ = parameters.all();
    FlowDataset::Options o;
    o.side = side, o.frames = data_config_.frames, o.drop = drop_, o.seed = seed_;
    o.threads = int(data_config_.threads > 0 ? data_config_.threads : c.device().is_cuda() ? c.cores() : 1);
    data_ = std::make_unique<FlowDataset>(*source_, prompts_->vocabulary(), levels_, o);
  }

  std::vector<Param> parameters() override { return params_; }
  const Dataset& train_data() override { return *data_; }
  std::vector<std::int64_t> train_ids() override { return source_->train_ids(); }

  // All ranks and micro-batches of a step have one size, drawn by the step's number.
  at::Tensor loss(const Batch& batch, Context& c) override {
    Rng rng(seed_, "flow size", std::uint64_t(c.now.step));
    const std::int64_t side = sizes_[std::size_t(rng.below(sizes_.size()))];
    return flow_loss_of(batch, side, c) / double(c.size());
  }

  std::map<std::string, double> evaluate(Context& c) override {
    const at::NoGradGuard no_grad;
    std::map<std::string, double> metrics;
    const auto ids = source_->held_out_ids();
    if (!ids.empty()) {
      const Batch batch = data_->read({ids.data(), std::min<std::size_t>(ids.size(), 64)}, 0);
      metrics["loss"] = flow_loss_of(batch, largest(), c).item<double>(), metrics["negative_loss"] = -metrics["loss"];
    }
    if (data_config_.scenes() && sampling_.prompts > 0)
      for (const std::int64_t scale : sampling_.scales)
        for (const auto& [name, value] : scores_at(largest() * scale, c))
          metrics[scale == 1 ? name : name + "_" + std::to_string(scale) + "x"] = value;
    return metrics;
  }
  std::string best_metric() const override { return data_config_.scenes() ? "attribute_accuracy" : "negative_loss"; }
  std::vector<std::string> headline_metrics() const override {
    if (!data_config_.scenes()) return {"loss"};
    const std::string name = "attribute_accuracy";
    std::vector<std::string> names;
    for (const auto s : sampling_.scales) names.push_back(s == 1 ? name : name + "_" + std::to_string(s) + "x");
    return names;
  }

  // What `trireme export --format diffusers` reads, and what a run that goes on must find again.
  void state(Archive& ar) override {
    std::string document = document_, identity = source_->identity();
    ar.text("dit_config", document);
    ar.text("data_identity", identity);
    if (identity != source_->identity() || document != document_)
      throw DataError("data.source", "is not what this run was started with",
                      "put it back, or use --fresh to start over");
  }
  std::string_view model() const override { return "dit"; }
  std::string unit() const override { return model_config_.video ? "videos" : "pictures"; }
  std::string describe() const override {
    std::int64_t numbers = 0;
    for (const auto& p : params_) numbers += p.value.numel();
    return nlohmann::json{{"parameters", numbers}, {"pictures", source_->size()}, {"sizes", sizes_}}.dump();
  }

 private:
  std::int64_t largest() const { return *std::max_element(sizes_.begin(), sizes_.end()); }

  PromptVocabulary vocabulary_of(const Source& source) const {
    if (data_config_.scenes()) return PromptVocabulary::of_scenes(model_config_.text_tokens, data_config_.range());
    std::vector<std::string> captions;
    for (const std::int64_t id : source.train_ids()) captions.push_back(source.caption(id));
    return PromptVocabulary::of_captions(captions, model_config_.text_tokens, std::size_t(data_config_.words));
  }

  // Mean over the rank's rows.
  at::Tensor flow_loss_of(const Batch& batch, std::int64_t side, Context& c) {
    const at::Tensor x0 = codec_->encode(pixels_of(to_device(batch.columns.at("image"), c.device()), side));
    const at::Tensor ids =
        to_device(at::tensor(at::ArrayRef<std::int64_t>(batch.ids.data(), batch.ids.size()), at::kLong), c.device());
    const at::Tensor e = noise_of(seed_, "flow noise", std::uint32_t(batch.epoch), ids, x0.sizes().slice(1));
    const at::Tensor sigma = to_device(batch.columns.at("sigma"), c.device());
    const at::Tensor prompt = to_device(batch.columns.at("prompt"), c.device());
    return flow_loss(*model_, x0, e, sigma, prompts_->encode_ids(prompt), positions(x0));
  }

  // A model makes its tables anew where the size changes, and the host would wait for them in nearly every step.
  DitHooks positions(const at::Tensor& x) {
    const Grid grid = model_->grid(x.sizes());
    auto& tables = tables_[grid.rows];
    if (!tables) tables = model_->rope(grid, model_config_.text_tokens);
    DitHooks hooks;
    hooks.rope = tables;
    return hooks;
  }

  // Held-out prompts drawn at this size, in chunks that ranks take in turn; a video is judged by its middle frame.
  std::map<std::string, double> scores_at(std::int64_t side, Context& c) {
    constexpr std::int64_t chunk = 32;
    const auto scenes = held_out_within(data_config_.range(), seed_, sampling_.prompts);
    const SceneReader reader(data_config_.range(), int(side), int(side));
    const std::int64_t n = std::ssize(scenes), latent = side / codec_->factor();
    std::vector<SceneScore> scores;
    for (std::int64_t first = chunk * c.rank(); first < n; first += chunk * c.size()) {
      const std::int64_t b = std::min(chunk, n - first);
      std::vector<std::string> sentences;
      for (std::int64_t i = 0; i < b; ++i) sentences.push_back(trireme::describe(scenes[std::size_t(first + i)]));
      const at::Tensor ids = at::arange(first, first + b, at::TensorOptions(c.device()).dtype(at::kLong));
      const at::Tensor noise =
          noise_of(seed_, "evaluation", 0, ids, {codec_->channels(), data_config_.frames, latent, latent});
      const at::Tensor x = plain_sample(*model_, noise, prompts_->encode(sentences), prompts_->none(b),
                                        sampling_.guidance, sampling_.steps);
      const at::Tensor pixels = codec_->decode(x).select(2, data_config_.frames / 2).to(at::kCPU);
      for (std::int64_t i = 0; i < b; ++i)
        scores.push_back(reader.score(image_of(pixels[i]), scenes[std::size_t(first + i)]));
    }
    auto mean = mean_scores(scores.empty() ? std::vector<SceneScore>(1) : scores);
    for (auto& [name, value] : mean) {
      double sum[2] = {value * double(scores.size()), double(scores.size())};
      c.comm("control").all_reduce({sum, 2, DType::f64}, Op::sum).wait();
      value = sum[0] / sum[1];
    }
    return mean;
  }

  ModelConfig model_config_;
  DataConfig data_config_;
  LevelConfig levels_;
  SamplingConfig sampling_;
  std::vector<std::int64_t> sizes_{32, 48, 64};
  double drop_ = 0.1;
  std::uint64_t seed_ = 0;
  std::string document_;
  std::unique_ptr<Source> source_;
  std::unique_ptr<FlowDataset> data_;
  std::unique_ptr<Denoiser> model_;
  std::unique_ptr<PromptTable> prompts_;
  std::unique_ptr<LatentCodec> codec_;
  std::map<std::int64_t, std::optional<RopeTables>> tables_;  // by rows of tokens
  std::vector<Param> params_;
};

const Recipes::Entry scenes("dit_scenes", [] { return std::make_unique<DitScenes>(false); });
const Recipes::Entry video("dit_video", [] { return std::make_unique<DitScenes>(true); });

}  // namespace
}  // namespace trireme
