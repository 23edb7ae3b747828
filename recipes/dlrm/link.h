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

}  // namespace trireme::dlrm
