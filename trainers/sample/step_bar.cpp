#include "trainers/sample/step_bar.h"

#include <algorithm>

namespace trireme::sample {

StepBar::StepBar(bool shown, std::int64_t total) {
  state_.total = total;
  state_.loss = state_.lr = std::numeric_limits<double>::quiet_NaN();
  state_.unit = "steps";
  if (shown && terminal_columns() > 0) bar_.emplace(terminal_columns());
}

void StepBar::step(std::int64_t steps) {
  state_.step = std::min(state_.step + steps, state_.total);
  rate_.add(state_.step, StepRate::Clock::now());
  const double seconds = rate_.seconds_per_step();
  state_.per_second = seconds > 0 ? 1 / seconds : std::numeric_limits<double>::quiet_NaN();
  state_.eta = seconds > 0 ? seconds * double(state_.total - state_.step) : -1;
  if (bar_) bar_->draw(state_);
}

void StepBar::skip(std::int64_t steps) { state_.total = std::max(state_.step, state_.total - steps); }

void StepBar::clear() {
  if (bar_) bar_->clear();
}

}  // namespace trireme::sample
