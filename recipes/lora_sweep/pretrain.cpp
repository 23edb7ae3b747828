// causal_lm: pretraining of a small Llama on plain text and worked arithmetic, as a backbone for LoRA sweeps.
#include "comm/error.h"
#include "data/text/corpus.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/context.h"
#include "framework/losses/token_loss.h"
#include "framework/models/causal_lm.h"
#include "framework/nn/parameters.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

struct ModelConfig {
  std::int64_t layers = 4, width = 128, intermediate = 352, heads = 4, kv_heads = 2, vocab = 2048;
  double rope_theta = 10000;
  bool tied = true;

  void fields(Fields& f) {
    f("layers", layers, "decoder layers", {.min = 1, .max = 1000});
    f("width", width, "width of the residual stream", {.min = 2, .max = 65536});
    f("intermediate", intermediate, "width inside the MLP", {.min = 1, .max = 262144});
    f("heads", heads, "attention heads; divides width", {.min = 1, .max = 1024});
    f("kv_heads", kv_heads, "heads of keys and values; divides heads", {.min = 1, .max = 1024});
    f("vocab", vocab, "ids of the tokenizer that is trained, and rows of the embedding", {.min = 259, .max = 1000000});
    f("rope_theta", rope_theta, "base of the rotary positions", {.min = 1, .max = 1e9});
    f("tied", tied, "logits by the embedding");
    f.require(width % heads == 0 && (width / heads) % 2 == 0, "heads", "does not divide width into even parts",
              "choose heads of which twice as many divide width");
    f.require(heads % kv_heads == 0, "kv_heads", "does not divide heads");
  }
};

struct TextConfig {
  CorpusSpec corpus{.sources = {"wordnet", "gcide", "arithmetic"}};
  std::string tokenizer;
  std::int64_t tokenizer_texts = 20000;

  void fields(Fields& f) {
    f("sources", corpus.sources,
      "wordnet and gcide (of their packages), arithmetic (generated), or .txt files, where an empty line ends a "
      "document");
    f("length", corpus.length, "tokens of a sequence", {.min = 2, .max = 1 << 20});
    f("held_out", corpus.validation_share, "share of the documents that is held out", {.min = 0.0001, .max = 0.5});
    f("arithmetic", corpus.arithmetic, "generated problems", {.min = 0, .max = 100000000});
    f("tokenizer", tokenizer, "tokenizer.json or a folder that holds it; empty: one is trained on the text");
    f("tokenizer_texts", tokenizer_texts, "documents that the tokenizer is trained on", {.min = 1, .max = 100000000});
    f.require(!corpus.sources.empty(), "sources", "is empty");
  }
};

class CausalLmRecipe : public Recipe {
 public:
  void fields(Fields& f) override {
    f.group("model", model_config_, "the network, a Llama");
    f.group("text", text_, "what it reads");
  }

  void setup(Context& c) override {
    const auto seed = std::uint64_t(c.config().seed);
    text_.corpus.seed = seed;
    read_text(c);
    config_ = parse_causal_lm_config(document(), "model");
    nn::Parameters parameters(seed, c.param_type(), c.device());
    model_ = std::make_unique<CausalLm>(config_, [&](const LmWeight& w) {
      if (w.kind == LmWeight::one) return parameters.constant(w.name, w.shape, 1);
      // Layers that write into the residual stream begin smaller (GPT-2).
      const bool residual = w.name.find("o_proj") != w.name.npos || w.name.find("down_proj") != w.name.npos;
      return parameters.normal(w.name, w.shape, w.std / (residual ? std::sqrt(2.0 * double(config_.layers)) : 1.0));
    });
    params_ = parameters.all();
    const bool half = c.autocast();
    compute_ = !half ? c.param_type() : c.config().precision == "fp16" ? at::kHalf : at::kBFloat16;
  }

  std::vector<Param> parameters() override { return params_; }
  const Dataset& train_data() override { return *data_; }
  std::vector<std::int64_t> train_ids() override {
    std::vector<std::int64_t> ids(std::size_t(data_->train()));
    std::iota(ids.begin(), ids.end(), 0);
    return ids;
  }

  at::Tensor loss(const Batch& batch, Context& c) override {
    const at::Tensor losses = token_loss(batch.columns.at("ids"), c);
    return losses.sum() / double(batch.columns.at("ids").size(0) * (length() - 1)) / double(c.size());
  }

  std::map<std::string, double> evaluate(Context& c) override {
    constexpr std::int64_t most = 256, chunk = 16;  // sequences
    const at::NoGradGuard no_grad;
    const std::int64_t n = std::min(most, data_->size() - data_->train());
    double sum = 0;
    for (std::int64_t first = 0; first < n; first += chunk) {
      std::vector<std::int64_t> ids(std::size_t(std::min(chunk, n - first)));
      std::iota(ids.begin(), ids.end(), data_->train() + first);
      sum += token_loss(data_->read(ids, 0).columns.at("ids"), c).sum().item<double>();
    }
    const double loss = n > 0 ? sum / double(n * (length() - 1)) : 0;
    return {{"loss", loss}, {"perplexity", std::exp(loss)}, {"negative_loss", -loss}};
  }
  std::string best_metric() const override { return "negative_loss"; }
  std::vector<std::string> headline_metrics() const override { return {"loss", "perplexity"}; }
  std::vector<MetricChart> charts() const override {
    return {{"Held-out text", {"loss", "perplexity"}, {{"", {"eval/loss", "eval/perplexity"}, {}}}, false}};
  }

