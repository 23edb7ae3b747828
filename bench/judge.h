// What the rows of ddp_hooks are judged by.
#pragma once
#include <vector>

#include <nlohmann/json.hpp>

namespace trireme::bench {

struct Ratio {
  double mean = 0, low = 0, high = 0;  // low, high: 95 % interval of the mean, by Student's t
};
// Of peer[i] / ours[i], blocks that were measured one after the other.
Ratio ratio_of(const std::vector<double>& peer, const std::vector<double>& ours);

// Rows of arms that have learnt: `against_none` = last_loss over that of the same side's `none`, and `allowed`: the
// larger of 1 % and two standard deviations of `trireme none` over its seeds.
nlohmann::json judged(nlohmann::json rows);

}  // namespace trireme::bench
