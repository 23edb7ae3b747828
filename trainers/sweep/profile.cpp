// What steps of a task take, in time and memory, measured before it begins.
#include "comm/error.h"
#include "framework/base/tensor.h"
#include "framework/device_info.h"
#include "framework/losses/token_loss.h"
#include "trainers/sweep/executor.h"

#include <algorithm>
#include <chrono>
#include <set>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::sweep {
namespace {

// What a pass keeps of one token for backward, in bytes: of each layer its input alone, and one layer whole; or all.
double bytes_per_token(const CausalLmConfig& m, at::ScalarType type, bool checkpointing) {
  const double each = double(at::elementSize(type)), layer = each * double(14 * m.hidden + 5 * m.intermediate);
  const double kept = checkpointing ? each * double(m.layers * m.hidden) + layer : layer * double(m.layers);
  return kept + 2 * each * double(m.hidden);
}

double seconds_since(std::chrono::steady_clock::time_point begin) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

// Ids of a sample that train a loss.
std::int64_t length_of(const Example& e) { return std::int64_t(e.ids.size()); }
std::int64_t length_of(const Pair& p) { return length_of(p.chosen) + length_of(p.rejected); }

template <class Sample>
double mean_length(const std::vector<Sample>& all) {
  double sum = 0;
  for (const auto& s : all) sum += double(length_of(s));
  return sum / double(std::max<std::size_t>(1, all.size()));
}

template <class Sample>
const Sample& longest_of(const std::vector<Sample>& all) {
  return *std::max_element(all.begin(), all.end(),
                           [](const Sample& a, const Sample& b) { return length_of(a) < length_of(b); });
}

}  // namespace

// By the shapes; on a GPU without memory.capacity by what steps really reserve there.
void Executor::set_memory_limit() {
  double weights = 0, layers = 0, turned = 0;
  std::set<std::string> coded;
  if (store_->has_fp8_base())
    for (const auto& t : store_->targets()) {
      coded.insert(t.name + ".weight");
      turned = std::max(turned, double(t.weight.numel()));  // of one matrix at a time, in backward
    }
  for (const auto& [weight, value] : model_.weights()) {
    const auto numbers = value.numel();
    const std::int64_t bytes =
        coded.contains(weight.name) ? numbers + 4 * value.size(0) : numbers * std::int64_t(value.element_size());
    (weight.layer < 0 ? weights : layers) += double(bytes);
  }
  if (sharded_) {  // a share of each, and the two that are at hand
    const double each = double(sharded_->layer_bytes());
    layers = each * (double(model_.config().layers) / ranks_.size() + 2);
  }
  limit_.model.fixed = weights + layers + turned;
  limit_.model.per_token =
      bytes_per_token(model_.config(), model_.dtype(), sweep_.train.checkpointing || ranks_.size() > 1);
  limit_.slots = sweep_.arm == "sequential" ? 1 : sweep_.slots > 0 ? sweep_.slots : std::int64_t(loads_.size());
  const double device = double(device_memory_bytes(model_.device()));
  const double capacity = sweep_.memory_capacity > 0 ? sweep_.memory_capacity : device;
  limit_.bytes = capacity > 0 ? sweep_.memory_margin * capacity : std::numeric_limits<double>::infinity();
  restart_device_peak(model_.device());
  if (device <= 0 || sweep_.memory_capacity > 0) return;
  measure_steps();
  const auto apart = [&](const Profiled& p) { return p.tokens != profiles_.front().tokens; };
  if (std::any_of(profiles_.begin(), profiles_.end(), apart)) limit_.model = fit_memory(profiles_);
  release_device_memory();
  restart_device_peak(model_.device());
}

void Executor::measure_steps() {
  if (!profiles_.empty()) return;
  profiles_ = profile_steps(limit_, loads_, [this](std::size_t jobs) { return profiled_step(jobs); });
}

// The longest sample as often as a pass of these jobs has samples.
Pack Executor::profiled_pack(const std::vector<std::size_t>& jobs) const {
  Pack pack;
  for (const auto job : jobs) {
    pack.begin_job(std::int64_t(job), 0);
    const std::int64_t samples = std::max<std::int64_t>(1, loads_[job].tokens / sample_tokens_);
    for (std::int64_t s = 0; s < samples; ++s)
      data_.train.empty() ? pack.add(ReferencedPair{&longest_of(data_.train_pairs)})
                          : pack.add(longest_of(data_.train));
  }
  return pack;
}

