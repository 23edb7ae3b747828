#include "framework/metrics/step_clock.h"

#include "framework/metrics/trace.h"

#include <limits>
#include <utility>

namespace trireme {
namespace {

constexpr const char* names[] = {"forward", "backward",      "wait for gradients",
                                 "update",  "replayed step", "wait for data"};
constexpr std::size_t data = 5;

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
  ++steps_;
  if (device_) {
    if (std::exchange(running_, true)) device_->end(names[data], 0), ++waits_;
    return device_->begin();
  }
  last_ = Trace::now_ns();
}

void StepClock::pause() { running_ = false; }

void StepClock::end(Phase phase) {
  if (held_) return;
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
  pause();  // the host has waited, and has more to do than the next step
  const double waited = 1e-6 * double(std::exchange(sums_[data], 0));
  const auto waits = double(std::exchange(waits_, 0)), steps = double(std::exchange(steps_, 0));
  return {ms(Phase::forward),  ms(Phase::backward),
          ms(Phase::exposed),  ms(Phase::optimizer),
          ms(Phase::replayed), waits > 0 ? waited / waits * steps : std::numeric_limits<double>::quiet_NaN()};
}

}  // namespace trireme
