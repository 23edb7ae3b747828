// CUDA graphs through torch, whose allocator gives them memory of their own.
#include "framework/step_graph.h"

#include <map>
#include <memory>

#include <ATen/core/CachingHostAllocator.h>
#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

namespace trireme {
namespace {

using Pool = std::shared_ptr<const at::cuda::MempoolId_t>;

// Of this thread on one device: another's graphs may run at the same time, and leave a pool at another.
struct Recorder {
  c10::cuda::CUDAStream stream = c10::cuda::getStreamFromPool();  // libraries keep a workspace for each
  std::weak_ptr<const at::cuda::MempoolId_t> shared;

  static Recorder& here() {
    thread_local std::map<c10::DeviceIndex, Recorder> of_device;
    return of_device[c10::cuda::current_device()];
  }
  // The shared one lives as long as a graph uses it: the allocator refuses a pool that its last graph has left.
  Pool pool(GraphMemory memory) {
    Pool pool = memory == GraphMemory::shared ? shared.lock() : nullptr;
    if (!pool) pool = std::make_shared<const at::cuda::MempoolId_t>(at::cuda::graph_pool_handle());
    if (memory == GraphMemory::shared) shared = pool;
    return pool;
  }
};

class CapturedStep : public StepGraph {
 public:
  explicit CapturedStep(GraphMemory memory) : memory_(memory) {}

  std::size_t capture(const std::function<void()>& f) override {
    c10::cuda::getCurrentCUDAStream().synchronize();  // nothing that is captured may wait for what came before
    Recorder& recorder = Recorder::here();
    const c10::cuda::CUDAStreamGuard guard(recorder.stream);
    pool_ = recorder.pool(memory_);
    bool begun = false;
    try {
      // Other threads (the loader's, NCCL's) may call what is forbidden within a capture.
      graph_.capture_begin(*pool_, cudaStreamCaptureModeThreadLocal);
      begun = true;
      f();
      const std::size_t nodes = recorded();
      graph_.capture_end();
      return nodes;
    } catch (...) {
      abandon(begun);
      throw;
    }
  }
  void replay() override { graph_.replay(); }

 private:
  // On the stream that is captured.
  static std::size_t recorded() {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long id = 0;
    cudaGraph_t graph = nullptr;
    std::size_t nodes = 0;
#if CUDART_VERSION >= 13000
    const auto found = cudaStreamGetCaptureInfo(c10::cuda::getCurrentCUDAStream(), &status, &id, &graph);
#else
    const auto found = cudaStreamGetCaptureInfo_v2(c10::cuda::getCurrentCUDAStream(), &status, &id, &graph);
#endif
    if (found == cudaSuccess && graph) C10_CUDA_CHECK(cudaGraphGetNodes(graph, nullptr, &nodes));
    return nodes;
  }
  // What went wrong is told, not what follows from it: the capture is invalid, and torch ends no part of it by itself.
  void abandon(bool begun) {
    const auto attempt = [](const auto& f) {
      try {
        f();
        return true;
      } catch (const std::exception&) {
        return false;
      }
    };
    if (begun && !attempt([this] { graph_.capture_end(); })) {
      const auto device = c10::cuda::current_device();
      auto* host = at::getHostAllocator(at::kCUDA);
      attempt([&] { c10::cuda::CUDACachingAllocator::endAllocateToPool(device, *pool_); });
      attempt([&] { c10::cuda::CUDACachingAllocator::releasePool(device, *pool_); });
      attempt([&] { host->end_allocate_to_pool(*pool_); });
      attempt([&] { host->release_pool(*pool_); });
    }
    cudaGetLastError();  // forget it
    attempt([] {         // an empty one that succeeds: torch's generators still think that they are captured
      at::cuda::CUDAGraph empty;
      empty.capture_begin(at::cuda::graph_pool_handle(), cudaStreamCaptureModeThreadLocal);
      empty.capture_end();
    });
  }

  const GraphMemory memory_;
  Pool pool_;  // outlives graph_, which gives it back
  at::cuda::CUDAGraph graph_;
};

const bool registered = [] {
  set_step_graphs([](int device, GraphMemory memory) -> std::unique_ptr<StepGraph> {
    return device < 0 ? nullptr : std::make_unique<CapturedStep>(memory);
  });
  return true;
}();

}  // namespace
}  // namespace trireme
