#include "comm/cuda/runtime.h"

#include "comm/cuda/fetched_shares.h"
#include "comm/cuda/nccl.h"
#include "comm/cuda/over_host.h"
#include "comm/engine/waiting.h"
#include "comm/error.h"

#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace trireme::cuda {
namespace {

using Clock = std::chrono::steady_clock;

// Events without times, a device each. Never destroyed: the driver may be gone by then.
struct EventPool {
  std::mutex mutex;
  std::map<int, std::vector<cudaEvent_t>> idle;
};
EventPool& event_pool() {
  static auto* pool = new EventPool;
  return *pool;
}

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(Clock::now().time_since_epoch()).count();
}

// Device times become host times by one event whose host time is known.
class Timer final : public StreamTimer {
 public:
  Timer(Place place, DeviceSink sink) : place_(place), sink_(std::move(sink)) {
    const OnDevice on(place.device);
    TRIREME_CUDA_CHECK(cudaEventCreate(&origin_));
    TRIREME_CUDA_CHECK(cudaEventRecord(origin_, stream_of(place)));
    TRIREME_CUDA_CHECK(cudaEventSynchronize(origin_));
    origin_ns_ = now_ns();
  }
  ~Timer() override {
    try {
      flush(false);  // after an error the stream may never end
    } catch (...) {  // a timeline is not worth an error
    }
  }

  void begin() override {
    const OnDevice on(place_.device);
    if (!begin_) begin_ = take();
    TRIREME_CUDA_CHECK(cudaEventRecord(begin_, stream_of(place_)));
  }
  void end(const char* name, std::uint64_t bytes) override {
    const OnDevice on(place_.device);
    const cudaEvent_t last = take();
    TRIREME_CUDA_CHECK(cudaEventRecord(last, stream_of(place_)));
    spans_.push_back({name, bytes, std::exchange(begin_, nullptr), last});
    flush(false);
  }
  void flush(bool wait) override {
    const OnDevice on(place_.device);
    while (!spans_.empty()) {
      const Span& span = spans_.front();
      if (wait) TRIREME_CUDA_CHECK(cudaEventSynchronize(span.end));
      if (cudaEventQuery(span.end) != cudaSuccess) return;
      // A float of ms since the start: after days good for a position, not for a length.
      const std::int64_t begin = host_time(span.begin);
      sink_(span.name, begin, begin + ns_between(span.begin, span.end), span.bytes);
      idle_.push_back(span.begin);
      idle_.push_back(span.end);
      spans_.pop_front();
    }
  }

 private:
  struct Span {
    const char* name;
    std::uint64_t bytes;
    cudaEvent_t begin, end;
  };
  cudaEvent_t take() {
    if (idle_.empty()) {
      cudaEvent_t event = nullptr;
      TRIREME_CUDA_CHECK(cudaEventCreate(&event));
      return event;
    }
    const cudaEvent_t event = idle_.back();
    idle_.pop_back();
    return event;
  }
  static std::int64_t ns_between(cudaEvent_t begin, cudaEvent_t end) {
    float ms = 0;
    TRIREME_CUDA_CHECK(cudaEventElapsedTime(&ms, begin, end));
    return static_cast<std::int64_t>(static_cast<double>(ms) * 1e6);
  }
  std::int64_t host_time(cudaEvent_t event) const { return origin_ns_ + ns_between(origin_, event); }

  const Place place_;
  const DeviceSink sink_;
  cudaEvent_t origin_ = nullptr, begin_ = nullptr;
  std::int64_t origin_ns_ = 0;
  std::deque<Span> spans_;
  std::vector<cudaEvent_t> idle_;
};

int count() {
  int n = 0;
  return cudaGetDeviceCount(&n) == cudaSuccess ? n : 0;
}

std::string identity(int device) {
  cudaDeviceProp properties;
  TRIREME_CUDA_CHECK(cudaGetDeviceProperties(&properties, device));
  return {properties.uuid.bytes, sizeof properties.uuid.bytes};
}

int current() {
  int device = 0;
  TRIREME_CUDA_CHECK(cudaGetDevice(&device));
  return device;
}

std::shared_ptr<void> memory(std::size_t bytes) {
  void* p = nullptr;
  TRIREME_CUDA_CHECK(cudaMalloc(&p, bytes));
  return {p, [](void* q) { cudaFree(q); }};
}

