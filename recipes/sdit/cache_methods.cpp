// Methods `teacache`, `teacache_fit`, `first_block`, `taylor_seer` and `pab`: whole steps of blocks, or of their
// attention, that are not computed.
#include "comm/error.h"
#include "framework/sampler.h"
#include "recipes/sdit/caches.h"
#include "recipes/sdit/sparse.h"
#include "recipes/sdit/teacache_fit.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme::sdit {
namespace {

// One cache a batch. Caches are not saved: a job goes on with the batch.
class CacheSampler : public Sampler {
 public:
  explicit CacheSampler(std::string name) : name_(std::move(name)) {}
  void begin(Sampling& s, SampleContext& context) override {
    Sampler::begin(s, context);
    require_one_forward(s, name_);
    if (reads() && s.prompts.size() > 1)
      throw UsageError(name_, "decides for a whole batch, so pictures would depend on their neighbours", "batch=1");
    cache_ = make();
    if (context.parallel || context.halves) cache_->share(&context.comm());
  }
  at::Tensor velocity(Sampling& s, SampleContext& context) override {
    cache_->step({s.step, s.steps(), s.sigma()});
    const at::Tensor v = guided(context, s, s.x, s.sigma(), {.blocks = cache_.get()});
    context.record("computed", cache_->computed().back());
    return v;
  }
  bool may_save(const Sampling&) const override { return false; }
  nlohmann::json report() const override {
    const auto& computed = cache_->computed();
    const auto ran = std::count(computed.begin(), computed.end(), true);
    return {{"computed", computed}, {"computed_steps", ran}, {"steps", computed.size()}};
  }

 protected:
  virtual std::unique_ptr<StepCache> make() const = 0;
  virtual bool reads() const { return false; }  // do decisions depend on data?

 private:
  std::string name_;
  std::unique_ptr<StepCache> cache_;
};

class TeaCacheSampler final : public CacheSampler {
 public:
  TeaCacheSampler() : CacheSampler("teacache") {}
  void fields(Fields& f) override {
    f("polynomial", rule_.polynomial,
      "of the relative change of the first block's modulated input, the highest power first; fitted a model: method "
      "teacache_fit");
    f("fit", fit_, "what teacache_fit wrote, in place of polynomial");
    f("share", share_,
      "of the steps, how many are to run: the threshold that the fit has for it; 0: threshold as given",
      {.min = 0, .max = 1});
    f("threshold", rule_.threshold, "blocks are left out while the sum stays below it", {.min = 0, .max = 1e6});
    f("retained", rule_.retained, "steps at the start that run, as the last one does", {.min = 1});
    f.require(!fit_.empty() || !rule_.polynomial.empty(), "polynomial", "no polynomial is given",
              "run method teacache_fit and name its file: fit");
    f.require(share_ == 0 || !fit_.empty(), "share", "only a fit says what a share needs", "name it: fit");
  }
  void setup(SampleContext&) override {
    if (fit_.empty()) return;
    const TeaCacheFit fit = read_fit(fit_);
    rule_.polynomial = fit.polynomial;
    if (share_ > 0) rule_.threshold = threshold_of(fit, share_);
  }

 protected:
  std::unique_ptr<StepCache> make() const override { return std::make_unique<TeaCache>(rule_); }
  bool reads() const override { return true; }

 private:
  // FLUX.1-dev's, as released.
  TeaCache::Rule rule_{{498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861}, 0.25, 1};
  std::string fit_;
  double share_ = 0;
};

class FirstBlockSampler final : public CacheSampler {
 public:
  FirstBlockSampler() : CacheSampler("first_block") {}
  void fields(Fields& f) override {
    f("threshold", rule_.threshold, "largest relative change of the first block's residual that counts as none",
      {.min = 0, .max = 1e6});
    f("warmup", rule_.warmup, "steps at the start that run whole", {.min = 0});
    f("most_in_a_row", rule_.most_in_a_row, "steps that may follow one that ran; -1: any", {.min = -1});
    f("taylor", rule_.taylor,
      "order of the series, from the warm-up's last step on, that predicts the other blocks; 0: as they last were",
      {.min = 0, .max = 4});
  }

 protected:
  std::unique_ptr<StepCache> make() const override { return std::make_unique<FirstBlockCache>(rule_); }
  bool reads() const override { return true; }

 private:
  FirstBlockCache::Rule rule_;
};

class TaylorSeerSampler final : public CacheSampler {
 public:
  TaylorSeerSampler() : CacheSampler("taylor_seer") {}
  void fields(Fields& f) override {
    f("interval", rule_.interval, "steps from one that runs to the next", {.min = 1});
    f("warmup", rule_.warmup, "steps at the start that run", {.min = 1});
    f("order", rule_.order, "of the series", {.min = 0, .max = 4});
    f("lite", lite_, "predict the velocity itself: a predicted step runs no model at all");
  }
  void begin(Sampling& s, SampleContext& context) override {
    CacheSampler::begin(s, context);
    velocity_.emplace(rule_.order);
    ran_.clear();
  }
  at::Tensor velocity(Sampling& s, SampleContext& context) override {
    if (!lite_) return CacheSampler::velocity(s, context);
    ran_.push_back(TaylorSeer::computes(rule_, s.step));
    context.record("computed", ran_.back());
    if (!ran_.back()) return velocity_->predict(s.step);
    const at::Tensor v = guided(context, s, s.x, s.sigma());
    velocity_->computed(v, s.step);
    return v;
  }
  nlohmann::json report() const override {
    if (!lite_) return CacheSampler::report();
    return {{"computed", ran_}, {"computed_steps", std::count(ran_.begin(), ran_.end(), true)}, {"steps", ran_.size()}};
  }

 protected:
  std::unique_ptr<StepCache> make() const override { return std::make_unique<TaylorSeer>(rule_); }

 private:
  TaylorSeer::Rule rule_;
  bool lite_ = false;
  std::optional<TaylorSeries> velocity_;
  std::vector<bool> ran_;
};

class PabSampler final : public CacheSampler {
 public:
  PabSampler() : CacheSampler("pab") {}
  void fields(Fields& f) override {
    f("every", rule_.every, "steps from one whose attention runs to the next", {.min = 1});
    f("low", rule_.low, "timesteps (1000 sigma) at and below run", {.min = 0, .max = 1000});
    f("high", rule_.high, "timesteps at and above run", {.min = 0, .max = 1000});
  }

 protected:
  std::unique_ptr<StepCache> make() const override { return std::make_unique<AttentionBroadcast>(rule_); }

 private:
  AttentionBroadcast::Rule rule_;
};

const Samplers::Entry teacache("teacache", [] { return std::make_unique<TeaCacheSampler>(); });
const Samplers::Entry first_block("first_block", [] { return std::make_unique<FirstBlockSampler>(); });
const Samplers::Entry taylor_seer("taylor_seer", [] { return std::make_unique<TaylorSeerSampler>(); });
const Samplers::Entry pab("pab", [] { return std::make_unique<PabSampler>(); });

}  // namespace
}  // namespace trireme::sdit
