// Linear probe: multinomial logistic regression on frozen features, as CLIP's paper (arXiv 2103.00020, A.3) judges
// them: full-batch L-BFGS, the L2 penalty chosen on a validation split. In f64; deterministic, without random numbers.
#pragma once
#include <cstdint>
#include <span>

#include <ATen/core/Tensor.h>

namespace trireme {

struct LinearModel {
  at::Tensor weight, bias;  // [classes, d], [classes]; f64
  std::int64_t iterations = 0;
};

// Minimises sum of cross entropies / n + |weight|^2 / (2 c n) from zeros: scikit-learn's
// LogisticRegression(C=c), whose bias is not penalised either. Ends when no component of the gradient is above
// `tolerance`, or after 1000 steps. features [n, d] of any float type and device, labels i64 [n] in [0, classes) there.
LinearModel logistic_regression(const at::Tensor& features, const at::Tensor& labels, std::int64_t classes, double c,
                                double tolerance = 1e-5);

struct LinearProbe {
  LinearModel model;  // fitted to all of the data
  double c = 0;       // that the validation split chose
};

// Every fifth sample of a class is for validation. C runs over 10^-6 to 10^6 in eighths of a decade: seven values
// first, then halving steps around the best (the smaller C where two are equal), as the paper does. A class of less
// than five samples has no validation sample; DataError(where) if none has any.
LinearProbe linear_probe(const at::Tensor& features, const at::Tensor& labels, std::int64_t classes,
                         const std::string& where);

}  // namespace trireme
