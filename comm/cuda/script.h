// Internals of mpi_cuda: collectives on device memory as operations of a queue.
#pragma once
#include "comm/engine/arguments.h"
#include "comm/cuda/runtime.h"
#include "comm/engine/engine.h"

#include <deque>
#include <functional>

namespace trireme::cuda {

class Script;

// What one communicator and its operations share. Operations of the queue use `host` one after the other,
// which is why host buffers go through the queue too.
class HostDriven final : public Queue {
 public:
  HostDriven(std::shared_ptr<Engine> engine, std::unique_ptr<Communicator> h, int device, DeviceSink s);
  ~HostDriven() override;

  // One of two pinned buffers, of that many bytes at least. Its contents do not outlive an operation.
  std::byte* pinned(int which, std::size_t bytes);
  void copy(void* to, const void* from, std::size_t bytes) const;  // enqueued on `stream`
  // Where results go: `out`, or, if `apart`, the script's own memory until copy_result().
  std::function<void*()> result_of(Script& script, const Buffer& out, bool apart);
  void copy_result(Script& script);

  const std::unique_ptr<Communicator> host;
  const Member me;
  const Stream stream;
  const DeviceSink sink;
  std::size_t piece_bytes;  // of staging
  bool ipc = false;         // can every rank open every rank's memory?

 private:
  struct Pinned {
    void* data = nullptr;
    std::size_t bytes = 0;
  } pinned_[2];
};

// An operation as a list of stages. A stage never blocks; it is called until it returns true.
class Script final : public Operation {
 public:
  using Stage = std::function<bool()>;
  Script(HostDriven& group, const char* name, std::uint64_t bytes) : g_(group), name_(name), bytes_(bytes) {}

  Step progress() override;
  void add(Stage stage) { stages_.push_back(std::move(stage)); }
  // A collective of the host communicator.
  void add_host(std::function<Work(Communicator&)> call);
  // From inside a stage that then returns true: what comes next, in place of what was to come.
  void replace(std::deque<Stage> stages) { stages_ = std::move(stages); }

  Event ready;      // what the caller's stream had enqueued at the call
  Event also;       // the input's stream, if another
  Event end;        // behind the last copy; empty: everything is complete already
  Scratch scratch;  // results that would overwrite somebody's input,
  Buffer apart;     // and where they go in the end; null data: there are none
  Work host;        // the running collective of the host communicator

 private:
  HostDriven& g_;
  const char* name_;
  const std::uint64_t bytes_;
  std::int64_t begin_ns_ = 0;
  std::deque<Stage> stages_;
};

// Through pinned memory: for piece k of `count`, down() enqueues copies to the host, move() is the
// collective, up() enqueues copies to the device. Pieces k and k+1 use different slots.
struct Pieces {
  std::size_t count = 0, slot_bytes = 0;
  std::function<void(std::size_t k, std::byte*slot)> down, up;
  std::function<Work(std::size_t k, std::byte* slot)> move;
};
// The stages of that, result and end event included.
std::deque<Script::Stage> staged(HostDriven& group, Script& script, Pieces pieces);

// A Work of this communicator: the host's part is an operation, the device's part ends with an event.
// `place` host: waiting blocks until both are complete.
std::shared_ptr<Work::State> make_device_work(std::shared_ptr<HostDriven> group, std::shared_ptr<Script> script,
                                              Place place);

}  // namespace trireme::cuda
