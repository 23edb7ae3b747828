// FastCLIP (arXiv 2407.01445): CLIP training on global contrastive losses with per-sample normaliser estimates.
#include "comm/error.h"
#include "data/image_text/prepared.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/context.h"
#include "framework/micro_batch.h"
#include "framework/models/clip_evaluate.h"
#include "framework/models/clip_model.h"
#include "framework/models/open_clip.h"
#include "framework/models/zero_shot.h"
#include "framework/optim/schedule.h"
#include "recipes/clip/charts.h"
#include "recipes/clip/config.h"
#include "recipes/clip/data.h"
#include "recipes/clip/objective.h"
#include "recipes/clip/plan.h"
#include "recipes/clip/pretrained.h"
#include "recipes/clip/reference.h"

#include <cmath>
#include <optional>
#include <utility>

#include <nlohmann/json.hpp>

namespace trireme::fastclip {
namespace {

class FastClip : public Recipe {
 public:
  explicit FastClip(const LossConfig& defaults = {}) : loss_config_(defaults) {}

  void fields(Fields& f) override {
    f.group("data", data_config_, "image-text pairs");
    f.group("model", model_config_, "the two towers");
    f.group("loss", loss_config_, "contrastive loss");
    f.group("reference", reference_config_, "a frozen model that steers (DRRho-CLIP)");
    f.require(!reference_config_.uses("shift") || loss_config_.name == "rgclg" || loss_config_.name == "gcl",
              "reference", "shifts the similarities of rgclg and gcl, not of " + loss_config_.name,
              "take another loss.name, or reference.use without shift");
    f.require(
        reference_config_.shift_scale == 0 || loss_config_.temperature == "const" || reference_config_.uses("distill"),
        "reference.shift_scale", "leaves nothing that trains the temperature",
        "set loss.temperature: const, or add distill to reference.use");
    f.require(loss_config_.weight > 0 || reference_config_.uses("distill"), "loss.weight", "is 0: nothing is learnt",
              "raise it, or add distill to reference.use");
  }

  void setup(Context& c) override {
    (void)trained_rows(reference_config_, c.config(), c.size());  // refuses
    pairs_ = open_data(data_config_, model_config_.image_size, c);
    notes_ = pairs_->notes();
    if (loss_config_.drrho && !reference_config_.on())
      notes_.push_back("no reference.model or reference.features: this is FastCLIP with DRRho-CLIP's settings");
    Split split = split_of(*pairs_, data_config_);
    train_ = std::move(split.train), held_out_ = std::move(split.held_out);
    Inherited from = inherit(
        data_config_, model_config_,
        // Of all parts: runs on different ones share a tokenizer.
        [&] { return captions_of(*pairs_, pairs_->train_ids(data_config_.max_per_caption)); }, c);
    tokenizer_ = std::move(from.tokenizer);
    preprocess_ = std::move(from.preprocess);
    (void)prompts_of(pairs_->classes(), templates_of(*pairs_), pairs_->path());  // mistakes are told before training
    if (pairs_->prepared())
      preprocess_.resize_mode = "longest", preprocess_.fill = 255, preprocess_.interpolation = "bicubic";
    dataset_.emplace(*pairs_, *tokenizer_,
                     dataset_options(data_config_, model_config_, preprocess_, pairs_->prepared(), c));
    reference_ =
        Reference::open(reference_config_, {*pairs_, *dataset_, *tokenizer_, preprocess_, model_config_.context}, c);
    nn::Parameters params(std::uint64_t(c.config().seed), c.param_type(), c.device());
    model_config_.logit_bias = loss_config_.name == "siglip";
    model_.emplace(model_config_, std::log(1 / loss_config_.tau), params);
    if (model_config_.logit_bias) model_->bias().detach().fill_(loss_config_.bias);
    params_ = params.all();
    nn::lock_towers(model_config_, params_);
    if (!loss_config_.trains_tau())  // it keeps its place in buckets and checkpoints
      for (auto& p : params_)
        if (p.group == "temperature") p.group = "constant";
    objective_.emplace(loss_config_, reference_config_, pairs_->size(), c);
    check_same_data(c.comm("control"));
    // Hand-written kernels serve host memory in f32 and f64; everything else runs on ATen operators.
    fused_ = c.device().is_cpu() && !c.autocast();
  }

