// What a recipe sees of the run while it trains. One per rank, used from the training thread.
#pragma once
#include "comm/wrappers/traced.h"
#include "framework/metrics/step_clock.h"
#include "framework/placement.h"
#include "framework/recipe.h"
#include "framework/train_config.h"

#include <functional>
#include <memory>
#include <optional>
#include <span>

namespace trireme {

class Reducer;
class Optimizer;
class StepScalars;

// Puts collectives into the Chrome trace, if there is one.
Traced::Sink trace_sink();

class Context {
 public:
  // Collective: makes the named communicators "control", "grad", "world" and `names` in sorted order. A Traced
  // world hands them its flight recorder. `checkpoints`: the folder of those that the run goes on from; empty: none.
  Context(Communicator& world, const TrainConfig& config, std::vector<std::string> names = {},
          std::string checkpoints = {});
  ~Context();

  Communicator& comm(std::string_view name = "world");
  int rank() const { return world_.rank(); }
  int size() const { return world_.size(); }
  const TrainConfig& config() const { return config_; }
  at::Device device() const { return placement_.device; }
  int cores() const { return placement_.cores; }
  at::ScalarType param_type() const;  // f64 when precision is f64, else f32
  // bf16 or fp16 compute: forward runs under autocast, and fused f32/f64 kernels must not be used.
  bool autocast() const;

  // What the run that goes on had saved as text, for what must be known before all is loaded; none where it starts.
  std::optional<std::string> saved_text(const std::string& name) const;

  // The step being taken, and the batch of the one after it (Recipe::looks_ahead; null: not known).
  Step now;
  const Batch* next = nullptr;
  // Known once the recipe is set up: whole batches in the training data, and optimizer steps of the whole run.
  std::int64_t steps_per_epoch = 1, steps = 0;
  std::int64_t accumulate() const { return config_.accumulate; }

  // Gradients of sum(roots[i] * grads[i]) into the parameters (grads empty: ones). Multiplies by the loss scale of
  // fp16. Buckets are launched only in the call with `last`. Roots that depend on nothing trained are left out: their
  // parameters are frozen.
  void backward(std::span<const at::Tensor> roots, std::span<const at::Tensor> grads = {}, bool last = true);
  // A forward without a graph inside a step; what follows casts its weights anew.
  void without_graph(const std::function<void()>& forward);
  // Afterwards every rank has the new weights, whoever updated them. Collective with `zero: 1`.
  void step_optimizers(const Step& s);
  // f32 scalar on the device, in update(): 1 = loss or gradient was not finite, change nothing.
  const at::Tensor& skip() const { return skip_; }

  // The step's work is recorded, and will be replayed with other batches.
  bool recorded() const { return scalars_ != nullptr; }
  // What is recorded holds no longer: from the next step on steps are recorded anew. On all ranks.
  void record_anew() { anew_ = true; }
  // A scalar on the device that holds value() of the step that runs, whenever it is replayed; f32 or f64. Undefined
  // where the step is not recorded: there the host's value() is the one to use.
  at::Tensor replayed(std::function<double()> value, at::ScalarType type = at::kFloat);

  // Is a metrics line due after this step? Reading the device for a metric is worth it only then.
  bool logs_now() const { return (now.step + 1) % config_.log_every == 0 || now.step + 1 == steps; }
  // A metric of this step for the next log line: a scalar equal on all ranks.
  void log(std::string_view name, double value) { logged_[std::string(name)] = value; }
  // Bytes that this rank did not send since the recipe coded them; metrics tell what it would have sent.
  void spared(double bytes) { spared_ += bytes; }
  // A line for the user, from rank 0.
  void message(std::string_view line);
  std::function<void(std::string_view)> on_message;

 private:
  friend class Session;
  friend class GraphedStep;
  Communicator& world_;
  const TrainConfig& config_;
  const Placement placement_;
  const std::string checkpoints_;
  std::map<std::string, std::unique_ptr<Communicator>, std::less<>> comms_;
  std::map<std::string, double> logged_;
  double spared_ = 0;
  const Recipe* recipe_ = nullptr;
  Reducer* reducer_ = nullptr;
  Optimizer* optimizer_ = nullptr;
  StepScalars* scalars_ = nullptr;
  at::Tensor scale_;        // f32 scalar: loss scale (fp16 only)
  at::Tensor scale_total_;  // what gradients are divided by: loss scale and clipping
  at::Tensor skip_;         // f32 scalar: 1 = skip this update
  bool last_micro_batch_ = true;
  bool anew_ = false;
  bool any_root_ = false;  // in this step, a root depended on something trained
  StepClock clock_;
};

}  // namespace trireme
