#include "framework/step_graph.h"

namespace trireme {
namespace {

StepGraphMaker maker = nullptr;

}  // namespace

std::unique_ptr<StepGraph> make_step_graph(int device, GraphMemory memory) {
  return maker ? maker(device, memory) : nullptr;
}

void set_step_graphs(StepGraphMaker make) { maker = make; }

}  // namespace trireme
