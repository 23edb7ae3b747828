// Ways to train several LoRA jobs on one backbone that lies on several ranks, a step of all jobs at a time: adapter
// parallelism (trainers/sweep), sharded data-parallel, and a pipeline filled with different adapters (mLoRA, arXiv
// 2312.02515). They are beside each other in `trireme bench ap_step`, and give the same adapters.
#pragma once
#include "comm/communicator.h"
#include "framework/nn/adapter_optimizer.h"
#include "framework/placement.h"
#include "trainers/sweep/sharded_backbone.h"

#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace trireme::bench {

// The jobs: equal batches of samples of one length, whose ids are drawn by (job, sample). Every id but a sample's first
// counts; a job's loss is the mean over those of its batch.
struct AdapterJobs {
  CausalLmConfig model;
  at::ScalarType type = at::kFloat;
  std::vector<std::int64_t> ranks;  // of the adapters, one a job
  std::int64_t length = 0, batch = 0;
  std::int64_t pass_tokens = 1 << 30;  // the most that a rank takes in a pass: larger steps accumulate
  double lr = 1e-4;
};

// Jobs by rank: large adapters first, back and forth, so that ranks hold about as many of them and of their parameters.
std::vector<std::vector<std::int64_t>> balanced(std::span<const std::int64_t> ranks, int places);

// An adapter's flat weights for a store of these targets, of which the first is `first_target` of the whole model:
// drawn where they will lie, since a host takes seconds for 1e9.
at::Tensor drawn_adapter(const nn::AdapterStore& store, const nn::AdapterInit& init, std::uint64_t seed,
                         std::size_t first_target = 0);

// A sharded backbone: layer by layer gathered, drawn as it is cut.
class ShardedJobs {
 public:
  // Collective, as `step`s are. world must outlive it.
  ShardedJobs(AdapterJobs jobs, Communicator& world, const Placement& place);

  // Adapters of these jobs are made on this rank, and those of others are let go.
  void hold(std::span<const std::int64_t> jobs);
  void set_shape(std::int64_t length, std::int64_t batch);
  void set_backend(nn::LoraBackend backend) { store_->set_backend(backend); }

  // Adapter parallelism: jobs of this rank alone, of those that it holds.
  void own_step(std::span<const std::int64_t> jobs);
  // Sharded data-parallel of jobs that all ranks hold: each batch cut over the ranks, filled up with samples that do
  // not count, and gradients summed.
  void data_parallel_step(std::span<const std::int64_t> jobs);
  void gather_step(std::int64_t jobs);                     // what own_step of so many gathers, and nothing else
  void compute_alone(std::span<const std::int64_t> jobs);  // own_step on layers that are there
  std::int64_t passes(std::int64_t jobs, std::int64_t samples) const;  // of a step, of so many samples a job

  at::Tensor weights(std::int64_t job) const { return store_->flat_weights(job); }
  std::int64_t parameters(std::int64_t job) const { return store_->flat_weights(job).numel(); }
  const sweep::ShardedBackbone& backbone() const { return *sharded_; }

 private:
  // Samples [first, last) of each job of the list, of which those from `real` on do not count.
  void pass(std::span<const std::int64_t> jobs, std::int64_t first, std::int64_t last, std::int64_t real);
  void accumulate(std::span<const std::int64_t> jobs, std::int64_t first, std::int64_t samples, std::int64_t real);
  const at::Tensor& sample(std::int64_t job, std::int64_t i);

  AdapterJobs jobs_;
  Communicator& world_;
  CausalLm model_;
  std::unique_ptr<nn::AdapterStore> store_;
  std::optional<nn::AdapterOptimizer> optimizer_;
  std::unique_ptr<Communicator> gathers_, gradients_;
  std::optional<sweep::ShardedBackbone> sharded_;
  std::vector<std::int64_t> held_;
  std::vector<std::vector<at::Tensor>> ids_;  // by job and sample
  at::Tensor losses_;
};

// Rank s of P holds layers [s L / P, (s + 1) L / P) of the backbone and of every adapter. In a tick a rank takes one
// job's batch forward and another's backward, and hands both on to its neighbours; a job's next step begins once its
// last is over, so that ranks have no time without work where there are at least 2 P - 1 jobs.
class PipelinedJobs {
 public:
  PipelinedJobs(AdapterJobs jobs, Communicator& world, const Placement& place);  // collective
  void set_shape(std::int64_t length, std::int64_t batch);                       // while it is empty
  std::int64_t period() const;                                                   // ticks a step of all jobs
  void tick();                                                                   // collective
  void drain();  // collective: what is under way ends, and nothing begins
  at::Tensor weights(std::int64_t job) const { return store_->flat_weights(job); }  // of this rank's layers

 private:
  struct Flight {
    at::Tensor in, out;  // out: on the last rank the loss
  };
  void forward(std::int64_t job);
  at::Tensor backward(std::int64_t job);                     // -> the gradient of what came in
  void exchange(const at::Tensor& y, const at::Tensor& dx);  // y goes up, dx down; undefined: nothing does
  std::int64_t job_at(std::int64_t delay) const;             // that began `delay` ticks ago; -1: none
  void compose(std::int64_t job);
  bool last() const { return world_.rank() == world_.size() - 1; }

  AdapterJobs jobs_;
  Communicator& world_;
  at::TensorOptions options_;
  CausalLm model_;
  std::unique_ptr<nn::AdapterStore> store_;
  std::optional<nn::AdapterOptimizer> optimizer_;
  std::unique_ptr<Communicator> neighbours_;
  std::vector<std::vector<at::Tensor>> ids_;
  std::vector<Flight> flights_;                                              // a job
  at::Tensor x_, dy_, losses_;                                               // what came from below and from above
  std::int64_t tick_ = 0, stop_ = std::numeric_limits<std::int64_t>::max();  // stop_: the tick that begins no job
};

}  // namespace trireme::bench
