#include "bench/adapter_arms.h"

#include "framework/base/tensor.h"
#include "framework/device_info.h"

#include <algorithm>
#include <array>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::bench {

ShardedJobs::ShardedJobs(AdapterJobs jobs, Communicator& world, const Placement& place)
    : jobs_(std::move(jobs)),
      world_(world),
      model_(sweep::without_layers({jobs_.model, drawn_backbone(jobs_.options(place)), jobs_.options(place)})),
      store_(store_for(model_, jobs_)),
      gathers_(for_device(world.split(0, world.rank()), place, {})),
      gradients_(for_device(world.split(0, world.rank()), place, {})) {
  optimizer_.emplace(*store_);
  sharded_.emplace(model_, *store_, *gathers_, drawn_backbone(jobs_.options(place)), jobs_.fp8);
  losses_ = at::zeros({store_->slots()}, jobs_.options(place).dtype(at::kFloat));
  set_shape(jobs_.length, jobs_.batch);
}

void ShardedJobs::set_shape(std::int64_t length, std::int64_t batch) {
  jobs_.length = length, jobs_.batch = batch;
  samples_ = JobSamples(jobs_, model_.device());
}

void ShardedJobs::hold(std::span<const std::int64_t> jobs) {
  if (std::equal(jobs.begin(), jobs.end(), held_.begin(), held_.end())) return;
  for (const auto job : held_) {
    optimizer_->stop(job);
    store_->clear(job);
  }
  // Adapters take up to half of a GPU, and come in other sizes: what is cached would not fit them.
  if (!held_.empty()) release_device_memory();
  held_.assign(jobs.begin(), jobs.end());
  for (const auto job : held_) {
    const auto init = jobs_.init(*store_, job);
    store_->fill(job, init, drawn_adapter(*store_, init, std::uint64_t(job)));
    optimizer_->start(job, {.lr = jobs_.rate(job)});
  }
}

void ShardedJobs::pass(const JobPack& pack) {
  store_->begin(samples_.rows(pack), true);
  const at::Tensor losses = samples_.losses(model_, model_.hidden(samples_.batch(pack)), pack);
  torch::autograd::backward({losses.sum()}, {});
  for (std::size_t j = 0; j < pack.jobs.size(); ++j) losses_[pack.jobs[j]] += losses[std::int64_t(j)].detach();
}

std::int64_t ShardedJobs::passes(std::int64_t jobs, std::int64_t samples) const {
  const std::int64_t each = jobs_.pass_samples(jobs);
  return (samples + each - 1) / each;
}

void ShardedJobs::accumulate(std::span<const std::int64_t> jobs, std::int64_t first, std::int64_t samples) {
  losses_.zero_();
  const std::int64_t n = passes(std::int64_t(jobs.size()), samples);
  for (std::int64_t k = 0; k < n; ++k)
    pass({{jobs.begin(), jobs.end()}, first + k * samples / n, first + (k + 1) * samples / n});
}

void ShardedJobs::own_step(std::span<const std::int64_t> jobs) {
  accumulate(jobs, 0, jobs_.batch);
  optimizer_->step(jobs, losses_);
}

void ShardedJobs::data_parallel_step(std::span<const std::int64_t> jobs) {
  const std::int64_t each = (jobs_.batch + world_.size() - 1) / world_.size();
  accumulate(jobs, world_.rank() * each, each);
  for (const auto job : jobs) gradients_->all_reduce(buffer_of(store_->flat_gradients(job)), Op::sum).wait();
  optimizer_->step(jobs, losses_);
}

void ShardedJobs::gather_step(std::int64_t jobs) {
  for (std::int64_t k = 0; k < passes(jobs, jobs_.batch); ++k) sharded_->gather_pass(true);
}

void ShardedJobs::compute_alone(std::span<const std::int64_t> jobs) {
  sharded_->set_held(true);
  own_step(jobs);
  sharded_->set_held(false);
}

namespace {

std::vector<at::Tensor> trained(const AdapterJobs& jobs, std::span<const std::int64_t> own, Communicator& ranks,
                                const Placement& place, int steps) {
  ShardedJobs arm(jobs, ranks, place);
  arm.hold(own);
  for (int i = 0; i < steps; ++i) arm.own_step(own);
  std::vector<at::Tensor> weights;
  for (const auto job : own) weights.push_back(arm.weights(job).clone());
  return weights;
}

bool all_equal(const std::vector<at::Tensor>& a, const std::vector<at::Tensor>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) { return x.equal(y); });
}

}  // namespace

Sameness sameness(const AdapterJobs& jobs, Communicator& world, const Placement& place, int steps) {
  const std::vector<std::int64_t> own = balanced(jobs.ranks, world.size())[std::size_t(world.rank())];
  const auto alone = world.split(world.rank(), 0);
  const auto together = trained(jobs, own, world, place, steps);
  const auto once = trained(jobs, own, *alone, place, steps), again = trained(jobs, own, *alone, place, steps);
  std::array<std::int64_t, 2> bits{all_equal(together, once), all_equal(once, again)};
  world.all_reduce({bits.data(), bits.size(), DType::i64}, Op::min).wait();
  return {bits[0] != 0, bits[1] != 0, std::int64_t(jobs.ranks.size())};
}

}  // namespace trireme::bench
