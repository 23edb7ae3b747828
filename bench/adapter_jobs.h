// Several LoRA jobs on one drawn backbone, as the arms of `trireme bench ap_step` train them.
#pragma once
#include "framework/models/causal_lm.h"
#include "framework/placement.h"

#include <cstdint>
#include <memory>
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
  bool fp8 = false;  // the sharded base's products, and what of it travels

  at::TensorOptions options(const Placement& place) const { return at::TensorOptions(place.device).dtype(type); }
  nn::AdapterInit init(const nn::AdapterStore& store, std::int64_t job) const;
  double rate(std::int64_t job) const { return lr * double(1 + job % 5); }
  // The most samples of each of so many jobs that a pass takes, at least 1.
  std::int64_t pass_samples(std::int64_t of_jobs) const;
};

// Jobs by rank: large adapters first, back and forth, so that places hold about as many of them and of their
// parameters.
std::vector<std::vector<std::int64_t>> balanced(std::span<const std::int64_t> ranks, int places);

// Weights by their names in the whole model, of which layers from `first_layer` on are drawn.
CausalLm::Source drawn_backbone(at::TensorOptions options, std::int64_t first_layer = 0);

// Room for all jobs on every projection of `model`.
std::unique_ptr<nn::AdapterStore> store_for(CausalLm& model, const AdapterJobs& jobs);

// An adapter's flat weights for a store of these targets, of which the first is `first_target` of the whole model:
// drawn where they will lie, since a host takes seconds for 1e9.
at::Tensor drawn_adapter(const nn::AdapterStore& store, const nn::AdapterInit& init, std::uint64_t seed,
                         std::size_t first_target = 0);

// Samples [first, last) of each of some jobs: a pass's batch. Those beyond a job's batch fill up and do not count.
struct JobPack {
  std::vector<std::int64_t> jobs;
  std::int64_t first = 0, last = 0;
  std::int64_t samples() const { return std::int64_t(jobs.size()) * (last - first); }
};

class JobSamples {
 public:
  JobSamples() = default;
  JobSamples(const AdapterJobs& jobs, at::Device device);

  std::vector<nn::SlotRows> rows(const JobPack& pack) const;
  TokenBatch batch(const JobPack& pack) const;
  std::int64_t tokens(const JobPack& pack) const { return pack.samples() * length_; }
  // i64 [tokens]: the next id of each, which a sample's last has not; of what does not count, none.
  at::Tensor labels(const JobPack& pack) const;
  // f32 [jobs]: what these samples add to the jobs' losses.
  at::Tensor losses(const CausalLm& model, const at::Tensor& hidden, const JobPack& pack) const;

 private:
  std::int64_t length_ = 0, batch_ = 0;
  std::vector<std::vector<at::Tensor>> ids_;  // by job and sample
};

}  // namespace trireme::bench
