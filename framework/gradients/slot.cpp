#include "framework/gradients/slot.h"

#include <mutex>
#include <unordered_map>

namespace trireme {
namespace {

std::mutex mutex;
std::unordered_map<const c10::TensorImpl*, GradientSlot*> slots;  // with mutex

GradientSlot* slot_of(const at::Tensor& param) {
  const auto found = slots.find(param.unsafeGetTensorImpl());
  return found == slots.end() ? nullptr : found->second;
}

}  // namespace

at::Tensor gradient_destination(const at::Tensor& param) {
  std::lock_guard lock(mutex);
  GradientSlot* slot = slot_of(param);
  if (!slot || slot->taken || !slot->view.defined() || param.grad().defined()) return {};
  slot->taken = slot->lent = true;
  return slot->view.view(param.sizes());
}

std::vector<std::int64_t> gradient_blocks(const at::Tensor& param) {
  std::lock_guard lock(mutex);
  const GradientSlot* slot = slot_of(param);
  if (!slot || slot->blocks.empty()) return {GradientSlot::rows_of(param)};
  return slot->blocks;
}

void gradient_written(const at::Tensor& param) { gradient_written(param, GradientSlot::rows_of(param)); }

void gradient_written(const at::Tensor& param, std::int64_t rows) {
  GradientSlot* slot = nullptr;
  {
    std::lock_guard lock(mutex);
    slot = slot_of(param);
    if (slot && !slot->lent) slot = nullptr;
  }
  if (slot) slot->written(rows);  // posts collectives: not under the lock
}

void GradientSlot::offer(const at::Tensor& param, GradientSlot& slot) {
  std::lock_guard lock(mutex);
  slots[param.unsafeGetTensorImpl()] = &slot;
}

void GradientSlot::withdraw(const at::Tensor& param) {
  std::lock_guard lock(mutex);
  slots.erase(param.unsafeGetTensorImpl());
}

}  // namespace trireme
