#include "data/staging.h"

#include <deque>
#include <functional>
#include <mutex>

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>

namespace trireme {
namespace {

c10::Stream current_stream(at::Device device) { return c10::impl::VirtualGuardImpl(device.type()).getStream(device); }

struct Memory {
  explicit Memory(at::Device device) : filled(device.type()), used(device.type()) {}
  at::Tensor host, device;
  c10::Event filled, used;
};

}  // namespace

struct Staging::Pool {
  const at::Device device;
  const c10::Stream stream;
  std::mutex mutex;
  std::deque<std::unique_ptr<Memory>> free;  // the one that was given up first comes first
};

namespace {

class Lease final : public Staging::Slot {
 public:
  Lease(std::unique_ptr<Memory> memory, at::Device device, c10::Stream stream,
        std::function<void(std::unique_ptr<Memory>)> give_back)
      : memory_(std::move(memory)), device_(device), stream_(stream), give_back_(std::move(give_back)) {}
  ~Lease() override {
    try {
      memory_->used.record(current_stream(device_));
      give_back_(std::move(memory_));
    } catch (...) {  // the GPU is gone: so is the memory
    }
  }
  std::uint8_t* host() override { return memory_->host.data_ptr<std::uint8_t>(); }
  at::Tensor send(std::int64_t bytes) override {
    const c10::StreamGuard guard(stream_);
    const at::Tensor to = memory_->device.narrow(0, 0, bytes);
    to.copy_(memory_->host.narrow(0, 0, bytes), /*non_blocking=*/true);
    memory_->filled.record(stream_);
    return to;
  }
  void wait() const override { memory_->filled.block(current_stream(device_)); }

 private:
  std::unique_ptr<Memory> memory_;
  const at::Device device_;
  const c10::Stream stream_;
  const std::function<void(std::unique_ptr<Memory>)> give_back_;
};

}  // namespace

Staging::Staging(at::Device device)
    : pool_(new Pool{device, c10::impl::VirtualGuardImpl(device.type()).getStreamFromGlobalPool(device), {}, {}}) {}

Staging::~Staging() = default;

std::shared_ptr<Staging::Slot> Staging::take(std::int64_t bytes) {
  std::unique_ptr<Memory> memory;
  {
    const std::lock_guard lock(pool_->mutex);
    if (!pool_->free.empty()) {
      memory = std::move(pool_->free.front());
      pool_->free.pop_front();
    }
  }
  const c10::StreamGuard guard(pool_->stream);
  if (!memory) memory = std::make_unique<Memory>(pool_->device);
  memory->filled.synchronize();
  memory->used.synchronize();
  if (!memory->host.defined() || memory->host.numel() < bytes) {
    const std::int64_t room = bytes + bytes / 8;  // the next batch may be a little larger
    memory->host = memory->device = at::Tensor();
    memory->host = at::empty({room}, at::TensorOptions(at::kByte).pinned_memory(true));
    memory->device = at::empty({room}, at::TensorOptions(pool_->device).dtype(at::kByte));
  }
  return std::make_shared<Lease>(std::move(memory), pool_->device, pool_->stream,
                                 [pool = pool_](std::unique_ptr<Memory> m) {
                                   const std::lock_guard lock(pool->mutex);
                                   pool->free.push_back(std::move(m));
                                 });
}

}  // namespace trireme
