#include "framework/stream_place.h"

#include "comm/error.h"

#include <thread>

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

namespace trireme {
namespace {

struct StreamPlace final : Work::State {
  explicit StreamPlace(at::Device device) : device(device), event(device.type()) {
    event.record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
  }
  ~StreamPlace() override { to_its_device(); }
  bool done() override { return event.query(); }
  bool settled() override try {
    to_its_device();
    return event.query();
  } catch (const std::exception&) {
    return true;  // failed
  }
  void wait() override { event.synchronize(); }
  bool wait_host(std::chrono::milliseconds timeout) override {
    const auto end = std::chrono::steady_clock::now() + timeout;
    while (!event.query()) {
      if (std::chrono::steady_clock::now() >= end) return false;
      std::this_thread::yield();
    }
    return true;
  }
  std::shared_ptr<State> then(std::function<Work()>) override {
    throw Error(ExitCode::bug, "a place on a stream", "has no then()");
  }
  // A watchdog, which asks and may be the last to hold it, has a thread without a device: it is to meet no other one.
  void to_its_device() const { c10::impl::VirtualGuardImpl(device.type()).uncheckedSetDevice(device); }
  const at::Device device;
  c10::Event event;
};

}  // namespace

std::shared_ptr<Work::State> stream_place(at::Device device) {
  return device.is_cuda() ? std::make_shared<StreamPlace>(device) : nullptr;
}

void StepsAhead::step() {
  if (device_.is_cpu()) return;
  places_.push_back(place_(device_));
  if (places_.size() <= most_) return;
  places_.front()->wait();
  places_.pop_front();
}

}  // namespace trireme
