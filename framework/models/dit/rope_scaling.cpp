#include "framework/models/dit/rope_scaling.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace trireme {
namespace {

// DyPE: full strength early (t >= 0.71), none at the end.
double dype_strength(bool dype, double time) { return dype ? 2 * time * time : 1; }

double raw_frequency(double theta, std::int64_t pair, std::int64_t dim) {
  return std::pow(theta, -2.0 * static_cast<double>(pair) / static_cast<double>(dim));
}

double position_frequency(const RopeAxis& axis, const RopeScaling& scaling, double time, std::int64_t pair) {
  const double plain = raw_frequency(axis.theta, pair, axis.dim);
  switch (scaling.positions) {
    case Positions::none:
      return plain;
    case Positions::pi:
      return plain / axis.scale;
    case Positions::ntk: {
      const double dim = static_cast<double>(axis.dim);
      const double power = axis.dim > 2 ? dype_strength(scaling.dype, time) * dim / (dim - 2) : 0;
      return raw_frequency(axis.theta * std::pow(axis.scale, power), pair, axis.dim);
    }
    case Positions::yarn:
      break;
  }
  const auto [low, high] = yarn_ramp(axis, scaling.dype, time);
  const double share = std::clamp((static_cast<double>(pair) - low) / (high - low), 0.0, 1.0);
  return share * plain / axis.scale + (1 - share) * plain;
}

// The frequency that the exponent of the temperature follows.
double temperature_frequency(const RopeAxis& axis, bool normalized, std::int64_t pair) {
  if (!normalized) return raw_frequency(axis.theta, pair, axis.dim);
  const std::int64_t last = axis.dim / 2 - 1;
  return last == 0 ? 1 : 1 - static_cast<double>(pair) / static_cast<double>(last);
}

double gain(const RopeAxis& axis, const RopeScaling& scaling, double time, std::int64_t pair) {
  double tau = 1;
  if (scaling.dynamic_temperature) {
    tau = temperature(axis.scale, temperature_frequency(axis, scaling.normalized, pair), scaling, time);
  } else if (scaling.positions == Positions::yarn) {
    tau = least_temperature(axis.scale);
  }
  return 1 / std::sqrt(tau);
}

}  // namespace

double least_temperature(double scale) {
  const double mscale = 0.1 * std::log(scale) + 1;
  return 1 / (mscale * mscale);
}

double temperature(double scale, double frequency, const RopeScaling& scaling, double time) {
  const double alpha = scaling.alpha_low + (scaling.alpha_high - scaling.alpha_low) * frequency;
  return 1 - (1 - least_temperature(scale)) * std::pow(time, alpha);
}

YarnRamp yarn_ramp(const RopeAxis& axis, bool dype, double time) {
  // A pair counts as slow when it turns once over the trained length, as fast at 32 turns.
  const double turns_slow = 1, turns_fast = std::pow(32, dype_strength(dype, time));
  const double dim = static_cast<double>(axis.dim);
  auto pair_of = [&](double turns) {
    return dim * std::log(axis.trained / (2 * std::numbers::pi * turns)) / (2 * std::log(axis.theta));
  };
  const double low = std::max(std::floor(pair_of(turns_fast)), 0.0);
  double high = std::min(std::ceil(pair_of(turns_slow)), dim - 1);
  if (high <= low) high = low + 0.001;  // also where not even the fastest pair turns once
  return {low, high};
}

std::vector<RopePair> scaled_axis(const RopeAxis& axis, const RopeScaling& scaling, double time) {
  std::vector<RopePair> pairs(static_cast<std::size_t>(axis.dim / 2));
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const auto pair = static_cast<std::int64_t>(i);
    pairs[i] = axis.scale > 1 ? RopePair{position_frequency(axis, scaling, time, pair), gain(axis, scaling, time, pair)}
                              : RopePair{raw_frequency(axis.theta, pair, axis.dim), 1};
  }
  return pairs;
}

double text_anchor(std::int64_t image_tokens, std::int64_t trained_tokens) {
  return std::log(static_cast<double>(image_tokens) / static_cast<double>(trained_tokens));
}

}  // namespace trireme
