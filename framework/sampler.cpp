#include "framework/sampler.h"

#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/models/dit/guidance.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

Conditioning at_level(SampleContext& context, const Sampling& s, const Conditioning& c, double sigma) {
  return context.modulations ? context.modulations->at(context.model(), c, s.sigmas, sigma) : c;
}

// This rank computes one half, and hears the other.
at::Tensor shared_halves(SampleContext& context, const Sampling& s, const at::Tensor& x, double sigma,
                         const DitHooks& hooks) {
  Communicator& pair = *context.halves;
  const Conditioning condition = at_level(context, s, pair.rank() == 0 ? s.condition : s.no_condition, sigma);
  const at::Tensor mine = velocity_of(context.model(), context.dtype, condition, x, sigma, hooks).contiguous();
  std::vector<std::int64_t> shape = {2};
  shape.insert(shape.end(), mine.sizes().begin(), mine.sizes().end());
  const at::Tensor halves = at::empty(shape, mine.options());
  pair.all_gather(buffer_of(mine), buffer_of(halves)).wait();
  return guided_sum(halves[0], halves[1], s.guidance);
}

}  // namespace

at::Tensor drawn_noise(std::uint64_t seed, std::uint64_t draw, at::IntArrayRef shape, at::Device device) {
  const at::Tensor host = at::empty(shape, at::kFloat);
  Rng rng(seed, "noise", draw);
  float* to = host.data_ptr<float>();
  for (std::int64_t i = 0; i < host.numel(); ++i) to[i] = float(rng.normal());
  return to_device(host, device);
}

at::Tensor drawn_noise(const std::vector<Prompt>& prompts, std::uint64_t draw, at::IntArrayRef shape,
                       at::Device device) {
  std::vector<at::Tensor> each;
  for (const auto& p : prompts) each.push_back(drawn_noise(p.seed, draw, shape, device));
  return at::stack(each);
}

at::Tensor guided(SampleContext& context, const Sampling& s, const at::Tensor& x, double sigma, const DitHooks& given) {
  DitHooks hooks = given;
  if (!hooks.parallel) hooks.parallel = context.parallel;
  const auto at_sigma = [&](const Conditioning& c) { return at_level(context, s, c, sigma); };
  const auto alone = [&](const Conditioning& c) {
    return velocity_of(context.model(), context.dtype, at_sigma(c), x, sigma, hooks);
  };
  if (!s.no_condition.text.defined() || s.guidance == 1) return alone(s.condition);
  if (context.halves) return shared_halves(context, s, x, sigma, hooks);
  if (s.condition.text.sizes() == s.no_condition.text.sizes())
    return guided_velocity(context.model(), context.dtype, at_sigma(s.condition), at_sigma(s.no_condition), x, sigma,
                           s.guidance, hooks);
  // Texts of two lengths do not fit in one batch.
  const at::Tensor conditional = alone(s.condition);
  return guided_sum(conditional, alone(s.no_condition), s.guidance);
}

void Sampler::begin(Sampling& s, SampleContext& context) {
  s.sigmas = flow_sigmas(context.steps, context.shift, double(s.grid.frames * s.grid.rows * s.grid.columns));
}

at::Tensor Sampler::velocity(Sampling& s, SampleContext& context) { return guided(context, s, s.x, s.sigma()); }

nlohmann::json Sampler::report() const { return nlohmann::json::object(); }

namespace {

class Plain final : public Sampler {};

const Samplers::Entry registered("plain", [] { return std::make_unique<Plain>(); });

}  // namespace
}  // namespace trireme
