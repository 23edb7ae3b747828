#include "bench/adapter_pipeline.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::bench {
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
  const auto all = drawn_backbone(options, world.rank() * layers);
  const bool first = world.rank() == 0, last = world.rank() == world.size() - 1;
  return [=](const LmWeight& w) {
    const bool here = w.layer >= 0 || w.kind == LmWeight::one || (w.kind == LmWeight::embedding ? first : last);
    return here ? all(w) : at::empty({1}, options).expand(w.shape);
  };
}

}  // namespace

PipelinedJobs::PipelinedJobs(AdapterJobs jobs, Communicator& world, const Placement& place, Filling filling)
    : jobs_(stage_of(std::move(jobs), world)),
      world_(world),
      filling_(filling),
      options_(jobs_.options(place)),
      model_(jobs_.model, stage_source(world, jobs_.model.layers, options_)),
      store_(store_for(model_, jobs_)),
      neighbours_(for_device(world.split(0, world.rank()), place, {})) {
  model_.set_checkpointing(true);
  if (filling == Filling::packs) store_->set_backend(nn::LoraBackend::wide);
  optimizer_.emplace(*store_);
  losses_ = at::zeros({store_->slots()}, options_.dtype(at::kFloat));
  // This rank's layers of the adapters that ShardedJobs makes.
  for (std::int64_t job = 0; job < store_->slots(); ++job) {
    const auto init = jobs_.init(*store_, job);
    store_->fill(
        job, init,
        drawn_adapter(*store_, init, std::uint64_t(job), std::size_t(world.rank()) * store_->targets().size()));
    optimizer_->start(job, {.lr = jobs_.rate(job)});
  }
  set_shape(jobs_.length, jobs_.batch);
}

// Where jobs do not divide so, one.
std::int64_t PipelinedJobs::jobs_a_pack() const {
  const auto jobs = std::int64_t(jobs_.ranks.size());
  if (filling_ == Filling::jobs) return 1;
  for (std::int64_t groups = 2 * world_.size() - 1; groups < jobs; ++groups)
    if (jobs % groups == 0) return jobs / groups;
  return 1;
}

void PipelinedJobs::set_shape(std::int64_t length, std::int64_t batch) {
  jobs_.length = length, jobs_.batch = batch;
  samples_ = JobSamples(jobs_, model_.device());
  packs_.clear();
  const std::int64_t together = jobs_a_pack(), samples = jobs_.pass_samples(together);
  for (const auto& group : balanced(jobs_.ranks, int(jobs_.ranks.size()) / int(together)))
    for (std::int64_t first = 0; first < batch; first += samples)
      packs_.push_back({group, first, std::min(first + samples, batch)});
  flights_.assign(packs_.size(), {});
}

std::int64_t PipelinedJobs::period() const {
  const std::int64_t samples = jobs_.pass_samples(jobs_a_pack()), of_job = (jobs_.batch + samples - 1) / samples;
  return std::max(packs(), of_job + 2 * world_.size() - 2);
}

std::int64_t PipelinedJobs::pack_at(std::int64_t delay) const {
  const std::int64_t began = tick_ - delay, place = began % period();
  return began < 0 || began >= stop_ || place >= packs() ? -1 : place;
}

std::int64_t PipelinedJobs::tokens_at(std::int64_t delay) const {
  const std::int64_t pack = pack_at(delay);
  return pack < 0 ? 0 : samples_.tokens(packs_[std::size_t(pack)]);
}

void PipelinedJobs::forward(std::int64_t number) {
  const JobPack& pack = packs_[std::size_t(number)];
  const TokenBatch batch = samples_.batch(pack);
  store_->begin(samples_.rows(pack), true);
  Flight& f = flights_[std::size_t(number)];
  f.in = (world_.rank() == 0 ? model_.embedded(batch) : x_).detach().requires_grad_();
  f.out = model_.through_layers(f.in, batch.lengths);
  if (!last()) return;
  const at::Tensor losses = samples_.losses(model_, model_.normed(f.out), pack);
  for (std::size_t j = 0; j < pack.jobs.size(); ++j) losses_[pack.jobs[j]] += losses[std::int64_t(j)].detach();
  f.out = losses.sum();
}

at::Tensor PipelinedJobs::backward(std::int64_t number) {
  const JobPack& pack = packs_[std::size_t(number)];
  store_->begin(samples_.rows(pack), true);  // what runs again must find the same rows
  const Flight f = std::exchange(flights_[std::size_t(number)], {});
  const auto found = torch::autograd::grad({f.out}, {f.in}, {last() ? at::Tensor() : dy_});
  if (pack.last < jobs_.batch) return found[0];
  optimizer_->step(pack.jobs, losses_);
  for (const auto job : pack.jobs) losses_[job].zero_();
  return found[0];
}

void PipelinedJobs::exchange(const at::Tensor& y, const at::Tensor& dx) {
  const auto ranks = std::size_t(world_.size()), rank = std::size_t(world_.rank());
  const std::int64_t width = jobs_.model.hidden, delay = world_.rank();
  std::vector<std::size_t> send(ranks, 0), recv(ranks, 0);
  std::vector<at::Tensor> out{at::empty({0}, options_)};
  if (dx.defined() && rank > 0) send[rank - 1] = std::size_t(dx.numel()), out.push_back(dx.detach().flatten());
  if (y.defined() && !last()) send[rank + 1] = std::size_t(y.numel()), out.push_back(y.detach().flatten());
  const std::int64_t below = rank > 0 ? tokens_at(delay - 1) * width : 0;
  const std::int64_t above = last() ? 0 : tokens_at(2 * std::int64_t(ranks) - 3 - delay) * width;
  if (below) recv[rank - 1] = std::size_t(below);
  if (above) recv[rank + 1] = std::size_t(above);
  const at::Tensor in = at::cat(out), got = at::empty({below + above}, in.options());
  neighbours_->all_to_all(buffer_of(in), send, buffer_of(got), recv).wait();
  x_ = below ? got.narrow(0, 0, below).view({-1, width}) : at::Tensor();
  dy_ = above ? got.narrow(0, below, above).view({-1, width}) : at::Tensor();
}

void PipelinedJobs::tick() {
  const std::int64_t up = pack_at(world_.rank()), down = pack_at(2 * world_.size() - 2 - world_.rank());
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
