#include "framework/step_graph.h"

namespace trireme {
namespace {

std::unique_ptr<StepGraph> (*maker)() = nullptr;

}  // namespace

std::unique_ptr<StepGraph> make_step_graph() { return maker ? maker() : nullptr; }

void set_step_graphs(std::unique_ptr<StepGraph> (*make)()) { maker = make; }

}  // namespace trireme
