// Learning rates by step (counted from 0).
#pragma once
#include <cstdint>
#include <string_view>

namespace trireme {

// base*(step+1)/warmup while step < warmup, then cosine from base to `min` at step `total`, or base for "const".
double learning_rate(std::string_view kind, double base, double min, std::int64_t warmup, std::int64_t total,
                     std::int64_t step);

}  // namespace trireme
