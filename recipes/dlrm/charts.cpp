#include "recipes/dlrm/charts.h"

namespace trireme::dlrm {

std::vector<MetricChart> dlrm_charts() {
  return {{"Held-out samples",
           {"AUC", "best AUC", "accuracy"},
           {{"", {"eval/auc", "eval/bayes_auc", "eval/accuracy"}, {}}},
           false},
          {"Probabilities",
           {"cross-entropy", "calibration", "positive", "AUC reached"},
           {{"", {"eval/bce", "eval/calibration", "eval/positive_rate", "eval/auc_reached"}, {}}}},
          {"Exchange of a batch, both ways",
           {"raw, ms", "coded, ms"},
           {{"", {"eval/exchange_raw_ms", "eval/exchange_coded_ms"}, {}}}},
          {"Compression: f32 bytes by bytes sent",
           {"forward", "backward"},
           {{"", {"forward_ratio", "backward_ratio"}, {}}}},
          {"Error bound by the class's own", {}, {{"", {"bound_factor"}, {}}}}};
}

}  // namespace trireme::dlrm
