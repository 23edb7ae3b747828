// How long the exchange takes raw and coded, on the link that is there.
#pragma once
#include "recipes/dlrm/coder.h"
#include "recipes/dlrm/tables.h"

#include <functional>

namespace trireme::dlrm {

struct Direction {
  double raw = 0, coded = 0;  // ms, the slowest rank's, the best of a few
  const char* choice() const { return coded < raw ? "coded" : "raw"; }
};
struct ExchangeTimes {
  Direction forward, backward;
};

// Collective. Both ways of both directions, turn by turn, with these ids i32 [b, width] of this rank and rows in place
// of gradients; nothing is trained. A direction that is not coded has its raw time twice.
ExchangeTimes time_exchange(ShardedTables& tables, const Coder& coder, const at::Tensor& ids, Context& c);

// Collective. `pass(coded)` fetches rows and starts to return their gradients, turn by turn raw and coded; it gives
// what is last on the device. The return is finished here; nothing is trained.
Direction time_steps(ShardedTables& tables, Context& c, const std::function<at::Tensor(bool coded)>& pass);

}  // namespace trireme::dlrm
