// The one sentence that comes out of what all ranks are doing.
#pragma once
#include "comm/watchdog/rank_state.h"

namespace trireme {

// What the watchdog that asked knows about each rank: its state, or why there is none ("stopped: its process
// does not answer").
struct RankView {
  std::optional<RankState> state;
  std::string silent;
};

// One line without its beginning: which collective, which ranks did not enter it, and what each of them does.
std::string describe_hang(const std::vector<RankView>& ranks);

// "3", "0-2,5"
std::string rank_list(const std::vector<int>& ranks);

}  // namespace trireme
