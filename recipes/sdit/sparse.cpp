#include "recipes/sdit/sparse.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>
#include <array>
#include <numeric>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme::sdit {

bool SparseRule::dense(std::int64_t step) const {
  return step < warmup || step >= end || std::find(resets.begin(), resets.end(), step) != resets.end();
}

at::Tensor tokens_of(const at::Tensor& latent, TokenPatch patch) {
  const auto b = latent.size(0), c = latent.size(1);
  return latent
      .reshape({b, c, latent.size(2) / patch.frames, patch.frames, latent.size(3) / patch.side, patch.side,
                latent.size(4) / patch.side, patch.side})
      .permute({0, 2, 4, 6, 1, 3, 5, 7})
      .reshape({b, -1, c * patch.frames * patch.side * patch.side});
}

at::Tensor latent_of(const at::Tensor& tokens, at::IntArrayRef sizes, TokenPatch patch) {
  return tokens
      .reshape({sizes[0], sizes[2] / patch.frames, sizes[3] / patch.side, sizes[4] / patch.side, sizes[1], patch.frames,
                patch.side, patch.side})
      .permute({0, 4, 1, 5, 2, 6, 3, 7})
      .reshape(sizes);
}

void require_one_forward(const Sampling& s, std::string_view method) {
  const bool guided = s.no_condition.text.defined() && s.guidance != 1;
  if (guided && s.condition.text.sizes() != s.no_condition.text.sizes())
    throw UsageError(std::string(method),
                     "a prompt and the negative one have texts of two lengths, so a step is two forwards",
                     "give them the same length, or guidance=1");
}

void SparseSampler::fields(Fields& f) {
  f("with_tide", with_tide_, "with TIDE's hooks and shift of time; cached keys are then rotated when they are used");
  f.group("tide", tide_, "as of method tide");
  f("judge", judge_,
    "dense steps after sparse ones choose too, and the report says how much of the extrapolation's error lay in the "
    "tokens chosen (caught) and at most could have (most)");
}

void SparseSampler::setup(SampleContext& context) {
  if (with_tide_) tide_.prepare(context.model());
  const auto resets = rule().resets;
  std::int64_t last = 0;
  std::string within;
  for (const auto reset : resets) {
    last = std::max(last, reset);
    if (reset >= 0 && reset < context.steps) within += (within.empty() ? "" : ", ") + std::to_string(reset);
  }
  const std::string key = std::string(name()) + ".resets";
  for (const auto reset : resets)
    if (reset < 0 || reset >= context.steps)
      throw UsageError(key, "step " + std::to_string(reset) + " is none of " + std::to_string(context.steps),
                       key + "=[" + within + "]" +
                           (last < context.steps ? "" : ", or steps=" + std::to_string(last + 1) + " or more"));
}

void SparseSampler::begin(Sampling& s, SampleContext& context) {
  Sampler::begin(s, context);
  require_one_forward(s, "sparse sampling");
  const auto& model = context.model().info();
  patch_ = {model.patch_frames, model.patch};
  grid_ = s.grid;
  history_.emplace(rule().history);
  if (with_tide_) s.sigmas = flow_sigmas(context.steps, tide_.shift(context.shift), double(s.grid.tokens()));
  // Kept from batch to batch, so that recorded steps find it where it was; a dense step fills it before it is read.
  if (!set_) set_.emplace(rule().pre_rope || with_tide_ ? TokenSet::Keys::pre_rope : TokenSet::Keys::post_rope);
  last_ = at::zeros_like(s.x);
  error_ = at::zeros({s.x.size(0), grid_.tokens()}, s.x.options());
  computed_ = at::zeros_like(error_);
  share_.clear(), caught_.clear();
  sparse_steps_ = 0;
}

