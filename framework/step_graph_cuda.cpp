// CUDA graphs through torch, whose allocator gives them memory of their own.
#include "framework/step_graph.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

namespace trireme {
namespace {

at::cuda::MempoolId_t pool_of(GraphMemory memory) {
  static const auto shared = at::cuda::graph_pool_handle();
  return memory == GraphMemory::shared ? shared : at::cuda::graph_pool_handle();
}

class CapturedStep : public StepGraph {
 public:
  explicit CapturedStep(GraphMemory memory) : pool_(pool_of(memory)) {}

  std::size_t capture(const std::function<void()>& f) override {
    c10::cuda::getCurrentCUDAStream().synchronize();  // nothing that is captured may wait for what came before
    const c10::cuda::CUDAStreamGuard guard(c10::cuda::getStreamFromPool());
    // Other threads (the loader's, NCCL's) may call what is forbidden within a capture.
    graph_.capture_begin(pool_, cudaStreamCaptureModeThreadLocal);
    try {
      f();
      const std::size_t nodes = recorded();
      graph_.capture_end();
      return nodes;
    } catch (...) {
      abandon();
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
  // What went wrong is told, not what follows from it: the capture is invalid, the allocator's part of it perhaps over.
  void abandon() {
    const auto attempt = [](const auto& f) {
      try {
        f();
        return true;
      } catch (const std::exception&) {
        return false;
      }
    };
    if (!attempt([this] { graph_.capture_end(); }))
      attempt([this] { c10::cuda::CUDACachingAllocator::endAllocateToPool(c10::cuda::current_device(), pool_); });
    cudaGetLastError();  // forget it
  }

  const at::cuda::MempoolId_t pool_;
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
