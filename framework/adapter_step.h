// A training step of many adapters on one backbone: forward, each job's mean loss, backward from their sum, and AdamW
// of all. Steps of a composition that comes again are recorded (CUDA graphs) and replayed, and evaluations likewise: up
// to some thousand tokens the host takes longer to enqueue them than a GPU to run them. Not thread-safe.
#pragma once
#include "framework/models/causal_lm.h"
#include "framework/nn/adapter_optimizer.h"
#include "framework/step_graph.h"

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace trireme {

struct AdapterBatch {
  TokenBatch tokens;
  at::Tensor labels;               // i64 [T], ignored_label where nothing counts
  std::vector<nn::SlotRows> rows;  // of the jobs, ascending
  at::Tensor counts;               // f32 [jobs] on the host: what a job's sum of losses is divided by
};

// Of a backbone whose layers come as a pass gets to them, each rank's in the order of its own stream.
struct MovingLayers {
  // Before a replay, before and behind a capture: which layers are at hand counts no more, so that the pass is the same
  // work each time.
  std::function<void()> let_go;
  std::function<void(bool backward)> replayed;  // a pass ran that no hook saw
};

class AdapterStep {
 public:
  // All must outlive it. record: graphs are wanted.
  AdapterStep(const CausalLm& model, nn::AdapterStore& store, nn::AdapterOptimizer& optimizer, bool record,
              MovingLayers layers = {});
  ~AdapterStep();

  // -> f32 [jobs], the mean losses before the update; valid until the next call.
  at::Tensor run(const AdapterBatch& batch);
  // -> f64 [jobs], the sums of losses, without dropout, gradients or update; valid until the next call.
  at::Tensor evaluate(const AdapterBatch& batch);

  // Are graphs wanted, and is a step of so many tokens one that a GPU waits for the host with? The same all along,
  // whatever captures came to: steps are padded by it, and a run that goes on in such a place pads as the one before.
  bool gains_by_recording(std::int64_t tokens) const { return recordable_ && tokens <= light_; }
  void forget();                                       // graphs that were made give back their memory
  std::int64_t recorded() const { return recorded_; }  // graphs made so far
  std::int64_t replayed() const { return replayed_; }
  static constexpr std::int64_t most_tokens = 8192;  // of a step that is recorded; of a narrow backbone more
  static std::int64_t light_tokens(std::int64_t hidden);

 private:
  enum Use : std::size_t { training, evaluation };
  struct Kind;
  struct Places {
    at::Tensor slots, owners, counts;  // i64 [jobs], i64 [T]: job of each token, f32 [jobs]; on the device
  };
  Places places_of(const AdapterBatch& batch) const;
  at::Tensor enqueue(const AdapterBatch& batch, const Places& places);
  at::Tensor sums_of(const AdapterBatch& batch);
  at::Tensor plain(const AdapterBatch& batch, Use use);
  bool record(Kind& kind, const AdapterBatch& batch, Use use);
  bool capture(Kind& kind, Use use);
  void drop_stale();
  Kind* kind_of(const AdapterBatch& batch, Use use);
  at::Tensor run(const AdapterBatch& batch, Use use);

  const CausalLm& model_;
  nn::AdapterStore& store_;
  nn::AdapterOptimizer& optimizer_;
  const MovingLayers layers_;
  const bool recordable_;
  std::array<bool, 2> record_;  // by use: as wanted, until a capture fails
  std::int64_t light_, recorded_ = 0, replayed_ = 0;
  struct Seen {
    std::vector<std::unique_ptr<Kind>> kinds;  // the newest first
    std::int64_t changes = 0;                  // of store and, for training, optimizer, when they were seen
  };
  std::array<Seen, 2> seen_;  // by use
};

}  // namespace trireme
