// A denoiser whose forwards of one kind are recorded when they come for the second time and replayed from then on
// (CUDA graphs). On a CPU, where gradients are wanted and for block caches: the forward itself. Ranks that share a
// picture by NCCL alone record theirs with the collectives if they are told to, all or none; they make the same
// forwards in the same order. Destroyed before their communicator, which waits for the graphs that hold its work. Used
// by one thread.
#pragma once
#include "comm/wrappers/traced.h"
#include "framework/models/dit/denoiser.h"
#include "framework/step_graph.h"

#include <functional>
#include <map>
#include <optional>
#include <string_view>

#include <nlohmann/json.hpp>

namespace trireme {

enum class RecordedForwards : std::uint8_t { none, alone, shared_too };  // shared: by ranks

class GraphedDenoiser : public Denoiser {
 public:
  // `model` and the hooks' `parallel` must outlive it; its weights must stay where they are. message: why forwards that
  // ranks share are not recorded, once.
  explicit GraphedDenoiser(Denoiser& model, RecordedForwards which = RecordedForwards::alone,
                           std::function<void(std::string_view)> message = {})
      : model_(&model), which_(which), message_(std::move(message)) {}

  const DenoiserInfo& info() const override { return model_->info(); }
  const nlohmann::json& config() const override { return model_->config(); }
  std::vector<std::pair<std::string, at::Tensor>> weights() const override { return model_->weights(); }
  RopeTables rope(const Grid& grid, std::int64_t text_tokens, const Offsets& offsets = {}) const override {
    return model_->rope(grid, text_tokens, offsets);
  }
  at::Tensor modulations(const at::Tensor& t, const Conditioning& condition) override {
    return model_->modulations(t, condition);
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
    CommStats sent;                        // by each replay, which nobody posts
    std::shared_ptr<Work::State> place{};  // behind the last replay
    bool counted = false;                  // those of the next one, as they were recorded
    bool plain = false;                    // on some rank it cannot be recorded
    std::int64_t seen = 0, last_use = 0;
  };
  using Kinds = std::map<Key, Kind>;
  bool recordable(const at::Tensor& x, const DitHooks& hooks);
  void capture(Kind& kind, const std::vector<at::Tensor>& inputs, const Conditioning& c, const DitHooks& hooks);
  bool capture_together(Kind& kind, const std::vector<at::Tensor>& inputs, const Conditioning& c,
                        const DitHooks& hooks);
  static void make_room(Kinds& kinds);

  Denoiser* model_;
  const RecordedForwards which_;
  std::function<void(std::string_view)> message_;
  std::optional<bool> graphs_;  // can any be made?
  // Those of ranks by themselves: what a rank does alone must not put out what it shares.
  std::map<const SequenceParallel*, Kinds> kinds_;
  std::int64_t captured_ = 0, clock_ = 0;
};

}  // namespace trireme