  // What load_causal_lm() reads, and what a run that goes on must find again.
  void state(Archive& ar) override {
    std::string config = config_.document, json = tokenizer_->json(), marks = tokenizer_->config(),
                identity = data_->identity();
    ar.text("lm_config", config);
    ar.text("tokenizer", json);
    ar.text("tokenizer_config", marks);
    ar.text("data_identity", identity);
    if (identity != data_->identity())
      throw DataError("text", "is not the text this run was started with", "put it back, or use --fresh to start over");
  }

  std::string_view model() const override { return "causal_lm"; }
  std::string unit() const override { return "sequences"; }

  // Attention as if it saw all tokens, as is usual.
  double flops_per_sample() const override {
    double weights = double(config_.vocab * config_.hidden);
    for (const auto& p : model_->projections()) weights += double(p.weight.numel());
    const double t = double(length());
    return 6 * t * weights + 12 * t * t * double(config_.layers * config_.heads * config_.head_dim);
  }

  std::string describe() const override {
    std::int64_t numbers = 0;
    for (const auto& p : params_) numbers += p.value.numel();
    return nlohmann::json{{"parameters", numbers},
                          {"tokens", data_->tokens()},
                          {"sequences", data_->size()},
                          {"held_out", data_->size() - data_->train()},
                          {"vocab", config_.vocab}}
        .dump();
  }

 private:
  std::int64_t length() const { return text_.corpus.length; }

  // Rank 0 first: it fills the cache that the others read.
  void read_text(Context& c) {
    Communicator& comm = c.comm("control");
    const auto read = [&] {
      const auto json = c.saved_text("recipe/tokenizer"), marks = c.saved_text("recipe/tokenizer_config");
      if (json && marks)
        tokenizer_ = BytePairTokenizer::from_json(*json, *marks, "the checkpoint");
      else if (!text_.tokenizer.empty())
        tokenizer_ = BytePairTokenizer::read(text_.tokenizer);
      else
        tokenizer_ = BytePairTokenizer::train(tokenizer_documents(), model_config_.vocab);
      if (tokenizer_->vocab_size() > model_config_.vocab)
        throw UsageError("model.vocab", "is " + std::to_string(model_config_.vocab) + " but the tokenizer has " +
                                            std::to_string(tokenizer_->vocab_size()) + " ids");
      data_ = std::make_unique<PackedText>(text_.corpus, *tokenizer_);
      if (data_->train() < 1)
        throw UsageError("text.sources", "hold less than one sequence of text.length", "bring more text");
    };
    for (const bool first : {true, false})
      agree(comm, attempt([&] {
              if (first == (comm.rank() == 0)) read();
            }));
    if (!same_on_all(comm, data_->identity() + tokenizer_->json()))
      throw DataError("text", "or its tokenizer is not the same on all ranks", "give all nodes the same files");
  }

  // Evenly from all documents: sources follow each other.
  std::vector<std::string> tokenizer_documents() const {
    const auto all = corpus_documents(text_.corpus);
    const std::size_t every = std::max<std::size_t>(1, all.size() / std::size_t(text_.tokenizer_texts));
    std::vector<std::string> some;
    for (std::size_t i = 0; i < all.size(); i += every) some.push_back(all[i]);
    return some;
  }

  std::string document() const {
    const ModelConfig& m = model_config_;
    nlohmann::json all{{"model_type", "llama"},
                       {"vocab_size", m.vocab},
                       {"hidden_size", m.width},
                       {"intermediate_size", m.intermediate},
                       {"num_hidden_layers", m.layers},
                       {"num_attention_heads", m.heads},
                       {"num_key_value_heads", m.kv_heads},
                       {"head_dim", m.width / m.heads},
                       {"hidden_act", "silu"},
                       {"rms_norm_eps", 1e-5},
                       {"max_position_embeddings", length()},
                       {"rope_parameters", {{"rope_type", "default"}, {"rope_theta", m.rope_theta}}},
                       {"tie_word_embeddings", m.tied}};
    if (const auto id = tokenizer_->bos()) all["bos_token_id"] = *id;
    if (const auto id = tokenizer_->eos()) all["eos_token_id"] = *id;
    if (const auto id = tokenizer_->pad()) all["pad_token_id"] = *id;
    return all.dump(2);
  }

  // ids [b, length] i64 on the host -> -log p of each next token, [b * length], 0 for what follows the last.
  at::Tensor token_loss(const at::Tensor& host, Context& c) const {
    const at::Tensor ids = to_device(host, c.device());
    at::Tensor labels = ids.roll(-1, 1);
    labels.select(1, length() - 1).fill_(ignored_label);
    const TokenBatch batch{ids.flatten(), std::vector<std::int64_t>(std::size_t(ids.size(0)), length())};
    return token_losses(model_->hidden(batch).to(compute_), model_->head().to(compute_), labels.flatten());
  }

  ModelConfig model_config_;
  TextConfig text_;
  CausalLmConfig config_;
  std::optional<BytePairTokenizer> tokenizer_;
  std::unique_ptr<PackedText> data_;
  std::unique_ptr<CausalLm> model_;
  std::vector<Param> params_;
  at::ScalarType compute_ = at::kFloat;
};

const Recipes::Entry registered("causal_lm", [] { return std::make_unique<CausalLmRecipe>(); });

}  // namespace
}  // namespace trireme
