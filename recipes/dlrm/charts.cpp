#include "recipes/dlrm/charts.h"

namespace trireme::dlrm {

std::vector<MetricChart> dlrm_charts() {
  return {{"AUC", {}, {{"model", {"eval/auc"}, {}}, {"best possible", {"eval/bayes_auc"}, {}}}, true},
          {"Accuracy", {}, {{"", {"eval/accuracy"}, {}}}, true},
          {"Cross-entropy of the test samples", {}, {{"", {"eval/bce"}, {}}}},
          {"Calibration, positive rate, share of the way to the best AUC",
           {"calibration", "positive rate", "AUC reached"},
           {{"", {"eval/calibration", "eval/positive_rate", "eval/auc_reached"}, {}}}},
          {"Compression of the exchange, f32 bytes by bytes sent",
           {},
           {{"rows, forward", {"forward_ratio"}, {}}, {"gradients, backward", {"backward_ratio"}, {}}}},
          {"Error bound by the class's own", {}, {{"", {"bound_factor"}, {}}}}};
}

}  // namespace trireme::dlrm
