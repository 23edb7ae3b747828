// A causal language model of the Llama kind (Llama, Mistral, Qwen2, Qwen3) or GPT-2, over flat batches of tokens, with
// adapters where a store is attached. Weights go by the names of Hugging Face.
#pragma once
#include "framework/formats/hf_folder.h"
#include "framework/models/causal_lm_config.h"
#include "framework/nn/lora.h"
#include "framework/nn/sample_attention.h"

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

struct TokenBatch {
  at::Tensor ids;                     // i64 [T], on the model's device: the samples' tokens one after the other
  std::vector<std::int64_t> lengths;  // of each sample, above 0 (with a cache: from 0); they sum to T
};

// One tensor of a model.
struct LmWeight {
  enum Kind { matrix, embedding, one, zero };  // one, zero: what it begins as
  std::string name;                            // of the file, "model.layers.0.self_attn.q_proj.weight"
  std::vector<std::int64_t> shape;             // as it is used: [out, in]
  Kind kind;
  bool transposed = false;  // on disk it is [in, out] (GPT-2's Conv1D)
  double std = 0;           // of what is drawn
  std::int64_t layer = -1;  // that uses it; -1: outside of the layers
};

struct LmLinear : nn::Projection {
  std::int64_t target = -1;  // of the store; -1: the base alone
};
struct LmNorm {
  at::Tensor weight, bias;  // no bias: RMSNorm, else LayerNorm
};
struct LmLayer {
  LmNorm before_attention, before_mlp, q_norm, k_norm;
  LmLinear q, k, v, o;      // GPT-2: q is c_attn, all three
  LmLinear gate, up, down;  // GPT-2: up is c_fc; no gate
};

// Its value where it is drawn: normal with the family's deviations, keyed by (seed, name), so that any order and any
// rank makes the same on one kind of device.
at::Tensor drawn_weight(const LmWeight& weight, std::uint64_t seed, at::TensorOptions options);

// Not thread-safe. Copies share weights.
class CausalLm {
 public:
  // Where a weight comes from: a tensor of that shape, of one type and device for all.
  using Source = std::function<at::Tensor(const LmWeight&)>;
  CausalLm(CausalLmConfig config, const Source& source);
  // Of drawn_weight()s.
  static CausalLm random(const CausalLmConfig& config, std::uint64_t seed, at::Device device, at::ScalarType dtype);

  const CausalLmConfig& config() const { return config_; }
  at::Device device() const { return embedding_.device(); }
  at::ScalarType dtype() const { return embedding_.scalar_type(); }
  std::vector<nn::Projection> projections() const;  // every linear but lm_head, layer by layer
  // Every tensor, with its value; of the order of the layers.
  std::vector<std::pair<LmWeight, at::Tensor>> weights() const;
  // The memory of a weight moves (gathered shards). Of a projection, tell the store as well.
  void set_weight(const LmWeight& weight, const at::Tensor& value);

  // From now on the linears of these modules run through `store`, which must outlive the model or the next call;
  // null: the base alone. AdapterStore::begin says which rows belong to which adapter, before each pass; with
  // checkpointing it must not be called again before that pass's backward.
  void attach(nn::AdapterStore* store, const std::map<std::string, std::int64_t>& target_of_module);
  // A layer keeps its input alone and runs again in backward. Only for a frozen base (adapters).
  void set_checkpointing(bool on) { checkpointing_ = on; }
  // Called before a layer runs, in forward and when it runs again in backward.
  void set_before_layer(std::function<void(std::int64_t layer)> f) { before_layer_ = std::move(f); }

  // Where the samples of a batch lie; kept until a batch of other lengths comes.
  std::shared_ptr<const nn::SampleLayout> layout(const TokenBatch& batch) const {
    return layout(batch.lengths, batch.ids.device());
  }
  // [T, hidden], after the last norm. UsageError: a sample longer than the model's positions.
  at::Tensor hidden(const TokenBatch& batch) const;
  // The same for tokens that go on from `cache`, which grows. No gradient.
  at::Tensor hidden(const TokenBatch& batch, nn::KvCache& cache) const;
  nn::KvCache cache(std::int64_t samples, std::int64_t capacity) const;
  // A pass in parts, for a pipeline of models: embeddings of tokens [T, hidden]; all layers over rows of samples of
  // these lengths; the last norm. hidden() is the three in turn.
  at::Tensor embedded(const TokenBatch& batch) const;
  at::Tensor through_layers(const at::Tensor& x, const std::vector<std::int64_t>& lengths) const;
  at::Tensor normed(const at::Tensor& x) const { return norm(norm_, x); }
  at::Tensor logits(const at::Tensor& hidden) const;  // [.., hidden] -> [.., vocab]
  // The matrix that makes logits, for framework/losses/token_loss.h.
  const at::Tensor& head() const { return config_.tied ? embedding_ : head_; }

 private:
  struct Pass;
  // What flows past the layers: x + change, of which the next norm makes the sum.
  struct Stream {
    at::Tensor x, change;  // no change: x
    at::Tensor whole() const;
  };
  using Visit = std::function<void(const LmWeight&, at::Tensor&)>;
  void visit(const Visit& f);
  void visit_layer(std::int64_t i, const Visit& f);
  at::Tensor apply(const LmLinear& l, const at::Tensor& x) const;
  std::vector<at::Tensor> apply(std::initializer_list<const LmLinear*> all, const at::Tensor& x) const;
  at::Tensor norm(const LmNorm& n, const at::Tensor& x) const;
  std::pair<at::Tensor, at::Tensor> normed(const LmNorm& n, const Stream& s) const;  // the sum, and what n makes of it
  at::Tensor attention(std::int64_t layer, const at::Tensor& x, const Pass& pass) const;
  at::Tensor mlp(const LmLayer& l, const at::Tensor& x) const;
  Stream layer(std::int64_t i, const Stream& s, const Pass& pass) const;
  std::shared_ptr<const nn::SampleLayout> layout(const std::vector<std::int64_t>& lengths, at::Device device) const;
  Stream layers(at::Tensor x, const std::vector<std::int64_t>& lengths) const;
  at::Tensor embed(const at::Tensor& ids, const at::Tensor& positions) const;
  void turn(Pass& pass, const at::Tensor& positions) const;
  void check(const TokenBatch& batch, const nn::KvCache* cache) const;

  CausalLmConfig config_;
  at::Tensor embedding_, positions_, head_, frequencies_;
  std::vector<LmLayer> layers_;
  LmNorm norm_;
  nn::AdapterStore* store_ = nullptr;
  bool checkpointing_ = false;
  std::function<void(std::int64_t)> before_layer_;
  mutable std::shared_ptr<const nn::SampleLayout> layout_;  // of the last pass: compositions repeat
};

// A model that is not read yet: each weight is by itself, so that nobody need hold them all.
struct LmWeights {
  CausalLmConfig config;
  CausalLm::Source read;      // a copy on the device; from any thread
  at::TensorOptions options;  // of all: type and device
  // A folder of Hugging Face, which stays mapped. DataError with file and tensor. No dtype: that of config.json.
  static LmWeights open(const std::string& folder, at::Device device, std::optional<at::ScalarType> dtype = {});
};

}  // namespace trireme
