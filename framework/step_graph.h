// A fixed sequence of a GPU's work, recorded once and launched as one: what the host enqueues for a step costs more
// than small kernels do.
#pragma once
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <string>

namespace trireme {

// Where a graph's work takes its memory from. shared: what one graph leaves there is gone once another runs. own: no
// other graph touches it. Either stays taken as long as the graph lives.
enum class GraphMemory : std::uint8_t { shared, own };

// Used by one thread.
class StepGraph {
 public:
  virtual ~StepGraph() = default;
  // Runs `f` on the host, which enqueues work on the current stream and neither waits for the device nor allocates
  // outside of torch. Nothing runs on the device yet. Once for a graph. Throws what `f` throws, and where the work
  // cannot be recorded; then the graph is of no use. Returns how many kernels, copies and the like it found.
  virtual std::size_t capture(const std::function<void()>& f) = 0;
  virtual void replay() = 0;  // enqueues it on the current stream
};

// device: a GPU's index, or -1: the host, for which there is none. Null also in a program without CUDA.
std::unique_ptr<StepGraph> make_step_graph(int device, GraphMemory memory);

// Why a capture failed: torch's error, without where it was thrown.
std::string first_line(const std::exception& e);

// Set once, at start, by the part that is linked with CUDA; tests set their own.
using StepGraphMaker = std::unique_ptr<StepGraph> (*)(int device, GraphMemory memory);
void set_step_graphs(StepGraphMaker make);

}  // namespace trireme
