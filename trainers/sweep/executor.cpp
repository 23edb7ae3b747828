#include "trainers/sweep/executor.h"

#include "comm/error.h"
#include "data/rng.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/models/adapters.h"
#include "trainers/run_folder.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <numeric>
#include <utility>

#include <ATen/ATen.h>

namespace trireme::sweep {
namespace {

nn::LoraBackend backend_of(const SweepConfig& c) {
  return nn::lora_backend(c.arm == "loop" || c.arm == "wide" ? c.arm : c.backend);
}

bool can_record(at::Device device) {
  return make_step_graph(device.is_cuda() ? device.index() : -1, GraphMemory::shared) != nullptr;
}

std::int64_t longest(const Instructions& data) {
  std::size_t most = 1;
  for (const auto& e : data.train) most = std::max(most, e.ids.size());
  for (const auto& p : data.train_pairs) most = std::max({most, p.chosen.ids.size(), p.rejected.ids.size()});
  return std::int64_t(most);
}

// On a GPU an id beyond the embedding would end the whole process; what is too long for the model may meet one rank
// alone, whose failure the others would wait for.
void check_ids(const Instructions& data, const CausalLmConfig& model, const std::string& where, bool drawn) {
  const auto check_id = [&](std::int64_t id) {
    if (id < 0 || id >= model.vocab)
      throw DataError(
          where, "holds token " + std::to_string(id) + ", the model's vocabulary has " + std::to_string(model.vocab),
          drawn ? "raise vocab_size: without a tokenizer.json beside config.json it is at least 260"
                : "the tokenizer does not belong to this model");
  };
  const auto check_length = [&](const char* what, std::size_t n, const char* cure) {
    if (model.max_length > 0 && std::int64_t(n) > model.max_length)
      throw DataError(where,
                      std::string("has a ") + what + " of " + std::to_string(n) + " tokens, the model takes " +
                          std::to_string(model.max_length),
                      cure);
  };
  const auto check = [&](const Example& e) {
    for (const std::int64_t id : e.ids) check_id(id);
    check_length("sample", e.ids.size(), "lower length: longer samples are left out then");
  };
  for (const auto* list : {&data.train, &data.validation})
    for (const Example& e : *list) check(e);
  for (const auto* list : {&data.train_pairs, &data.validation_pairs})
    for (const Pair& p : *list) check(p.chosen), check(p.rejected);
  for (const auto& q : data.test) {
    for (const std::int64_t id : q.prompt) check_id(id);
    check_length("test question", q.prompt.size(), "shorten it, or say test: 0");
  }
}

}  // namespace

Executor::Executor(const SweepConfig& sweep, const TaskConfig& task, Backbone backbone, const Instructions& data,
                   Communicator& ranks, std::string folder, const Placement& place)
    : sweep_(sweep),
      task_(task),
      model_(std::move(backbone.model)),
      data_(data),
      ranks_(ranks),
      folder_(std::move(folder)) {
  if (data.train.empty() && data.train_pairs.empty())
    throw DataError(task.data.data, "has no sample to train on", "give a file with samples shorter than length");
  check_ids(data, model_.config(), task.data.data, sweep.weights == "random");
  candidates_ = candidates(task.search, std::uint64_t(sweep.seed), task.place);
  loads_ = make_jobs();
  std::vector<std::int64_t> steps;
  for (const auto& j : jobs_) steps.push_back(j.total_steps());
  job_seconds_.resize(jobs_.size());
  model_.set_checkpointing(sweep.train.checkpointing);
  if (model_.device().is_cuda()) chunk_tokens_ = 16384;
  const bool fp8 = sweep.precision == "fp8";
  if (fp8) check_fp8_widths(*store_, task.place);
  auto layers = std::exchange(backbone.layers, {});
  if (ranks.size() > 1) {
    gathers_ = ranks_for_device(ranks, place, "layers");
    sharded_ = std::make_unique<ShardedBackbone>(model_, *store_, *gathers_, layers, fp8);
  } else if (fp8) {
    hold_fp8_base(model_, *store_, layers);
  }
  layers = {};  // may hold a model on the host
  begin_steps();
  set_memory_limit();
  begin_stages(place);
  begin_roster(steps);
  cap_validation();
  trireme::agree(ranks, attempt([&] {
                   if (ranks.rank() != 0) return;
                   make_folder(system_io(), folder_);
                   journal_ = Journal(folder_, task.name, losses_header());
                   for (const auto& d : roster_->too_large()) journal_.decided(d);
                   if (sweep.checkpoint_every > 0) make_folder(system_io(), folder_ + "/ckpt");
                 }));
  if (sweep.checkpoint_every > 0) checkpoints_ = std::make_unique<Checkpoints>(folder_ + "/ckpt", 1, ranks);
  if (task.objective == "dpo") reference_pairs();
  if (ranks.rank() == 0 && evaluation_ratio_ > 0.25)
    std::cerr << task.name << ": evaluation will cost about " << evaluation_ratio_
              << " of training; lower early_exit.val_cap or raise early_exit.eval_fraction\n";
}

Executor::~Executor() = default;

// Steps on several ranks are recorded where each fetches layers by itself: what a collective gathers all must replay.
void Executor::begin_steps() {
  MovingLayers layers;
  if (sharded_) layers = {[this] { sharded_->let_go(); }, [this](bool backward) { sharded_->replayed(backward); }};
  const bool alone = !sharded_ || sharded_->fetched();
  step_ = std::make_unique<AdapterStep>(model_, *store_, *optimizer_, alone && can_record(model_.device()),
                                        std::move(layers));
}

// Flat weights of the adapter that jobs go on from.
at::Tensor Executor::weights_from(const PeftAdapter& adapter) {
  load_adapter(model_, *store_, 0, adapter, task_.adapter);
  const at::Tensor flat = store_->flat_weights(0).clone();
  store_->clear(0);
  return flat;
}

std::vector<Load> Executor::make_jobs() {
  std::optional<PeftAdapter> from;
  trireme::agree(ranks_, attempt([&] {
                   refuse_sweep(task_.adapter);
                   if (!task_.adapter.empty()) from = read_peft(task_.adapter);
                 }));
  adapters_ = adapter_configs(sweep_, task_, candidates_, model_, from ? &from->config : nullptr);
  store_ = make_adapter_store(model_, adapters_, std::int64_t(candidates_.size()), backend_of(sweep_),
                              task_.place + (from ? ": lora.targets, or adapter" : ": lora.targets"));
  optimizer_ =
      std::make_unique<nn::AdapterOptimizer>(*store_, sweep_.train.beta1, sweep_.train.beta2, sweep_.train.eps);
  const bool pairs = !data_.train_pairs.empty();
  const auto samples = std::int64_t(pairs ? data_.train_pairs.size() : data_.train.size());
  sample_tokens_ = longest(data_) * (pairs ? 2 : 1);
  const at::Tensor begin = from ? weights_from(*from) : at::Tensor();  // of all jobs, which copy it into their slots
  std::map<std::int64_t, std::int64_t> size_of_rank;
  std::vector<Load> loads;
  for (std::size_t i = 0; i < candidates_.size(); ++i) {
    const Candidate& c = candidates_[i];
    const std::uint64_t seed = Rng(std::uint64_t(sweep_.seed), "job " + c.key).u64();
    auto init = adapter_init(model_, *store_, adapters_[i], seed, "job " + c.job);
    std::int64_t& parameters = size_of_rank[c.rank];  // as the store lays them out
    if (parameters == 0) {
      store_->fill(0, init);
      parameters = store_->flat_weights(0).numel();
      store_->clear(0);
    }
    jobs_.emplace_back(c, samples, sweep_.train, std::move(init), parameters, begin);
    const std::int64_t a_pass = (c.batch_size + sweep_.train.accumulate - 1) / sweep_.train.accumulate;
    loads.push_back({c.job, c.batch_size, a_pass * sample_tokens_, parameters});
  }
  return loads;
}

// Evaluation may cost about a fifth of training: E passes over n_val samples against epochs over n_train, which cost
// twice (with checkpointing three times) as much a sample.
void Executor::cap_validation() {
  const auto n = std::int64_t(task_.objective == "dpo" ? data_.validation_pairs.size() : data_.validation.size());
  if (n == 0)
    throw DataError(task_.data.data, "leaves no sample for validation", "raise validation_share, or name validation");
  const double times = sweep_.train.checkpointing ? 3 : 2, passes = 1 / sweep_.early_exit.eval_fraction;
  const double trained =
      double(sweep_.train.epochs * std::int64_t(std::max(data_.train.size(), data_.train_pairs.size())));
  const auto affordable = std::int64_t(0.2 * times * trained / passes);
  const std::int64_t cap =
      sweep_.early_exit.val_cap ? sweep_.early_exit.val_cap : std::max<std::int64_t>(16, affordable);
  validation_ = permutation(n, Rng(std::uint64_t(sweep_.seed), "validation"));
  validation_.resize(std::size_t(std::min(n, cap)));
  std::sort(validation_.begin(), validation_.end());
  evaluation_ratio_ = passes * double(validation_.size()) / (times * trained);
}

bool Executor::here(std::int64_t job) const {
  const auto& j = roster_->jobs()[std::size_t(job)];
  return j.rank == ranks_.rank() && (j.phase == Roster::Phase::running || j.phase == Roster::Phase::waiting);
}

bool Executor::due(std::int64_t job) const {
  const Job& j = jobs_[std::size_t(job)];
  return here(job) && j.step() > j.evaluated() && evaluates_at(sweep_.early_exit, j.total_steps(), j.step());
}

Executor::Tick Executor::wanted() const {
  if (evaluation_) return evaluate;
  Tick tick = idle;
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    const auto job = std::int64_t(i);
    if (due(job)) return evaluate;
    if (here(job) && roster_->jobs()[i].phase == Roster::Phase::running) tick = train;
  }
  return tick;
}