std::shared_ptr<void> new_stream() {
  auto stream = std::make_shared<Stream>(current());
  return {stream->get(), [stream](void*) {}};
}

void copy(void* to, const void* from, std::size_t bytes, Place place) {
  TRIREME_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream_of(place)));
  TRIREME_CUDA_CHECK(cudaStreamSynchronize(stream_of(place)));
}

const DeviceRuntime runtime{count,          identity, nccl_version, over_host,  make_nccl, make_timer,
                            fetched_shares, current,  memory,       new_stream, copy};
const RegisterDeviceRuntime registered(&runtime);

}  // namespace

void check(cudaError_t result, const char* call) {
  if (result == cudaSuccess) return;
  cudaGetLastError();  // forget it where it can be forgotten
  const std::string_view text(call);
  if (result == cudaErrorMemoryAllocation)
    throw Error(ExitCode::memory, "CUDA", std::string(text.substr(0, text.find('('))) + ": out of device memory",
                "use a smaller batch or model, or raise accumulate");
  throw CommError("CUDA", std::string(text.substr(0, text.find('('))) + ": " + cudaGetErrorString(result));
}

OnDevice::OnDevice(int device) {
  int current = 0;
  TRIREME_CUDA_CHECK(cudaGetDevice(&current));
  if (current == device) return;
  TRIREME_CUDA_CHECK(cudaSetDevice(device));
  before_ = current;
}
OnDevice::~OnDevice() {
  if (before_ >= 0) cudaSetDevice(before_);
}

bool captures(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  TRIREME_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

Event::~Event() {
  if (!event_) return;
  auto& pool = event_pool();
  std::lock_guard lock(pool.mutex);
  pool.idle[device_].push_back(event_);
}

void Event::record(int device, cudaStream_t stream) {
  if (!event_) {
    auto& pool = event_pool();
    std::lock_guard lock(pool.mutex);
    auto& idle = pool.idle[device];
    if (!idle.empty()) {
      event_ = idle.back();
      idle.pop_back();
    } else {
      TRIREME_CUDA_CHECK(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
    }
    device_ = device;
  }
  captured_ = captures(stream);
  TRIREME_CUDA_CHECK(cudaEventRecord(event_, stream));
}

bool Event::complete() const {
  if (!event_ || captured_) return true;
  // A thread that has chosen no device (the watchdog's) would make a context on the first one.
  [[maybe_unused]] thread_local const bool chosen = [this] {
    int current = 0;
    return cudaGetDevice(&current) == cudaSuccess && (current != 0 || cudaSetDevice(device_) == cudaSuccess);
  }();
  const cudaError_t result = cudaEventQuery(event_);
  if (result == cudaErrorNotReady) {
    cudaGetLastError();
    return false;
  }
  check(result, "cudaEventQuery");
  return true;
}

void Event::block(cudaStream_t stream) const {
  if (event_) TRIREME_CUDA_CHECK(cudaStreamWaitEvent(stream, event_, 0));
}

bool Event::wait(Clock::time_point end, const std::function<void()>& alive) const {
  Backoff backoff(false);
  while (!complete()) {
    if (backoff.spin()) continue;
    if (alive) alive();
    if (Clock::now() >= end) return false;
    backoff.rest();
  }
  return true;
}

Stream::Stream(int device) : device_(device) {
  const OnDevice on(device);
  int least = 0, greatest = 0;
  TRIREME_CUDA_CHECK(cudaDeviceGetStreamPriorityRange(&least, &greatest));
  // A collective that others wait for goes before kernels that fill the device.
  TRIREME_CUDA_CHECK(cudaStreamCreateWithPriority(&stream_, cudaStreamNonBlocking, greatest));
}
Stream::~Stream() {
  if (stream_) cudaStreamDestroy(stream_);
}

Scratch::Scratch(std::size_t bytes, cudaStream_t stream) : stream_(stream) {
  if (bytes > 0) TRIREME_CUDA_CHECK(cudaMallocAsync(&data_, bytes, stream));
}
Scratch::~Scratch() {
  if (data_) cudaFreeAsync(data_, stream_);
}

std::unique_ptr<StreamTimer> make_timer(Place place, DeviceSink sink) {
  return std::make_unique<Timer>(place, std::move(sink));
}

}  // namespace trireme::cuda
