// TIDE (arXiv 2603.08928) as a method of `trireme sample`: the plain sampler with other hooks and another shift of
// time. Both halves of guidance get the same hooks. No further steps, no further weights.
#include "framework/models/dit/tide_settings.h"
#include "framework/sampler.h"

#include <algorithm>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

class Tide final : public Sampler {
 public:
  void fields(Fields& f) override { settings_.fields(f); }

  void setup(SampleContext& context) override {
    settings_.prepare(context.model());
    const DenoiserInfo& info = context.model().info();
    if (info.rope_axes.empty())
      context.message("tide: layout " + info.layout +
                      " has no rotary positions; its temperature is a scale of the logits");
  }

  void begin(Sampling& s, SampleContext& context) override {
    s.sigmas = flow_sigmas(context.steps, settings_.shift(context.shift), static_cast<double>(s.grid.tokens()));
  }

  at::Tensor velocity(Sampling& s, SampleContext& context) override {
    const Denoiser& model = context.model();
    const DitHooks hooks = settings_.hooks(model, s.grid, longest_text(s), s.sigma());
    beta_ = hooks.text_bias;
    const auto axes = rope_axes(model.info(), s.grid);
    if (!axes.empty()) context.record("inverse_temperature", sharpest(axes.back(), s.sigma()));
    return guided(context, s, s.x, s.sigma(), hooks);
  }

  nlohmann::json report() const override { return {{"text_bias", beta_}}; }

 private:
  static std::int64_t longest_text(const Sampling& s) {
    const at::Tensor& other = s.no_condition.text;
    return std::max(s.condition.text.size(1), other.defined() ? other.size(1) : 0);
  }

  // Of the columns' slowest pair: what its logits are multiplied by.
  double sharpest(const RopeAxis& axis, double sigma) const {
    const double gain = scaled_axis(axis, settings_.scaling(), sigma).back().gain;
    return gain * gain;
  }

  TideSettings settings_;
  double beta_ = 0;  // of the batch
};

const Samplers::Entry registered("tide", [] { return std::make_unique<Tide>(); });

}  // namespace
}  // namespace trireme