Executor::Tick Executor::agree(Tick mine) {
  std::int64_t most[] = {mine, std::exchange(window_.last, 0)};
  ranks_.all_reduce({most, 2, DType::i64}, Op::max).wait();
  if (window_.passes > 0) window_.tokens += double(most[1]);
  return Tick(most[0]);
}

void Executor::move_jobs() {
  for (const auto& move : roster_->plan()) {
    Job& job = jobs_[std::size_t(move.job)];
    if (stage_) stage_->forget(move.job);
    if (move.kind == Roster::Move::take) {
      take(move);
    } else if (move.rank == ranks_.rank()) {
      if (move.kind == Roster::Move::start) job.start(*store_, *optimizer_, move.job);
      if (move.kind == Roster::Move::park) job.park(*store_, *optimizer_, move.job);
      if (move.kind == Roster::Move::resume) job.resume(*optimizer_, move.job);
    }
  }
  std::vector<Load> running;
  for (std::size_t i = 0; i < jobs_.size(); ++i)
    if (here(std::int64_t(i))) running.push_back(loads_[i]);
  memory_forecast_ = std::max(memory_forecast_, limit_.model.bytes(running));
}

// A parked job's state from one rank to another; the others pass by.
void Executor::take(const Roster::Move& move) {
  Job& job = jobs_[std::size_t(move.job)];
  const bool from = move.from == ranks_.rank(), to = move.rank == ranks_.rank();
  const auto ranks = std::size_t(ranks_.size());
  at::Tensor tensors = from ? job.packed_tensors() : at::zeros({to ? 4 * job.parameters() : 0}, at::kFloat),
             got = tensors;
  if (from) got = at::zeros({0}, at::kFloat);
  std::vector<double> scalars = from ? job.packed_scalars() : std::vector<double>(to ? Job::scalars : 0);
  std::vector<std::size_t> send(ranks, 0), recv(ranks, 0);
  const auto exchange_all = [&](ConstBuffer out, Buffer in, std::size_t count) {
    if (from) send[std::size_t(move.rank)] = count;
    if (to) recv[std::size_t(move.from)] = count;
    ranks_.all_to_all(out, send, in, recv).wait();
  };
  const at::Tensor none = at::zeros({0}, at::kFloat);
  exchange_all(buffer_of(from ? tensors : none), buffer_of(to ? got : none), std::size_t(4 * job.parameters()));
  std::vector<double> out = from ? scalars : std::vector<double>();
  exchange_all({out.data(), out.size(), DType::f64}, {scalars.data(), to ? scalars.size() : 0, DType::f64},
               Job::scalars);
  ++moves_;
  if (!to) return;
  job.unpack(got, scalars);
  job.resume(*optimizer_, move.job);
}

