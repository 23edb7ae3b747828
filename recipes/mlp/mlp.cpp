// A multi-layer perceptron on generated data with a planted truth: the smallest complete recipe.
#include "comm/error.h"
#include "data/rng.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/context.h"
#include "framework/init_from.h"
#include "framework/losses/risk.h"
#include "framework/micro_batch.h"
#include "framework/nn/linear.h"
#include "framework/nn/parameters.h"

#include <cmath>
#include <numeric>

namespace trireme {
namespace {

// Normal vectors, labelled by which row of a hidden matrix they agree with most.
class Planted : public Dataset {
 public:
  Planted(std::int64_t n, std::int64_t inputs, std::int64_t classes, std::uint64_t seed, at::ScalarType type)
      : x_(normal({n, inputs}, Rng(seed, "mlp/x")).to(type)),
        label_(at::mm(x_, normal({inputs, classes}, Rng(seed, "mlp/truth")).to(type)).argmax(1)) {}

  std::int64_t size() const override { return x_.size(0); }
  Batch read(std::span<const std::int64_t> ids, std::int64_t) const override {
    const at::Tensor rows = at::tensor(at::ArrayRef<std::int64_t>(ids.data(), ids.size()), at::kLong);
    Batch batch;
    batch.ids.assign(ids.begin(), ids.end());
    batch.columns = {{"x", x_.index_select(0, rows)}, {"label", label_.index_select(0, rows)}};
    return batch;
  }

 private:
  static at::Tensor normal(at::IntArrayRef shape, Rng rng) {
    at::Tensor t = at::empty(shape, at::kDouble);
    double* p = t.mutable_data_ptr<double>();
    for (std::int64_t i = 0; i < t.numel(); ++i) p[i] = rng.normal();
    return t;
  }
  at::Tensor x_, label_;
};

struct Layers {
  std::vector<at::Tensor> weights, biases;

  at::Tensor logits(at::Tensor x) const {
    for (std::size_t i = 0; i < weights.size(); ++i) x = nn::linear(x, weights[i], biases[i], i + 1 < weights.size());
    return x;
  }
};

class Mlp : public Recipe {
 public:
  void fields(Fields& f) override {
    f("sizes", sizes_, "width of the input, of each hidden layer, and number of classes");
    f("samples", samples_, "generated samples; a tenth of them is held out", {.min = 20, .max = 100000000});
    f.group("risk", risk_, "what of the losses of a batch is trained on");
    f.require(sizes_.size() >= 2 && *std::min_element(sizes_.begin(), sizes_.end()) > 0, "sizes",
              "needs at least an input and an output, all positive");
  }

  void setup(Context& c) override {
    data_ = std::make_unique<Planted>(samples_, sizes_.front(), sizes_.back(), std::uint64_t(c.config().seed),
                                      c.param_type());
    nn::Parameters params(std::uint64_t(c.config().seed), c.param_type(), c.device());
    for (std::size_t i = 0; i + 1 < sizes_.size(); ++i) {
      const std::string name = "layers." + std::to_string(i);
      layers_.weights.push_back(
          params.normal(name + ".weight", {sizes_[i + 1], sizes_[i]}, std::sqrt(2.0 / double(sizes_[i]))));
      layers_.biases.push_back(params.constant(name + ".bias", {sizes_[i + 1]}, 0));
    }
    params_ = params.all();
    if (!risk_.reference.empty()) load_reference(c);
  }

  std::vector<Param> parameters() override { return params_; }
  const Dataset& train_data() override { return *data_; }
  std::vector<std::int64_t> train_ids() override { return range(samples_ / 10, samples_); }

  // The rank's share: shares of all ranks sum to the mean over the global batch.
  at::Tensor loss(const Batch& batch, Context& c) override {
    const at::Tensor label = to_device(batch.columns.at("label"), c.device());
    return at::cross_entropy_loss(layers_.logits(to_device(batch.columns.at("x"), c.device())), label) /
           double(c.size());
  }

  std::optional<std::string> why_not_recorded(const Context&) const override {
    return whole_batch() ? std::nullopt : std::optional<std::string>("");
  }

