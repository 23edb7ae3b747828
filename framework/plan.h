// What a run will hold and send, by formula: told before there is data, and without a step taken.
#pragma once
#include "framework/base/param.h"

#include <string>
#include <vector>

namespace trireme {

struct Plan {
  struct Line {
    std::string what;
    double bytes = 0;
    std::string formula;  // with its numbers
    bool used = true;     // false: what another setting would cost, to compare
  };
  std::vector<Param> parameters;  // without values (device "meta")
  // Of a rank, beside weights, gradients and moments; and sent by a rank in a step beside the gradients, by rings.
  std::vector<Line> memory, sent;
};

}  // namespace trireme
