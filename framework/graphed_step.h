// A training step that is recorded once (a CUDA graph) and replayed: a host that enqueues a step piece by piece takes
// longer than a GPU that computes small layers. The first steps of a shape run as they are: the bucket order settles,
// libraries choose their kernels. The next one runs from input buffers of its own, where each batch is copied from then
// on; the one after it is recorded. Bit by bit the steps are those that would run without it.
//
// Collectives over NCCL are recorded with the rest. All ranks record, replay and forget in the same steps.
#pragma once
#include "framework/context.h"
#include "framework/pinned.h"
#include "framework/step_graph.h"
#include "framework/step_scalars.h"

namespace trireme {

// Used by the training thread. Where no graphs can be made nothing is ever taken.
class GraphedStep {
 public:
  struct Halves {
    std::function<void(const Batch&)> compute;  // up to the gradients
    std::function<void()> update;
  };
  // results: what a step leaves for others to read, the caller's variables, which each replay sets.
  GraphedStep(Context& context, Recipe& recipe, std::vector<at::Tensor*> results);
  ~GraphedStep();

  // Takes the step, by its halves or by what was recorded of them. next: the batch after it, or null. False: nothing
  // happened that counts, and the caller takes it.
  bool take(const Batch& batch, const Batch* next, const Halves& step);
  // The memory that steps read and write is another from here on.
  void forget();
  bool recorded() const { return !graphs_.empty(); }

 private:
  using Shapes = std::vector<std::pair<std::string, std::vector<std::int64_t>>>;
  struct Calls {
    Traced* comm;
    CommStats stats;
  };
  struct Graph {
    std::unique_ptr<StepGraph> graph;
    std::vector<Calls> calls;             // of each replay, which nobody makes
    bool counted = true;                  // those of the next one, as they were recorded
    std::shared_ptr<Work::State> mark{};  // behind the last replay
  };
  bool wanted();
  std::string why_not_several() const;
  static Shapes shapes_of(const Batch& batch);
  void fill(const Batch& batch);
  void enqueue(const std::function<void()>& work);
  bool record(const Halves& step);
  std::string capture(const Halves& step);
  bool run_unrecorded(const Halves& step);
  bool replay();
  void replay(Graph& graph);
  bool accepted(const std::shared_ptr<Work::State>& behind);
  std::vector<Calls> calls_so_far() const;

  Context& context_;
  Recipe& recipe_;
  const std::vector<at::Tensor*> results_;
  bool off_ = false, asked_ = false;
  bool said_ = false, told_ = false, counted_ = false;  // why there is none; other shapes; how many pieces there are
  Shapes shapes_;
  std::int64_t seen_ = 0;  // batches of these shapes
  Batch inputs_;
  PinnedBuffers pinned_;
  std::unique_ptr<StepScalars> scalars_;
  std::vector<at::Tensor> outputs_;  // what the graphs write, by results_
  std::vector<Graph> graphs_;        // one, or two with a look between them
  std::size_t pieces_ = 0;           // in all of them
};

}  // namespace trireme
