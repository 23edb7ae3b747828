// Ranks by Zipf-Mandelbrot: p_i proportional to 1 / (i + q)^s for i = 1..n; the first of them may be given instead.
#pragma once
#include "data/rng.h"

#include <cstdint>
#include <vector>

namespace trireme {

class Zipf {
 public:
  struct Spec {
    std::int64_t n = 1;
    double s = 1, q = 0;
    std::vector<double> head = {};  // probabilities of the first ranks; the others share the rest
  };
  explicit Zipf(const Spec& spec);

  std::int64_t draw(Rng& rng) const;         // from 0
  double probability(std::int64_t i) const;  // of rank i, from 0
  std::int64_t size() const { return spec_.n; }

 private:
  Spec spec_;
  std::int64_t exact_ = 0;    // ranks with a probability of their own; the others by the integral
  std::vector<double> p_;     // of those, and of all others together
  std::vector<double> keep_;  // alias method (Walker 1977)
  std::vector<std::int32_t> other_;
  double low_ = 0, high_ = 0, norm_ = 1;  // the integral at both ends; of the power law
};

// The exponent that leaves the first rank's share as it is with exponent s and q = 0: the tail becomes lighter.
double same_first_share(std::int64_t n, double s, double q);

}  // namespace trireme