void Executor::exchange() {
  auto most = std::int64_t(payload_.size());
  ranks_.all_reduce({&most, 1, DType::i64}, Op::max).wait();
  if (most == 0) return;
  const auto size = std::size_t(most) + 1, ranks = std::size_t(ranks_.size());
  std::vector<double> mine(size, 0), all(size * ranks);
  mine[0] = double(payload_.size());
  std::copy(payload_.begin(), payload_.end(), mine.begin() + 1);
  ranks_.all_gather({mine.data(), size, DType::f64}, {all.data(), all.size(), DType::f64}).wait();
  if (ranks == 1) all = mine;
  payload_.clear();
  std::vector<std::vector<double>> told;
  for (std::size_t r = 0; r < ranks; ++r) {
    const auto from = all.begin() + std::ptrdiff_t(r * size) + 1;
    told.emplace_back(from, from + std::ptrdiff_t(all[r * size]));
  }
  // Rank 0 alone writes, and its disk may be full.
  trireme::agree(ranks_, attempt([&] {
                   for (const auto& payload : told) hear(payload);
                 }));
  drop_ended();
}

// Of one rank: job, step, average, loss, and the train losses since its last evaluation, each time with their number.
void Executor::hear(const std::vector<double>& payload) {
  for (std::size_t at = 0; at < payload.size();) {
    const Evaluated e{std::int64_t(payload[at]), std::int64_t(payload[at + 1]), payload[at + 2], payload[at + 3]};
    const auto n = std::size_t(payload[at + 4]);
    const std::vector<double> losses(payload.begin() + std::ptrdiff_t(at + 5),
                                     payload.begin() + std::ptrdiff_t(at + 5 + n));
    at += 5 + n;
    journal_.losses(candidates_[std::size_t(e.job)].job, e.step - std::int64_t(n), losses, e.step, e.loss);
    const auto decisions = roster_->hear(e);
    for (const auto& d : decisions) journal_.decided(d);
    if (heard_) heard_(*roster_, decisions);
    journal_.progress(*roster_, false);
  }
}

