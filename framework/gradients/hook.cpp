#include "framework/gradients/hook.h"

#include "framework/base/tensor.h"
#include "framework/gradients/codec_hook.h"
#include "framework/kernels/copy_if.h"

namespace trireme {

void HookConfig::fields(Fields& f) {
  std::vector<std::string> known = {"none"};
  for (auto& n : GradientHooks::names()) known.push_back(n);
  for (auto& n : Compressors::names()) known.push_back(n);
  const std::vector<std::string_view> words(known.begin(), known.end());
  f.choice("name", name, words, "how gradients travel: none = as they are");
  f("error_feedback", error_feedback, "add what compression lost to the next step (none for bf16 and fp16)");
  f("bound", bound, "largest absolute error of an error-bounded codec, for each rank's share and for the sum",
    {.min = 0});
  f("density", density, "top_k: part of the values that travels", {.min = 1e-6, .max = 1});
  f("rank", rank, "powersgd: rank of the approximation", {.min = 1, .max = 128});
  f("start", start, "steps without compression at the beginning", {.min = 0});
}

void take_back(const at::Tensor& skip, const at::Tensor& now, const at::Tensor& before) {
  const Buffer to = buffer_of(now);
  kernels::copy_if({skip.const_data_ptr<float>(), static_cast<float*>(to.data),
                    before.defined() ? before.const_data_ptr<float>() : nullptr, now.numel()},
                   to.place);
}

KeptGradients::KeptGradients(std::int64_t count, const at::TensorOptions& options)
    : now(at::zeros({count}, options)), before(at::zeros_like(now)) {}

void KeptGradients::next_step() { std::swap(now, before); }

void KeptGradients::undo(const at::Tensor& skip) {
  if (now.defined()) take_back(skip, now, before);
}

void KeptGradients::rescale(const at::Tensor& factor) {
  if (!now.defined()) return;
  const Buffer at = buffer_of(now);
  kernels::rescale({factor.const_data_ptr<float>(), static_cast<float*>(at.data), now.numel()}, at.place);
}

void KeptGradients::state(Archive& ar, std::string_view name) {
  if (now.defined() && ar.has(name)) archive(ar, name, now, {Sharing::per_rank});
}

std::unique_ptr<GradientHook> make_hook(const HookConfig& config, const Bucket& bucket, const Communicator& comm) {
  if (bucket.flat.scalar_type() != at::kFloat)
    throw UsageError("hook.name", config.name + " compresses f32 gradients only",
                     "use hook.name=none here, or precision f32 (bf16 and fp16 keep f32 gradients)");
  if (Compressors::has(config.name)) return make_codec_hook(config, bucket, comm);
  return GradientHooks::create(config.name, config, bucket, comm, "hook.name");
}

}  // namespace trireme
