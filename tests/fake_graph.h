// CUDA graphs on a CPU: what was recorded runs again at each replay, and finds there what a graph would find: nothing
// of what the host knows now but the buffers and numbers that were put where it reads.
#pragma once
#include "framework/context.h"
#include "framework/step_graph.h"

#include <atomic>
#include <cmath>
#include <stdexcept>

namespace trireme::test {

class FakeGraphs {
 public:
  FakeGraphs() {
    context = nullptr, made = 0, refuse = refuse_here = false;
    set_step_graphs([](int, GraphMemory) -> std::unique_ptr<StepGraph> { return std::make_unique<Graph>(); });
  }
  ~FakeGraphs() { set_step_graphs(nullptr); }

  static inline thread_local Context* context = nullptr;  // of the session that takes steps, of this rank
  static inline std::atomic<int> made = 0;                // recorded
  static inline bool refuse = false;  // what should be recorded cannot be
  static inline thread_local bool refuse_here = false;

 private:
  struct Graph : StepGraph {
    std::size_t capture(const std::function<void()>& f) override {
      if (refuse || refuse_here) throw std::runtime_error("operation not permitted when stream is capturing\nfrom here");
      run = f, ++made;
      return 3;
    }
    void replay() override {
      const Step now = std::exchange(context->now, {-1000, -1000, std::nan("")});
      run();
      context->now = now;
    }
    std::function<void()> run;
  };
};

}  // namespace trireme::test
