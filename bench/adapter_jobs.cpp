#include "bench/adapter_jobs.h"

#include "data/rng.h"
#include "framework/base/drawn.h"
#include "framework/base/tensor.h"
#include "framework/losses/token_loss.h"
#include "framework/models/adapters.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>

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

CausalLm::Source drawn_backbone(at::TensorOptions options, std::int64_t first_layer) {
  return [=](const LmWeight& w) -> at::Tensor {
    LmWeight whole = w;  // by its name in the whole model
    if (const std::string own = "layers." + std::to_string(w.layer) + "."; w.layer >= 0)
      whole.name.replace(w.name.find(own), own.size(), "layers." + std::to_string(w.layer + first_layer) + ".");
    return drawn_weight(whole, 1, options);
  };
}

std::unique_ptr<nn::AdapterStore> store_for(CausalLm& model, const AdapterJobs& jobs) {
  PeftConfig c;
  c.rank = *std::max_element(jobs.ranks.begin(), jobs.ranks.end());
  c.targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  return make_adapter_store(model, {&c, 1}, std::int64_t(jobs.ranks.size()), nn::LoraBackend::kernels);
}

nn::AdapterInit AdapterJobs::init(const nn::AdapterStore& store, std::int64_t job) const {
  nn::AdapterInit init;
  init.shapes.assign(store.targets().size(), {ranks[std::size_t(job)], 2.0});
  return init;
}

std::int64_t AdapterJobs::pass_samples(std::int64_t of_jobs) const {
  return std::max(std::int64_t(1), pass_tokens / (of_jobs * length));
}

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

JobSamples::JobSamples(const AdapterJobs& jobs, at::Device device) : length_(jobs.length), batch_(jobs.batch) {
  for (std::size_t job = 0; job < jobs.ranks.size(); ++job) {
    ids_.emplace_back();
    for (std::int64_t s = 0; s < batch_; ++s) {
      Rng rng(std::uint64_t(job), "samples", std::uint64_t(s));
      std::vector<std::int64_t> ids;
      for (std::int64_t k = 0; k < length_; ++k) ids.push_back(std::int64_t(rng.u32()) % jobs.model.vocab);
      ids_.back().push_back(to_device(at::tensor(ids, at::kLong), device));
    }
  }
}

std::vector<nn::SlotRows> JobSamples::rows(const JobPack& pack) const {
  std::vector<nn::SlotRows> rows;
  const std::int64_t each = (pack.last - pack.first) * length_;
  for (std::size_t j = 0; j < pack.jobs.size(); ++j)
    rows.push_back({.slot = pack.jobs[j], .first = std::int64_t(j) * each, .last = std::int64_t(j + 1) * each});
  return rows;
}

TokenBatch JobSamples::batch(const JobPack& pack) const {
  std::vector<at::Tensor> ids;
  for (const auto job : pack.jobs)
    for (std::int64_t s = pack.first; s < pack.last; ++s)
      ids.push_back(ids_[std::size_t(job)][std::size_t(s < batch_ ? s : 0)]);
  return {at::cat(ids), std::vector<std::int64_t>(ids.size(), length_)};
}

at::Tensor JobSamples::labels(const JobPack& pack) const {
  const at::Tensor ids = batch(pack).ids.view({std::int64_t(pack.jobs.size()), pack.last - pack.first, length_});
  at::Tensor next = at::full_like(ids, ignored_label);
  if (const std::int64_t real = std::min(pack.last, batch_) - pack.first; real > 0)
    next.narrow(1, 0, real).narrow(2, 0, length_ - 1).copy_(ids.narrow(1, 0, real).narrow(2, 1, length_ - 1));
  return next.flatten();
}

at::Tensor JobSamples::losses(const CausalLm& model, const at::Tensor& hidden, const JobPack& pack) const {
  const at::Tensor each = token_losses(hidden, model.head(), labels(pack));
  return each.view({std::ssize(pack.jobs), -1}).sum(1) / double(batch_ * (length_ - 1));
}

}  // namespace trireme::bench
