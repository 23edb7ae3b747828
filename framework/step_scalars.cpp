#include "framework/step_scalars.h"

#include "comm/error.h"

namespace trireme {
namespace {

constexpr std::int64_t most = 256, width = 8;  // bytes of a slot

}  // namespace

StepScalars::StepScalars(at::Device device)
    : memory_(at::zeros({most * width}, at::TensorOptions(device).dtype(at::kByte))),
      values_(at::zeros({most * width}, at::kByte)),
      pinned_(device) {}

at::Tensor StepScalars::place_of(std::size_t slot, at::ScalarType type, const at::Tensor& memory) const {
  return memory.narrow(0, std::int64_t(slot) * width, width).view(type).select(0, 0);
}

at::Tensor StepScalars::next(at::ScalarType type, std::function<double()> value) {
  at::NoGradGuard no_grad;
  if (asked_ == slots_.size()) {
    if (complete_ || std::int64_t(asked_) == most)
      throw Error(ExitCode::bug, "recorded step", "asks for more numbers than the step before it");
    slots_.push_back({place_of(asked_, type, memory_), std::move(value)});
    slots_.back().scalar.fill_(slots_.back().value());
  }
  const Slot& slot = slots_[asked_++];
  if (slot.scalar.scalar_type() != type)
    throw Error(ExitCode::bug, "recorded step", "asks for its numbers in another order than the step before it");
  return slot.scalar;
}

void StepScalars::send() {
  at::NoGradGuard no_grad;
  complete_ = true;
  if (slots_.empty()) return;
  const std::int64_t bytes = std::int64_t(slots_.size()) * width;
  for (std::size_t i = 0; i < slots_.size(); ++i)
    place_of(i, slots_[i].scalar.scalar_type(), values_).fill_(slots_[i].value());
  pinned_.copy({values_.narrow(0, 0, bytes)}, {memory_.narrow(0, 0, bytes)});
}

}  // namespace trireme
