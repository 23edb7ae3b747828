#include "framework/step_graph.h"

namespace trireme {
namespace {

StepGraphMaker maker = nullptr;

}  // namespace

std::unique_ptr<StepGraph> make_step_graph(int device, GraphMemory memory) {
  return maker ? maker(device, memory) : nullptr;
}

std::string first_line(const std::exception& e) {
  const std::string what = e.what();
  return what.substr(0, what.find('\n'));
}

void set_step_graphs(StepGraphMaker make) { maker = make; }

}  // namespace trireme
