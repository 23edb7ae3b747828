#include "comm/cuda/ipc.h"

#include "comm/cuda/runtime.h"
#include "comm/error.h"

#include <cstdlib>
#include <map>
#include <mutex>
#include <random>
#include <string>

#include <cuda.h>

namespace trireme::cuda {
namespace {

std::uint64_t this_process() {
  static const std::uint64_t number = [] {
    std::random_device random;
    return std::uint64_t{random()} << 32 | random();
  }();
  return number;
}

int current_device() {
  int device = 0;
  TRIREME_CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

// Start of the allocation that holds `p`; the driver is not linked, so that programs start without it.
const void* allocation_of(const void* p) {
  using Find = CUresult (*)(CUdeviceptr*, std::size_t*, CUdeviceptr);
  static const Find find = [] {
    void* f = nullptr;
    cudaDriverEntryPointQueryResult status;
    if (cudaGetDriverEntryPointByVersion("cuMemGetAddressRange", &f, 12000, cudaEnableDefault, &status) !=
            cudaSuccess ||
        status != cudaDriverEntryPointSuccess)
      f = nullptr;
    return reinterpret_cast<Find>(f);
  }();
  CUdeviceptr base = 0;
  std::size_t bytes = 0;
  if (!find || find(&base, &bytes, reinterpret_cast<CUdeviceptr>(p)) != CUDA_SUCCESS) return nullptr;
  return reinterpret_cast<const void*>(base);
}

// Opening a handle takes a tenth of a millisecond or more: every allocation is opened once. Never destroyed:
// the driver may be gone by then.
struct Mappings {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<void>> open;  // device and handle -> start of the allocation here
};
Mappings& mappings() {
  static auto* m = new Mappings;
  return *m;
}

}  // namespace

Exported export_memory(const void* p) {
  static const std::uint64_t machine = this_machine();
  static const char* transport = std::getenv("TRIREME_CUDA_TRANSPORT");
  Exported piece = {};
  piece.process = this_process();
  piece.machine = machine;
  piece.device = current_device();
  piece.address = reinterpret_cast<std::uint64_t>(p);
  piece.usable = !(transport && std::string_view(transport) == "staged");
  if (!p || !piece.usable) return piece;
  const void* base = allocation_of(p);
  if (!base || cudaIpcGetMemHandle(&piece.handle, const_cast<void*>(base)) != cudaSuccess) {
    cudaGetLastError();  // an allocation of another kind: an answer, not an error
    piece.usable = 0;
    return piece;
  }
  piece.offset = piece.address - reinterpret_cast<std::uint64_t>(base);
  return piece;
}

bool within_reach(const Exported& piece) {
  const Exported here = export_memory(nullptr);
  // Two devices of one process: peer access would have to be switched on, IPC does that by itself.
  return piece.usable && piece.machine == here.machine &&
         (piece.process != here.process || piece.device == here.device);
}

Imported open_memory(const Exported& piece) {
  if (piece.address == 0) return {};
  if (piece.process == this_process()) return {reinterpret_cast<void*>(piece.address), {}};
  void* base = nullptr;
  TRIREME_CUDA_CHECK(cudaIpcOpenMemHandle(&base, piece.handle, cudaIpcMemLazyEnablePeerAccess));
  std::shared_ptr<void> mapping(base, [device = current_device()](void* p) {
    try {
      const OnDevice on(device);
      cudaIpcCloseMemHandle(p);
    } catch (const Error&) {  // the driver is gone
    }
  });
  return {static_cast<std::byte*>(base) + piece.offset, std::move(mapping)};
}

Imported import_memory(const Exported& piece) {
  if (piece.address == 0 || piece.process == this_process()) return open_memory(piece);
  std::string key(reinterpret_cast<const char*>(&piece.handle), sizeof piece.handle);
  key += std::to_string(current_device());
  auto& m = mappings();
  std::lock_guard lock(m.mutex);
  auto& mapping = m.open[key];
  if (!mapping) {
    Exported whole = piece;
    whole.offset = 0;
    mapping = open_memory(whole).mapping;
  }
  return {static_cast<std::byte*>(mapping.get()) + piece.offset, mapping};
}

}  // namespace trireme::cuda
