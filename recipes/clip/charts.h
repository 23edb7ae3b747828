// How a CLIP run's metrics are shown.
#pragma once
#include "framework/metrics/charts.h"

#include <vector>

namespace trireme::fastclip {

std::vector<MetricChart> clip_charts();

}  // namespace trireme::fastclip
