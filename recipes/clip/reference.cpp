#include "recipes/clip/reference.h"

#include "comm/error.h"
#include "comm/local/self.h"
#include "data/hdf5.h"
#include "data/image_text/reference_features.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/init_from.h"
#include "framework/io/checkpoint.h"
#include "framework/losses/contrastive.h"
#include "framework/models/clip_evaluate.h"
#include "framework/models/clip_model.h"
#include "framework/models/open_clip.h"

#include <algorithm>
#include <filesystem>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

namespace trireme::fastclip {
namespace {

class NoAutocast {
 public:
  explicit NoAutocast(at::DeviceType type) : type_(type), on_(at::autocast::is_autocast_enabled(type)) {
    at::autocast::set_autocast_enabled(type_, false);
  }
  ~NoAutocast() { at::autocast::set_autocast_enabled(type_, on_); }

 private:
  at::DeviceType type_;
  bool on_;
};

class Online : public Reference {
 public:
  Online(const ReferenceConfig& config, const std::string& step, const ReferenceInput& input, Context& c)
      : input_(input), model_(load_clip(config.model, c.device(), c.param_type(), {}, {step, true})) {
    name_ = config.model;
    const std::string cure = "cache its features, which are made its own way: trireme data cache-reference " + name_ +
                             " DATA, then reference.features=FILE";
    const Preprocess &theirs = model_.preprocess(), &ours = input.preprocess;
    const auto refuse = [&](const std::string& what) { throw UsageError("reference.model", name_ + " " + what, cure); };
    if (theirs.size != ours.size)
      refuse("sees pictures of " + std::to_string(theirs.size) + " pixels, this run " + std::to_string(ours.size));
    if (theirs.mean != ours.mean || theirs.std != ours.std)
      refuse("normalises pixels by another mean or deviation than this run");
    if (!model_.has_tokenizer()) refuse("brings no tokenizer to compare with this run's");
    if (model_.tokenizer().text() != input.tokenizer.text()) refuse("has another tokenizer than this run");
    if (model_.config().context < input.context)
      refuse("reads " + std::to_string(model_.config().context) + " tokens, this run " + std::to_string(input.context));
    print_ = "online " + fingerprint(model_.parameters());
  }

  const Dataset& train_data() const override { return input_.dataset; }

  at::Tensor evaluated(std::span<const std::int64_t> ids, Context& c) const override {
    const at::NoGradGuard no_grad;
    const NoAutocast no_autocast(c.device().type());
    const ClipEncoder encoder(c.comm(), model_.clip(), input_.tokenizer, input_.context, model_.fused(), c.device());
    return pair_features(encoder, input_.pairs, input_.dataset, ids, c.param_type());
  }

  std::pair<at::Tensor, at::Tensor> features(const Batch& batch, const at::Tensor& pixels, Context& c) const override {
    const at::NoGradGuard no_grad;
    const NoAutocast no_autocast(c.device().type());
    const at::Tensor end = batch.columns.at("end").contiguous(), ids = to_device(batch.columns.at("ids"), c.device());
    return {
        model_.clip().encode_image(pixels.to(c.param_type()), model_.fused()),
        model_.clip().encode_text(ids, {end.const_data_ptr<std::int64_t>(), std::size_t(end.numel())}, model_.fused())};
  }

 private:
  const ReferenceInput input_;
  ClipModel model_;
};

class Cached : public Reference {
 public:
  Cached(const ReferenceConfig& config, const ReferenceInput& input)
      : data_(input.dataset, config.features, input.pairs) {
    name_ = config.features;
    print_ = "cached " + std::string(c10::toString(data_.features.type())) + " " + data_.features.weights();
  }

  const Dataset& train_data() const override { return data_; }

  at::Tensor evaluated(std::span<const std::int64_t> ids, Context& c) const override {
    const ReferenceRows rows = data_.features.rows(ids);
    return to_device(at::stack({rows.image, rows.text}), c.device()).to(c.param_type());
  }

  // Of unit length again where they were rounded.
  std::pair<at::Tensor, at::Tensor> features(const Batch& batch, const at::Tensor&, Context& c) const override {
    const at::NoGradGuard no_grad;
    const NoAutocast no_autocast(c.device().type());
    const auto rows = [&](const char* column) {
      const at::Tensor t = to_device(batch.columns.at(column), c.device()).to(c.param_type());
      return t / t.norm(2, {1}, true);
    };
    return {rows("reference_image"), rows("reference_text")};
  }