  std::vector<Param> parameters() override { return params_; }
  void weights_loaded() override {
    if (!loss_config_.trains_tau()) model_->log_scale().detach().fill_(std::log(1 / loss_config_.tau));
    clamp_tau();
  }
  const Dataset& train_data() override { return reference_ ? reference_->train_data() : *dataset_; }
  std::vector<std::int64_t> train_ids() override { return train_; }
  bool whole_batch() const override { return true; }
  std::vector<std::string> communicators() const override {
    return model_config_.sync_bn ? std::vector<std::string>{"statistics"} : std::vector<std::string>{};
  }

  at::Tensor backward(const Batch& batch, Context& c) override {
    for (const auto& line : std::exchange(notes_, {})) c.message(line);
    for (const auto& line : dataset_->take_broken()) c.message(line);
    if (!reference_) return learn(batch, {}, c);
    const Features theirs = of_chunks(batch, c, [&](const Batch& part) { return features_of_reference(part, c); });
    if (!reference_config_.uses("select")) return learn(batch, theirs, c);
    const at::Tensor rows = select(batch, theirs, c), there = to_device(rows, theirs.image.device());
    at::Tensor all = at::empty({c.size() * rows.size(0)}, rows.options());
    c.comm("control").all_gather(buffer_of(rows), buffer_of(all)).wait();
    return learn(chosen_rows(batch, rows, all),
                 {theirs.image.index_select(0, there), theirs.text.index_select(0, there)}, c);
  }

  GroupSettings group(std::string_view name, const Step& s, const Context& c) const override {
    if (name == "constant") return {0, 0};
    if (name != "temperature") return Recipe::group(name, s, c);
    GroupSettings t{loss_config_.lr_tau};  // no decay, and no momentum where the rule is sgd or nesterov
    t.momentum = 0;
    const double peak = c.config().optimizer.lr;
    if (loss_config_.lr_tau < 0)
      t.lr = s.lr;
    else if (loss_config_.lr_tau_schedule == "cosine")
      t.lr *= peak > 0 ? s.lr / peak : 1;
    else if (loss_config_.lr_tau_schedule == "step_thresh")
      lower_once_small(t);
    return t;
  }

  void update(const Step& s, Context& c) override {
    c.step_optimizers(s);
    model_->step_statistics(c.skip());
    objective_->update(c);
    clamp_tau();
  }

  std::map<std::string, double> evaluate(Context& c) override {
    // Each rank's batch statistics are its own; rank 0's are the model's, as they are saved.
    for (const auto& p : params_)
      if (p.group == "buffer") c.comm().broadcast(buffer_of(p.value), 0).wait();
    const ClipEncoder encoder(c.comm(), *model_, *tokenizer_, model_config_.context, fused_, c.device());
    auto metrics =
        evaluate_clip(encoder, questions_of(*pairs_, *dataset_, held_out_, c.param_type()), Protocol::ours).metrics;
    if (reference_ && held_out_.size() >= 3) metrics["variance_ratio"] = held_out_variance_ratio(encoder, c);
    return metrics;
  }
  std::string best_metric() const override { return "image_to_text_r10"; }
  std::vector<std::string> headline_metrics() const override {
    return {"image_to_text_r1", "image_to_text_r10", "chance_r10", "zero_shot_top1"};
  }

  std::vector<MetricChart> charts() const override { return clip_charts(); }
  std::string unit() const override { return "pairs"; }
  std::string_view model() const override { return "clip"; }

  void state(Archive& ar) override {
    archive_data(ar);
    archive_model(ar);
    Reference::state(ar, reference_.get());
    objective_->state(ar);
    double shown = tau();  // for readers of the file: the weights say it
    ar.value("tau", shown);
  }

  bool plan(Plan& plan, int ranks, const TrainConfig& train) const override {
    const std::int64_t samples = pairs_ ? pairs_->size() : data_config_.pairs;
    if (samples > 0) plan_clip(plan, model_config_, loss_config_, reference_config_, samples, ranks, train);
    return samples > 0;
  }

  double flops_per_sample() const override { return model_->training_flops_per_pair(double(mean_tokens())); }

  std::string describe() const override {
    return nlohmann::json{{"data", pairs_->path()},
                          {"pairs", pairs_->size()},
                          {"training_pairs", train_.size()},
                          {"held_out_pairs", held_out_.size()},
                          {"vocab", tokenizer_->vocab_size()},
                          {"flops_per_sample", flops_per_sample()}}
        .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }

 private:
  // Nodes may have files of their own: samples are known by number, so they must be the same ones.
  void check_same_data(Communicator& comm) const {
    if (!same_on_all(comm, pairs_->identity() + tokenizer_->text()))
      throw DataError(pairs_->path(), "or the tokenizer is not the same on all ranks", "give all nodes the same files");
  }

