#include "bench/adapter_pipeline.h"

#include "comm/error.h"

#include <algorithm>

#include <ATen/ATen.h>

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
  if (filling == Filling::packs) store_->set_backend(nn::LoraBackend::wide);
  optimizer_.emplace(*store_);
  pipeline_.emplace(model_, *store_, *optimizer_, *neighbours_);
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
  const std::int64_t of_job = (batch + samples - 1) / samples;
  pipeline_->fill({packs(), of_job}, [this](std::int64_t, std::int64_t place) { return pack_of(place); });
}

sweep::AdapterPipeline::Pack PipelinedJobs::pack_of(std::int64_t place) const {
  const JobPack& pack = packs_[std::size_t(place)];
  const auto counts = at::full({std::ssize(pack.jobs)}, double(jobs_.batch * (jobs_.length - 1)), at::kFloat);
  const bool last = world_.rank() == world_.size() - 1;
  return {{samples_.batch(pack), last ? samples_.labels(pack) : at::Tensor(), samples_.rows(pack), counts},
          pack.last == jobs_.batch};
}

}  // namespace trireme::bench
