// What a person sees while training runs: a bar on a terminal, lines elsewhere.
#pragma once
#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>

namespace trireme {

// Columns of the terminal behind stderr; 0 if there is none. TRIREME_TERMINAL=columns stands in for it: a
// parent that starts ranks through mpirun sets it, because their stderr is a pipe.
int terminal_columns();

// Seconds a step, smoothed over about half a minute; slow first steps fade.
class StepRate {
 public:
  using Clock = std::chrono::steady_clock;
  void add(std::int64_t step, Clock::time_point now);
  double seconds_per_step() const;  // 0 while unknown

 private:
  std::int64_t step_ = -1;
  Clock::time_point time_;
  double seconds_ = 0, weight_ = 0;
};

std::string format_eta(double seconds);      // "01:12", "3:04:05", "2d 03h"; "--:--" if negative or not finite
std::string format_rate(double per_second);  // "152", "15.2", "1.52", "15.2k"

struct ProgressState {
  std::int64_t step = 0, total = 0;
  double loss = 0, lr = 0, per_second = 0, eta = -1;  // NaN, or eta < 0: unknown, left out
  std::string unit;
  double mfu = std::numeric_limits<double>::quiet_NaN();
};

// `step 120/400  loss 3.2104  lr 5.0e-04  152 pairs/s  mfu 41.2 %  eta 01:12`
std::string progress_line(const ProgressState&);
// A bar that fits in `columns`; ASCII unless `utf8`.
std::string progress_bar(const ProgressState&, int columns, bool utf8);

// Draws in place on stderr.
class ProgressBar {
 public:
  explicit ProgressBar(int columns);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void draw(const ProgressState&, bool now = false);  // at most 10 times a second, unless `now`
  void clear();                                       // before something else is printed

 private:
  int columns_;
  bool utf8_, drawn_ = false;
  std::chrono::steady_clock::time_point last_ = {};
};

}  // namespace trireme
