// A causal transformer on generated sequences with a planted rule: what scaling studies and hooks are measured on.
// Plain ATen operators under autocast, as a PyTorch program writes them (bench/peers/transformer.py is the same
// network).
#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/context.h"
#include "framework/nn/linear.h"
#include "framework/nn/parameters.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace trireme {
namespace {

constexpr double eps = 1e-5;

struct Shape {
  std::int64_t layers = 4, width = 128, heads = 4, vocab = 256, context = 64;
  void fields(Fields& f) {
    f("layers", layers, "blocks", {.min = 1, .max = 1000});
    f("width", width, "width of the residual stream; a block's MLP has four times as much", {.min = 1, .max = 65536});
    f("heads", heads, "attention heads; divides width", {.min = 1, .max = 65536});
    f("vocab", vocab, "different tokens", {.min = 2, .max = 1000000});
    f("context", context, "tokens of a sequence that are predicted", {.min = 1, .max = 65536});
    f.require(width % heads == 0, "heads", "does not divide width");
  }
};

// The next token follows from the last one and a quarter of what the one before it can be, nine times out of ten, and
// is any token else. So the loss can fall from log(vocab) to about 0.33 + 0.1 log(vocab).
class PlantedText : public Dataset {
 public:
  PlantedText(const Shape& shape, std::int64_t samples, std::uint64_t seed)
      : shape_(shape), samples_(samples), seed_(seed), rule_(std::size_t(shape.vocab * kinds)) {
    Rng rng(seed, "transformer/rule");
    for (auto& next : rule_) next = std::int64_t(rng.below(std::uint64_t(shape.vocab)));
  }

  std::int64_t size() const override { return samples_; }
  // "tokens" [b, context + 1] i64.
  Batch read(std::span<const std::int64_t> ids, std::int64_t) const override {
    at::Tensor tokens = at::empty({std::int64_t(ids.size()), shape_.context + 1}, at::kLong);
    auto* out = tokens.mutable_data_ptr<std::int64_t>();
    for (const std::int64_t id : ids) out = write(out, id);
    Batch batch;
    batch.ids.assign(ids.begin(), ids.end());
    batch.columns = {{"tokens", tokens}};
    return batch;
  }

 private:
  static constexpr std::int64_t kinds = 4;
  std::int64_t* write(std::int64_t* out, std::int64_t id) const {
    Rng rng(seed_, "transformer/text", std::uint64_t(id));
    const auto any = [&] { return std::int64_t(rng.below(std::uint64_t(shape_.vocab))); };
    std::int64_t before = any(), last = any();
    for (std::int64_t i = 0; i <= shape_.context; ++i) {
      const bool planted = rng.below(10) != 0;
      const std::int64_t next = planted ? rule_[std::size_t(last * kinds + before % kinds)] : any();
      *out++ = next;
      before = std::exchange(last, next);
    }
    return out;
  }

  Shape shape_;
  std::int64_t samples_;
  std::uint64_t seed_;
  std::vector<std::int64_t> rule_;  // by (last token, kind of the one before)
};

struct Norm {
  at::Tensor weight, bias;
  at::Tensor operator()(const at::Tensor& x) const { return at::layer_norm(x, {x.size(1)}, weight, bias, eps); }
};
struct Product {
  at::Tensor weight, bias;
  at::Tensor operator()(const at::Tensor& x) const { return nn::linear(x, weight, bias, false); }
};

struct Block {
  Norm norm_1, norm_2;
  Product qkv, out, up, down;

  // x [b * t, width] of sequences of t tokens.
  at::Tensor operator()(const at::Tensor& x, std::int64_t t, std::int64_t heads) const {
    const auto w = x.size(1), b = x.size(0) / t;
    const auto parts = qkv(norm_1(x)).view({b, t, 3, heads, w / heads}).permute({2, 0, 3, 1, 4}).unbind(0);
    const at::Tensor mixed = at::scaled_dot_product_attention(parts[0], parts[1], parts[2], {}, 0.0, true);
    const at::Tensor y = x + out(mixed.transpose(1, 2).reshape({b * t, w}));
    return y + down(at::gelu(up(norm_2(y))));
  }
};

class Transformer : public Recipe {
 public:
  void fields(Fields& f) override {
    f.group("model", shape_, "the network");
    f("samples", samples_, "generated sequences; a tenth of them is held out", {.min = 20, .max = 1000000000});
  }