at::Tensor SparseSampler::velocity(Sampling& s, SampleContext& context) {
  const bool dense = rule().dense(s.step);
  const bool judging = judge_ && dense && sparse_steps_ > 0;
  const at::Tensor judged = judging ? choose(s) : at::Tensor(), waited = judging ? age().clone() : at::Tensor();
  if (dense)
    set_->dense(), sparse_steps_ = 0;
  else
    set_->choose(choose(s)), ++sparse_steps_;
  // A dense step whose cache nobody will read does not fill it.
  const bool plain = dense && rule().dense(s.step + 1);
  DitHooks hooks = this->hooks(s, context);
  hooks.tokens = plain ? nullptr : &*set_;
  const at::Tensor v = guided(context, s, s.x, s.sigma(), hooks);
  last_ = latent_of(merged(tokens_of(v, patch_), s.sigma()), s.x.sizes(), patch_);
  if (judging) judge(judged, waited);
  const double share = dense ? 1 : double(set_->active().size(1)) / double(tokens());
  share_.push_back(share);
  context.record("computed_share", share);
  return last_;
}

DitHooks SparseSampler::hooks(const Sampling& s, SampleContext& context) {
  if (!with_tide_) return {};
  return tide_.hooks(context.model(), s.grid, s.condition.text.size(1), s.sigma());
}

// All velocities of this step; `fresh` [B, N, D] holds those that were computed.
at::Tensor SparseSampler::merged(const at::Tensor& fresh, double sigma) {
  const at::Tensor active = set_->is_dense() ? at::Tensor() : set_->active();
  at::Tensor was = at::ones_like(error_, at::kBool);
  if (active.defined()) was = at::zeros_like(was).scatter_(1, active, true);
  at::Tensor all = fresh;
  if (!history_->empty()) {
    const at::Tensor guess = history_->extrapolate(sigma);
    error_ = at::where(was, (fresh - guess).abs().mean(2) / age(), error_);
    all = at::where(was.unsqueeze(2), fresh, guess);
  }
  history_->computed(fresh, sigma, active);
  computed_ += was;
  return all;
}

// After a dense step, when the error of every token's extrapolation is known, a step it waited.
void SparseSampler::judge(const at::Tensor& choice, const at::Tensor& waited) {
  const at::Tensor error = error_ * waited, all = error.sum(1);
  const at::Tensor most = std::get<0>(error.topk(choice.size(1), 1)).sum(1);
  caught_.push_back(at::stack({(error.gather(1, choice).sum(1) / all).mean(), (most / all).mean()}));
}

void SparseSampler::state(Archive& ar) {
  archive(ar, "last", last_);
  archive(ar, "error", error_);
  archive(ar, "computed", computed_);
  auto steps = std::int64_t(share_.size());
  ar.value("steps", steps);
  share_.resize(std::size_t(steps));
  ar.array("share", DType::f64, std::array<std::int64_t, 1>{steps}, share_.data());
  ar.value("sparse_steps", sparse_steps_);
  auto judged = std::int64_t(caught_.size());
  ar.value("judged", judged);
  std::vector<float> caught;
  for (const auto& c : caught_)
    for (const std::int64_t k : {0, 1}) caught.push_back(c[k].item<float>());
  caught.resize(std::size_t(judged) * 2);
  ar.array("caught", DType::f32, std::array<std::int64_t, 2>{judged, 2}, caught.data());
  caught_.resize(std::size_t(judged));
  for (std::size_t k = 0; k < caught_.size(); ++k) caught_[k] = at::tensor({caught[2 * k], caught[2 * k + 1]});
  history_->state(ar, {error_.size(0), tokens(), last_[0].numel() / tokens()}, last_.device());
}

nlohmann::json SparseSampler::report() const {
  const double sum = std::accumulate(share_.begin(), share_.end(), 0.0);
  nlohmann::json report = {{"computed_share", share_},
                           {"mean_share", share_.empty() ? 1 : sum / double(share_.size())}};
  for (const auto& pair : caught_) {
    const at::Tensor host = pair.cpu();
    report["caught"].push_back(host[0].item<float>()), report["most"].push_back(host[1].item<float>());
  }
  return report;
}

// How often each token was computed, of all steps; of a video its first frame.
std::vector<SampleMap> SparseSampler::maps() const {
  const auto steps = std::max<std::size_t>(1, share_.size());
  const at::Tensor map = computed_.view({computed_.size(0), grid_.frames, grid_.rows, grid_.columns}).select(1, 0);
  return {{"computed", map / double(steps)}};
}

}  // namespace trireme::sdit
