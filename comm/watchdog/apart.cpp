#include "comm/watchdog/apart.h"

#include <algorithm>

namespace trireme {

bool WorkApart::worth_asking(double waited, const Limits& limits) {
  if (limits.allowed > 0 && waited > limits.allowed / 2) return true;
  return limits.warn > 0 && waited > limits.warn;
}

void WorkApart::remember(std::vector<RankView>& ranks, double now, double waited, const Limits& limits) {
  signs_.resize(ranks.size(), {0, limits.allowed});
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    auto& [sign, allowed] = signs_[r];
    RankView& v = ranks[r];
    if (v.state) sign = now - v.state->quiet, allowed = v.state->allowed;
    v.quiet = v.state ? v.state->quiet : now - std::max(sign, now - waited);
    v.allowed = v.known ? allowed : 0;
  }
}

void WorkApart::stood_still(double seconds) {
  for (auto& [sign, allowed] : signs_) sign += seconds;
}

double WorkApart::pause(const Limits& limits) {
  return limits.allowed > 0 ? std::min(limits.allowed / 2, ask_every) : ask_every;
}

WorkApart::Verdict WorkApart::judge(std::vector<RankView> ranks, int rank, double waited, const Limits& limits) {
  Verdict verdict;
  verdict.hangs = limits.allowed > 0 && waited > limits.allowed && one_waits_in_vain(ranks);
  verdict.ask_again = pause(limits);
  if (limits.warn > 0) verdict.ask_again = std::min(verdict.ask_again, limits.warn);
  for (const RankView& v : ranks)
    if (v.allowed > v.quiet) verdict.ask_again = std::min(verdict.ask_again, v.allowed - v.quiet);
  if (limits.allowed > waited) verdict.ask_again = std::min(verdict.ask_again, limits.allowed - waited);
  for (int r = 0; r < rank; ++r)
    if (const auto& lower = ranks[static_cast<std::size_t>(r)].state; lower && lower->oldest > 0.9 * limits.warn)
      return verdict;
  for (RankView& v : ranks)
    if (v.known) v.allowed = limits.warn;
  verdict.late = limits.warn > 0 && waited > limits.warn && one_waits_in_vain(ranks);
  return verdict;
}

}  // namespace trireme
