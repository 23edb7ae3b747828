#include "framework/graphed_step.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>

namespace trireme {
namespace {

constexpr std::int64_t plain_steps = 2;

// Of an error of torch, without where it was thrown.
std::string first_line(std::string_view what) { return std::string(what.substr(0, what.find('\n'))); }

}  // namespace

GraphedStep::GraphedStep(Context& context, Recipe& recipe, std::vector<at::Tensor*> results)
    : context_(context), recipe_(recipe), results_(std::move(results)), pinned_(context.device()) {}

// Asked at every step: a recipe may be told to work in another way between two.
bool GraphedStep::wanted() {
  const TrainConfig& config = context_.config();
  if (!std::exchange(asked_, true))
    off_ = config.graph == "off" ||
           !make_step_graph(context_.device().is_cuda() ? context_.device().index() : -1, GraphMemory::own);
  if (off_) return false;
  auto why = recipe_.why_not_recorded(context_);
  if (!why) return false;
  if (context_.size() > 1) why = "it has several ranks";
  if (config.accumulate > 1) why = "it has several micro-batches";
  if (config.precision == "fp16" || config.precision == "f64") why = "precision is " + config.precision;
  if (!why->empty() && !std::exchange(said_, true)) context_.message("a step is not recorded as a CUDA graph: " + *why);
  return why->empty();
}

GraphedStep::Shapes GraphedStep::shapes_of(const Batch& batch) {
  Shapes all;
  for (const auto& [name, column] : batch.columns) {
    std::vector<std::int64_t> shape = column.sizes().vec();
    shape.push_back(std::int64_t(column.scalar_type()));
    all.emplace_back(name, std::move(shape));
  }
  return all;
}

void GraphedStep::fill(const Batch& batch) {
  inputs_.epoch = batch.epoch, inputs_.index = batch.index;
  inputs_.ids = batch.ids, inputs_.global_ids = batch.global_ids;
  if (batch.staged) batch.staged->wait();
  std::vector<at::Tensor> from, to;  // of the host
  for (const auto& [name, column] : batch.columns) {
    at::Tensor& input = inputs_.columns[name];
    if (!input.defined()) input = at::empty(column.sizes(), column.options().device(context_.device()));
    if (column.is_cpu())
      from.push_back(column), to.push_back(input);
    else
      input.copy_(column);
  }
  pinned_.copy(from, to);
}

void GraphedStep::enqueue(const Work& work) {
  struct Asking {
    Context& context;
    ~Asking() { context.scalars_ = nullptr; }
  } asking{context_};
  scalars_->begin();
  context_.scalars_ = scalars_.get();
  work(inputs_);
}

// Where it cannot be, steps run as they are.
bool GraphedStep::record(const Work& work) {
  auto graph = make_step_graph(context_.device().is_cuda() ? context_.device().index() : -1, GraphMemory::own);
  std::size_t pieces = 0;
  try {
    pieces = graph->capture([this, work] { enqueue(work); });
  } catch (const Error&) {  // ours: the step itself cannot be taken
    throw;
  } catch (const std::exception& e) {
    off_ = true;
    forget();
    context_.message("a step is not recorded as a CUDA graph: " + first_line(e.what()));
    return false;
  }
  graph_ = std::move(graph);
  context_.message("steps are replayed as a CUDA graph of " + std::to_string(pieces) + " kernels and copies");
  outputs_.clear();
  for (const at::Tensor* result : results_) outputs_.push_back(*result);
  return true;
}

bool GraphedStep::take(const Batch& batch, const Work& work) {
  if (!wanted()) return false;
  if (Shapes shapes = shapes_of(batch); shapes != shapes_) {
    if (graph_) {
      if (!std::exchange(told_, true))
        context_.message("a batch of another shape than the recorded one: such steps are launched piece by piece");
      return false;
    }
    forget();
    shapes_ = std::move(shapes);
  }
  if (++seen_ <= plain_steps) return false;
  recipe_.check(batch);
  fill(batch);
  if (!scalars_) {
    scalars_ = std::make_unique<StepScalars>(context_.device());
    enqueue(work);
    return true;
  }
  scalars_->send();
  context_.clock_.hold(true);
  const bool there = graph_ || record(work);
  if (there) {
    for (std::size_t i = 0; i < results_.size(); ++i) *results_[i] = outputs_[i];
    graph_->replay();
  }
  context_.clock_.hold(false);
  if (there) context_.clock_.end(StepClock::Phase::replayed);
  return there;
}

void GraphedStep::forget() {
  graph_.reset();
  scalars_.reset();
  inputs_ = {};
  outputs_.clear();
  shapes_.clear();
  seen_ = 0;
}

}  // namespace trireme
