// This rank's stage of a task's pipeline: its layers of the backbone, and of every adapter that trains. Between bursts
// of steps each adapter is whole on the rank of its job: before one its slices go to the stages, after it they come
// back, so that nothing else of a sweep knows of stages.
#pragma once
#include "trainers/sweep/job.h"
#include "trainers/sweep/pipeline.h"
#include "trainers/sweep/sharded_backbone.h"

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace trireme::sweep {

// Why a model's layers with these adapters are no pipeline of so many ranks; empty: they are.
std::string no_stages(const CausalLm& model, const nn::AdapterStore& store, int ranks);

class Stage {
 public:
  // Of `store` and `optimizer`, which hold whole adapters on the layers of `model`; these are held as stages from now
  // on. slices, neighbours: of the same ranks as `layers`, each used for nothing else. Collective, as a burst is. All
  // references must outlive it.
  Stage(const CausalLm& model, nn::AdapterStore& store, nn::AdapterOptimizer& optimizer, ShardedBackbone& layers,
        const JobTrainConfig& train, std::unique_ptr<Communicator> slices, std::unique_ptr<Communicator> neighbours);

  // A job of a burst: its slot in both stores, and the rank that has it whole.
  struct Place {
    std::int64_t slot = 0;
    int rank = 0;
  };
  // So many steps of these jobs, the same on all ranks: a pipeline's shape and packs. -> of this rank's jobs, in their
  // order, f32 [steps]: the mean losses.
  std::vector<at::Tensor> burst(std::span<const Place> places, const std::vector<Job>& jobs, PipelineShape shape,
                                AdapterPipeline::Source source, std::int64_t steps);
  // What stages have of a job's adapter is that adapter no more: on all ranks.
  void forget(std::int64_t slot);

  const AdapterPipeline& pipeline() const { return *pipeline_; }
  std::int64_t slice_bytes() const { return sent_; }  // of adapters, that this rank sent so far

 private:
  struct Range {
    std::int64_t first = 0, count = 0;  // of flat weights
  };
  Range slice(const nn::AdapterInit& init, int rank) const;
  void take(const Job& job, std::int64_t slot, const at::Tensor& parts);
  void send_out(std::span<const Place> places, const std::vector<Job>& jobs);
  std::vector<at::Tensor> bring_back(std::span<const Place> places, const std::vector<Job>& jobs, std::int64_t steps);
  std::vector<std::vector<Place>> rounds(std::span<const Place> places) const;
  at::Tensor exchange(const std::vector<at::Tensor>& to, const std::vector<std::int64_t>& from);

  nn::AdapterStore& whole_;
  nn::AdapterOptimizer& whole_optimizer_;
  std::unique_ptr<Communicator> slices_, neighbours_;
  std::vector<std::int64_t> ends_;  // of each rank's targets in the whole store
  CausalLm stage_;
  std::unique_ptr<nn::AdapterStore> store_;
  std::unique_ptr<nn::AdapterOptimizer> optimizer_;
  std::unique_ptr<AdapterPipeline> pipeline_;
  std::map<std::int64_t, std::vector<at::Tensor>> losses_;  // by slot, on the last rank
  std::int64_t sent_ = 0;
};

}  // namespace trireme::sweep
