// A denoiser whose forwards of one kind are recorded when they come for the second time and replayed from then on
// (CUDA graphs). On a CPU, where gradients are wanted and for block caches, which decide on the host: the forward itself.
// Ranks that share a picture by NCCL alone record theirs with the collectives, all or none; they make the same forwards
// in the same order. Used by one thread.
#pragma once
#include "comm/wrappers/traced.h"
#include "framework/models/dit/denoiser.h"
#include "framework/step_graph.h"

#include <map>
#include <optional>

#include <nlohmann/json.hpp>

namespace trireme {

class GraphedDenoiser : public Denoiser {
 public:
  // `model` and the hooks' `parallel` must outlive it; its weights must stay where they are.
  explicit GraphedDenoiser(Denoiser& model) : model_(&model) {}

  const DenoiserInfo& info() const override { return model_->info(); }
  const nlohmann::json& config() const override { return model_->config(); }
  std::vector<std::pair<std::string, at::Tensor>> weights() const override { return model_->weights(); }
  RopeTables rope(const Grid& grid, std::int64_t text_tokens, const Offsets& offsets = {}) const override {
    return model_->rope(grid, text_tokens, offsets);
  }
  at::Tensor forward(const at::Tensor& x, const at::Tensor& t, const Conditioning& condition,
                     const DitHooks& hooks = {}) override;

  std::int64_t captured() const { return captured_; }  // graphs made so far

 private:
  using Key = std::vector<double>;  // shapes and whatever else changes the work
  struct Kind {
    std::vector<at::Tensor> inputs;  // where the graph reads them
    RopeTables own;
    at::Tensor velocity;
    std::unique_ptr<StepGraph> graph;
    CommStats sent;        // by each replay, which nobody posts
    bool counted = false;  // those of the next one, as they were recorded
    bool plain = false;    // on some rank it cannot be recorded
    std::int64_t seen = 0, last_use = 0;
  };
  bool recordable(const at::Tensor& x, const DitHooks& hooks);
  // False: it cannot be, on some rank. Throws what forward throws, where this is the only rank.
  bool record(Kind& kind, const std::vector<at::Tensor>& inputs, const Conditioning& c, const DitHooks& hooks);
  void make_room();

  Denoiser* model_;
  std::optional<bool> graphs_;  // can any be made?
  std::map<Key, Kind> kinds_;
  std::int64_t captured_ = 0, clock_ = 0;
};

}  // namespace trireme
