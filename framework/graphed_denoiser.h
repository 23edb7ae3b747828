// A denoiser whose forwards of one kind are recorded when they come for the second time and replayed from then on
// (CUDA graphs). On a CPU, where gradients are wanted and for hooks that decide on the host (block caches, ranks that
// share a picture): the forward itself.
#pragma once
#include "framework/models/dit/denoiser.h"
#include "framework/step_graph.h"

#include <map>

#include <nlohmann/json.hpp>

namespace trireme {

class GraphedDenoiser : public Denoiser {
 public:
  // `model` must outlive it; its weights must stay where they are.
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
    std::int64_t seen = 0, last_use = 0;
  };
  void make_room();

  Denoiser* model_;
  std::map<Key, Kind> kinds_;
  std::int64_t captured_ = 0, clock_ = 0;
};

}  // namespace trireme