 private:
  struct Beside : Dataset {
    Beside(const Dataset& pairs, const std::string& path, const Pairs& known) : inner(pairs), features(path, known) {}
    std::int64_t size() const override { return inner.size(); }
    Batch read(std::span<const std::int64_t> ids, std::int64_t epoch) const override {
      Batch batch = inner.read(ids, epoch);
      ReferenceRows rows = features.rows(ids);
      batch.columns["reference_image"] = std::move(rows.image);
      batch.columns["reference_text"] = std::move(rows.text);
      return batch;
    }
    const Dataset& inner;
    const ReferenceFeatures features;
  };
  const Beside data_;
};

// Of a run that may be going on: rank 0's newest checkpoint, for all.
std::string step_of(const std::string& model, Communicator& comm) {
  std::int64_t step = -1;
  if (comm.rank() == 0 && !is_open_clip_folder(model) && std::filesystem::is_directory(model + "/ckpt"))
    step = Checkpoints(model + "/ckpt", 1 << 20, *make_self()).newest().value_or(-1);
  comm.broadcast({&step, 1, DType::i64}, 0).wait();
  return step < 0 ? "newest" : std::to_string(step);
}

}  // namespace

void ReferenceConfig::fields(Fields& f) {
  f.resume_may_change(true);  // places: what lies there is compared
  f("model", model,
    "frozen reference: run folder of fastclip or OpenCLIP folder; it encodes the same pixels and tokens");
  f("features", features, "instead: its features, a file of `trireme data cache-reference`");
  f.resume_may_change(false);
  f("use", use,
    "what for, one or more: shift (DRRho: similarities above the reference's), distill (its similarities as targets), "
    "select (pairs it finds easier than the model does)");
  f("distill_weight", distill_weight, "of the distillation loss", {.min = 0});
  f("distill_scale", distill_scale, "distill, select: times the reference's similarities, 1 / temperature", {.min = 0});
  f("shift_scale", shift_scale, "shift: of the contrastive part, in place of 1 / tau; 0: 1 / tau", {.min = 0});
  f.choice("select", select.method, {"jest", "jest_topk", "rho"},
           "select: drawn in chunks by learnability, taken in chunks, or the largest loss above the reference's");
  f("select_fraction", select.fraction, "select: share of a batch that is trained on", {.min = 0.001, .max = 1});
  f("select_chunks", select.chunks, "select by jest: chunks", {.min = 1, .max = 1000});
  f.require(model.empty() || features.empty(), "features", "and reference.model are both given", "give one of them");
  const auto known = [](const std::string& w) { return w == "shift" || w == "distill" || w == "select"; };
  f.require(!use.empty() && std::all_of(use.begin(), use.end(), known), "use",
            "is not a list of shift, distill and select", "use: [shift, distill]");
  for (const auto& word : use)
    f.require(std::count(use.begin(), use.end(), word) == 1, "use", "names " + word + " more than once",
              "name it once");
  f.require(on() || use == std::vector<std::string>{"shift"}, "use", "needs a reference",
            "give reference.model or reference.features");
}

bool ReferenceConfig::uses(std::string_view what) const {
  return on() && std::find(use.begin(), use.end(), what) != use.end();
}

std::int64_t trained_rows(const ReferenceConfig& reference, const TrainConfig& train, int ranks) {
  const std::int64_t own = train.batch_size / ranks;
  if (!reference.uses("select")) {
    check_pairs(own * ranks);
    return own;
  }
  const std::int64_t rows = selected_rows(reference.select, own);
  const auto refuse = [&](const std::string& why, const std::string& cure) {
    throw UsageError("reference.select_fraction",
                     "leaves " + std::to_string(rows) + " of the " + std::to_string(own) + " pairs of a rank, " + why,
                     cure);
  };
  if (rows * ranks < 2) refuse("alone in the step: a loss needs 2", "raise it or batch_size");
  if (rows % train.accumulate != 0)
    refuse("which accumulate: " + std::to_string(train.accumulate) + " does not divide",
           "change it, batch_size or accumulate");
  return rows;
}

ReferenceSize size_of(const ReferenceConfig& config) {
  std::error_code none;
  if (!config.features.empty()) {
    if (!std::filesystem::exists(config.features, none)) return {};
    const auto shape = Hdf5File::open(config.features).array("image").shape;
    return {shape.size() == 2 ? shape[1] : 0};  // another file is refused where it is opened
  }
  std::optional<OpenClipConfig> there;
  if (is_open_clip_folder(config.model))
    there = read_open_clip_config(config.model);
  else if (std::filesystem::is_directory(config.model + "/ckpt", none))
    if (const auto text = saved_text(config.model + "/ckpt", "recipe/open_clip_config"))
      there = parse_open_clip_config(*text, config.model);
  if (!there) return {};
  nn::Parameters weights = nn::Parameters::unset(at::kFloat, at::kMeta);
  const nn::Clip towers(there->model, 0, weights);
  ReferenceSize size{there->model.embed_dim};
  for (const auto& p : weights.all()) size.weights += p.value.numel();
  return size;
}

std::unique_ptr<Reference> Reference::open(const ReferenceConfig& config, const ReferenceInput& input, Context& c) {
  if (!config.on()) return nullptr;
  Communicator& comm = c.comm("control");
  std::unique_ptr<Reference> reference;
  const std::string step = config.model.empty() ? "" : step_of(config.model, comm);
  agree(comm, attempt([&] {
          if (config.model.empty())
            reference = std::make_unique<Cached>(config, input);
          else
            reference = std::make_unique<Online>(config, step, input, c);
        }));
  if (!same_on_all(comm, reference->print_))
    throw DataError(reference->name_, "is not the same on all ranks", "give all nodes the same files");
  return reference;
}

double variance_ratio(const at::Tensor& own, const at::Tensor& theirs) {
  const at::NoGradGuard no_grad;
  const auto similarities = [](const at::Tensor& f) { return at::mm(f[0].to(at::kDouble), f[1].to(at::kDouble).t()); };
  // Margins differ from similarities by a constant of the row, or column, only.
  const auto variance = [](const at::Tensor& s) {
    const double n = double(s.size(0)) - 1;
    const at::Tensor off = s.clone().fill_diagonal_(0), square = off.square();
    at::Tensor sum = at::zeros({}, s.options());
    for (const std::int64_t dim : {0, 1}) sum = sum + (square.sum(dim) / n - (off.sum(dim) / n).square()).mean();
    return sum.item<double>();
  };
  const at::Tensor s = similarities(own);
  return variance(s - similarities(theirs)) / variance(s);
}

void Reference::state(Archive& ar, const Reference* reference) {
  archive_reference(ar, reference ? reference->name_ : "reference.model", reference ? reference->print_ : "");
}

}  // namespace trireme::fastclip
