// One job's training as its rank holds it: the adapter's weights, its optimizer, its place in the data.
#pragma once
#include "comm/archive.h"
#include "framework/formats/peft.h"
#include "framework/models/causal_lm.h"
#include "framework/nn/adapter_optimizer.h"
#include "trainers/sweep/config.h"

#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::sweep {

// The adapter of each candidate: as `lora:` says, or with the modules and patterns of `from`, which jobs go on from.
// UsageError: another rank or alpha than that one's; an entry of `lora:` that no module of the model has.
std::vector<PeftConfig> adapter_configs(const SweepConfig& sweep, const TaskConfig& task,
                                        const std::vector<Candidate>& candidates, const CausalLm& model,
                                        const PeftConfig* from);

class Job {
 public:
  // samples: of the training data. init: what its adapter begins as, with the flat weights `begin` where there are
  // some.
  Job(Candidate candidate, std::int64_t samples, const JobTrainConfig& config, nn::AdapterInit init,
      std::int64_t parameters, at::Tensor begin = {});

  const Candidate& candidate() const { return candidate_; }
  std::int64_t total_steps() const { return total_; }
  std::int64_t parameters() const { return parameters_; }
  std::int64_t step() const { return step_; }
  std::int64_t evaluated() const { return evaluated_; }
  bool has_best() const { return best_.defined(); }

  // The samples of the step after so many: the epoch's order is the job's own, keyed by its seed. An epoch's last batch
  // may be smaller.
  std::vector<std::int64_t> batch(std::int64_t step) const;

  // In and out of a slot. `start` draws the adapter; `park` keeps everything on the host.
  void start(nn::AdapterStore& store, nn::AdapterOptimizer& optimizer, std::int64_t slot);
  void park(nn::AdapterStore& store, nn::AdapterOptimizer& optimizer, std::int64_t slot);
  void resume(nn::AdapterOptimizer& optimizer, std::int64_t slot);

  // The optimizer took a step at this loss, a scalar on the device, which is read when an evaluation asks.
  void stepped(const at::Tensor& loss);

  // Train losses since the last evaluation, in order, and the average over all.
  std::vector<double> fold(double alpha);
  double average() const { return average_.value; }
  void evaluated_now(bool best, const nn::AdapterStore& store, std::int64_t slot);  // best: keep a copy
  void drop_best() { best_ = at::Tensor(); }
  const at::Tensor& best() const { return best_; }  // flat, on the host
  std::int64_t best_step() const { return best_step_; }
  const nn::AdapterInit& init() const { return init_; }
  const nn::AdapterRates& rates() const { return rates_; }

  // All that `resume` and the next steps need, as it lies on the host or in the slot (slot < 0: parked, or ended).
  void state(Archive& ar, nn::AdapterOptimizer& optimizer, std::int64_t slot, bool ended);
  // A parked job as numbers, for another rank: 4 arrays of `parameters` f32, and scalars.
  at::Tensor packed_tensors() const;
  std::vector<double> packed_scalars() const;
  void unpack(const at::Tensor& tensors, const std::vector<double>& scalars);
  static constexpr std::size_t scalars = 7;

 private:
  at::Tensor pending_losses() const;  // f32 on the host
  Candidate candidate_;
  nn::AdapterInit init_;
  nn::AdapterRates rates_;
  std::int64_t samples_, total_, parameters_, step_ = 0, evaluated_ = 0, best_step_ = 0;
  Average average_;
  std::vector<at::Tensor> losses_;
  nn::ParkedAdapter parked_;
  at::Tensor begin_, best_;
};

}  // namespace trireme::sweep
