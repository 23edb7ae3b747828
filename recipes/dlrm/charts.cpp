#include "recipes/dlrm/charts.h"

namespace trireme::dlrm {

std::string ratio_of_table(const std::string& table) { return "forward_ratio/" + table; }

std::vector<MetricChart> dlrm_charts(const std::vector<std::string>& tables) {
  MetricChart by_table{"Compression of each table's rows", {}, {}};
  for (const auto& t : tables) by_table.rows.push_back({t, {ratio_of_table(t)}, {}});
  std::vector<MetricChart> charts{
      {"Held-out samples",
       {"AUC", "best AUC", "accuracy"},
       {{"", {"eval/auc", "eval/bayes_auc", "eval/accuracy"}, {}}},
       false},
      {"Probabilities",
       {"cross-entropy", "calibration", "positive", "AUC reached"},
       {{"", {"eval/bce", "eval/calibration", "eval/positive_rate", "eval/auc_reached"}, {}}}},
      {"Without and with codes",
       {"raw, ms", "coded, ms"},
       {{"exchange of a batch, both ways", {"eval/exchange_raw_ms", "eval/exchange_coded_ms"}, {}},
        {"step, but for its updates", {"eval/step_raw_ms", "eval/step_coded_ms"}, {}}}},
      {"Compression: f32 bytes by bytes sent",
       {"forward", "backward"},
       {{"since the last line", {"forward_ratio", "backward_ratio"}, {}},
        {"since the last evaluation", {"eval/forward_ratio", "eval/backward_ratio"}, {}}}},
      {"Error bound by the class's own", {}, {{"", {"bound_factor"}, {}}}}};
  if (!tables.empty()) charts.push_back(std::move(by_table));
  return charts;
}

}  // namespace trireme::dlrm
