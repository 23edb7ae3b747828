// A frozen backbone whose layers lie on several ranks, a share of each on every rank, and are gathered as a pass comes
// to them (adapter parallelism: ALTO, arXiv 2604.05426, 6.2): layer l + 1 travels while layer l computes. Two layers
// are whole at a time. What lies outside of layers (embedding, head, last norm) stays whole on every rank.
#pragma once
#include "comm/communicator.h"
#include "framework/models/causal_lm.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace trireme::sweep {

// A model whose layers have shapes and no memory, to be sharded from a source; the rest comes from `source`.
CausalLm without_layers(const CausalLmConfig& config, const CausalLm::Source& source, at::TensorOptions options);

class ShardedBackbone {
 public:
  // Cuts the layers of `model`, whose weights are let go, over the ranks of `ranks`, which is used for nothing else.
  // The model runs with checkpointing from now on: a layer's weights are there again when it runs again. Collective
  // calls follow from the order of layers alone, so all ranks must run the same kinds of passes.
  // source: where the layers' weights come from, one layer at a time, so that no rank ever holds them all; without one,
  // from the model itself.
  // fp8: what the store adapts is cut and gathered as e4m3 with a scale a row, by rows for either pass, by columns for
  // backward alone: three bytes a weight and step where bf16 has four, and the memory of bf16.
  ShardedBackbone(CausalLm& model, nn::AdapterStore& store, Communicator& ranks, const CausalLm::Source& source = {},
                  bool fp8 = false);
  ~ShardedBackbone();

  // The gathers of a pass, without the pass. backward: of one that has a backward.
  void empty_pass(bool backward);
  // on: passes gather nothing and run on what two layers hold by now, for measuring what they cost alone.
  void set_held(bool on) { held_ = on; }
  std::int64_t gathers() const { return gathers_; }
  std::int64_t bytes_received() const { return received_; }  // of this rank, so far
  // Padded, on all ranks together.
  std::int64_t layer_bytes() const { return (share_[0] + share_[1]) * ranks_.size(); }

 private:
  // What a layer's forward reads, and what its backward reads beside that.
  enum Part : std::uint8_t { always, backward_only };
  struct Span {
    Part part = always;
    std::int64_t offset = 0;  // bytes
    std::vector<std::int64_t> shape;
    at::ScalarType type = at::kByte;
  };
  struct Piece {
    LmWeight weight;
    std::int64_t target = -1;  // of the store, for a projection's weight
    bool bias = false;
    // The value; in FP8 rows, their scales, columns, theirs.
    std::vector<Span> spans;
  };
  void plan(bool fp8);
  void fill(std::int64_t layer, const CausalLm::Source& value_of);
  void before_layer(std::int64_t layer);
  void gather(std::int64_t layer, Part part);
  void point(std::int64_t layer);
  at::Tensor view(const Span& span, std::int64_t layer) const;

  CausalLm& model_;
  nn::AdapterStore& store_;
  Communicator& ranks_;
  std::vector<std::vector<Piece>> pieces_;  // of each layer
  std::vector<at::Tensor> shares_[2];       // by part, of each layer: u8 [share_]
  std::int64_t share_[2] = {0, 0}, gathers_ = 0, received_ = 0, last_ = -1;
  bool held_ = false;
  struct Whole {
    at::Tensor bytes;
    std::int64_t layer = -1;
    Work coming;
  } wholes_[2][2];  // by part, of even and odd layers
};

}  // namespace trireme::sweep