// Whoever has left frees its slot; a best copy stays of those that may win.
void Executor::drop_ended() {
  for (std::size_t i = 0; i < jobs_.size(); ++i) {
    const auto& j = roster_->jobs()[i];
    if (j.phase != Roster::Phase::done && j.phase != Roster::Phase::exited) continue;
    if (stage_) stage_->forget(std::int64_t(i));
    if (store_->filled(std::int64_t(i))) {
      optimizer_->stop(std::int64_t(i));
      store_->clear(std::int64_t(i));
    }
    const auto& reason = roster_->exits().job(j.load.job).reason;
    if (j.phase == Roster::Phase::exited && reason != "overfitting") jobs_[i].drop_best();
  }
}

std::optional<TaskOutcome> Executor::run(const std::function<bool()>& stop) {
  restore();
  for (;;) {
    const Progress progress = tick(stop && stop());
    if (progress == Progress::stopped) return {};
    if (progress == Progress::over) return finish();
  }
}

Executor::Progress Executor::tick(bool stop) {
  const auto begin = std::chrono::steady_clock::now();
  move_jobs();
  // Half an evaluation is never saved: it comes before any other tick.
  const Tick mine = wanted(), tick = agree(mine != evaluate && stop ? halt : mine);
  if (tick == idle) return Progress::over;
  const bool due_now = tick == train && sweep_.checkpoint_every && tick_ % sweep_.checkpoint_every == 0;
  if (checkpoints_ && tick_ != restored_ && tick_ > 0 && (due_now || tick == halt)) save();
  if (tick == halt) {
    if (checkpoints_) checkpoints_->finish();
    return Progress::stopped;
  }
  last_ = tick;
  tick == evaluate ? evaluate_pass() : stage_ ? burst() : train_pass();
  exchange();
  ++tick_;
  seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return Progress::going;
}

TaskOutcome Executor::finish() {
  if (checkpoints_) checkpoints_->finish();
  journal_.progress(*roster_, true);
  return outcome();
}

}  // namespace trireme::sweep
