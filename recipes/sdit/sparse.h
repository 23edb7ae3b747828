// Sampling in which some steps compute some tokens: what SDiT (reconstruction), RAS and random tokens have in common.
// Dense steps fill the K/V cache of every layer; sparse ones send the chosen tokens and all text through the blocks and
// extrapolate the others' velocity from what was computed of them.
#pragma once
#include "framework/models/dit/prediction_cache.h"
#include "framework/models/dit/tide_settings.h"
#include "framework/models/dit/token_set.h"
#include "framework/sampler.h"
#include "recipes/sdit/regions.h"

namespace trireme::sdit {

struct SparseRule {
  std::int64_t warmup = 4, end = 1000;          // dense before `warmup` and from `end` on
  std::vector<std::int64_t> resets = {12, 22};  // dense steps between
  VelocityHistory::Settings history;
  bool pre_rope = false;  // cached keys are rotated when they are used, by the tables of that step
  bool dense(std::int64_t step) const;
};

// [B, N, D] <- latents [B, C, F, H, W] in the order of tokens (frames, rows, columns), and back.
at::Tensor tokens_of(const at::Tensor& latent, TokenPatch patch);
at::Tensor latent_of(const at::Tensor& tokens, at::IntArrayRef sizes, TokenPatch patch);

// Refuses what one forward a step does not do. UsageError: halves of guidance with texts of two lengths.
void require_one_forward(const Sampling& sampling, std::string_view method);

class SparseSampler : public Sampler {
 public:
  void fields(Fields& f) override;
  void setup(SampleContext& context) override;
  void begin(Sampling& sampling, SampleContext& context) override;
  at::Tensor velocity(Sampling& sampling, SampleContext& context) override;
  void state(Archive& archive) override;
  // The cache of keys and values is not saved: before a dense step nobody needs it.
  bool may_save(const Sampling& sampling) const override { return rule().dense(sampling.step); }
  nlohmann::json report() const override;
  std::vector<SampleMap> maps() const override;
  SampleMemory memory(const DenoiserInfo& model, const Grid& grid) const override {
    return {.tokens = grid.tokens(), .cached_layers = model.layers, .canvases = 6};
  }

 protected:
  virtual std::string_view name() const = 0;  // of the method, whose keys are under it
  virtual SparseRule rule() const = 0;
  // i64 [B, K], ascending. Called before a sparse step.
  virtual at::Tensor choose(const Sampling& sampling) = 0;

  TokenPatch patch() const { return patch_; }
  std::int64_t tokens() const { return error_.size(1); }
  std::int64_t sparse_steps() const { return sparse_steps_; }    // since the last dense one
  const at::Tensor& last() const { return last_; }               // f32, of x's shape: the velocity of the step before
  at::Tensor age() const { return history_->age().squeeze(2); }  // [B, N], as VelocityHistory's
  // f32 [B, N]: mean |velocity - its extrapolation| when the token was last computed, a step it waited.
  const at::Tensor& error() const { return error_; }

 private:
  DitHooks hooks(const Sampling& sampling, SampleContext& context);
  at::Tensor merged(const at::Tensor& fresh, double sigma);
  void judge(const at::Tensor& choice, const at::Tensor& waited);

  bool with_tide_ = false, judge_ = false;
  TideSettings tide_;
  TokenPatch patch_;
  Grid grid_;
  std::optional<VelocityHistory> history_;
  std::optional<TokenSet> set_;
  at::Tensor last_, error_, computed_;  // computed_: f32 [B, N], steps in which a token was
  std::vector<double> share_;           // computed of the tokens, a step
  std::vector<at::Tensor> caught_;      // f32 [2] on the device, of each dense step that judged a choice
  std::int64_t sparse_steps_ = 0;
};

}  // namespace trireme::sdit
