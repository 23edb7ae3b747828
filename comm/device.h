// Device memory in collectives: what the GPU part of this program offers. It is linked only where a CUDA
// toolkit was found, and registers itself; everything else asks here and needs no CUDA header.
//
// Rules for collectives on device buffers (Buffer::place.device >= 0, place.stream = the caller's stream):
// - The collective begins when the work that was on the caller's stream at the call is done.
// - Work::wait() makes that stream wait; it does not block the host, except where the host itself drives the
//   transfer (communicators over MPI): there it waits until the last copy is enqueued.
// - Work::wait_host() waits on the host. The buffers stay untouched until wait() or wait_host() returned.
// - Work::then(): kernels and collectives started inside run in order on the communicator's own stream, which
//   is the current stream of the tensor library there (set_stream_scope). What the function holds lives as
//   long as the returned Work.
// - Host buffers work too: they go through the host communicator underneath.
#pragma once
#include "comm/communicator.h"
#include "comm/frozen_shares.h"

#include <functional>
#include <string>

namespace trireme {

// Called with the times the device saw, of the steady clock in ns; by any thread, one at a time.
using DeviceSink =
    std::function<void(const char* name, std::int64_t begin_ns, std::int64_t end_ns, std::uint64_t bytes)>;

// Times of work on one stream. Used by one thread at a time.
class StreamTimer {
 public:
  virtual ~StreamTimer() = default;
  virtual void begin() = 0;                                     // from here ...
  virtual void end(const char* name, std::uint64_t bytes) = 0;  // ... to here; `name` is kept by pointer
  virtual void flush(bool wait) = 0;                            // hands over what is complete, or (wait) all
};

struct DeviceRuntime {
  int (*count)();                       // GPUs that this process may use; 0 without a driver
  std::string (*identity)(int device);  // equal for one GPU in all processes that see it
  std::string (*nccl_version)();        // empty: no library is found
  // Collective over `host`. Sums in rank order, bit-identical to the host path (but for the payload of NaNs).
  std::unique_ptr<Communicator> (*over_host)(std::unique_ptr<Communicator> host, int device, DeviceSink);
  // As over_host, on NCCL, which does NOT sum in rank order: see nccl.h.
  std::unique_ptr<Communicator> (*nccl)(std::unique_ptr<Communicator> host, int device, DeviceSink);
  std::unique_ptr<StreamTimer> (*timer)(Place, DeviceSink);
  // For open_shares: fetched ones, or null on all ranks where some rank cannot reach another's memory.
  std::unique_ptr<FrozenShares> (*fetched_shares)(Communicator& ranks, const std::vector<ConstBuffer>& mine);
  // For callers without a tensor library; all on the calling thread's current device.
  int (*current)();
  std::shared_ptr<void> (*memory)(std::size_t bytes);
  std::shared_ptr<void> (*stream)();
  void (*copy)(void* to, const void* from, std::size_t bytes, Place);  // in stream order, and waits for it
};

// Null where the program was built without a GPU part.
const DeviceRuntime* device_runtime();
struct RegisterDeviceRuntime {
  explicit RegisterDeviceRuntime(const DeviceRuntime* runtime);
};

// Equal for all processes of one machine.
std::uint64_t this_machine();

// How to make `place.stream` the current stream of the tensor library while `f` runs. Set once, at start.
using StreamScope = std::function<void(Place place, const std::function<void()>& f)>;
void set_stream_scope(StreamScope scope);
void in_stream(Place place, const std::function<void()>& f);

// The stream that the tensor library works on at present, on this thread. Set once, at start.
using CurrentStream = void* (*)(int device);
void set_current_stream(CurrentStream);
Place current_place(int device);

}  // namespace trireme
