// How well scores tell two classes apart, exactly and over all ranks.
#pragma once
#include "comm/communicator.h"

#include <map>
#include <span>
#include <string>
#include <vector>

namespace trireme {

// Area under the ROC curve, the share of pairs (a positive, a negative) with the higher score on the positive, ties
// half (Mann-Whitney). Weights: how much of each sample is positive and negative: 1 and 0 for labels, p and 1 - p for
// the expectation under known probabilities. NaN where either sums to 0, or a score is NaN.
double auc(std::span<const double> scores, std::span<const double> positive, std::span<const double> negative);
double auc(std::span<const double> scores, std::span<const float> labels);

// Of this rank: logits and labels (0 or 1) of its samples; truth: their true logits, or empty.
struct Judged {
  std::vector<double> logits, truth;
  std::vector<float> labels;
};

// Collective: rank 0 gets those of all ranks in rank order, the others nothing. `comm` carries host memory.
Judged gathered(const Judged& mine, Communicator& comm);

// Collective, equal on all ranks. auc, accuracy (at probability 0.5), bce, calibration (mean of the predictions by the
// positive rate), positive_rate; with truth also bayes_auc, the best AUC to expect of any model on these samples, and
// auc_reached, how far from 0.5 to it the model came. `comm` carries host memory.
std::map<std::string, double> binary_metrics(const Judged& mine, Communicator& comm);

}  // namespace trireme
