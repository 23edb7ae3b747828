#include "bench/adapter_arms.h"

#include "data/rng.h"
#include "framework/base/drawn.h"
#include "framework/base/tensor.h"
#include "framework/losses/token_loss.h"
#include "framework/models/adapters.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::bench {

std::vector<std::vector<std::int64_t>> balanced(std::span<const std::int64_t> ranks, int places) {
  std::vector<std::int64_t> order(ranks.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return ranks[std::size_t(a)] > ranks[std::size_t(b)]; });
  std::vector<std::vector<std::int64_t>> of(static_cast<std::size_t>(places));
  for (std::size_t i = 0; i < order.size(); ++i) {
    const std::size_t at = i % std::size_t(places), back = i / std::size_t(places) % 2;
    of[back ? std::size_t(places) - 1 - at : at].push_back(order[i]);
  }
  for (auto& jobs : of) std::sort(jobs.begin(), jobs.end());
  return of;
}

namespace {

CausalLm::Source drawn(at::TensorOptions options, std::int64_t first_layer = 0) {
  return [=](const LmWeight& w) -> at::Tensor {
    if (w.kind == LmWeight::one) return at::ones(w.shape, options);
    if (w.kind == LmWeight::zero) return at::zeros(w.shape, options);
    std::string name = w.name;  // of the whole model
    if (const std::string own = "layers." + std::to_string(w.layer) + "."; w.layer >= 0)
      name.replace(name.find(own), own.size(), "layers." + std::to_string(w.layer + first_layer) + ".");
    return drawn_normal(w.shape, w.std, 1, name, options);
  };
}

at::TensorOptions options_of(const AdapterJobs& jobs, const Placement& place) {
  return at::TensorOptions(place.device).dtype(jobs.type);
}

std::unique_ptr<nn::AdapterStore> store_for(CausalLm& model, const AdapterJobs& jobs) {
  PeftConfig c;
  c.rank = *std::max_element(jobs.ranks.begin(), jobs.ranks.end());
  c.targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  return make_adapter_store(model, {&c, 1}, std::int64_t(jobs.ranks.size()), nn::LoraBackend::kernels);
}

nn::AdapterInit init_of(const nn::AdapterStore& store, std::int64_t rank) {
  nn::AdapterInit init;
  init.shapes.assign(store.targets().size(), {rank, 2.0});
  return init;
}

std::vector<at::Tensor> samples_of(const AdapterJobs& jobs, std::int64_t job, at::Device device) {
  std::vector<at::Tensor> all;
  for (std::int64_t s = 0; s < jobs.batch; ++s) {
    Rng rng(std::uint64_t(job), "samples", std::uint64_t(s));
    std::vector<std::int64_t> ids;
    for (std::int64_t k = 0; k < jobs.length; ++k) ids.push_back(std::int64_t(rng.u32()) % jobs.model.vocab);
    all.push_back(to_device(at::tensor(ids, at::kLong), device));
  }
  return all;
}

// The next id of each, which a sample's last has not; of what does not count, none.
at::Tensor labels_of(const at::Tensor& ids, bool counts) {
  at::Tensor next = at::full_like(ids, ignored_label);
  if (counts) next.narrow(0, 0, ids.size(0) - 1).copy_(ids.narrow(0, 1, ids.size(0) - 1));
  return next;
}

}  // namespace

at::Tensor drawn_adapter(const nn::AdapterStore& store, const nn::AdapterInit& init, std::uint64_t seed,
                         std::size_t first_target) {
  const auto padded = [&](std::size_t t) { return (init.shapes[t].rank + 7) / 8 * 8; };
  const auto options = store.targets()[0].weight.options().dtype(at::kFloat);
  std::int64_t size = 0, at = 0;
  for (std::size_t t = 0; t < store.targets().size(); ++t)
    size += padded(t) * (store.targets()[t].weight.size(0) + store.targets()[t].weight.size(1));
  at::Tensor flat = at::zeros({size}, options);
  for (std::size_t t = 0; t < store.targets().size(); ++t) {
    const std::int64_t rank = init.shapes[t].rank, in = store.targets()[t].weight.size(1);
    flat.narrow(0, at, rank * in)
        .copy_(drawn_normal({rank * in}, 1 / std::sqrt(3.0 * double(in)), seed, std::to_string(first_target + t),
                            options));
    at += padded(t) * (store.targets()[t].weight.size(0) + in);
  }
  return flat;
}

