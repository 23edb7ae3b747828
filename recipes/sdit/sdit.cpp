// Methods `sdit` (a RECONSTRUCTION of SDiT, arXiv 2601.12283), `ras` (arXiv 2502.10389, as released) and
// `random_tokens`.
#include "data/rng.h"
#include "framework/base/tensor.h"
#include "recipes/sdit/ras.h"
#include "recipes/sdit/sparse.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme::sdit {
namespace {

// Keys of all three.
struct SparseKeys {
  SparseRule rule;
  std::string damping = "steps", k_cache = "post_rope";
  std::int64_t round_to = 64;

  void steps(Fields& f) {
    f("warmup", rule.warmup, "steps at the start that compute every token", {.min = 1});
    f("resets", rule.resets, "later steps that do");
  }
  void extrapolation(Fields& f) {
    f("order", rule.history.order, "of the extrapolated velocity: 0 holds it", {.min = 0, .max = 2});
    f("decay", rule.history.decay, "differences are damped by decay^k", {.min = 0, .max = 1});
    f.choice("damping", damping, {"steps", "order"},
             "k: steps since the token was computed, or the difference's order");
  }
  void cache(Fields& f) {
    f("round_to", round_to, "computed tokens are rounded up to a multiple of this", {.min = 1, .max = 1 << 20});
    f.choice("k_cache", k_cache, {"post_rope", "pre_rope"},
             "cached keys: rotated as they were, or by the tables of the step that uses them");
  }
  SparseRule read() const {
    SparseRule r = rule;
    r.history.by_order = damping == "order";
    r.pre_rope = k_cache == "pre_rope";
    return r;
  }
};

// [B, N] uniform, by the pictures' seeds and the step.
at::Tensor random_keys(const Sampling& s, std::int64_t tokens) {
  at::Tensor keys = at::empty({std::int64_t(s.prompts.size()), tokens}, at::kFloat);
  float* out = keys.data_ptr<float>();
  for (const auto& p : s.prompts) {
    Rng rng(p.seed, "random_tokens", std::uint64_t(s.step));
    for (std::int64_t i = 0; i < tokens; ++i) *out++ = float(rng.u32() >> 8);
  }
  return to_device(keys, s.x.device());
}

class SditSampler final : public SparseSampler {
 public:
  void fields(Fields& f) override {
    keys_.steps(f);
    f.choice("selector", selector_, {"quickshift", "ras", "random", "error"},
             "what is computed: regions by Quickshift and complexity, tokens by RAS's metric, at random, or those "
             "whose extrapolation erred most, by the steps they have waited");
    f("ratio", choice_.ratio, "how much of a sparse step is computed", {.min = 0, .max = 1});
    f.choice("ratio_counts", counts_, {"tokens", "regions"}, "what ratio is a share of");
    f("uncut", choice_.uncut, "the last region and the ring around regions are whole; the host waits for their number");
    f("q", q_, "a region's score is the mean of this share of its pixels, the most complex", {.min = 0.01, .max = 1});
    f("dilate", choice_.dilate, "latent pixels around a region that go with it", {.min = 0, .max = 8});
    f("weights", weights_, "of gradient, Laplacian and residual noise in the complexity");
    f("aging", aging_, "complexity counts times (steps waited)^aging: ours, against starving", {.min = 0, .max = 8});
    f("period", choice_.period,
      "every how many sparse steps the regions are due: of the most complex third, the middle "
      "one, the last; none: always");
    f("kernel_size", labels_.kernel_size, "Quickshift's, in latent pixels", {.min = 0.5, .max = 20});
    f("max_dist", labels_.max_dist, "longest link of a region", {.min = 0, .max = 1000});
    f("feature_ratio", labels_.ratio, "of features of unit deviation against latent pixels", {.min = 0, .max = 1000});
    f("every", every_, "sparse steps from one labelling to the next, counted from the last dense step", {.min = 1});
    keys_.extrapolation(f);
    keys_.cache(f);
    f.require(weights_.size() == 3, "weights", "three weights are wanted", "weights: [1, 0.5, 0.3]");
    f.require(choice_.period.empty() ||
                  (choice_.period.size() == 3 &&
                   std::all_of(choice_.period.begin(), choice_.period.end(), [](auto p) { return p > 0; })),
              "period", "three numbers above 0 are wanted, or none", "period: [1, 2, 4]");
    SparseSampler::fields(f);
    f.require(choice_.ratio > 0, "ratio", "a sparse step computes something", "ratio: 0.5");
  }
  void setup(SampleContext& context) override {
    SparseSampler::setup(context);
    context.message("sdit is a reconstruction from SDiT's abstract and a third party's notes, not the authors' code");
  }
  void begin(Sampling& s, SampleContext& context) override {
    SparseSampler::begin(s, context);
    std::vector<std::uint64_t> seeds;
    for (const auto& p : s.prompts) seeds.push_back(p.seed);
    noise_ = label_noise(seeds, s.x.size(3), s.x.size(4), s.x.device());
    regions_ = {};
  }
  nlohmann::json report() const override {
    auto report = SparseSampler::report();
    report["reconstruction"] = "SDiT has no public code; constants here are not the authors'";
    if (regions_.count.defined()) report["regions"] = regions_.count.to(at::kDouble).mean().item<double>();
    return report;
  }

