#include "framework/session.h"

#include "comm/call_site.h"
#include "comm/error.h"
#include "compression/compressor.h"
#include "framework/base/agree.h"
#include "framework/base/replicas.h"
#include "framework/base/tensor.h"
#include "framework/gradients/reducer.h"
#include "framework/graphed_step.h"
#include "framework/io/checkpoint.h"
#include "framework/metrics/trace.h"
#include "framework/micro_batch.h"
#include "framework/optim/optimizer.h"
#include "framework/optim/schedule.h"

#include <algorithm>

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>

#include <fnmatch.h>

namespace trireme {
namespace {

// Forward runs under autocast for bf16 and fp16; the weights it casts are cached within the step.
class Autocast {
 public:
  Autocast(bool on, at::Device device, const std::string& precision) : on_(on), type_(device.type()) {
    if (!on_) return;
    at::autocast::set_autocast_enabled(type_, true);
    at::autocast::set_autocast_dtype(type_, precision == "bf16" ? at::kBFloat16 : at::kHalf);
    at::autocast::increment_nesting();
  }
  ~Autocast() {
    if (!on_) return;
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(type_, false);
  }

 private:
  bool on_;
  at::DeviceType type_;
};

}  // namespace

Session::Session(Communicator& world, const TrainConfig& config, Recipe& recipe, const std::string& checkpoints)
    : config_(config), recipe_(recipe), context_(world, config, recipe.communicators(), checkpoints) {
  context_.recipe_ = &recipe;
  recipe.setup(context_);
  context_.steps_per_epoch = std::max<std::int64_t>(1, std::ssize(recipe.train_ids()) / config.batch_size);
  context_.steps = config.epochs > 0 ? config.epochs * context_.steps_per_epoch : config.steps;
  all_ = recipe.parameters();
  settle_sharing(all_, context_.comm("control"));
  count_parameters();
  const std::vector<Param> trained = apply_freeze();
  reducer_ = std::make_unique<Reducer>(
      trained, context_.comm("grad"),
      Reducer::Options{config.bucket_mib, config.first_bucket_mib, config.overlap, config.zero == 1, config.hook});
  optimizer_ = std::make_unique<Optimizer>(trained, config.optimizer);
  context_.reducer_ = reducer_.get();
  context_.optimizer_ = optimizer_.get();
  if (config.precision == "fp16") {
    if (Compressors::has(config.hook.name) && Compressors::create(config.hook.name, "hook.name")->bounded())
      throw UsageError("hook.bound", "is absolute, and fp16 multiplies gradients by a loss scale that moves",
                       "use precision=bf16, or a hook without a bound");
    const auto scalar = at::TensorOptions(context_.device()).dtype(at::kFloat);
    context_.scale_ = at::full({}, 65536.0, scalar);
    growth_ = at::zeros({}, scalar.dtype(at::kInt));
  }
  restart_average();
  graphed_ = std::make_unique<GraphedStep>(context_, recipe, std::vector{&loss_, &norm_, &context_.skip_});
  // A GPU's host only fills streams: threads that spin after its small copies would keep it from that.
  if (context_.device().is_cuda() && config.threads == 0) at::set_num_threads(1);
}

// What is trained. Ranks may hold different parameters: a pattern is used if any of them uses it.
std::vector<Param> Session::apply_freeze() {
  const auto& patterns = config_.freeze;
  std::vector<std::int64_t> used(patterns.size() + 1, 0);  // the last: is anything trained?
  std::vector<Param> trained;
  for (auto& p : all_) {
    const bool fixed = p.group == "frozen" || p.group == "buffer";
    bool frozen = fixed;
    for (std::size_t i = 0; i < patterns.size() && !fixed; ++i)
      if (fnmatch(patterns[i].c_str(), p.name.c_str(), 0) == 0) frozen = true, used[i] = 1;
    p.value.set_requires_grad(!frozen);
    if (frozen) continue;
    used.back() = 1;
    if (p.group != "sparse") trained.push_back(p);
  }
  context_.comm("control").all_reduce({used.data(), used.size(), DType::i64}, Op::max).wait();
  for (std::size_t i = 0; i < patterns.size(); ++i)
    if (!used[i])
      throw UsageError("freeze", "the pattern '" + patterns[i] + "' matches no parameter that would be trained",
                       "see --dry-run for the names; what a recipe locks is not trained anyway");
  if (!used.back()) throw UsageError("freeze", "every parameter is frozen", "free at least one");
  return trained;
}

Session::~Session() = default;

bool Session::replays() const { return graphed_->recorded(); }

void Session::step(const Batch& batch, const Batch* next) {
  context_.clock_.begin();
  const OptimizerConfig& o = config_.optimizer;
  context_.now.lr = Schedule{o.schedule, o.lr, o.min_lr, o.warmup, context_.steps, o.cooldown, o.cooldown_power}.at(
      context_.now.step);
  context_.next = nullptr;  // what is replayed sees no other batch than its own
  const bool recorded =
      graphed_->take(batch, next, {[this](const Batch& inputs) { compute(inputs); }, [this] { update(); }});
  if (!recorded) {
    context_.next = next;
    compute(batch);
    update();
  }
  recipe_.step_taken(recorded, context_);
}

void Session::compute(const Batch& batch) {
  using Phase = StepClock::Phase;
  reducer_->begin_step(context_.now.step);
  {
    Trace::Span span(Trace::Track::step, "forward + backward");
    Autocast autocast(context_.autocast(), context_.device(), config_.precision);
    const std::int64_t n = recipe_.whole_batch() ? 1 : config_.accumulate;
    loss_ = at::Tensor();
    context_.any_root_ = false;
    const CallSite here("recipe: loss and backward");
    for (std::int64_t k = 0; k < n; ++k) {
      context_.last_micro_batch_ = k == n - 1;
      at::Tensor share = recipe_.backward(n == 1 ? batch : micro_batch(batch, k, n), context_);
      if (n > 1) share = share / double(n);
      loss_ = loss_.defined() ? loss_ + share : share;
    }
    const auto trainable = std::count_if(all_.begin(), all_.end(), [](const Param& p) { return p.group != "buffer"; });
    if (!context_.any_root_ && std::ssize(optimizer_->params()) < trainable)
      throw UsageError("freeze", "leaves nothing to train that the loss depends on", "free more parameters");
    if (!context_.any_root_) throw Error(ExitCode::bug, "recipe", "its loss depends on no parameter");
  }
  context_.clock_.end(Phase::forward);
  {
    Trace::Span span(Trace::Track::step, "reduce");
    reducer_->finish();
    own_shards();
  }
  context_.clock_.end(Phase::exposed);
}

void Session::update() {
  {
    Trace::Span span(Trace::Track::step, "update");
    at::NoGradGuard no_grad;
    guard_update();
    reducer_->step_done(context_.skip_, rescale_);
    recipe_.update(context_.now, context_);
    if (!average_.empty()) average_weights();
  }
  context_.clock_.end(StepClock::Phase::optimizer);
}

// ZeRO-1: what this rank updates is known once the bucket layout is final.
void Session::own_shards() {
  if (config_.zero == 0 || std::exchange(shards_owned_, reducer_->settled())) return;
  if (shards_owned_) optimizer_->own(reducer_->owned());
}

// Sets what masks and scales the update: a non-finite gradient or loss, the norm limit, the loss scale.
void Session::guard_update() {
  const Reducer::Totals totals = reducer_->totals(loss_.to(at::kDouble, /*non_blocking=*/false, /*copy=*/true));
  loss_ = totals.loss;
  const at::Tensor number = context_.replayed([this] { return double(context_.now.step + 1); }, at::kDouble);
  const auto judged = skipped_steps_.judge(totals.norm, loss_, context_.now.step + 1, number);
  norm_ = judged.norm, context_.skip_ = judged.skip;
  context_.scale_total_ = context_.scale_;
  if (config_.optimizer.clip_norm > 0) {
    const at::Tensor true_norm = context_.scale_.defined() ? norm_ / context_.scale_ : norm_;
    const at::Tensor divide = (true_norm / config_.optimizer.clip_norm).clamp_min(1);
    context_.scale_total_ = context_.scale_.defined() ? divide * context_.scale_ : divide;
  }
  if (context_.scale_.defined()) {
    norm_ = norm_ / context_.scale_;
    // The kernel divides by the scale this step was computed with: update a copy.
    at::Tensor next = context_.scale_.clone();
    at::_amp_update_scale_(next, growth_, context_.skip_, 2.0, 0.5, 2000);
    rescale_ = next / context_.scale_;  // a power of two
    context_.scale_ = next;
  }
}

void Session::weights_loaded() {
  recipe_.weights_loaded();
  restart_average();
}

void Session::restart_average() {
  at::NoGradGuard no_grad;
  if (graphed_) graphed_->forget();
  average_.clear();
  if (config_.ema == 0) return;
  for (const auto& p : optimizer_->params()) average_.push_back(p.value.detach().clone());
}

// A skipped step is none for the average either.
void Session::average_weights() {
  std::vector<at::Tensor> values;
  for (const auto& p : optimizer_->params()) values.push_back(p.value);
  const at::Tensor& skip = context_.skip_;
  if (skip.is_cpu()) {
    if (*skip.const_data_ptr<float>() == 0) at::_foreach_lerp_(average_, values, 1 - config_.ema);
    return;
  }
  const std::vector<at::Tensor> way = at::_foreach_sub(values, average_);
  at::_foreach_mul_(way, (1 - skip) * (1 - config_.ema));
  at::_foreach_add_(average_, way);
}

double Session::loss() const { return loss_.item<double>(); }
bool Session::skipped() const { return context_.skip_.defined() && context_.skip_.item<float>() != 0; }
double Session::gradient_norm() const { return norm_.item<double>(); }
std::size_t Session::reduced_bytes() const { return reducer_->bytes_per_step(); }
std::size_t Session::plain_bytes() const { return reducer_->plain_bytes(); }

// What one rank alone holds counts beside what the others hold alone.
void Session::count_parameters() {
  std::int64_t alone = 0, shared = 0;
  for (const auto& p : all_)
    if (p.group != "buffer") (p.replicas && p.replicas->size() == 1 ? alone : shared) += p.value.numel();
  context_.comm("control").all_reduce({&alone, 1, DType::i64}, Op::sum).wait();
  parameter_count_ = alone + shared;
}

std::map<std::string, double> Session::evaluate() {
  context_.clock_.pause();
  at::NoGradGuard no_grad;
  Autocast autocast(context_.autocast(), context_.device(), config_.precision);
  const auto swap = [this] {
    for (std::size_t i = 0; i < average_.size(); ++i) {
      const at::Tensor value = optimizer_->params()[i].value.detach();
      const at::Tensor kept = value.clone();
      value.copy_(average_[i]);
      average_[i].copy_(kept);
    }
  };
  swap();
  auto metrics = recipe_.evaluate(context_);
  swap();
  return metrics;
}

double Session::take_spared() { return std::exchange(context_.spared_, 0); }

std::vector<std::string> Session::communicators() const {
  std::vector<std::string> names;
  for (const auto& [name, comm] : context_.comms_) names.push_back(name);
  return names;
}

CommStats Session::stats(std::string_view communicator) const {
  const auto* traced = dynamic_cast<const Traced*>(context_.comms_.find(communicator)->second.get());
  return traced ? traced->stats() : CommStats{};
}

std::map<std::string, double> Session::take_logged() { return std::exchange(context_.logged_, {}); }

void Session::weights(Archive& ar) {
  Archive::Group g(ar, "model");
  for (auto& p : all_) archive(ar, p.name, p.value, p.sharing);
}

void Session::state(Archive& ar) {
  context_.clock_.pause();
  if (ar.loading()) graphed_->forget();  // buckets may move
  weights(ar);
  {
    Archive::Group g(ar, "reducer");
    reducer_->state(ar);
  }
  own_shards();
  {
    Archive::Group g(ar, "optimizer");
    optimizer_->state(ar);
  }
  if (context_.scale_.defined()) {
    archive(ar, "loss_scale/scale", context_.scale_);
    archive(ar, "loss_scale/growth", growth_);
  }
  for (std::size_t i = 0; i < average_.size(); ++i) {
    const Param& p = optimizer_->params()[i];
    archive(ar, "average/" + p.name, average_[i], p.sharing);
  }
  Archive::Group g(ar, "recipe");
  recipe_.state(ar);
}

void Session::restore(const Snapshot& snapshot, const std::function<void(Archive&)>& state) {
  agree(context_.comm(), attempt([&] {
          snapshot.restore([this](Archive& ar) {
            Archive::Group g(ar, "reducer");
            reducer_->layout(ar);
          });
        }));
  reducer_->adopt_layout();
  agree(context_.comm(), attempt([&] { snapshot.restore(state); }));
}

}  // namespace trireme