ShardedJobs::ShardedJobs(AdapterJobs jobs, Communicator& world, const Placement& place)
    : jobs_(std::move(jobs)),
      world_(world),
      model_(sweep::without_layers(jobs_.model, drawn(options_of(jobs_, place)), options_of(jobs_, place))),
      store_(store_for(model_, jobs_)),
      gathers_(for_device(world.split(0, world.rank()), place, {})),
      gradients_(for_device(world.split(0, world.rank()), place, {})) {
  optimizer_.emplace(*store_);
  sharded_.emplace(model_, *store_, *gathers_, drawn(options_of(jobs_, place)));
  losses_ = at::zeros({store_->slots()}, options_of(jobs_, place).dtype(at::kFloat));
  set_shape(jobs_.length, jobs_.batch);
}

void ShardedJobs::set_shape(std::int64_t length, std::int64_t batch) {
  jobs_.length = length, jobs_.batch = batch;
  ids_.clear();
  for (std::size_t j = 0; j < jobs_.ranks.size(); ++j)
    ids_.push_back(samples_of(jobs_, std::int64_t(j), model_.device()));
}

void ShardedJobs::hold(std::span<const std::int64_t> jobs) {
  for (const auto job : held_) {
    optimizer_->stop(job);
    store_->clear(job);
  }
  held_.assign(jobs.begin(), jobs.end());
  for (const auto job : held_) {
    const auto init = init_of(*store_, jobs_.ranks[std::size_t(job)]);
    store_->fill(job, init, drawn_adapter(*store_, init, std::uint64_t(job)));
    optimizer_->start(job, {.lr = jobs_.lr * double(1 + job % 5)});
  }
}

void ShardedJobs::pass(std::span<const std::int64_t> jobs, std::int64_t first, std::int64_t last, std::int64_t real) {
  std::vector<at::Tensor> ids, labels;
  std::vector<std::int64_t> lengths;
  std::vector<nn::SlotRows> rows;
  const std::int64_t each = (last - first) * jobs_.length;
  for (std::size_t j = 0; j < jobs.size(); ++j) {
    rows.push_back({.slot = jobs[j], .first = std::int64_t(j) * each, .last = std::int64_t(j + 1) * each});
    for (std::int64_t s = first; s < last; ++s) {
      const at::Tensor& one = ids_[std::size_t(jobs[j])][std::size_t(s < real ? s : 0)];
      ids.push_back(one);
      labels.push_back(labels_of(one, s < real));
      lengths.push_back(jobs_.length);
    }
  }
  store_->begin(std::move(rows), true);
  const at::Tensor hidden = model_.hidden({at::cat(ids), lengths});
  const double counted = double(jobs_.batch * (jobs_.length - 1));
  const at::Tensor loss =
      token_losses(hidden, model_.head(), at::cat(labels)).view({std::int64_t(jobs.size()), each}).sum(1) / counted;
  torch::autograd::backward({loss.sum()}, {});
  for (std::size_t j = 0; j < jobs.size(); ++j) losses_[jobs[j]] += loss[std::int64_t(j)].detach().to(at::kFloat);
}

std::int64_t ShardedJobs::passes(std::int64_t jobs, std::int64_t samples) const {
  const std::int64_t n = (jobs * samples * jobs_.length + jobs_.pass_tokens - 1) / jobs_.pass_tokens;
  return std::min(samples, n);
}

