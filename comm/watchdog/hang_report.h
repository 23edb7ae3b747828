// The one sentence that comes out of what all ranks are doing.
#pragma once
#include "comm/watchdog/rank_state.h"

namespace trireme {

// What the watchdog that asked knows about each rank: its state, or why there is none ("stopped: its process
// does not answer").
struct RankView {
  std::optional<RankState> state;
  std::string silent;
  // Where ranks work apart: as RankState has them, of a silent one as far as was heard.
  double quiet = 0, allowed = 0;
  bool known = true;  // false: it could not be asked
};

// Ranks that work apart: which are at work, or wait for such alone.
std::vector<bool> ranks_alive(const std::vector<RankView>& ranks);
// Does one of them wait for one that is not, for longer than it is allowed?
bool one_waits_in_vain(const std::vector<RankView>& ranks);

// One line without its beginning: which collective, which ranks did not enter it, and what each of them does. `alive`:
// ranks that are not to blame; empty: none is.
std::string describe_hang(const std::vector<RankView>& ranks, const std::vector<bool>& alive = {});

// The line on stderr, whatever bytes it holds.
void print_line(std::string_view line);

// "3", "0-2,5"
std::string rank_list(const std::vector<int>& ranks);

}  // namespace trireme
