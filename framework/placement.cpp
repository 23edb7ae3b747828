#include "framework/placement.h"

#include "comm/device.h"
#include "comm/error.h"
#include "comm/wrappers/traced.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <set>
#include <thread>

#include <ATen/Context.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace trireme {
namespace {

using Row = std::array<std::int64_t, 2>;

std::vector<Row> gather(Communicator& world, Row mine) {
  std::vector<Row> all(std::size_t(world.size()));
  world.all_gather({mine.data(), mine.size(), DType::i64}, {all.data(), all.size() * mine.size(), DType::i64}).wait();
  return all;
}

[[noreturn]] void no_nccl(const std::string& why) {
  throw UsageError("communicator", "nccl: " + why, "use communicator=mpi, or auto");
}

}  // namespace

Placement place_rank(Communicator& world, const TrainConfig& config) {
  const DeviceRuntime* runtime = device_runtime();
  const bool asked = config.device == "cuda";
  if (asked && !runtime)
    throw UsageError("device", "cuda, but this program was built without CUDA",
                     "install a CUDA toolkit and build the preset cuda, or use device=cpu");
  Placement placement;
  placement.cores = std::max(1, int(std::thread::hardware_concurrency()));
  if (config.device == "cpu" || !runtime) {
    if (config.communicator == "nccl") no_nccl("it moves GPU memory only");
    return placement;
  }
  const std::vector<Row> ranks = gather(world, {std::int64_t(this_machine()), runtime->count()});
  const auto without = std::find_if(ranks.begin(), ranks.end(), [](const Row& r) { return r[1] == 0; });
  if (without != ranks.end()) {
    if (asked)
      throw UsageError("device", "cuda, but rank " + std::to_string(without - ranks.begin()) + " finds no GPU",
                       "check nvidia-smi there, or use device=cpu");
    if (config.communicator == "nccl") no_nccl("it moves GPU memory only, and there is no GPU on every rank");
    return placement;
  }
  const Row& mine = ranks[std::size_t(world.rank())];
  const auto local =
      std::count_if(ranks.begin(), ranks.begin() + world.rank(), [&](const Row& r) { return r[0] == mine[0]; });
  const auto here = std::count_if(ranks.begin(), ranks.end(), [&](const Row& r) { return r[0] == mine[0]; });
  placement.cores = std::max(1, placement.cores / int(here));
  placement.device = at::Device(at::kCUDA, c10::DeviceIndex(local % mine[1]));
  c10::impl::VirtualGuardImpl(at::kCUDA).setDevice(placement.device);

  const auto identity = std::hash<std::string>()(runtime->identity(placement.device.index()));
  const bool has_nccl = world.size() > 1 && config.communicator != "mpi" && !runtime->nccl_version().empty();
  std::set<std::int64_t> gpus;
  bool all_have_nccl = true;
  for (const Row& r : gather(world, {std::int64_t(identity), has_nccl})) {
    gpus.insert(r[0]);
    all_have_nccl &= r[1] != 0;
  }
  const bool own_gpus = gpus.size() == std::size_t(world.size());
  if (config.communicator == "nccl" && world.size() > 1) {
    if (!all_have_nccl) no_nccl("libnccl.so.2 cannot be loaded on every rank");
    if (!own_gpus && !std::getenv("NCCL_MULTI_RANK_GPU_ENABLE")) no_nccl("every rank needs a GPU of its own");
    placement.nccl = true;
  } else if (config.communicator == "auto") {
    placement.nccl = all_have_nccl && own_gpus;
  }
  // f32 means f32, also of a loss beside a bf16 model: no 10-bit mantissas inside products, whatever the environment
  // says.
  at::globalContext().setAllowTF32CuBLAS(false);
  at::globalContext().setAllowTF32CuDNN(false);
  return placement;
}

at::Device one_device(const std::string& wanted) {
  if (wanted != "auto" && wanted != "cpu" && wanted != "cuda")
    throw UsageError("--device", "'" + wanted + "' is none", "write auto, cpu or cuda");
  const DeviceRuntime* runtime = device_runtime();
  const bool found = runtime && runtime->count() > 0;
  if (wanted == "cuda" && !found)
    throw UsageError("--device", "cuda, but this program finds no GPU", "build the preset cuda, check nvidia-smi");
  if (wanted == "cpu" || !found) return at::kCPU;
  at::globalContext().setAllowTF32CuBLAS(false);
  at::globalContext().setAllowTF32CuDNN(false);
  return at::Device(at::kCUDA, 0);
}

std::unique_ptr<Communicator> for_device(
    std::unique_ptr<Communicator> host, const Placement& placement,
    std::function<void(const char*, std::int64_t, std::int64_t, std::uint64_t)> sink) {
  if (!placement.device.is_cuda()) return host;
  const auto make = placement.nccl ? device_runtime()->nccl : device_runtime()->over_host;
  return make(std::move(host), placement.device.index(), std::move(sink));
}

std::unique_ptr<Communicator> ranks_for_device(Communicator& ranks, const Placement& placement,
                                               const std::string& what) {
  const auto make = [&placement](Communicator& c) { return for_device(c.split(0, c.rank()), placement, {}); };
  auto* traced = dynamic_cast<Traced*>(&ranks);
  if (!traced) return make(ranks);
  return traced->derive(traced->name() + "/" + what, make, {});
}

}  // namespace trireme
