// LoRA jobs on a backbone whose layers lie on several ranks, a step of all jobs at a time: adapter parallelism
// (trainers/sweep) and sharded data-parallel. They give the same adapters, as the pipeline beside this does.
#pragma once
#include "bench/adapter_jobs.h"
#include "comm/communicator.h"
#include "framework/nn/adapter_optimizer.h"
#include "trainers/sweep/sharded_backbone.h"

#include <optional>

namespace trireme::bench {

// A sharded backbone: layer by layer gathered, drawn as it is cut.
class ShardedJobs {
 public:
  // Collective, as `step`s are. world must outlive it.
  ShardedJobs(AdapterJobs jobs, Communicator& world, const Placement& place);

  // Adapters of these jobs are on this rank from now on, and those of others are let go. Nothing where they are
  // already.
  void hold(std::span<const std::int64_t> jobs);
  void set_shape(std::int64_t length, std::int64_t batch);
  void set_backend(nn::LoraBackend backend) { store_->set_backend(backend); }

  // Adapter parallelism: jobs of this rank alone, of those that it holds.
  void own_step(std::span<const std::int64_t> jobs);
  // Sharded data-parallel of jobs that all ranks hold: each batch cut over the ranks, filled up with samples that do
  // not count, and gradients summed.
  void data_parallel_step(std::span<const std::int64_t> jobs);
  void gather_step(std::int64_t jobs);                          // what own_step of so many gathers, and nothing else
  void set_collected(bool on) { sharded_->set_collected(on); }  // gathers by the communicator
  void compute_alone(std::span<const std::int64_t> jobs);       // own_step on layers that are there
  std::int64_t passes(std::int64_t jobs, std::int64_t samples) const;  // of a step, of so many samples a job

  at::Tensor weights(std::int64_t job) const { return store_->flat_weights(job); }
  std::int64_t parameters(std::int64_t job) const { return store_->flat_weights(job).numel(); }
  const sweep::ShardedBackbone& backbone() const { return *sharded_; }

 private:
  void pass(const JobPack& pack);
  void accumulate(std::span<const std::int64_t> jobs, std::int64_t first, std::int64_t samples);

  AdapterJobs jobs_;
  Communicator& world_;
  CausalLm model_;
  std::unique_ptr<nn::AdapterStore> store_;
  std::optional<nn::AdapterOptimizer> optimizer_;
  std::unique_ptr<Communicator> gathers_, gradients_;
  std::optional<sweep::ShardedBackbone> sharded_;
  std::vector<std::int64_t> held_;
  JobSamples samples_;
  at::Tensor losses_;
};

// Adapters after a few steps on all ranks, beside each rank's own jobs trained by a group of itself, twice. Collective.
struct Sameness {
  bool with_alone = true;  // adapter parallelism gives each adapter's bits
  bool repeatable = true;  // training alone gives the same bits again: without it the first says nothing
  std::int64_t adapters = 0;
};
Sameness sameness(const AdapterJobs& jobs, Communicator& world, const Placement& place, int steps);

}  // namespace trireme::bench
