// Device memory of other processes of this node, mapped through CUDA IPC.
#pragma once
#include <cstdint>
#include <memory>

#include <cuda_runtime_api.h>

namespace trireme::cuda {

// How another process of this node finds a piece of this one's device memory. Plain bytes: it travels.
struct Exported {
  cudaIpcMemHandle_t handle;  // of the whole allocation
  std::uint64_t offset = 0;   // of the piece in it, bytes
  std::uint64_t address = 0;  // in the exporting process
  std::uint64_t process = 0;  // a number that no other process has
  std::uint64_t machine = 0;
  std::int64_t device = 0;   // in its process
  std::uint64_t usable = 0;  // 0: this memory cannot be exported
};

// `p` may be null: usable, and never to be mapped. The current device must be the memory's.
// TRIREME_CUDA_TRANSPORT=staged: nothing is usable.
Exported export_memory(const void* p);
// May this process, on its current device, try to open it?
bool within_reach(const Exported& piece);

// The piece in this process. Keep `mapping` until the last access has completed. Throws CommError.
struct Imported {
  void* data = nullptr;
  std::shared_ptr<void> mapping;
};
Imported import_memory(const Exported& piece);  // opened once, and then as long as this process lives
Imported open_memory(const Exported& piece);    // as long as `mapping` lives: its owner may free it after that

}  // namespace trireme::cuda
