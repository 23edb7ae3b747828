// A frozen backbone whose layers lie on several ranks, a share of each on every rank, and are gathered as a pass comes
// to them (adapter parallelism: ALTO, arXiv 2604.05426, 6.2): layer l + 1 travels while layer l computes. Two layers
// are whole at a time. What lies outside of layers (embedding, head, last norm) stays whole on every rank. Shares never
// change, so that GPUs of one machine fetch the others' by copy engines (comm/frozen_shares.h).
#pragma once
#include "comm/frozen_shares.h"
#include "framework/models/causal_lm.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace trireme::sweep {

// A model whose layers have shapes and no memory; the rest is read.
CausalLm without_layers(const LmWeights& weights);

// What a task trains on: a whole model, or, where its ranks share it or it is FP8, one without layers and where those
// come from.
struct Backbone {
  CausalLm model;
  CausalLm::Source layers = {};
};

class ShardedBackbone {
 public:
  // Cuts layers over the ranks of `ranks`, which is used for nothing else, and points `model` (without_layers()) at
  // them. source: where they come from, one layer at a time, so that no rank ever holds them all; what it throws on one
  // rank, all throw. The model runs with checkpointing from now on: a layer's weights are there again when it runs
  // again. Collective calls follow from the order of layers alone, so all ranks must run the same kinds of passes.
  // Making one and its end are collective.
  // fp8: what the store adapts is cut and gathered as e4m3 with a scale a row: half of bf16's bytes, there and on the
  // way.
  ShardedBackbone(CausalLm& model, nn::AdapterStore& store, Communicator& ranks, const CausalLm::Source& source,
                  bool fp8 = false);
  ~ShardedBackbone();

  // What the other ranks need of this one while they make a pass that it has no samples for: its gathers, if they are
  // collective. backward: of a pass that has one.
  void empty_pass(bool backward) {
    if (!fetched()) gather_pass(backward);
  }
  // For measuring: the gathers of a pass alone; passes that gather nothing and run on what two layers hold by now; and
  // gathers through the communicator where shares are fetched.
  void gather_pass(bool backward);
  // Which layers are at hand counts no more: the pass that comes gathers all that it reads, however others ended.
  void let_go();
  // Counts the gathers of a pass that was let go before and ran without this knowing, as a graph.
  void replayed(bool backward);
  // From now on rank s of P holds layers [s L / P, (s + 1) L / P) whole, as a stage of a pipeline, and passes over all
  // layers get each from its rank by a broadcast. Collective; layers must divide so. -> a model of this rank's layers
  // alone, with what lies outside of layers.
  CausalLm hold_stages();
  void set_held(bool on) { held_ = on; }
  void set_collected(bool on) { collected_ = on; }
  // Does this rank read the others' shares by itself?
  bool fetched() const { return !collected_ && !stages_ && frozen_->fetched(); }
  std::int64_t gathers() const { return gathers_; }
  std::int64_t bytes_received() const { return received_; }  // of this rank, so far
  // Padded, on all ranks together.
  std::int64_t layer_bytes() const { return share_ * ranks_.size(); }

 private:
  struct Span {
    std::int64_t offset = 0;  // bytes
    std::vector<std::int64_t> shape;
    at::ScalarType type = at::kByte;
  };
  struct Piece {
    LmWeight weight;
    std::int64_t target = -1;  // of the store, for a projection's weight
    bool bias = false;
    std::vector<Span> spans;  // the value; in FP8 its codes and their scales
  };
  void plan(bool fp8);
  void fill(std::int64_t layer, const CausalLm::Source& value_of);
  void before_layer(std::int64_t layer);
  void gather(std::int64_t layer);
  void point(std::int64_t layer);
  at::Tensor view(const Span& span, std::int64_t layer) const;
  int owner(std::int64_t layer) const { return int(layer * ranks_.size() / std::int64_t(pieces_.size())); }
  // Where a layer's bytes are or come to.
  const at::Tensor& place(std::int64_t layer) const;

  CausalLm& model_;
  nn::AdapterStore& store_;
  Communicator& ranks_;
  std::vector<std::vector<Piece>> pieces_;  // of each layer
  std::vector<at::Tensor> shares_;          // of each layer: u8 [share_]; of stages whole ones, or undefined
  std::unique_ptr<FrozenShares> frozen_;
  std::int64_t share_ = 0, gathers_ = 0, received_ = 0, last_ = -1;
  bool held_ = false, collected_ = false, stages_ = false;
  struct Whole {
    at::Tensor bytes;
    std::int64_t layer = -1;
    Work coming;
  } wholes_[2];  // of even and odd layers
};

}  // namespace trireme::sweep
