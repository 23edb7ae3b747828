// How the metrics of DLRM are shown.
#pragma once
#include "framework/metrics/charts.h"

namespace trireme::dlrm {

std::vector<MetricChart> dlrm_charts();

}  // namespace trireme::dlrm