  // Of a trained temperature.
  void clamp_tau() const {
    if (!loss_config_.trains_tau() || !model_->log_scale().requires_grad()) return;
    model_->log_scale().detach().clamp_(std::log(1 / loss_config_.tau_max), std::log(1 / loss_config_.tau_min));
  }

  // What is trained on, by content: the same pairs may lie elsewhere or be prepared again, others are refused. First of
  // all, or another number of pairs would be told as a misfit of the tables.
  void archive_data(Archive& ar) {
    std::string merges = tokenizer_->text(), identity = pairs_->identity();
    const auto* prepared = dynamic_cast<const ImageTextData*>(pairs_.get());
    const std::string own = prepared ? prepared->meta() : "";
    std::string meta = own;
    ar.text("tokenizer", merges);
    if (ar.has("data_identity"))
      ar.text("data_identity", identity);
    else
      ar.text("data", meta);  // a checkpoint of an older version knows only what the file says of itself
    const std::string cure = "put it back, or use --fresh to start over";
    if (meta != own || identity != pairs_->identity())
      throw DataError(pairs_->path(), "is not the data this run was started with", cure);
    if (merges != tokenizer_->text())
      throw DataError(data_config_.tokenizer.empty() ? "the tokenizer of these captions" : data_config_.tokenizer,
                      "is not the tokenizer this run was started with", cure);
  }

  // What load_clip reads.
  void archive_model(Archive& ar) {
    std::string model = print_open_clip_config({model_config_, preprocess_}, true);
    if (!ar.has("open_clip_config")) return;
    ar.text("open_clip_config", model);
    if (ar.loading() && parse_open_clip_config(model, "the checkpoint").preprocess != preprocess_)
      throw DataError("the checkpoint", "was trained on pixels of another mean, deviation or resize",
                      "put init_from back as it was, or use --fresh to start over");
  }

  struct Features {
    at::Tensor image, text;
  };

  double tau() const { return std::exp(-model_->log_scale().item<double>()); }  // waits for a GPU

  // The learning rate of log(1/tau) as tau has it now.
  void lower_once_small(GroupSettings& settings) const {
    const StepThreshold schedule;
    const at::Tensor t = model_->log_scale().detach();
    if (t.is_cpu()) {
      settings.lr = schedule.at(settings.lr, tau());
      return;
    }
    const auto scalar = t.options().dtype(at::kFloat);
    settings.device_lr = at::where((-t).exp() <= schedule.threshold, at::full({}, settings.lr * schedule.ratio, scalar),
                                   at::full({}, settings.lr, scalar));
  }

  // Of up to 1,000 held-out pairs, seen as evaluation sees them.
  double held_out_variance_ratio(const ClipEncoder& encoder, Context& c) const {
    const auto ids = std::span(held_out_).first(std::min<std::size_t>(held_out_.size(), 1000));
    return variance_ratio(pair_features(encoder, *pairs_, *dataset_, ids, c.param_type()),
                          reference_->evaluated(ids, c));
  }

  // `again`: the rows come once more in this step.
  Features encode(const Batch& batch, Context& c, bool again = false) const {
    const at::Tensor end = batch.columns.at("end");
    const bool bf16 = c.autocast() && c.config().precision == "bf16";
    const nn::Training training{std::uint64_t(c.config().seed), batch.epoch, batch.ids,
                                model_config_.sync_bn ? &c.comm("statistics") : nullptr, !again};
    return {model_->encode_image(dataset_->pixels_of(batch, bf16 ? at::kBFloat16 : c.param_type()), fused_, &training),
            model_->encode_text(to_device(batch.columns.at("ids"), c.device()),
                                {end.const_data_ptr<std::int64_t>(), std::size_t(end.numel())}, fused_)};
  }

  Features features_of_reference(const Batch& batch, Context& c) const {
    const auto [image, text] = reference_->features(batch, dataset_->pixels_of(batch, c.param_type()), c);
    return {image, text};
  }

  // Rows of a super-batch to learn from, scored as the model is now.
  at::Tensor select(const Batch& batch, const Features& theirs, Context& c) const {
    Features own;
    c.without_graph(
        [&] { own = of_chunks(batch, c, [&](const Batch& part) { return encode(part, c, /*again=*/true); }); });
    const at::Tensor scale = model_->log_scale().detach().exp();
    return select_rows(c.comm(), reference_config_.select,
                       {own.image.to(c.param_type()), own.text.to(c.param_type()), scale},
                       {theirs.image, theirs.text, at::full_like(scale, reference_config_.distill_scale)},
                       std::uint64_t(c.config().seed), c.now.step);
  }

