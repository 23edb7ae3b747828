// A bucket reduced through a codec of compression/.
#pragma once
#include "compression/compressor.h"
#include "framework/gradients/hook.h"

namespace trireme {

// What coding takes from the gradients that a rank sends, and from the sums that it owns: it goes with the next ones.
struct LostGradients {
  KeptGradients sent, owned;  // undefined without error feedback

  void next_step() { sent.next_step(), owned.next_step(); }
  void undo(const at::Tensor& skip) { sent.undo(skip), owned.undo(skip); }
  void rescale(const at::Tensor& factor) { sent.rescale(factor), owned.rescale(factor); }
  // layout: the order of what is owned
  void state(Archive& ar, const std::string& layout) { sent.state(ar, "sent"), owned.state(ar, "owned/" + layout); }
};

// UsageError: unknown, or without the bound that it needs.
std::unique_ptr<Compressor> codec_of(const HookConfig& config);

std::unique_ptr<GradientHook> make_codec_hook(const HookConfig& config, const Bucket& bucket, const Communicator& comm);

}  // namespace trireme
