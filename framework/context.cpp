#include "framework/context.h"

#include "comm/error.h"
#include "comm/wrappers/checked.h"
#include "framework/gradients/reducer.h"
#include "framework/io/checkpoint.h"
#include "framework/metrics/trace.h"
#include "framework/optim/optimizer.h"
#include "framework/step_scalars.h"

#include <set>

#include <ATen/autocast_mode.h>

namespace trireme {
namespace {

// Spans of one track may not overlap: a collective that waited for the one before it begins where that ended.
void trace_collective(const char* name, std::int64_t begin, std::int64_t end, std::uint64_t bytes) {
  static std::atomic<std::int64_t> last_end{0};
  const std::int64_t from = std::max(begin, last_end.exchange(end));
  if (from < end) Trace::add(Trace::Track::communication, name, from, end, std::int64_t(bytes));
}

}  // namespace

Traced::Sink trace_sink() { return Trace::enabled() ? trace_collective : Traced::Sink(); }

Context::Context(Communicator& world, const TrainConfig& config, std::vector<std::string> names,
                 std::string checkpoints)
    : world_(world),
      config_(config),
      placement_(place_rank(world, config)),
      checkpoints_(std::move(checkpoints)),
      clock_(placement_.device) {
  std::set<std::string> sorted(names.begin(), names.end());
  sorted.insert({"control", "grad", "world"});
  // What is derived from a world that is traced already is recorded, and watched, together with it.
  std::optional<Traced> own;
  auto* traced = dynamic_cast<Traced*>(&world);
  if (!traced) traced = &own.emplace(world, trace_sink());
  std::shared_ptr<Parley> parley;
  for (const auto& name : sorted) {
    const CallSite here("setup: communicators");
    // "control" carries what the host decides by: host memory only.
    const bool on_device = placement_.device.is_cuda() && name != "control";
    const auto make = [&](Communicator& inner) -> std::unique_ptr<Communicator> {
      std::unique_ptr<Communicator> c = inner.split(0, inner.rank());
      if (on_device) c = for_device(std::move(c), placement_, trace_sink());
      if (!config.checked) return c;
      auto checked = std::make_unique<Checked>(std::move(c), name, parley);
      parley = checked->parley();
      return checked;
    };
    // On a GPU the communicator knows the times; the host only enqueues.
    comms_[name] = traced->derive(name, make, on_device ? Traced::Sink() : trace_sink());
  }
}

Context::~Context() = default;

std::optional<std::string> Context::saved_text(const std::string& name) const {
  return checkpoints_.empty() ? std::nullopt : trireme::saved_text(checkpoints_, name);
}

Communicator& Context::comm(std::string_view name) {
  const auto found = comms_.find(name);
  if (found == comms_.end()) throw Error(ExitCode::bug, "communicator " + std::string(name), "was never declared");
  return *found->second;
}

at::ScalarType Context::param_type() const { return config_.precision == "f64" ? at::kDouble : at::kFloat; }
bool Context::autocast() const { return config_.precision == "bf16" || config_.precision == "fp16"; }

void Context::backward(std::span<const at::Tensor> roots, std::span<const at::Tensor> grads, bool last) {
  clock_.end(StepClock::Phase::forward);
  std::vector<at::Tensor> r, g;
  for (std::size_t i = 0; i < roots.size(); ++i) {
    if (!roots[i].requires_grad()) continue;
    r.push_back(roots[i]);
    g.push_back(grads.empty() ? at::ones_like(roots[i]) : grads[i]);
  }
  const double share = recipe_ && recipe_->whole_batch() ? 1.0 : 1.0 / double(config_.accumulate);
  for (auto& x : g) {
    if (share != 1) x = x * share;
    if (scale_.defined()) x = x * scale_.to(x.scalar_type());
  }
  if (reducer_) reducer_->arm(last && last_micro_batch_);
  // Backward of an autocast forward runs in the types the forward chose, without autocast.
  const auto type = device().type();
  const bool was = at::autocast::is_autocast_enabled(type);
  at::autocast::set_autocast_enabled(type, false);
  if (!r.empty()) torch::autograd::backward(r, g);
  at::autocast::set_autocast_enabled(type, was);
  any_root_ |= !r.empty();
  clock_.end(StepClock::Phase::backward);
}

void Context::without_graph(const std::function<void()>& forward) {
  // Up to torch 2.9 autocast would hand its casts to the forward with a graph, and no gradient came through them.
  struct Casts {
    ~Casts() { at::autocast::clear_cache(); }
  } casts;
  at::NoGradGuard no_grad;
  forward();
}

at::Tensor Context::replayed(std::function<double()> value, at::ScalarType type) {
  return scalars_ ? scalars_->next(type, std::move(value)) : at::Tensor();
}

void Context::step_optimizers(const Step& s) {
  const auto settings = [&](std::string_view group) {
    GroupSettings g = recipe_->group(group, s, *this);
    // A learning rate of f32 is an f32 number: the same one on the host and, for steps that are replayed, on the
    // device.
    if (param_type() == at::kFloat) g.lr = double(float(g.lr));
    if (!g.device_lr.defined())
      g.device_lr = replayed([this, name = std::string(group)] { return recipe_->group(name, now, *this).lr; });
    return g;
  };
  optimizer_->step(settings, scale_total_, skip_);
  reducer_->gather_weights();
}

void Context::message(std::string_view line) {
  if (world_.rank() == 0 && on_message) on_message(line);
}

}  // namespace trireme
