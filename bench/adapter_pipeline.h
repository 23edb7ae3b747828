// The pipeline filled with different adapters (trainers/sweep/pipeline.h) on the jobs of the benchmark: a job's samples
// at a time (mLoRA), or micro-batches of several jobs, whose adapters lie side by side in one product (LoRAFusion).
#pragma once
#include "bench/adapter_jobs.h"
#include "comm/communicator.h"
#include "framework/nn/adapter_optimizer.h"
#include "trainers/sweep/pipeline.h"

#include <optional>

namespace trireme::bench {

enum class Filling : std::uint8_t { jobs, packs };

class PipelinedJobs {
 public:
  // packs: the fewest groups of equally many jobs that leave no time without work. Packs of either take at most
  // pass_tokens, or a sample a job. Collective.
  PipelinedJobs(AdapterJobs jobs, Communicator& world, const Placement& place, Filling filling = Filling::jobs);
  void set_shape(std::int64_t length, std::int64_t batch);     // while it is empty
  std::int64_t period() const { return pipeline_->period(); }  // ticks a step of all jobs
  std::int64_t packs() const { return std::int64_t(packs_.size()); }
  void tick() { pipeline_->tick(); }    // collective
  void drain() { pipeline_->drain(); }  // collective: what is under way ends, and nothing begins
  at::Tensor weights(std::int64_t job) const { return store_->flat_weights(job); }  // of this rank's layers

 private:
  std::int64_t jobs_a_pack() const;
  sweep::AdapterPipeline::Pack pack_of(std::int64_t place) const;

  AdapterJobs jobs_;
  Communicator& world_;
  Filling filling_;
  at::TensorOptions options_;
  CausalLm model_;
  std::unique_ptr<nn::AdapterStore> store_;
  std::optional<nn::AdapterOptimizer> optimizer_;
  std::unique_ptr<Communicator> neighbours_;
  std::optional<sweep::AdapterPipeline> pipeline_;
  JobSamples samples_;
  std::vector<JobPack> packs_;  // of a step of all jobs, a job's in a row
};

}  // namespace trireme::bench
