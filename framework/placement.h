// Where a rank computes and what its device memory travels over.
#pragma once
#include "comm/communicator.h"
#include "framework/train_config.h"

#include <functional>
#include <memory>
#include <string>

#include <ATen/core/Tensor.h>

namespace trireme {

struct Placement {
  at::Device device = at::kCPU;
  bool nccl = false;  // device memory travels over NCCL; else over the host communicator, by CUDA IPC or staging
  int cores = 1;      // processors for this rank: those of the machine, divided by its ranks (with GPUs)
};

// Collective, unless `device: cpu` or a program without CUDA makes it plain. Rank r of a machine gets GPU r
// modulo their number, and it becomes the calling thread's current device. Throws UsageError on all ranks for
// what cannot be had on one.
Placement place_rank(Communicator& world, const TrainConfig& config);

// For one process by itself: `cpu`, `cuda` (the first GPU), or `auto`: a GPU where there is one. UsageError for another
// word or a GPU that is not there.
at::Device one_device(const std::string& wanted);

// `host` for device memory too; unchanged on a CPU. Collective. `sink`: times of its collectives, see
// comm/device.h.
std::unique_ptr<Communicator> for_device(
    std::unique_ptr<Communicator> host, const Placement& placement,
    std::function<void(const char* name, std::int64_t begin, std::int64_t end, std::uint64_t bytes)> sink);

// The same ranks once more, for memory of the device. Where `ranks` is Traced, so is this, as NAME/what: recorded and
// watched together with it. Collective.
std::unique_ptr<Communicator> ranks_for_device(Communicator& ranks, const Placement& placement,
                                               const std::string& what);

}  // namespace trireme