// Of the first so many jobs; all ranks take the same step, and what the slowest and the fullest needs counts.
Profiled Executor::profiled_step(std::size_t count) {
  std::vector<std::size_t> jobs = fitting_order(limit_, loads_);
  jobs.resize(count);
  std::sort(jobs.begin(), jobs.end());
  std::vector<std::int64_t> slots(jobs.begin(), jobs.end());
  const Pack pack = profiled_pack(jobs);
  release_device_memory();
  restart_device_peak(model_.device());
  for (const auto job : jobs) jobs_[job].start(*store_, *optimizer_, std::int64_t(job));
  double seconds = timed_step(pack, slots), evaluation = 0;
  for (int i = 0; i < 2; ++i) {  // the first makes plans
    const at::NoGradGuard no_grad;
    const auto begin = std::chrono::steady_clock::now();
    (void)losses_of(pack).sum().item<double>();
    evaluation = seconds_since(begin);
  }
  if (padded_length(slots) > 0 && sweep_.parallel != "pipeline") seconds = recorded_seconds(pack);
  const auto peak = double(peak_reserved_bytes(model_.device()));  // with the graphs' pool
  for (const auto job : jobs) {
    optimizer_->stop(std::int64_t(job));
    store_->clear(std::int64_t(job));
  }
  double found[] = {seconds, peak, evaluation};
  ranks_.all_reduce({found, 3, DType::f64}, Op::max).wait();
  evaluation_token_seconds_ = found[2] / double(pack.size());  // of the largest that is measured
  Profiled p{pack.size(), 0, found[1], found[0]};
  for (const auto job : jobs) p.parameters += loads_[job].parameters;
  return p;
}

// How fast a small step is launched changes from one to the next: as many are timed as fit into a moment, at least two,
// the same number on all ranks.
double Executor::mean_seconds(const std::function<double()>& step) {
  double first = step();
  ranks_.all_reduce({&first, 1, DType::f64}, Op::max).wait();
  constexpr double moment = 0.1, most = 15;
  const int more = int(std::clamp(moment / std::max(first, 1e-6), 1.0, most));
  double sum = first;
  for (int i = 0; i < more; ++i) sum += step();
  return sum / (1 + more);
}

double Executor::timed_step(const Pack& pack, const std::vector<std::int64_t>& slots) {
  const at::Tensor losses = at::zeros({store_->slots()}, at::TensorOptions(model_.device()).dtype(at::kFloat));
  store_->begin(pack.rows(), true);
  const auto step = [&] {
    const auto begin = std::chrono::steady_clock::now();
    torch::autograd::backward({losses_of(pack).sum()}, {});
    optimizer_->step(slots, losses);
    (void)losses.sum().item<float>();  // until the device is done
    return seconds_since(begin);
  };
  (void)step();
  return mean_seconds(step);
}

// On the layers that two buffers hold by now.
double Executor::held_seconds(const std::vector<std::size_t>& jobs) {
  const std::vector<std::int64_t> slots(jobs.begin(), jobs.end());
  for (const auto job : jobs) jobs_[job].start(*store_, *optimizer_, std::int64_t(job));
  sharded_->set_held(true);
  const double seconds = timed_step(profiled_pack(jobs), slots);
  sharded_->set_held(false);
  for (const auto slot : slots) {
    optimizer_->stop(slot);
    store_->clear(slot);
  }
  return seconds;
}

