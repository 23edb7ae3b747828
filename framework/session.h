// One training run in memory: recipe, parameters, reducer, optimizer, loss scale, running average. The loop in
// trainers/ drives it; everything that changes the next step passes through state().
#pragma once
#include "framework/context.h"
#include "framework/skipped_steps.h"

namespace trireme {

class GraphedStep;
class Snapshot;

class Session {
 public:
  // Collective. Sets up the recipe and applies `freeze`. On a GPU the host goes on with one thread unless `threads`
  // says otherwise. `checkpoints`: the folder of those that the run goes on from; restore() loads one. Empty: none.
  Session(Communicator& world, const TrainConfig& config, Recipe& recipe, const std::string& checkpoints = {});
  ~Session();

  // Collective: gradients, reduction, update. Does not read the device. `next`: for recipes that look ahead.
  void step(const Batch& batch, const Batch* next = nullptr);
  bool replays() const;  // steps of the last batch's shapes, see GraphedStep
  // Sums over the steps since the last call; on a GPU they are the device's, and the call waits for it.
  StepTimes take_times() { return context_.clock_.take(); }
  // Host reads, equal on all ranks; on a GPU they wait for the step. loss: the sum of the ranks' shares.
  double loss() const;
  bool skipped() const;
  SkippedSteps::Seen take_skipped() { return skipped_steps_.take(); }  // of all steps since the last call
  double gradient_norm() const;

  // Evaluation sees the running average if there is one.
  std::map<std::string, double> evaluate();
  std::map<std::string, double> take_logged();
  double take_spared();  // Context::spared() since the last call
  CommStats stats(std::string_view communicator) const;
  std::vector<std::string> communicators() const;  // of the context
  Context& context() { return context_; }
  const std::vector<Param>& parameters() const { return all_; }
  std::size_t reduced_bytes() const;
  std::size_t plain_bytes() const;                                   // Reducer::plain_bytes
  std::int64_t parameter_count() const { return parameter_count_; }  // of all ranks, each once

  // Weights only, and all state. Local, but for loading the order of other buckets than there are: see restore().
  void weights(Archive& ar);
  // The weights came from elsewhere: the recipe is told, and the running average begins with them.
  void weights_loaded();
  void state(Archive& ar);
  // Collective. Loads `snapshot` through `state`, which visits state() and whatever else it holds. What ranks must do
  // together comes between local readings, so that an error on one rank is thrown on all.
  void restore(const Snapshot& snapshot, const std::function<void(Archive&)>& state);

 private:
  void compute(const Batch& batch);  // up to gradients that are summed over ranks
  void update();
  void count_parameters();
  std::vector<Param> apply_freeze();
  void guard_update();
  void restart_average();
  void average_weights();
  void own_shards();

  const TrainConfig& config_;
  Recipe& recipe_;
  Context context_;
  std::vector<Param> all_;  // frozen ones included
  std::unique_ptr<Reducer> reducer_;
  std::unique_ptr<Optimizer> optimizer_;
  bool shards_owned_ = false;
  std::int64_t parameter_count_ = 0;
  std::vector<at::Tensor> average_;  // EMA of the trained parameters
  SkippedSteps skipped_steps_;
  at::Tensor loss_, norm_, growth_;  // global ones of the last step; growth_: good steps since the loss scale changed
  at::Tensor rescale_;               // what the loss scale is multiplied by for the next step
  std::unique_ptr<GraphedStep> graphed_;
};

}  // namespace trireme
