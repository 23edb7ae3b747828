#include "comm/cuda/nccl_library.h"

#include "comm/error.h"
#include "comm/cuda/nccl.h"

#include <optional>

#include <dlfcn.h>

namespace trireme {
namespace {

std::optional<NcclLibrary> load() {
  void* library = dlopen("libnccl.so.2", RTLD_NOW | RTLD_GLOBAL);
  if (!library) return {};
  NcclLibrary table;
#define TRIREME_NCCL_LOAD(f)                                                 \
  table.f = reinterpret_cast<decltype(&nccl##f)>(dlsym(library, "nccl" #f)); \
  if (!table.f) return {};
  TRIREME_NCCL_FUNCTIONS(TRIREME_NCCL_LOAD)
#undef TRIREME_NCCL_LOAD
  return table;
}

}  // namespace

const NcclLibrary* find_nccl() {
  static const std::optional<NcclLibrary> table = load();
  return table ? &*table : nullptr;
}

const NcclLibrary& nccl() {
  const NcclLibrary* table = find_nccl();
  if (!table) throw UsageError("nccl", "libnccl.so.2 cannot be loaded", "install NCCL, or use communicator=mpi");
  return *table;
}

std::string nccl_version() {
  int v = 0;
  if (!find_nccl() || nccl().GetVersion(&v) != ncclSuccess) return {};
  return std::to_string(v / 10000) + "." + std::to_string(v / 100 % 100) + "." + std::to_string(v % 100);
}

}  // namespace trireme
