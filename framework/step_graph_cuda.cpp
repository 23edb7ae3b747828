// CUDA graphs through torch, whose allocator gives them memory of their own.
#include "framework/step_graph.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>

namespace trireme {
namespace {

class CapturedStep : public StepGraph {
 public:
  void capture(const std::function<void()>& f) override {
    static const auto pool = at::cuda::graph_pool_handle();
    c10::cuda::getCurrentCUDAStream().synchronize();  // nothing that is captured may wait for what came before
    thread_local const auto stream = c10::cuda::getStreamFromPool();  // libraries keep a workspace for each
    const c10::cuda::CUDAStreamGuard guard(stream);
    // Other threads (the loader's, NCCL's) may call what is forbidden within a capture.
    graph_.capture_begin(pool, cudaStreamCaptureModeThreadLocal);
    try {
      f();
    } catch (...) {
      graph_.capture_end();
      throw;
    }
    graph_.capture_end();
  }
  void replay() override { graph_.replay(); }

 private:
  at::cuda::CUDAGraph graph_;
};

const bool registered = [] {
  set_step_graphs([]() -> std::unique_ptr<StepGraph> { return std::make_unique<CapturedStep>(); });
  return true;
}();

}  // namespace
}  // namespace trireme
