// What a person sees while training runs: a bar on a terminal, lines elsewhere.
#pragma once
#include <chrono>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

// The terminal behind stderr; 0 columns if there is none, 0 rows where they are not known. TRIREME_TERMINAL=80x24, or
// 80, stands in for it: a parent that starts ranks through mpirun sets it, because their stderr is a pipe.
struct TerminalSize {
  int columns = 0, rows = 0;
};
TerminalSize terminal_size();
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

// Lines that are drawn in place on stderr, over those drawn before; plain text that fits the terminal. In one write:
// `\r`, up to the first of those before, clear to the end of the screen, the lines with `ESC E` (next line) between
// them, `ESC[K`. A parent that relays takes them for one bar (trainers/relay.h).
class LiveLines {
 public:
  LiveLines() = default;
  ~LiveLines();  // what stands there stays
  LiveLines(const LiveLines&) = delete;
  LiveLines& operator=(const LiveLines&) = delete;
  void draw(const std::vector<std::string>& lines);
  void clear() { draw({}); }

 private:
  std::size_t drawn_ = 0;
};

}  // namespace trireme