  void setup(Context& c) override {
    const auto seed = std::uint64_t(c.config().seed);
    data_ = std::make_unique<PlantedText>(shape_, samples_, seed);
    nn::Parameters params(seed, c.param_type(), c.device());
    const std::int64_t w = shape_.width;
    const double residual = std / std::sqrt(2.0 * double(shape_.layers));
    tokens_ = params.normal("tokens", {shape_.vocab, w}, std);
    positions_ = params.normal("positions", {shape_.context, w}, std);
    const auto norm = [&](const std::string& name) {
      return Norm{params.constant(name + ".weight", {w}, 1), params.constant(name + ".bias", {w}, 0)};
    };
    const auto product = [&](const std::string& name, std::int64_t to, std::int64_t from, double s) {
      return Product{params.normal(name + ".weight", {to, from}, s), params.constant(name + ".bias", {to}, 0)};
    };
    for (std::int64_t i = 0; i < shape_.layers; ++i) {
      const std::string n = "blocks." + std::to_string(i) + ".";
      Block b;
      b.norm_1 = norm(n + "norm_1");
      b.qkv = product(n + "qkv", 3 * w, w, std);
      b.out = product(n + "out", w, w, residual);
      b.norm_2 = norm(n + "norm_2");
      b.up = product(n + "up", 4 * w, w, std);
      b.down = product(n + "down", w, 4 * w, residual);
      blocks_.push_back(b);
    }
    norm_ = norm("norm");
    head_ = product("head", shape_.vocab, w, std);
    params_ = params.all();
  }

  std::vector<Param> parameters() override { return params_; }
  const Dataset& train_data() override { return *data_; }
  std::vector<std::int64_t> train_ids() override {
    std::vector<std::int64_t> ids(std::size_t(samples_ - held_out()));
    std::iota(ids.begin(), ids.end(), held_out());
    return ids;
  }

  at::Tensor loss(const Batch& batch, Context& c) override {
    const auto [logits, target] = predict(batch.columns.at("tokens"), c);
    return at::cross_entropy_loss(logits, target) / double(c.size());
  }

  std::optional<std::string> why_not_recorded(const Context&) const override { return ""; }

  // Of the tokens that are held out, at most 512 sequences: how often the likeliest one is right.
  std::map<std::string, double> evaluate(Context& c) override {
    constexpr std::int64_t most = 512, chunk = 64;
    const std::int64_t n = std::min(held_out(), most);
    double right = 0;
    for (std::int64_t first = 0; first < n; first += chunk) {
      std::vector<std::int64_t> ids(std::size_t(std::min(chunk, n - first)));
      std::iota(ids.begin(), ids.end(), first);
      const auto [logits, target] = predict(data_->read(ids, 0).columns.at("tokens"), c);
      right += (logits.argmax(1) == target).sum().item<double>();
    }
    return {{"accuracy", right / double(n * shape_.context)}};
  }
  std::string best_metric() const override { return "accuracy"; }
  std::vector<std::string> headline_metrics() const override { return {"accuracy"}; }
  std::string unit() const override { return "sequences"; }

  // A product forward and two backward; attention as if it saw all tokens, as is usual.
  double flops_per_sample() const override {
    const double t = double(shape_.context), w = double(shape_.width);
    return 3 * t * (double(shape_.layers) * (24 * w * w + 4 * t * w) + 2 * w * double(shape_.vocab));
  }

 private:
  static constexpr double std = 0.02;
  std::int64_t held_out() const { return samples_ / 10; }

  // tokens [b, context + 1] i64 on the host -> logits [b * context, vocab] and what they should point at.
  std::pair<at::Tensor, at::Tensor> predict(const at::Tensor& tokens, Context& c) const {
    const at::Tensor ids = to_device(tokens, c.device());
    const std::int64_t b = ids.size(0), t = shape_.context;
    at::Tensor x = (at::embedding(tokens_, ids.narrow(1, 0, t)) + positions_).view({b * t, shape_.width});
    for (const auto& block : blocks_) x = block(x, t, shape_.heads);
    return {head_(norm_(x)), ids.narrow(1, 1, t).reshape({b * t})};
  }

  Shape shape_;
  std::int64_t samples_ = 100000;
  std::unique_ptr<PlantedText> data_;
  at::Tensor tokens_, positions_;
  std::vector<Block> blocks_;
  Norm norm_;
  Product head_;
  std::vector<Param> params_;
};

const Recipes::Entry registered("transformer", [] { return std::make_unique<Transformer>(); });

}  // namespace
}  // namespace trireme
