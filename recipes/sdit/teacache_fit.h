// The polynomial and the thresholds of TeaCache for a model: dense runs say how much the first block's modulated input
// and the model's output change from step to step.
#pragma once
#include <span>
#include <string>
#include <vector>

namespace trireme::sdit {

// Of one picture, from each step to the next: mean |a - b| / mean |b|.
struct StepChanges {
  std::vector<double> input, output;
};

struct TeaCacheFit {
  std::vector<double> polynomial;          // of degree 4, the highest power first: output change of input change
  double error = 0;                        // root of the mean square of what is left
  std::vector<double> shares, thresholds;  // a threshold for each share of the steps that is to be computed
};

// Least squares over all steps of all pictures; the thresholds by bisection over what the gate would do with the
// changes of the dense runs. UsageError: fewer than 6 changes.
TeaCacheFit fit_teacache(std::span<const StepChanges> pictures, std::int64_t retained);
// Steps of `changes.input.size() + 1` that a gate computes.
std::int64_t steps_computed(const StepChanges& changes, std::span<const double> polynomial, double threshold,
                            std::int64_t retained);

// The threshold of the share nearest to `share`. UsageError: none within 0.02.
double threshold_of(const TeaCacheFit& fit, double share);

// JSON: polynomial, error, thresholds: [[share, threshold], ...]. DataError: no such file, or not that.
TeaCacheFit read_fit(const std::string& path);
void write_fit(const std::string& path, const TeaCacheFit& fit);

}  // namespace trireme::sdit