  // Of all micro-batches, one after another.
  template <class F>
  static Features of_chunks(const Batch& batch, Context& c, const F& features) {
    const std::int64_t n = c.accumulate();
    if (n == 1) return features(batch);
    std::vector<at::Tensor> image, text;
    for (std::int64_t k = 0; k < n; ++k) {
      const Features f = features(micro_batch(batch, k, n));
      image.push_back(f.image);
      text.push_back(f.text);
    }
    return {at::cat(image), at::cat(text)};
  }

  // The closed form on all rows: the share of the loss, and gradients of the features and of log(1/tau). theirs: of the
  // reference, where there is one.
  LossResult loss_of(const Features& f, const Features& theirs, const Batch& batch, Context& c) {
    Rows rows{f.image.detach().to(c.param_type()), f.text.detach().to(c.param_type()), theirs.image, theirs.text};
    if (loss_config_.mask_same_caption) {
      std::vector<std::int64_t> captions;
      for (const auto id : batch.global_ids)
        captions.push_back(std::int64_t(std::hash<std::string>()(pairs_->caption(id))));
      rows.captions = to_device(at::tensor(captions, at::kLong), c.device());
    }
    if (c.logs_now() && loss_config_.temperature != "individual") c.log("tau", tau());
    return (*objective_)(rows, model_->log_scale(), model_->bias(), batch, c);
  }

  void backward_through(const Features& f, const LossResult& r, std::int64_t first, bool last, Context& c) {
    const std::int64_t n = f.image.size(0);
    std::vector<at::Tensor> roots{f.image, f.text}, grads{r.d_image.narrow(0, first, n).to(f.image.scalar_type()),
                                                          r.d_text.narrow(0, first, n).to(f.text.scalar_type())};
    const auto scalar = [&](const at::Tensor& p, const at::Tensor& gradient) {
      if (!last || !p.defined() || !p.requires_grad() || !gradient.defined()) return;
      roots.push_back(p);
      grads.push_back(gradient.to(p.scalar_type()));
    };
    if (loss_config_.trains_tau()) scalar(model_->log_scale(), r.d_log_scale);
    scalar(model_->bias(), r.d_bias);
    c.backward(roots, grads, last);
  }

  // In micro-batches accumulation is exact also for contrastive losses (GradCache, arXiv 2101.06983): features of all
  // chunks without a graph, the loss over the whole batch, then each chunk again with its features' gradients.
  at::Tensor learn(const Batch& batch, const Features& theirs, Context& c) {
    const std::int64_t n = c.accumulate(), m = std::int64_t(batch.ids.size()) / n;
    if (n == 1) {
      const Features f = encode(batch, c);
      const LossResult r = loss_of(f, theirs, batch, c);
      backward_through(f, r, 0, true, c);
      return r.loss;
    }
    Features all;
    c.without_graph(
        [&] { all = of_chunks(batch, c, [&](const Batch& part) { return encode(part, c, /*again=*/true); }); });
    const LossResult r = loss_of(all, theirs, batch, c);
    for (std::int64_t k = 0; k < n; ++k) backward_through(encode(micro_batch(batch, k, n), c), r, k * m, k == n - 1, c);
    return r.loss;
  }

  double mean_tokens() const {
    double sum = 0;
    const std::size_t n = std::min<std::size_t>(train_.size(), 512);
    for (std::size_t i = 0; i < n; ++i)
      sum += double(std::min<std::int64_t>(std::int64_t(tokenizer_->encode(pairs_->caption(train_[i])).size()) + 2,
                                           model_config_.context));
    return n ? sum / double(n) : 0;
  }

  DataConfig data_config_;
  nn::ClipConfig model_config_;
  LossConfig loss_config_;
  ReferenceConfig reference_config_;
  Preprocess preprocess_;
  std::unique_ptr<Pairs> pairs_;
  std::vector<std::string> notes_;  // on the data, for the start
  std::optional<Tokenizer> tokenizer_;
  std::optional<ImageTextDataset> dataset_;
  std::unique_ptr<Reference> reference_;  // null: none
  std::optional<nn::Clip> model_;
  std::optional<Objective> objective_;
  std::vector<Param> params_;
  std::vector<std::int64_t> train_, held_out_;
  bool fused_ = false;
};

const Recipes::Entry fastclip_entry("fastclip", [] { return std::make_unique<FastClip>(); });
// DRRho-CLIP (arXiv 2505.06699): the same, steered by a reference model.
const Recipes::Entry drrho_entry("drrho_clip", [] { return std::make_unique<FastClip>(LossConfig::of_drrho()); });

}  // namespace
}  // namespace trireme::fastclip
