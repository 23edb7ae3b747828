// CUDA graphs on a CPU: what was recorded runs again at each replay, and finds there what a graph would find: nothing
// of what the host knows now but the buffers and numbers that were put where it reads.
#pragma once
#include "framework/context.h"
#include "framework/step_graph.h"

#include <cmath>
#include <stdexcept>

namespace trireme::test {

class FakeGraphs {
 public:
  FakeGraphs() {
    context = nullptr, made = 0, refuse = false;
    set_step_graphs([](int, GraphMemory) -> std::unique_ptr<StepGraph> { return std::make_unique<Graph>(); });
  }
  ~FakeGraphs() { set_step_graphs(nullptr); }

  static inline Context* context = nullptr;  // of the session that takes steps
  static inline int made = 0;                // recorded
  static inline bool refuse = false;         // what should be recorded cannot be

 private:
  struct Graph : StepGraph {
    std::size_t capture(const std::function<void()>& f) override {
      if (refuse) throw std::runtime_error("operation not permitted when stream is capturing\nfrom here");
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
