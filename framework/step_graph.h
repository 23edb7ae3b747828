// A fixed sequence of a GPU's work, recorded once and launched as one: what the host enqueues for a step costs more
// than small kernels do.
#pragma once
#include <functional>
#include <memory>

namespace trireme {

// Used by one thread. Memory that the work takes stays taken as long as any graph of the program lives; graphs share
// it, so what one leaves there is gone once another runs.
class StepGraph {
 public:
  virtual ~StepGraph() = default;
  // Runs `f` on the host, which enqueues work on the current stream and neither waits for the device nor allocates
  // outside of torch. Nothing runs on the device yet. Once for a graph.
  virtual void capture(const std::function<void()>& f) = 0;
  virtual void replay() = 0;  // enqueues it on the current stream
};

// Null in a program without CUDA.
std::unique_ptr<StepGraph> make_step_graph();

// Set once, at start, by the part that is linked with CUDA.
void set_step_graphs(std::unique_ptr<StepGraph> (*make)());

}  // namespace trireme
