// How the metrics of DLRM are shown.
#pragma once
#include "framework/metrics/charts.h"

#include <string>
#include <vector>

namespace trireme::dlrm {

// tables: their names, once they are known.
std::vector<MetricChart> dlrm_charts(const std::vector<std::string>& tables);
std::string ratio_of_table(const std::string& table);  // the metric

}  // namespace trireme::dlrm
