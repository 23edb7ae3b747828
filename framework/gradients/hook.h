// The seam of gradient reduction: how one full bucket becomes its sum over ranks.
//
// A hook belongs to one bucket for the life of the bucket's layout, so what it keeps (error feedback, warm starts)
// is a plain member and part of the checkpoint. Registered by name in its own file; every codec of compression/ is
// also a hook of its name. A bucket on a device is reduced in stream order: inside a Work::then() the current stream is
// the communicator's, and the host waits for nothing.
#pragma once
#include "comm/archive.h"
#include "comm/communicator.h"
#include "comm/registry.h"
#include "framework/config/config.h"

#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

struct HookConfig {
  std::string name = "none";
  bool error_feedback = true;
  double bound = 0, density = 0.01;
  std::int64_t rank = 4, start = 0;
  void fields(Fields& f);
};

struct Bucket {
  at::Tensor flat;                      // contiguous, zeros between parameters
  std::vector<at::Tensor> gradients;    // views of it, shaped as the parameters
  std::vector<std::string> parameters;  // their names
};

// Communicators over the same ranks, at least one. Each has an order of its own, so that what one of them sends hides
// what is computed for another.
using Lanes = std::span<Communicator* const>;

class GradientHook {
 public:
  virtual ~GradientHook() = default;
  // Collective, from the thread that runs backward: starts to replace bucket.flat by its sum over the ranks, equal on
  // all of them to the bit. It is there once all that was added to `works` is complete, also where this throws; bucket
  // and lanes must outlive that.
  virtual void reduce(Bucket& bucket, Lanes lanes, std::vector<Work>& works) = 0;
  // Bytes this rank puts on the wire in one reduce, by formula.
  virtual std::size_t bytes(const Bucket& bucket, const Communicator& comm) const = 0;
  // Once all works of the last reduce are complete. Where `skip`, an f32 scalar beside the bucket, is 1, that reduce
  // belongs to a step that is not taken: what is kept is as before it. A device is not waited for (take_back).
  virtual void undo(const at::Tensor& skip) { static_cast<void>(skip); }
  // After undo: from the next step on gradients are `factor` (f32 scalar beside the bucket) times as large, and so must
  // be what is kept of them (a loss scale that changed).
  virtual void rescale(const at::Tensor& factor) { static_cast<void>(factor); }
  // `common`: how what is equal on all ranks of the bucket is saved.
  virtual void state(Archive&, Sharing::Kind common) { static_cast<void>(common); }
};

using GradientHooks = Factories<GradientHook, const HookConfig&, const Bucket&, const Communicator&>;

// `now` becomes `before` again, or zeros where that is undefined, if `skip` is not 0. Contiguous f32, in stream order.
void take_back(const at::Tensor& skip, const at::Tensor& now, const at::Tensor& before);

// What a hook keeps of the gradients of a rank: f32 values in their unit, zeros at first, per_rank in checkpoints.
struct KeptGradients {
  at::Tensor now, before;  // before: the last step

  KeptGradients() = default;  // undefined: nothing is kept, and what follows does nothing
  KeptGradients(std::int64_t count, const at::TensorOptions& options);
  void next_step();  // what was kept is `before`; `now` is to be written
  void undo(const at::Tensor& skip);
  void rescale(const at::Tensor& factor);
  void state(Archive& ar, std::string_view name);  // a checkpoint may have none
};

// Throws UsageError for an unknown name, for anything but f32 gradients, and on a device for a codec that has no form
// for it.
std::unique_ptr<GradientHook> make_hook(const HookConfig& config, const Bucket& bucket, const Communicator& comm);

}  // namespace trireme