void ShardedJobs::accumulate(std::span<const std::int64_t> jobs, std::int64_t first, std::int64_t samples,
                             std::int64_t real) {
  losses_.zero_();
  const std::int64_t n = passes(std::int64_t(jobs.size()), samples);
  for (std::int64_t k = 0; k < n; ++k) pass(jobs, first + k * samples / n, first + (k + 1) * samples / n, real);
}

void ShardedJobs::own_step(std::span<const std::int64_t> jobs) {
  accumulate(jobs, 0, jobs_.batch, jobs_.batch);
  optimizer_->step(jobs, losses_);
}

void ShardedJobs::data_parallel_step(std::span<const std::int64_t> jobs) {
  const std::int64_t each = (jobs_.batch + world_.size() - 1) / world_.size();
  accumulate(jobs, world_.rank() * each, each, jobs_.batch);
  for (const auto job : jobs) gradients_->all_reduce(buffer_of(store_->flat_gradients(job)), Op::sum).wait();
  optimizer_->step(jobs, losses_);
}

void ShardedJobs::gather_step(std::int64_t jobs) {
  for (std::int64_t k = 0; k < passes(jobs, jobs_.batch); ++k) sharded_->empty_pass(true);
}

void ShardedJobs::compute_alone(std::span<const std::int64_t> jobs) {
  sharded_->set_held(true);
  own_step(jobs);
  sharded_->set_held(false);
}

// ---- the pipeline

namespace {

AdapterJobs stage_of(AdapterJobs jobs, const Communicator& world) {
  if (jobs.model.layers % world.size() != 0)
    throw UsageError("pipeline",
                     std::to_string(jobs.model.layers) + " layers do not divide by " + std::to_string(world.size()));
  jobs.model.layers /= world.size();
  return jobs;
}

// What this rank does not need has a shape and no memory.
CausalLm::Source stage_source(const Communicator& world, std::int64_t layers, at::TensorOptions options) {
  const auto all = drawn(options, world.rank() * layers);
  const bool first = world.rank() == 0, last = world.rank() == world.size() - 1;
  return [=](const LmWeight& w) {
    const bool here = w.layer >= 0 || w.kind == LmWeight::one || (w.kind == LmWeight::embedding ? first : last);
    return here ? all(w) : at::empty({1}, options).expand(w.shape);
  };
}

}  // namespace

PipelinedJobs::PipelinedJobs(AdapterJobs jobs, Communicator& world, const Placement& place)
    : jobs_(stage_of(std::move(jobs), world)),
      world_(world),
      options_(options_of(jobs_, place)),
      model_(jobs_.model, stage_source(world, jobs_.model.layers, options_)),
      store_(store_for(model_, jobs_)),
      neighbours_(for_device(world.split(0, world.rank()), place, {})),
      flights_(jobs_.ranks.size()) {
  model_.set_checkpointing(true);
  optimizer_.emplace(*store_);
  losses_ = at::zeros({store_->slots()}, options_of(jobs_, place).dtype(at::kFloat));
  // This rank's layers of the adapters that ShardedJobs makes.
  for (std::size_t j = 0; j < jobs_.ranks.size(); ++j) {
    const auto job = std::int64_t(j);
    const auto init = init_of(*store_, jobs_.ranks[j]);
    store_->fill(job, init,
                 drawn_adapter(*store_, init, std::uint64_t(j), std::size_t(world_.rank()) * store_->targets().size()));
    optimizer_->start(job, {.lr = jobs_.lr * double(1 + job % 5)});
  }
  set_shape(jobs_.length, jobs_.batch);
}

void PipelinedJobs::set_shape(std::int64_t length, std::int64_t batch) {
  jobs_.length = length, jobs_.batch = batch;
  ids_.clear();
  for (std::size_t j = 0; j < jobs_.ranks.size(); ++j)
    ids_.push_back(samples_of(jobs_, std::int64_t(j), model_.device()));
}

