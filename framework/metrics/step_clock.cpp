#include "framework/metrics/step_clock.h"

#include "framework/metrics/trace.h"

#include <utility>

namespace trireme {
namespace {

constexpr const char* names[] = {"forward", "backward", "wait for gradients", "update"};

}  // namespace

StepClock::StepClock(at::Device device) {
  if (!device.is_cuda()) return;
  device_ = device_runtime()->timer(current_place(device.index()),
                                    [this](const char* name, std::int64_t begin, std::int64_t end, std::uint64_t) {
                                      Trace::add(Trace::Track::device, name, begin, end);
                                      for (std::size_t i = 0; i < sums_.size(); ++i)
                                        if (name == names[i]) sums_[i] += end - begin;
                                    });
}

void StepClock::begin() {
  if (device_) return device_->begin();
  last_ = Trace::now_ns();
}

void StepClock::end(Phase phase) {
  const auto i = std::size_t(phase);
  if (device_) {
    device_->end(names[i], 0);
    return device_->begin();
  }
  const std::int64_t now = Trace::now_ns();
  sums_[i] += now - last_;
  last_ = now;
}

StepTimes StepClock::take() {
  if (device_) device_->flush(true);
  const auto ms = [this](Phase phase) { return 1e-6 * double(std::exchange(sums_[std::size_t(phase)], 0)); };
  return {ms(Phase::forward), ms(Phase::backward), ms(Phase::exposed), ms(Phase::optimizer)};
}

}  // namespace trireme
