#include "trainers/sweep/pace.h"

#include <algorithm>
#include <functional>

namespace trireme::sweep {
namespace {

constexpr std::size_t remembered = 64;
constexpr double recent = 32;  // steps
constexpr double apart = 1.3;  // sizes that far from each other tell the time a token

}  // namespace

void Pace::add(std::int64_t passes, double tokens, double seconds) {
  if (passes <= 0) return;
  seen_.push_back({double(passes), tokens, seconds});
  if (seen_.size() > remembered) seen_.pop_front();
}

double Pace::step_seconds(double tokens, std::span<const Profiled> prior) const {
  if (seen_.empty()) return seconds_of(prior, tokens);
  double nn = 0, nt = 0, tt = 0, ns = 0, ts = 0, n = 0, t = 0, s = 0, least = 1e300, most = 0;
  for (const Seen& w : seen_) {
    nn += w.passes * w.passes, nt += w.passes * w.tokens, tt += w.tokens * w.tokens;
    ns += w.passes * w.seconds, ts += w.tokens * w.seconds;
    n += w.passes, t += w.tokens, s += w.seconds;
    least = std::min(least, w.tokens / w.passes), most = std::max(most, w.tokens / w.passes);
  }
  std::function<double(double)> shape = [&](double x) { return prior.empty() ? x : seconds_of(prior, x); };
  if (const double det = nn * tt - nt * nt; most > apart * least && det > 0) {
    double a = (ns * tt - ts * nt) / det, b = (nn * ts - nt * ns) / det;
    if (a < 0) a = 0, b = s / t;
    if (b < 0) a = s / n, b = 0;
    shape = [a, b](double x) { return a + b * x; };
  }
  // What runs beside, and what is recorded, changes.
  double now = 0, said = 0;
  n = 0;
  for (auto w = seen_.rbegin(); w != seen_.rend() && n < recent; ++w)
    n += w->passes, now += w->seconds, said += w->passes * shape(w->tokens / w->passes);
  return said > 0 ? shape(tokens) * now / said : now / n;
}

}  // namespace trireme::sweep
