// A training step of many adapters on one backbone: forward, each job's mean loss, backward from their sum, and AdamW
// of all. Steps of a composition that comes again are recorded (CUDA graphs) and replayed: up to some thousand tokens
// the host takes longer to enqueue them than a GPU to run them. Not thread-safe.
#pragma once
#include "framework/models/causal_lm.h"
#include "framework/nn/adapter_optimizer.h"
#include "framework/step_graph.h"

#include <cstdint>
#include <memory>
#include <vector>

namespace trireme {

struct AdapterBatch {
  TokenBatch tokens;
  at::Tensor labels;               // i64 [T], ignored_label where nothing counts
  std::vector<nn::SlotRows> rows;  // of the jobs, ascending
  at::Tensor counts;               // f32 [jobs] on the host: what a job's sum of losses is divided by
};

class AdapterStep {
 public:
  // All must outlive it. record: graphs are wanted; never where the backbone's weights move between layers.
  AdapterStep(const CausalLm& model, nn::AdapterStore& store, nn::AdapterOptimizer& optimizer, bool record);
  ~AdapterStep();

  // -> f32 [jobs], the mean losses before the update; valid until the next call.
  at::Tensor run(const AdapterBatch& batch);

  std::int64_t recorded() const { return recorded_; }  // graphs made so far
  static constexpr std::int64_t most_tokens = 8192;    // of a step that is recorded

 private:
  struct Kind;
  struct Places {
    at::Tensor slots, owners, counts;  // i64 [jobs], i64 [T]: job of each token, f32 [jobs]; on the device
  };
  Places places_of(const AdapterBatch& batch) const;
  at::Tensor enqueue(const AdapterBatch& batch, const Places& places);
  at::Tensor plain(const AdapterBatch& batch);
  bool record(Kind& kind, const AdapterBatch& batch);
  Kind* kind_of(const AdapterBatch& batch);

  const CausalLm& model_;
  nn::AdapterStore& store_;
  nn::AdapterOptimizer& optimizer_;
  bool record_;
  std::vector<std::unique_ptr<Kind>> kinds_;
  std::int64_t changes_ = 0, recorded_ = 0;  // changes_: of store and optimizer, when the kinds were seen
};

}  // namespace trireme
