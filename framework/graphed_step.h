// A training step that is recorded once (a CUDA graph) and replayed: a host that enqueues a step piece by piece takes
// longer than a GPU that computes small layers. The first steps of a shape run as they are: the bucket order settles,
// libraries choose their kernels. The next one runs from input buffers of its own, where each batch is copied from then
// on; the one after it is recorded. Bit by bit the steps are those that would run without it.
#pragma once
#include "framework/context.h"
#include "framework/pinned.h"
#include "framework/step_graph.h"
#include "framework/step_scalars.h"

namespace trireme {

// Used by the training thread. Where no graphs can be made nothing is ever taken.
class GraphedStep {
 public:
  using Work = std::function<void(const Batch&)>;
  // results: what a step leaves for others to read, the caller's variables, which each replay sets.
  GraphedStep(Context& context, Recipe& recipe, std::vector<at::Tensor*> results);

  // Takes the step, by work(batch) or by what was recorded of it. False: nothing happened, and the caller takes it.
  bool take(const Batch& batch, const Work& work);
  // The memory that work reads and writes is another from here on.
  void forget();
  bool recorded() const { return graph_ != nullptr; }

 private:
  using Shapes = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;
  bool wanted();
  static Shapes shapes_of(const Batch& batch);
  void fill(const Batch& batch);
  void enqueue(const Work& work);
  bool record(const Work& work);

  Context& context_;
  Recipe& recipe_;
  const std::vector<at::Tensor*> results_;
  bool off_ = false, asked_ = false;
  bool said_ = false, told_ = false;  // why there is none; that a batch has other shapes
  Shapes shapes_;
  std::int64_t seen_ = 0;  // batches of these shapes
  Batch inputs_;
  PinnedBuffers pinned_;
  std::unique_ptr<StepScalars> scalars_;
  std::vector<at::Tensor> outputs_;  // what the graph writes, by results_
  std::unique_ptr<StepGraph> graph_;
};

}  // namespace trireme
