#include "comm/device.h"

#include <fstream>

#include <unistd.h>

namespace trireme {
namespace {

const DeviceRuntime*& runtime_slot() {
  static const DeviceRuntime* runtime = nullptr;
  return runtime;
}

StreamScope& scope_slot() {
  static StreamScope scope;
  return scope;
}

CurrentStream current_stream = nullptr;

}  // namespace

const DeviceRuntime* device_runtime() { return runtime_slot(); }
RegisterDeviceRuntime::RegisterDeviceRuntime(const DeviceRuntime* runtime) { runtime_slot() = runtime; }

std::uint64_t this_machine() {
  std::string text;
  std::ifstream file("/proc/sys/kernel/random/boot_id");
  std::getline(file, text);
  char name[256] = {};
  gethostname(name, sizeof name - 1);
  return std::hash<std::string>()(text + name);
}

void set_stream_scope(StreamScope scope) { scope_slot() = std::move(scope); }

void in_stream(Place place, const std::function<void()>& f) {
  if (scope_slot()) {
    scope_slot()(place, f);
  } else {
    f();
  }
}

void set_current_stream(CurrentStream f) { current_stream = f; }
Place current_place(int device) { return {device, current_stream ? current_stream(device) : nullptr}; }

}  // namespace trireme
