// AdamW for the adapters of a store: every job has its own learning rate, weight decay, clipping and step count
// (kernels/adapter_adamw.h), all jobs are updated at once, and nothing waits for the device. A job can be taken out
// with all that its next step depends on, and be put into any slot of any store with the same targets.
#pragma once
#include "comm/archive.h"
#include "framework/nn/lora.h"

#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::nn {

struct AdapterRates {
  double lr = 0, weight_decay = 0, clip_norm = 0;  // clip_norm: of all targets together; 0: none
};

// A job outside a store, in host memory. Dropout's masks follow from init.seed and the steps counted here.
struct ParkedAdapter {
  AdapterInit init;
  AdapterRates rates;
  at::Tensor weights, first, second;  // f32, flat as AdapterStore has them
  std::int64_t updates = 0;
  bool alive = true;
  void state(Archive& ar);  // under its caller's names, per rank
};

class AdapterOptimizer {
 public:
  // The store must outlive it, and hold f32 masters (a base of f32 or bf16).
  explicit AdapterOptimizer(AdapterStore& store, double beta1 = 0.9, double beta2 = 0.999, double eps = 1e-8);

  // Of the adapter that `slot` was just filled with. Throws UsageError for rates that are not finite or negative.
  void start(std::int64_t slot, const AdapterRates& rates);
  // start() of a job that was parked; fills the slot.
  void unpark(std::int64_t slot, const ParkedAdapter& job);
  ParkedAdapter park(std::int64_t slot) const;  // waits for the device; the slot stays as it is
  void stop(std::int64_t slot);                 // frees the moments; the store's slot stays
  void set_lr(std::int64_t slot, double lr);

  // What step() of these slots would send to the device first. After it, a step can be recorded and replayed.
  void prepare(std::span<const std::int64_t> slots);
  // One update of each of `slots` by the gradients in the store, which are 0 afterwards. losses: f32 [slots of the
  // store] on its device, or undefined; a job whose loss or gradient is not finite is not alive from then on.
  // squares: f64 [slots of the store], of whole gradients where the store holds parts of adapters; else undefined.
  void step(std::span<const std::int64_t> slots, const at::Tensor& losses, const at::Tensor& squares = {});
  at::Tensor squares(std::span<const std::int64_t> slots) const;  // f64 [slots]: of the gradients in the store

  // f32 [slots of the store] on its device: 1 or 0, the last gradient's norm before clipping, updates done.
  const at::Tensor& alive() const { return alive_; }
  const at::Tensor& norms() const { return norm_; }
  const at::Tensor& updates() const { return updates_; }
  // Of a slot that trains, flat as its weights.
  const at::Tensor& first(std::int64_t slot) const { return first_.at(std::size_t(slot)); }
  const at::Tensor& second(std::int64_t slot) const { return second_.at(std::size_t(slot)); }
  // Counts up when what a recorded step reads moved.
  std::int64_t changes() const { return changes_; }

 private:
  void send_rates();
  void make_jobs(std::span<const std::int64_t> slots);

  AdapterStore& store_;
  double beta1_, beta2_, eps_;
  std::vector<AdapterRates> rates_;         // a slot
  std::vector<at::Tensor> first_, second_;  // a slot; undefined: stopped
  at::Tensor lr_, decay_, clip_, updates_, alive_, norm_, factor_, partial_;
  std::vector<std::int64_t> order_;  // slots of the table `jobs_`
  at::Tensor jobs_;
  std::int64_t longest_ = 0, changes_ = 0;
  bool rates_sent_ = false;
};

}  // namespace trireme::nn
