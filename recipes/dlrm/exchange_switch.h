// For measurements: what a running dlrm does with its exchange, changed between two steps of one session.
#pragma once
#include "recipes/dlrm/config.h"

namespace trireme {
class Context;
}

namespace trireme::dlrm {

struct Local {
  bool forward = false, backward = false;  // nothing travels that way: copies stand in, so losses mean nothing
};

struct ExchangeRatios {
  double forward = 0, backward = 0;  // f32 bytes by bytes sent, over all ranks
};

class ExchangeSwitch {
 public:
  virtual ~ExchangeSwitch() = default;
  // On all ranks, each of which must hold a table: UsageError.
  virtual void use(const CompressionConfig& compression, Local local, Context& context) = 0;
  // Collective. Since the last call.
  virtual ExchangeRatios take_ratios(Context& context) = 0;
};

}  // namespace trireme::dlrm