std::int64_t PipelinedJobs::period() const {
  return std::max(std::int64_t(jobs_.ranks.size()), 2 * std::int64_t(world_.size()) - 1);
}

std::int64_t PipelinedJobs::job_at(std::int64_t delay) const {
  const std::int64_t began = tick_ - delay, place = began % period();
  return began < 0 || began >= stop_ || place >= std::int64_t(jobs_.ranks.size()) ? -1 : place;
}

void PipelinedJobs::compose(std::int64_t job) {
  store_->begin({{.slot = job, .first = 0, .last = jobs_.batch * jobs_.length}}, true);
}

void PipelinedJobs::forward(std::int64_t job) {
  const std::vector<std::int64_t> lengths(std::size_t(jobs_.batch), jobs_.length);
  const auto& samples = ids_[std::size_t(job)];
  compose(job);
  Flight& f = flights_[std::size_t(job)];
  f.in = (world_.rank() == 0 ? model_.embedded({at::cat(samples), lengths}) : x_).detach().requires_grad_();
  f.out = model_.through_layers(f.in, lengths);
  if (!last()) return;
  std::vector<at::Tensor> labels;
  for (const auto& one : samples) labels.push_back(labels_of(one, true));
  f.out = token_losses(model_.normed(f.out), model_.head(), at::cat(labels)).sum() /
          double(jobs_.batch * (jobs_.length - 1));
  losses_[job].copy_(f.out.detach());
}

at::Tensor PipelinedJobs::backward(std::int64_t job) {
  compose(job);  // what runs again must find the same rows
  const Flight f = std::exchange(flights_[std::size_t(job)], {});
  const auto found = torch::autograd::grad({f.out}, {f.in}, {last() ? at::Tensor() : dy_});
  optimizer_->step({&job, 1}, losses_);
  return found[0];
}

void PipelinedJobs::exchange(const at::Tensor& y, const at::Tensor& dx) {
  const auto ranks = std::size_t(world_.size()), rank = std::size_t(world_.rank());
  const std::int64_t rows = jobs_.batch * jobs_.length, width = jobs_.model.hidden;
  const auto count = std::size_t(rows * width);
  std::vector<std::size_t> send(ranks, 0), recv(ranks, 0);
  std::vector<at::Tensor> out{at::empty({0}, options_)};
  if (dx.defined() && rank > 0) send[rank - 1] = count, out.push_back(dx.detach().flatten());
  if (y.defined() && !last()) send[rank + 1] = count, out.push_back(y.detach().flatten());
  const auto delay = std::int64_t(rank);
  if (rank > 0 && job_at(delay - 1) >= 0) recv[rank - 1] = count;
  if (!last() && job_at(2 * std::int64_t(ranks) - 3 - delay) >= 0) recv[rank + 1] = count;
  const std::int64_t below = rank > 0 ? std::int64_t(recv[rank - 1]) : 0;
  const std::int64_t above = last() ? 0 : std::int64_t(recv[rank + 1]);
  const at::Tensor in = at::cat(out), got = at::empty({below + above}, in.options());
  neighbours_->all_to_all(buffer_of(in), send, buffer_of(got), recv).wait();
  x_ = below ? got.narrow(0, 0, below).view({rows, width}) : at::Tensor();
  dy_ = above ? got.narrow(0, below, above).view({rows, width}) : at::Tensor();
}

void PipelinedJobs::tick() {
  const std::int64_t up = job_at(world_.rank()), down = job_at(2 * world_.size() - 2 - world_.rank());
  at::Tensor y, dx;
  if (up >= 0) {
    forward(up);
    y = flights_[std::size_t(up)].out;
  }
  if (down >= 0) dx = backward(down);
  exchange(y, dx);
  ++tick_;
}

void PipelinedJobs::drain() {
  stop_ = tick_;
  for (int i = 0; i < 2 * world_.size() - 1; ++i) tick();
  tick_ = 0, stop_ = std::numeric_limits<std::int64_t>::max();
}

}  // namespace trireme::bench
