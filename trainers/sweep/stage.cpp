#include "trainers/sweep/stage.h"

#include "framework/base/tensor.h"

#include <algorithm>
#include <utility>

#include <ATen/ATen.h>

namespace trireme::sweep {
namespace {

constexpr std::int64_t scalars = 2;  // of an adapter that travels: updates, alive

// For every rank the end of its layers' targets among all, which go layer by layer.
std::vector<std::int64_t> ends_of_stages(const CausalLm& model, const nn::AdapterStore& store, int ranks) {
  std::map<std::string, std::int64_t> layer_of;
  for (const auto& [weight, value] : model.weights())
    if (weight.name.ends_with(".weight")) layer_of[weight.name.substr(0, weight.name.size() - 7)] = weight.layer;
  std::vector<std::int64_t> ends(std::size_t(ranks), 0);
  for (std::size_t t = 0; t < store.targets().size(); ++t) {
    const std::int64_t layer = layer_of.at(store.targets()[t].name);
    for (auto r = std::size_t(layer * ranks / model.config().layers); r < ends.size(); ++r)
      ends[r] = std::int64_t(t) + 1;
  }
  return ends;
}

nn::AdapterInit part_of(const nn::AdapterInit& init, std::int64_t first, std::int64_t end) {
  nn::AdapterInit part = init;
  part.shapes.assign(init.shapes.begin() + first, init.shapes.begin() + end);
  return part;
}

// A store of the stage's targets, which keep their names in the whole model: masks of dropout go by them.
std::unique_ptr<nn::AdapterStore> store_of_stage(CausalLm& stage, const nn::AdapterStore& whole, std::int64_t first,
                                                 std::int64_t end, std::int64_t first_layer) {
  std::map<std::string, nn::Projection> local;
  for (const auto& p : stage.projections()) {
    const std::size_t at = p.name.find_first_of("0123456789"), n = p.name.find('.', at) - at;
    std::string name = p.name;
    local[name.replace(at, n, std::to_string(first_layer + std::stoll(p.name.substr(at, n))))] = p;
  }
  std::vector<nn::Projection> targets;
  std::map<std::string, std::int64_t> target_of;
  for (std::int64_t t = first; t < end; ++t) {
    nn::Projection p = local.at(whole.targets()[std::size_t(t)].name);
    target_of[p.name] = t - first;
    p.name = whole.targets()[std::size_t(t)].name;
    targets.push_back(p);
  }
  constexpr std::int64_t any_rank = 128;
  auto store = std::make_unique<nn::AdapterStore>(std::move(targets), whole.slots(), any_rank, whole.backend());
  stage.attach(store.get(), target_of);
  return store;
}

}  // namespace

std::string no_stages(const CausalLm& model, const nn::AdapterStore& store, int ranks) {
  if (ranks < 2) return "a pipeline takes several ranks";
  if (store.has_fp8_base()) return "stages are not made of FP8 codes (precision: fp8)";
  if (model.config().by_layer) return "its scores go by the layer's number (scale_attn_by_inverse_layer_idx)";
  if (model.config().layers % ranks != 0)
    return "its " + std::to_string(model.config().layers) + " layers do not divide by " + std::to_string(ranks) +
           " ranks";
  std::int64_t before = 0;
  for (const auto end : ends_of_stages(model, store, ranks))
    if (std::exchange(before, end) == end) return "the layers of a rank would have no adapter (lora.targets)";
  return {};
}

Stage::Stage(const CausalLm& model, nn::AdapterStore& store, nn::AdapterOptimizer& optimizer, ShardedBackbone& layers,
             const JobTrainConfig& train, std::unique_ptr<Communicator> slices,
             std::unique_ptr<Communicator> neighbours)
    : whole_(store),
      whole_optimizer_(optimizer),
      slices_(std::move(slices)),
      neighbours_(std::move(neighbours)),
      ends_(ends_of_stages(model, store, slices_->size())),
      stage_(layers.hold_stages()) {
  const auto rank = std::size_t(slices_->rank());
  store_ = store_of_stage(stage_, whole_, rank ? ends_[rank - 1] : 0, ends_[rank],
                          std::int64_t(rank) * stage_.config().layers);
  optimizer_ = std::make_unique<nn::AdapterOptimizer>(*store_, train.beta1, train.beta2, train.eps);
  pipeline_ = std::make_unique<AdapterPipeline>(stage_, *store_, *optimizer_, *neighbours_);
  pipeline_->on_loss([this](std::int64_t slot, at::Tensor loss) { losses_[slot].push_back(std::move(loss)); });
}

// As AdapterStore::fill lays targets out.
Stage::Range Stage::slice(const nn::AdapterInit& init, int rank) const {
  Range range;
  const std::int64_t first = rank ? ends_[std::size_t(rank) - 1] : 0, end = ends_[std::size_t(rank)];
  for (std::int64_t t = 0; t < end; ++t) {
    const at::Tensor& w = whole_.targets()[std::size_t(t)].weight;
    const std::int64_t wide = (init.shapes[std::size_t(t)].rank + 7) / 8 * 8;
    (t < first ? range.first : range.count) += wide * (w.size(0) + w.size(1));
  }
  return range;
}

// The k-th job of every rank, for every k: they travel at a time.
std::vector<std::vector<Stage::Place>> Stage::rounds(std::span<const Place> places) const {
  std::vector<std::size_t> taken(std::size_t(slices_->size()), 0);
  std::vector<std::vector<Place>> all;
  for (const auto& p : places) {
    const std::size_t k = taken[std::size_t(p.rank)]++;
    if (k == all.size()) all.emplace_back();
    all[k].push_back(p);
  }
  for (auto& round : all) std::ranges::sort(round, {}, &Place::rank);
  return all;
}

// f32; to: what each rank gets of this one. from: how many values come of each rank.
at::Tensor Stage::exchange(const std::vector<at::Tensor>& to, const std::vector<std::int64_t>& from) {
  std::vector<std::size_t> send, recv;
  std::size_t total = 0;
  for (const auto& t : to) send.push_back(std::size_t(t.numel()));
  for (const auto n : from) recv.push_back(std::size_t(n)), total += std::size_t(n);
  const at::Tensor out = at::cat(to), in = at::empty({std::int64_t(total)}, out.options());
  slices_->all_to_all(buffer_of(out), send, buffer_of(in), recv).wait();
  sent_ += 4 * (out.numel() - to[std::size_t(slices_->rank())].numel());
  return in;
}

// A slice as it came: weights, both moments, updates, alive.
void Stage::take(const Job& job, std::int64_t slot, const at::Tensor& parts) {
  const int rank = slices_->rank();
  const std::int64_t n = (parts.numel() - scalars) / 3;
  store_->fill(slot, part_of(job.init(), rank ? ends_[std::size_t(rank) - 1] : 0, ends_[std::size_t(rank)]),
               parts.narrow(0, 0, n));
  optimizer_->start(slot, job.rates());
  optimizer_->first(slot).copy_(parts.narrow(0, n, n));
  optimizer_->second(slot).copy_(parts.narrow(0, 2 * n, n));
  optimizer_->updates()[slot].copy_(parts[3 * n]);
  optimizer_->alive()[slot].copy_(parts[3 * n + 1]);
}

void Stage::send_out(std::span<const Place> places, const std::vector<Job>& jobs) {
  const int rank = slices_->rank(), ranks = slices_->size();
  std::vector<Place> away;
  for (const auto& p : places)
    if (!store_->filled(p.slot)) away.push_back(p);
  const at::Tensor none = at::empty({0}, whole_optimizer_.alive().options());
  for (const auto& round : rounds(away)) {
    std::vector<at::Tensor> to(std::size_t(ranks), none);
    std::vector<std::int64_t> from(std::size_t(ranks), 0);
    for (const auto& p : round) {
      const nn::AdapterInit& init = jobs[std::size_t(p.slot)].init();
      from[std::size_t(p.rank)] = 3 * slice(init, rank).count + scalars;
      for (int r = 0; p.rank == rank && r < ranks; ++r) {
        const Range s = slice(init, r);
        const auto part = [&](const at::Tensor& flat) { return flat.narrow(0, s.first, s.count); };
        const at::Tensor counts = at::stack({whole_optimizer_.updates()[p.slot], whole_optimizer_.alive()[p.slot]}, 0);
        to[std::size_t(r)] = at::cat({part(whole_.flat_weights(p.slot)), part(whole_optimizer_.first(p.slot)),
                                      part(whole_optimizer_.second(p.slot)), counts});
      }
    }
    const at::Tensor in = exchange(to, from);
    std::int64_t at = 0;
    for (const auto& p : round) {
      const std::int64_t n = from[std::size_t(p.rank)];
      take(jobs[std::size_t(p.slot)], p.slot, in.narrow(0, at, n));
      at += n;
    }
  }
}

// Of this rank's jobs the losses; the stages keep what they have.
std::vector<at::Tensor> Stage::bring_back(std::span<const Place> places, const std::vector<Job>& jobs,
                                          std::int64_t steps) {
  const int rank = slices_->rank(), ranks = slices_->size();
  const at::Tensor none = at::empty({0}, whole_optimizer_.alive().options());
  std::map<std::int64_t, at::Tensor> losses;
  for (const auto& round : rounds(places)) {
    std::vector<at::Tensor> to(std::size_t(ranks), none);
    std::vector<std::int64_t> from(std::size_t(ranks), 0);
    const Place* own = nullptr;
    for (const auto& p : round) {
      std::vector<at::Tensor> parts{store_->flat_weights(p.slot), optimizer_->first(p.slot),
                                    optimizer_->second(p.slot)};
      if (rank == ranks - 1) {
        parts.push_back(at::stack({optimizer_->updates()[p.slot], optimizer_->alive()[p.slot]}, 0));
        parts.push_back(at::stack(losses_.at(p.slot)));
      }
      to[std::size_t(p.rank)] = at::cat(parts);
      if (p.rank == rank) own = &p;
    }
    for (int r = 0; own && r < ranks; ++r)
      from[std::size_t(r)] = 3 * slice(jobs[std::size_t(own->slot)].init(), r).count;
    if (own) from.back() += scalars + steps;
    const at::Tensor in = exchange(to, from);
    if (!own) continue;
    std::int64_t at = 0;
    const auto next = [&](std::int64_t n) { return in.narrow(0, std::exchange(at, at + n), n); };
    for (int r = 0; r < ranks; ++r) {
      const Range s = slice(jobs[std::size_t(own->slot)].init(), r);
      for (const at::Tensor& flat :
           {whole_.flat_weights(own->slot), whole_optimizer_.first(own->slot), whole_optimizer_.second(own->slot)})
        flat.narrow(0, s.first, s.count).copy_(next(s.count));
    }
    whole_.publish(own->slot);
    whole_optimizer_.updates()[own->slot].copy_(next(1)[0]);
    whole_optimizer_.alive()[own->slot].copy_(next(1)[0]);
    losses[own->slot] = next(steps).clone();  // the rest of what came goes
  }
  losses_.clear();
  std::vector<at::Tensor> mine;
  for (const auto& p : places)
    if (p.rank == rank) mine.push_back(losses.at(p.slot));
  return mine;
}

std::vector<at::Tensor> Stage::burst(std::span<const Place> places, const std::vector<Job>& jobs, PipelineShape shape,
                                     AdapterPipeline::Source source, std::int64_t steps) {
  {
    const at::NoGradGuard no_grad;
    send_out(places, jobs);
  }
  pipeline_->fill(shape, std::move(source), steps);
  pipeline_->run();
  const at::NoGradGuard no_grad;
  return bring_back(places, jobs, steps);
}

void Stage::forget(std::int64_t slot) {
  if (!store_->filled(slot)) return;
  optimizer_->stop(slot);
  store_->clear(slot);
}

}  // namespace trireme::sweep
