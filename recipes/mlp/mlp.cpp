// A multi-layer perceptron on generated data with a planted truth: the smallest complete recipe.
#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/context.h"
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

class Mlp : public Recipe {
 public:
  void fields(Fields& f) override {
    f("sizes", sizes_, "width of the input, of each hidden layer, and number of classes");
    f("samples", samples_, "generated samples; a tenth of them is held out", {.min = 20, .max = 100000000});
    f.require(sizes_.size() >= 2 && *std::min_element(sizes_.begin(), sizes_.end()) > 0, "sizes",
              "needs at least an input and an output, all positive");
  }

  void setup(Context& c) override {
    data_ = std::make_unique<Planted>(samples_, sizes_.front(), sizes_.back(), std::uint64_t(c.config().seed),
                                      c.param_type());
    nn::Parameters params(std::uint64_t(c.config().seed), c.param_type(), c.device());
    for (std::size_t i = 0; i + 1 < sizes_.size(); ++i) {
      const std::string name = "layers." + std::to_string(i);
      weights_.push_back(
          params.normal(name + ".weight", {sizes_[i + 1], sizes_[i]}, std::sqrt(2.0 / double(sizes_[i]))));
      biases_.push_back(params.constant(name + ".bias", {sizes_[i + 1]}, 0));
    }
    params_ = params.all();
  }

  std::vector<Param> parameters() override { return params_; }
  const Dataset& train_data() override { return *data_; }
  std::vector<std::int64_t> train_ids() override { return range(samples_ / 10, samples_); }

  // The rank's share: shares of all ranks sum to the mean over the global batch.
  at::Tensor loss(const Batch& batch, Context& c) override {
    const at::Tensor label = to_device(batch.columns.at("label"), c.device());
    return at::cross_entropy_loss(logits(to_device(batch.columns.at("x"), c.device())), label) / double(c.size());
  }

  std::map<std::string, double> evaluate(Context& c) override {
    at::NoGradGuard no_grad;
    const auto held_out = range(0, samples_ / 10);
    const Batch batch = data_->read(held_out, 0);
    const at::Tensor hit =
        logits(batch.columns.at("x").to(c.device())).argmax(1) == batch.columns.at("label").to(c.device());
    return {{"accuracy", hit.to(at::kDouble).mean().item<double>()}};
  }
  std::string best_metric() const override { return "accuracy"; }
  std::vector<std::string> headline_metrics() const override { return {"accuracy"}; }

 private:
  static std::vector<std::int64_t> range(std::int64_t first, std::int64_t last) {
    std::vector<std::int64_t> ids(std::size_t(last - first));
    std::iota(ids.begin(), ids.end(), first);
    return ids;
  }

  at::Tensor logits(at::Tensor x) const {
    for (std::size_t i = 0; i < weights_.size(); ++i)
      x = nn::linear(x, weights_[i], biases_[i], i + 1 < weights_.size());
    return x;
  }

  std::vector<std::int64_t> sizes_{64, 128, 10};
  std::int64_t samples_ = 20000;
  std::unique_ptr<Planted> data_;
  std::vector<at::Tensor> weights_, biases_;
  std::vector<Param> params_;
};

const Recipes::Entry registered("mlp", [] { return std::make_unique<Mlp>(); });

}  // namespace
}  // namespace trireme
