// The backends on device memory, as the contract tests start them: rank r of a node on GPU r modulo their
// number.
#include "comm/backends.h"
#include "comm/cuda/nccl.h"
#include "comm/cuda/over_host.h"
#include "comm/cuda/runtime.h"
#include "comm/error.h"
#include "comm/mpi/mpi.h"

#include <cstdlib>

namespace trireme {
namespace {

int gpus() {
  int n = 0;
  return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

std::string missing(int) { return gpus() > 0 ? "" : "no GPU"; }

std::string nccl_missing(int n) {
  if (gpus() == 0) return "no GPU";
  if (nccl_version().empty()) return "no libnccl.so.2";
  if (n > gpus() && !std::getenv("NCCL_MULTI_RANK_GPU_ENABLE"))
    return "NCCL wants a GPU a rank (from 2.32 on NCCL_MULTI_RANK_GPU_ENABLE=1 allows more)";
  return "";
}

using Make = std::unique_ptr<Communicator> (*)(std::unique_ptr<Communicator>, int, DeviceSink);

void run(Make make, int n, const std::function<void(Communicator&)>& rank_main) {
  run_mpi(MpiOptions::from_environment(), n, [&](Communicator& world, int node_rank) {
    const int device = node_rank % gpus();
    TRIREME_CUDA_CHECK(cudaSetDevice(device));
    const auto comm = make(world.split(0, world.rank()), device, {});
    rank_main(*comm);
  });
}

const Communicators::Entry over_host_entry({"mpi-cuda", Ranks::processes,
                                            [](int n, const auto& f) { run(over_host, n, f); }, missing, true});
const Communicators::Entry staged_entry({"mpi-cuda-staged", Ranks::processes,
                                         [](int n, const auto& f) {
                                           setenv("TRIREME_CUDA_TRANSPORT", "staged", 1);
                                           run(over_host, n, f);
                                         },
                                         missing, true});
const Communicators::Entry nccl_entry({"nccl", Ranks::processes, [](int n, const auto& f) { run(make_nccl, n, f); },
                                       nccl_missing, true});

}  // namespace
}  // namespace trireme
