#include "framework/metrics/progress.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include <sys/ioctl.h>
#include <unistd.h>

namespace trireme {
namespace {

__attribute__((format(printf, 1, 2))) std::string print(const char* format, ...) {
  std::array<char, 256> text;
  va_list args;
  va_start(args, format);
  std::vsnprintf(text.data(), text.size(), format, args);
  va_end(args);
  return text.data();
}

bool locale_is_utf8() {
  for (const char* name : {"LC_ALL", "LC_CTYPE", "LANG"})
    if (const char* v = std::getenv(name); v && *v) {
      std::string s = v;
      std::transform(s.begin(), s.end(), s.begin(), [](unsigned char c) { return char(std::tolower(c)); });
      return s.find("utf-8") != s.npos || s.find("utf8") != s.npos;
    }
  return false;
}

std::string step_text(const ProgressState& p) {
  const std::string total = std::to_string(p.total);
  return print("step %*lld/%s", int(total.size()), static_cast<long long>(p.step), total.c_str());
}

}  // namespace

TerminalSize terminal_size() {
  TerminalSize size;
  if (const char* v = std::getenv("TRIREME_TERMINAL")) {
    const bool known = std::sscanf(v, "%5dx%5d", &size.columns, &size.rows) > 0 && size.columns > 0 &&
                       size.columns < 10000 && size.rows >= 0;
    return known ? size : TerminalSize{};
  }
  if (!isatty(STDERR_FILENO)) return {};
  winsize window = {};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) == 0 && window.ws_col > 0) return {window.ws_col, window.ws_row};
  return {80, 0};
}

int terminal_columns() { return terminal_size().columns; }

void StepRate::add(std::int64_t step, Clock::time_point now) {
  if (step_ >= 0 && step > step_) {
    constexpr double window = 30;
    const double seconds = std::chrono::duration<double>(now - time_).count();
    const double keep = std::exp(-seconds / window);
    seconds_ = keep * seconds_ + (1 - keep) * seconds / double(step - step_);
    weight_ = keep * weight_ + (1 - keep);
  }
  if (step > step_) {
    step_ = step;
    time_ = now;
  }
}

double StepRate::seconds_per_step() const { return weight_ > 0 ? seconds_ / weight_ : 0; }

std::string format_eta(double seconds) {
  if (!std::isfinite(seconds) || seconds < 0) return "--:--";
  const auto s = static_cast<long long>(seconds + 0.5);
  if (s < 3600) return print("%02lld:%02lld", s / 60, s % 60);
  if (s < 86400) return print("%lld:%02lld:%02lld", s / 3600, s / 60 % 60, s % 60);
  return print("%lldd %02lldh", s / 86400, s / 3600 % 24);
}

std::string format_rate(double v) {
  const char* suffix = "";
  if (v >= 9999.5) v /= 1000, suffix = "k";
  if (v >= 9999.5) v /= 1000, suffix = "M";
  return print(v >= 99.95 ? "%.0f%s" : v >= 9.995 ? "%.1f%s" : "%.2f%s", v, suffix);
}

std::string progress_line(const ProgressState& p) {
  std::string s = step_text(p) + print("  loss %.4f", p.loss);
  if (!std::isnan(p.lr)) s += print("  lr %.1e", p.lr);
  if (!std::isnan(p.per_second)) s += print("  %5s %s/s", format_rate(p.per_second).c_str(), p.unit.c_str());
  if (std::isfinite(p.mfu)) s += print("  mfu %.1f %%", 100 * p.mfu);
  if (p.eta >= 0) s += "  eta " + format_eta(p.eta);
  return s;
}

std::string progress_bar(const ProgressState& p, int columns, bool utf8) {
  const double part = p.total > 0 ? std::clamp(double(p.step) / double(p.total), 0.0, 1.0) : 0;
  const std::string head = print("%3d%% ", int(part * 100));
  // What matters less is left out first when the window is narrow.
  std::string tail = " " + step_text(p);
  const int room = columns - 1 - int(head.size());
  const std::string pieces[] = {std::isnan(p.loss) ? "" : print("  loss %.4f", p.loss), "  eta " + format_eta(p.eta),
                                std::isnan(p.per_second) ? "" : "  " + format_rate(p.per_second) + " " + p.unit + "/s",
                                std::isfinite(p.mfu) ? print("  mfu %.1f %%", 100 * p.mfu) : ""};
  for (const auto& piece : pieces)
    if (int(tail.size() + piece.size()) <= room) tail += piece;
  if (int(tail.size()) > room) tail.resize(std::size_t(std::max(room, 0)));
  const int width = std::min(40, room - int(tail.size()));
  std::string bar;
  if (width >= 5)
    for (int i = 0; i < width; ++i) bar += i < int(std::lround(part * width)) ? (utf8 ? "━" : "#") : (utf8 ? "╌" : "-");
  return head + bar + tail;
}

ProgressBar::ProgressBar(int columns) : columns_(columns), utf8_(locale_is_utf8()) {}

ProgressBar::~ProgressBar() {
  if (drawn_) std::fputs("\n", stderr);
}

void ProgressBar::draw(const ProgressState& p, bool now) {
  const auto time = std::chrono::steady_clock::now();
  if (!now && drawn_ && time - last_ < std::chrono::milliseconds(100)) return;
  last_ = time;
  drawn_ = true;
  // The window may have become smaller: a bar that wraps could not be taken back.
  if (const int columns = terminal_columns(); columns > 0) columns_ = columns;
  // One write: a bar in pieces flickers.
  const std::string text = "\r" + progress_bar(p, columns_, utf8_) + "\x1b[K";
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

void ProgressBar::clear() {
  if (!drawn_) return;
  std::fputs("\r\x1b[K", stderr);
  std::fflush(stderr);
  drawn_ = false;
}

LiveLines::~LiveLines() {
  if (drawn_) std::fputs("\n", stderr);
}

void LiveLines::draw(const std::vector<std::string>& lines) {
  if (lines.empty() && drawn_ == 0) return;
  std::string text = "\r";
  if (drawn_ > 1) text += "\x1b[" + std::to_string(drawn_ - 1) + "A";
  text += "\x1b[J";
  for (const auto& line : lines)
    text += (&line == lines.data() ? ""
                                   : "\x1b"
                                     "E") +
            line;
  text += "\x1b[K";
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
  drawn_ = lines.size();
}

}  // namespace trireme
