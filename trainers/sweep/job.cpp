#include "trainers/sweep/job.h"

#include "comm/error.h"
#include "data/rng.h"
#include "framework/base/tensor.h"

#include <cmath>
#include <sstream>

#include <ATen/ATen.h>

namespace trireme::sweep {
namespace {

PeftConfig said_adapter(const LoraConfig& lora) {
  PeftConfig p;
  p.rslora = lora.rslora, p.gaussian = lora.init == "gaussian";
  p.excluded = lora.exclude, p.excluded_regex = lora.excluded.value_or("");
  p.rank_pattern = lora.rank_pattern, p.alpha_pattern = lora.alpha_pattern;
  if (lora.expression || lora.targets == std::vector<std::string>{"all-linear"})
    p.regex = lora.expression.value_or("all-linear");
  else
    p.targets = lora.targets;
  return p;
}

void check_kind(const PeftConfig& from, const Candidate& c, const TaskConfig& task) {
  if (from.rank == c.rank && std::abs(from.alpha - c.alpha) <= 1e-9 * c.alpha) return;
  std::ostringstream what;
  what << task.adapter << " has rank " << from.rank << " and alpha " << from.alpha << ", job " << c.job << " rank "
       << c.rank << " and alpha " << c.alpha;
  throw UsageError(task.place, what.str(), "search for the r and lora_alpha of its adapter_config.json");
}

}  // namespace

std::vector<PeftConfig> adapter_configs(const SweepConfig& sweep, const TaskConfig& task,
                                        const std::vector<Candidate>& candidates, const CausalLm& model,
                                        const PeftConfig* from) {
  const PeftConfig kind = from ? *from : said_adapter(sweep.lora);
  if (!from) {
    std::vector<std::string> modules;
    for (const auto& p : model.projections()) modules.push_back(p.name);
    if (const auto [key, entry] = peft_unused(kind, modules, task.place); !key.empty())
      throw UsageError(task.place, "the model has no linear module '" + entry + "' of lora." + key,
                       "it has modules like " + modules.at(0));
  }
  std::vector<PeftConfig> all;
  for (const auto& c : candidates) {
    if (from) check_kind(*from, c, task);
    PeftConfig& p = all.emplace_back(kind);
    p.base_model = sweep.weights == "random" ? "" : task.model;
    p.rank = c.rank, p.alpha = c.alpha, p.dropout = sweep.lora.dropout;
  }
  return all;
}

Job::Job(Candidate candidate, std::int64_t samples, const JobTrainConfig& config, nn::AdapterInit init,
         std::int64_t parameters, at::Tensor begin)
    : candidate_(std::move(candidate)),
      init_(std::move(init)),
      rates_{candidate_.lr, config.weight_decay, config.clip_norm},
      samples_(samples),
      parameters_(parameters),
      begin_(std::move(begin)) {
  total_ = config.epochs * ((samples + candidate_.batch_size - 1) / candidate_.batch_size);
}

std::vector<std::int64_t> Job::batch(std::int64_t step) const {
  const std::int64_t b = candidate_.batch_size, steps = (samples_ + b - 1) / b;
  const auto order = permutation(samples_, Rng(init_.seed, "job order", std::uint64_t(step / steps)));
  const auto from = order.begin() + (step % steps) * b;
  return {from, from + std::min(b, samples_ - (step % steps) * b)};
}

void Job::start(nn::AdapterStore& store, nn::AdapterOptimizer& optimizer, std::int64_t slot) {
  store.fill(slot, init_, begin_);
  optimizer.start(slot, rates_);
}

void Job::park(nn::AdapterStore& store, nn::AdapterOptimizer& optimizer, std::int64_t slot) {
  parked_ = optimizer.park(slot);
  optimizer.stop(slot);
  store.clear(slot);
}

void Job::resume(nn::AdapterOptimizer& optimizer, std::int64_t slot) {
  optimizer.unpark(slot, parked_);
  parked_ = {};
}

void Job::stepped(const at::Tensor& loss) {
  losses_.push_back(loss);
  ++step_;
}

// Those of before a resumption are on the host, later ones where the job trains.
at::Tensor Job::pending_losses() const {
  std::vector<at::Tensor> all;
  for (const auto& l : losses_) all.push_back(l.to(losses_.back().device()));
  return at::stack(all).to(at::kCPU, at::kFloat);
}

std::vector<double> Job::fold(double alpha) {
  std::vector<double> values;
  if (!losses_.empty()) {
    const at::Tensor all = pending_losses().to(at::kDouble);
    values.assign(all.const_data_ptr<double>(), all.const_data_ptr<double>() + all.numel());
  }
  losses_.clear();
  for (double v : values) average_.add(v, alpha);
  return values;
}

void Job::evaluated_now(bool best, const nn::AdapterStore& store, std::int64_t slot) {
  evaluated_ = step_;
  if (!best) return;
  best_ = store.flat_weights(slot).to(at::kCPU, false, true);
  best_step_ = step_;
}

// As rows that one rank holds: another number of ranks can load them.
void Job::state(Archive& ar, nn::AdapterOptimizer& optimizer, std::int64_t slot, bool ended) {
  const auto flat = [&](const char* name, at::Tensor& t, std::int64_t n, at::ScalarType type) {
    if (!t.defined()) t = at::zeros({n}, type);
    archive(ar, name, t, {Sharing::rows, 0, n});
  };
  at::Tensor numbers = at::tensor({double(step_), double(evaluated_), double(best_step_), average_.value,
                                   double(average_.begun), double(best_.defined()), double(losses_.size())},
                                  at::kDouble);
  flat("scalars", numbers, numbers.numel(), at::kDouble);
  const double* v = numbers.const_data_ptr<double>();
  const auto pending = std::int64_t(v[6]);
  at::Tensor losses = losses_.empty() ? at::zeros({pending}, at::kFloat) : pending_losses();
  if (pending) flat("losses", losses, pending, at::kFloat);
  if (ar.loading()) {
    step_ = std::int64_t(v[0]), evaluated_ = std::int64_t(v[1]), best_step_ = std::int64_t(v[2]);
    average_ = {v[3], v[4] != 0};
    losses_ = pending ? losses.unbind() : std::vector<at::Tensor>();
  }
  if (v[5] != 0) flat("best", best_, parameters_, at::kFloat);
  if (ended) return;
  nn::ParkedAdapter now = slot >= 0 && !ar.loading() ? optimizer.park(slot) : parked_;
  flat("weights", now.weights, parameters_, at::kFloat);
  flat("first", now.first, parameters_, at::kFloat);
  flat("second", now.second, parameters_, at::kFloat);
  at::Tensor counts = at::tensor({double(now.updates), double(now.alive)}, at::kDouble);
  flat("counts", counts, 2, at::kDouble);
  const double* count = counts.const_data_ptr<double>();
  if (!ar.loading()) return;
  parked_ = {init_, rates_, now.weights, now.first, now.second, std::int64_t(count[0]), count[1] != 0};
  if (slot >= 0) resume(optimizer, slot);
}

at::Tensor Job::packed_tensors() const {
  return at::cat(
      {parked_.weights, parked_.first, parked_.second, best_.defined() ? best_ : at::zeros_like(parked_.weights)});
}

std::vector<double> Job::packed_scalars() const {
  return {double(step_),           double(evaluated_),          double(best_step_),   average_.value,
          double(parked_.updates), best_.defined() ? 1.0 : 0.0, double(parked_.alive)};
}

void Job::unpack(const at::Tensor& tensors, const std::vector<double>& scalars) {
  const auto parts = tensors.split(parameters_);
  parked_ = {init_,          rates_, parts[0].clone(), parts[1].clone(), parts[2].clone(), std::int64_t(scalars[4]),
             scalars[6] != 0};
  best_ = scalars[5] != 0 ? parts[3].clone() : at::Tensor();
  step_ = std::int64_t(scalars[0]);
  evaluated_ = std::int64_t(scalars[1]);
  best_step_ = std::int64_t(scalars[2]);
  average_ = {scalars[3], true};
}

}  // namespace trireme::sweep
