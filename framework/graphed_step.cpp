#include "framework/graphed_step.h"

#include "comm/error.h"
#include "framework/base/tensor.h"
#include "framework/device_info.h"
#include "framework/stream_place.h"

#include <algorithm>

namespace trireme {
namespace {

constexpr std::int64_t plain_steps = 2;

}  // namespace

GraphedStep::GraphedStep(Context& context, Recipe& recipe, std::vector<at::Tensor*> results)
    : context_(context), recipe_(recipe), results_(std::move(results)), pinned_(context.device()) {}

GraphedStep::~GraphedStep() = default;

// Asked at every step: a recipe may be told to work in another way between two.
bool GraphedStep::wanted() {
  const TrainConfig& config = context_.config();
  if (!std::exchange(asked_, true))
    off_ = config.graph == "off" ||
           !make_step_graph(context_.device().is_cuda() ? context_.device().index() : -1, GraphMemory::own);
  if (off_) return false;
  auto why = recipe_.why_not_recorded(context_);
  if (!why) return false;
  if (context_.size() > 1 && why->empty()) why = why_not_several();
  if (config.accumulate > 1) why = "it has several micro-batches";
  if (config.precision == "fp16" || config.precision == "f64") why = "precision is " + config.precision;
  if (!why->empty() && !std::exchange(said_, true)) context_.message("a step is not recorded as a CUDA graph: " + *why);
  return why->empty();
}

std::string GraphedStep::why_not_several() const {
  const TrainConfig& config = context_.config();
  if (config.graph != "on") return "it has several ranks (graph: on records theirs)";
  if (config.hook.name != "none") return "hook " + config.hook.name + " codes its gradients";
  if (config.zero > 0) return "its weights are sharded";
  if (!context_.device().is_cuda()) return "";
  for (const auto& [name, comm] : context_.comms_)
    if (name != "control" && !comm->capturable()) return "its collectives are not those of NCCL alone";
  return "";
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

void GraphedStep::enqueue(const std::function<void()>& work) {
  struct Asking {
    Context& context;
    ~Asking() { context.scalars_ = nullptr; }
  } asking{context_};
  context_.scalars_ = scalars_.get();
  work();
}

std::vector<GraphedStep::Calls> GraphedStep::calls_so_far() const {
  std::vector<Calls> all;
  for (const auto& [name, comm] : context_.comms_)
    if (auto* traced = dynamic_cast<Traced*>(comm.get())) all.push_back({traced, traced->stats()});
  return all;
}

// Why it cannot be; empty: it is recorded.
std::string GraphedStep::capture(const Halves& step) {
  const auto one = [&](const std::function<void()>& f) {
    Graph g{make_step_graph(context_.device().is_cuda() ? context_.device().index() : -1, GraphMemory::own), {}};
    const std::vector<Calls> before = calls_so_far();
    pieces_ += g.graph->capture([this, f] { enqueue(f); });
    g.calls = calls_so_far();
    for (std::size_t i = 0; i < before.size(); ++i)
      g.calls[i].stats.calls -= before[i].stats.calls, g.calls[i].stats.bytes -= before[i].stats.bytes;
    std::erase_if(g.calls, [this](const Calls& c) { return context_.size() == 1 || c.stats.calls == 0; });
    graphs_.push_back(std::move(g));
  };
  const auto compute = [this, step] {
    scalars_->begin();
    step.compute(inputs_);
  };
  pieces_ = 0;
  try {
    if (recipe_.host_looks())
      one(compute), one(step.update);
    else
      one([compute, step] { compute(), step.update(); });
  } catch (const CommError& e) {  // of a call of CUDA: what is wrong with the job comes again
    return first_line(e);
  } catch (const Error&) {  // ours: the step itself cannot be taken
    throw;
  } catch (const std::exception& e) {
    return first_line(e);
  }
  return {};
}

// Where it cannot be, on some rank, steps run as they are, on all.
bool GraphedStep::record(const Halves& step) {
  std::string why = capture(step);
  std::int64_t all = why.empty();
  if (context_.size() > 1) context_.comm("control").all_reduce({&all, 1, DType::i64}, Op::min).wait();
  if (!all) {
    if (why.empty()) why = "on another rank it cannot be";
    if (!std::exchange(said_, true)) context_.message("a step is not recorded as a CUDA graph: " + why);
    off_ = true;
    forget();
    return false;
  }
  if (!std::exchange(counted_, true))
    context_.message("steps are replayed as a CUDA graph of " + std::to_string(pieces_) + " kernels and copies");
  outputs_.clear();
  for (const at::Tensor* result : results_) outputs_.push_back(*result);
  return true;
}

// Where the step does not count, nothing that was recorded holds any longer.
bool GraphedStep::accepted(const std::shared_ptr<Work::State>& behind) {
  if (behind) behind->wait();
  if (recipe_.accept(context_)) return true;
  forget();
  return false;
}

bool GraphedStep::run_unrecorded(const Halves& step) {
  scalars_ = std::make_unique<StepScalars>(context_.device());
  scalars_->begin();
  enqueue([&] { step.compute(inputs_); });
  if (recipe_.host_looks() && !accepted(stream_place(context_.device()))) return false;
  enqueue(step.update);
  return true;
}

void GraphedStep::replay(Graph& g) {
  g.graph->replay();
  if (g.calls.empty() && graphs_.size() == 1) return;  // nobody will ask
  g.mark = stream_place(context_.device());
  const bool counted = std::exchange(g.counted, false);
  for (const Calls& c : g.calls) c.comm->replayed(counted ? CommStats{} : c.stats, g.mark);
}

bool GraphedStep::replay() {
  for (std::size_t i = 0; i < results_.size(); ++i) *results_[i] = outputs_[i];
  replay(graphs_.front());
  if (graphs_.size() == 1) return true;
  if (!accepted(graphs_.front().mark)) return false;
  replay(graphs_.back());
  return true;
}

bool GraphedStep::take(const Batch& batch, const Batch* next, const Halves& step) {
  if (std::exchange(context_.anew_, false)) {
    forget();
    asked_ = false;  // what could not be recorded may be now
  }
  if (!wanted()) {
    forget();
    return false;
  }
  if (Shapes shapes = shapes_of(batch); shapes != shapes_) {
    if (recorded()) {
      if (!std::exchange(told_, true))
        context_.message("a batch of another shape than the recorded one: such steps are launched piece by piece");
      return false;
    }
    forget();
    shapes_ = std::move(shapes);
  }
  if (++seen_ <= plain_steps) return false;
  recipe_.ready(batch, next);
  fill(batch);
  if (!scalars_) return run_unrecorded(step);
  scalars_->send();
  context_.clock_.hold(true);
  const bool taken = (recorded() || record(step)) && replay();
  context_.clock_.hold(false);
  if (taken) context_.clock_.end(StepClock::Phase::replayed);
  return taken;
}

void GraphedStep::forget() {
  const bool had = recorded();
  graphs_.clear();
  scalars_.reset();
  inputs_ = {};
  outputs_.clear();
  shapes_.clear();
  seen_ = 0;
  if (had) release_device_memory();  // theirs, which no capture may take again
}

}  // namespace trireme