  // Other risks than the mean see the whole batch: its losses come first, then each micro-batch again with its weights.
  bool whole_batch() const override { return risk_.kind != "mean"; }
  at::Tensor backward(const Batch& batch, Context& c) override {
    if (!whole_batch()) return Recipe::backward(batch, c);
    const std::int64_t n = c.accumulate();
    if (n == 1) {
      const at::Tensor losses = losses_of(layers_, batch, c);
      const at::Tensor share = risk_share(risk_of(losses.detach(), batch, c), losses, c.size());
      c.backward({&share, 1});
      return share.detach();
    }
    std::vector<at::Tensor> parts;
    c.without_graph([&] {
      for (std::int64_t k = 0; k < n; ++k) parts.push_back(losses_of(layers_, micro_batch(batch, k, n), c));
    });
    const RiskResult r = risk_of(at::cat(parts), batch, c);
    const std::vector<at::Tensor> weights = r.weights.chunk(n);
    for (std::int64_t k = 0; k < n; ++k) {
      const at::Tensor losses = losses_of(layers_, micro_batch(batch, k, n), c);
      c.backward({&losses, 1}, {&weights[std::size_t(k)], 1}, k == n - 1);
    }
    return r.value / double(c.size());
  }

  // A product forward and two backward; nobody asks for the gradient of the data.
  double flops_per_sample() const override {
    double products = 0;
    for (std::size_t i = 0; i + 1 < sizes_.size(); ++i) products += double(sizes_[i]) * double(sizes_[i + 1]);
    return 6 * products - 2 * double(sizes_[0]) * double(sizes_[1]);
  }

  std::map<std::string, double> evaluate(Context& c) override {
    at::NoGradGuard no_grad;
    const auto held_out = range(0, samples_ / 10);
    const Batch batch = data_->read(held_out, 0);
    const at::Tensor hit =
        layers_.logits(batch.columns.at("x").to(c.device())).argmax(1) == batch.columns.at("label").to(c.device());
    return {{"accuracy", hit.to(at::kDouble).mean().item<double>()}};
  }
  std::string best_metric() const override { return "accuracy"; }
  std::vector<std::string> headline_metrics() const override { return {"accuracy"}; }

  // The reference is not saved, but a run goes on with the same one.
  void state(Archive& ar) override {
    archive_reference(ar, risk_.reference.empty() ? "risk.reference" : risk_.reference, reference_print_);
  }

 private:
  static std::vector<std::int64_t> range(std::int64_t first, std::int64_t last) {
    std::vector<std::int64_t> ids(std::size_t(last - first));
    std::iota(ids.begin(), ids.end(), first);
    return ids;
  }

  static at::Tensor losses_of(const Layers& layers, const Batch& batch, Context& c) {
    return at::cross_entropy_loss(layers.logits(to_device(batch.columns.at("x"), c.device())),
                                  to_device(batch.columns.at("label"), c.device()), {}, at::Reduction::None);
  }

  RiskResult risk_of(const at::Tensor& losses, const Batch& batch, Context& c) const {
    at::Tensor theirs;
    if (!risk_.reference.empty()) c.without_graph([&] { theirs = losses_of(reference_, batch, c); });
    RiskResult r = risk(c.comm(), risk_, losses, theirs);
    if (r.tau.defined() && c.logs_now()) c.log("tau", r.tau.item<double>());
    return r;
  }

  // A frozen model of the same sizes.
  void load_reference(Context& c) {
    const std::string& source = risk_.reference;
    const auto tensors = weights_of(source, "risk.reference", c.comm("control"));
    const std::string cure = "risk.reference needs a model of the same sizes";
    if (tensors.size() != params_.size())
      throw DataError(
          source,
          "holds " + std::to_string(tensors.size()) + " tensors, the model has " + std::to_string(params_.size()),
          cure);
    for (const auto& p : params_) {
      const auto found = tensors.find(p.name);
      if (found == tensors.end()) throw DataError(source, "has no tensor " + p.name, cure);
      if (found->second.sizes() != p.value.sizes())
        throw DataError(
            source,
            p.name + " has shape " + c10::str(found->second.sizes()) + ", the model " + c10::str(p.value.sizes()),
            cure);
      (p.name.ends_with(".weight") ? reference_.weights : reference_.biases)
          .push_back(found->second.to(c.device(), c.param_type()));
    }
    reference_print_ = fingerprint(tensors);
  }

  std::vector<std::int64_t> sizes_{64, 128, 10};
  std::int64_t samples_ = 20000;
  std::unique_ptr<Planted> data_;
  RiskConfig risk_;
  Layers layers_, reference_;
  std::string reference_print_;  // of the reference's weights
  std::vector<Param> params_;
};

const Recipes::Entry registered("mlp", [] { return std::make_unique<Mlp>(); });

}  // namespace
}  // namespace trireme
