// A pipeline filled with different adapters: mLoRA (arXiv 2312.02515), a job's samples at a time, and LoRAFusion (arXiv
// 2510.00206), micro-batches of several jobs whose adapters lie side by side in one product.
//
// Rank s of P holds layers [s L / P, (s + 1) L / P) of the backbone and of every adapter. In a tick a rank takes one
// pack forward and another backward, and hands both on to its neighbours. A job's next step begins once its last is
// over, 2 P - 2 ticks after its last pack began: ranks have no time without work where other jobs fill these.
#pragma once
#include "bench/adapter_jobs.h"
#include "comm/communicator.h"
#include "framework/nn/adapter_optimizer.h"

#include <limits>
#include <optional>

namespace trireme::bench {

enum class Filling : std::uint8_t { jobs, packs };

class PipelinedJobs {
 public:
  // packs: the fewest groups of equally many jobs that leave no time without work. Packs of either take at most
  // pass_tokens, or a sample a job. Collective.
  PipelinedJobs(AdapterJobs jobs, Communicator& world, const Placement& place, Filling filling = Filling::jobs);
  void set_shape(std::int64_t length, std::int64_t batch);  // while it is empty
  std::int64_t period() const;                              // ticks a step of all jobs
  std::int64_t packs() const { return std::int64_t(packs_.size()); }
  void tick();   // collective
  void drain();  // collective: what is under way ends, and nothing begins
  at::Tensor weights(std::int64_t job) const { return store_->flat_weights(job); }  // of this rank's layers

 private:
  struct Flight {
    at::Tensor in, out;  // out: on the last rank the loss
  };
  std::int64_t jobs_a_pack() const;
  void forward(std::int64_t pack);
  at::Tensor backward(std::int64_t pack);                    // -> the gradient of what came in
  void exchange(const at::Tensor& y, const at::Tensor& dx);  // y goes up, dx down; undefined: nothing does
  std::int64_t pack_at(std::int64_t delay) const;            // that began `delay` ticks ago; -1: none
  std::int64_t tokens_at(std::int64_t delay) const;          // of it
  bool last() const { return world_.rank() == world_.size() - 1; }

  AdapterJobs jobs_;
  Communicator& world_;
  Filling filling_;
  at::TensorOptions options_;
  CausalLm model_;
  std::unique_ptr<nn::AdapterStore> store_;
  std::optional<nn::AdapterOptimizer> optimizer_;
  std::unique_ptr<Communicator> neighbours_;
  JobSamples samples_;
  std::vector<JobPack> packs_;  // of a step of all jobs, a job's in a row
  std::vector<Flight> flights_;
  at::Tensor x_, dy_, losses_;                                               // what came from below and from above
  std::int64_t tick_ = 0, stop_ = std::numeric_limits<std::int64_t>::max();  // stop_: the tick that begins no pack
};

}  // namespace trireme::bench