// Of the jobs that would begin, as synthetic steps of them take it: all ranks take the same.
std::optional<ParallelCosts> Executor::parallel_costs() {
  const MemoryLimit limit = pipeline_limit();
  const auto fits = fitting_order(limit, loads_);
  if (fits.empty() || fits.size() < fitting_order(limit_, loads_).size()) return {};
  std::vector<std::int64_t> totals;
  for (const auto& j : jobs_) totals.push_back(j.total_steps());
  Roster first(sweep_.early_exit, limit, ranks_.size(), sweep_.steal, loads_, totals);
  std::vector<std::vector<std::size_t>> of(std::size_t(ranks_.size()));
  std::vector<double> parameters(of.size(), 0), tokens(of.size(), 0);
  std::vector<std::size_t> all;
  for (const auto& m : first.plan()) {
    const auto job = std::size_t(m.job), rank = std::size_t(m.rank);
    of[rank].push_back(job), all.push_back(job);
    parameters[rank] += double(loads_[job].parameters), tokens[rank] += double(loads_[job].tokens);
  }
  auto& fullest = of[std::size_t(std::ranges::max_element(tokens) - tokens.begin())];
  std::ranges::sort(fullest);
  const auto most = std::int64_t(*std::ranges::max_element(tokens));
  if (padded_length({fullest.begin(), fullest.end()}) > 0 && step_->gains_by_recording(most))
    return {};  // recorded steps gather; a pipeline's are not
  const auto largest = *std::ranges::max_element(all, {}, [&](std::size_t j) { return loads_[j].tokens; });
  std::int64_t due = 0;
  constexpr std::int64_t looked_at = 200;
  for (std::int64_t s = 1; s <= looked_at; ++s)
    due += std::ranges::any_of(all, [&](auto j) { return evaluates_at(sweep_.early_exit, totals[j], s); });
  double took[] = {0, held_seconds(fullest), held_seconds({largest}), 0};
  for (int i = 0; i < 2; ++i) {  // the first connects
    const auto begin = std::chrono::steady_clock::now();
    sharded_->gather_pass(true);
    (void)at::zeros({1}, at::TensorOptions(model_.device())).item<float>();
    took[0] = seconds_since(begin);
  }
  const double layers = double(sharded_->layer_bytes()) * double(model_.config().layers);
  took[3] = 12 * *std::ranges::max_element(parameters) * took[0] / (2 * layers);  // as fast as layers travel
  ranks_.all_reduce({took, 4, DType::f64}, Op::max).wait();
  const std::int64_t pieces = sweep_.train.accumulate;
  ParallelCosts c{
      ranks_.size(), {std::ssize(all) * pieces, pieces}, double(pieces) * took[0], double(pieces) * took[1], took[2],
      took[3]};
  const auto together = std::int64_t(longest_burst / gathered_seconds(c));
  c.steps = std::clamp<std::int64_t>(together, 1, looked_at / std::max<std::int64_t>(1, due));
  return c;
}

// Of a step as it will be taken, where steps of these jobs will have one shape.
double Executor::recorded_seconds(const Pack& pack) {
  const auto step = [&] {
    const auto begin = std::chrono::steady_clock::now();
    (void)step_->run(pack.batch(model_.device())).sum().item<float>();
    return seconds_since(begin);
  };
  for (int i = 0; i < 2; ++i) (void)step();  // op by op, then recorded
  const double seconds = mean_seconds(step);
  step_->forget();
  return seconds;
}

// Jobs of this rank's next steps: those that run, and those that come in beside them.
std::vector<std::int64_t> Executor::at_work() const {
  std::vector<std::int64_t> jobs, waiting;
  std::vector<Load> running, queue;
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    const auto phase = roster_->jobs()[i].phase;
    if (phase == Roster::Phase::done || phase == Roster::Phase::exited) continue;
    const bool now = here(std::int64_t(i)) && phase == Roster::Phase::running;
    (now ? jobs : waiting).push_back(std::int64_t(i));
    (now ? running : queue).push_back(loads_[i]);
  }
  for (const std::size_t i : admit(limit_, queue, running)) jobs.push_back(waiting[i]);
  return jobs;
}

double Executor::remaining_seconds() {
  std::vector<std::int64_t> steps;
  std::vector<double> tokens;
  double done = 0, left = 0, evaluations = 0;
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    const auto& j = roster_->jobs()[i];
    const bool over = j.phase == Roster::Phase::exited || j.phase == Roster::Phase::done;
    const std::int64_t now = std::max(j.step, jobs_[i].step());
    steps.push_back(over ? 0 : j.total_steps - now);
    done += double(now * j.load.batch_size);
    left += double(steps.back() * j.load.batch_size);
    for (std::int64_t s = now + 1; !over && s <= j.total_steps; ++s)
      evaluations += evaluates_at(sweep_.early_exit, j.total_steps, s);
  }
  const double mean = data_.train.empty() ? mean_length(data_.train_pairs) : mean_length(data_.train);
  const double length = padded_length(at_work()) > 0 ? double(sample_tokens_) : mean;
  for (const auto& load : loads_) tokens.push_back(length * double(load.batch_size) / double(sweep_.train.accumulate));
  double seconds = done > 0 ? seconds_ * left / done : 0;
  if (!profiles_.empty() || pace_.known()) {
    const double passes = pace_.known() ? 1 : double(sweep_.train.accumulate);
    const double validated = data_.train.empty() ? mean_length(data_.validation_pairs) : mean_length(data_.validation);
    const double evaluation = job_evaluation_seconds_ > 0
                                  ? job_evaluation_seconds_
                                  : double(validation_.size()) * validated * evaluation_token_seconds_;
    seconds = passes * forecast_seconds(limit_, ranks_.size(), loads_, steps, tokens,
                                        [&](double n) { return pace_.step_seconds(n, profiles_); }) +
              evaluations * evaluation / ranks_.size();
  }
  ranks_.broadcast({&seconds, 1, DType::f64}, 0).wait();
  return seconds;
}

}  // namespace trireme::sweep