 protected:
  std::string_view name() const override { return "sdit"; }
  SparseRule rule() const override { return keys_.read(); }
  at::Tensor choose(const Sampling& s) override {
    const auto count = rounded_count(choice_.ratio, tokens(), keys_.round_to);
    if (selector_ == "random") return first_by_key(random_keys(s, tokens()), count);
    if (selector_ == "error") return first_by_key(-error() * age(), count);
    if (selector_ == "ras") return first_by_key(-ras_metric(last(), patch(), false), count);
    const at::Tensor x0 = s.x - s.sigma() * last();
    if (sparse_steps() % every_ == 0) regions_ = label_regions(x0, noise_, labels_);
    at::Tensor c = complexity(s.x, x0, weights_);
    if (aging_ > 0) c = c * waited(s).pow(aging_);
    TokenChoice choice = choice_;
    choice.round_to = keys_.round_to;
    choice.regions = counts_ == "regions";
    return choose_tokens(region_places(regions_, c, q_), regions_, patch(), choice, sparse_steps());
  }

 private:
  // Steps that each pixel has waited, as a share of the longest wait: places count complexities below 8.
  at::Tensor waited(const Sampling& s) const {
    const at::Tensor age = this->age(), share = age / age.amax(1, true);
    const at::Tensor pixels = share.unsqueeze(2).expand({-1, -1, patch().frames * patch().side * patch().side});
    return latent_of(pixels, {s.x.size(0), 1, s.x.size(2), s.x.size(3), s.x.size(4)}, patch()).squeeze(1);
  }

  SparseKeys keys_;
  TokenChoice choice_;
  LabelSettings labels_;
  std::string selector_ = "quickshift", counts_ = "tokens";
  double q_ = 0.75, aging_ = 0;
  std::vector<double> weights_ = {1, 0.5, 0.3};
  std::int64_t every_ = 4;
  at::Tensor noise_;
  RegionLabels regions_;
};

class RasSampler final : public SparseSampler {
 public:
  void fields(Fields& f) override {
    f("sample_ratio", plan_.sample_ratio, "of the tokens, how much a sparse step computes", {.min = 0.01, .max = 1});
    f("start", plan_.start, "first step that may be sparse", {.min = 1});
    f("end", plan_.end, "first step after those", {.min = 1});
    f("resets", plan_.resets, "steps between that compute every token");
    f("starvation", choice_.starvation, "the metric counts times exp(starvation_sign * starvation * steps left out)",
      {.min = 0, .max = 100});
    f("starvation_sign", choice_.starvation_sign, "1 as released, which keeps a token out; -1 brings it back in",
      {.min = -1, .max = 1});
    f("high_ratio", choice_.high_ratio, "of the tokens left out, how many are of the highest metric",
      {.min = 0, .max = 1});
    f.choice("metric", metric_, {"std", "l2norm"}, "over the channels of a step");
    f("ramp", plan_.ramp, "tokens by which ramp_steps steps differ", {.min = 0});
    f("ramp_steps", plan_.ramp_steps, "steps that leave out equally many; 0: all", {.min = 0});
    f.choice("k_cache", k_cache_, {"post_rope", "pre_rope"},
             "cached keys: rotated as they were, or by the tables of the step that uses them");
    SparseSampler::fields(f);
  }
  void setup(SampleContext& context) override {
    plan_.steps = context.steps;
    SparseSampler::setup(context);
  }
  void begin(Sampling& s, SampleContext& context) override {
    SparseSampler::begin(s, context);
    skips_ = ras_skips(plan_, tokens());
    left_out_ = at::full_like(error(), -double(s.sigmas.size()));
  }
  void state(Archive& ar) override {
    SparseSampler::state(ar);
    archive(ar, "left_out", left_out_);
  }

 protected:
  std::string_view name() const override { return "ras"; }
  SparseRule rule() const override {
    return {plan_.start, plan_.end, plan_.resets, {.order = 0}, k_cache_ == "pre_rope"};
  }
  at::Tensor choose(const Sampling& s) override {
    const double step = s.sigma() - s.sigmas[std::size_t(s.step - 1)];
    return choose_ras(ras_metric(step * last(), patch(), metric_ == "l2norm"), left_out_, skips_[std::size_t(s.step)],
                      choice_)
        .active;
  }

 private:
  RasPlan plan_{.resets = {12, 22}};
  RasRule choice_;
  std::string metric_ = "std", k_cache_ = "post_rope";
  std::vector<std::int64_t> skips_;
  at::Tensor left_out_;
};

class RandomTokensSampler final : public SparseSampler {
 public:
  void fields(Fields& f) override {
    keys_.steps(f);
    f("ratio", ratio_, "of the tokens, how much a sparse step computes", {.min = 0.01, .max = 1});
    keys_.extrapolation(f);
    keys_.cache(f);
    SparseSampler::fields(f);
  }

 protected:
  std::string_view name() const override { return "random_tokens"; }
  SparseRule rule() const override { return keys_.read(); }
  at::Tensor choose(const Sampling& s) override {
    return first_by_key(random_keys(s, tokens()), rounded_count(ratio_, tokens(), keys_.round_to));
  }

 private:
  SparseKeys keys_;
  double ratio_ = 0.5;
};

const Samplers::Entry sdit("sdit", [] { return std::make_unique<SditSampler>(); });
const Samplers::Entry ras("ras", [] { return std::make_unique<RasSampler>(); });
const Samplers::Entry random_tokens("random_tokens", [] { return std::make_unique<RandomTokensSampler>(); });

}  // namespace
}  // namespace trireme::sdit
