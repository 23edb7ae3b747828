#include "framework/models/dit/rope_scaling.h"

#include "framework/base/tensor.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include <ATen/ATen.h>

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

std::vector<std::int64_t> positions(std::int64_t from, std::int64_t count, std::int64_t wrap) {
  std::vector<std::int64_t> all(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) all[static_cast<std::size_t>(i)] = wrap ? (from + i) % wrap : from + i;
  return all;
}

std::array<std::vector<std::int64_t>, 3> positions(const Grid& g, const Offsets& o) {
  return {positions(o.frames, g.frames, o.wrap.frames), positions(o.rows, g.rows, o.wrap.rows),
          positions(o.columns, g.columns, o.wrap.columns)};
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

std::vector<RopeAxis> rope_axes(const DenoiserInfo& model, const Grid& grid, const Offsets& offsets) {
  const auto places = positions(grid, offsets);
  std::vector<RopeAxis> axes;
  for (std::size_t a = 0; a < model.rope_axes.size(); ++a) {
    const auto trained = static_cast<double>(model.base_side);
    const auto last = static_cast<double>(*std::max_element(places[a].begin(), places[a].end()) + 1);
    axes.push_back({model.rope_axes[a], model.theta, trained, a == 0 ? 1 : last / trained});
  }
  return axes;
}

RopeTables scaled_rope(const DenoiserInfo& model, const Grid& grid, std::int64_t text_tokens,
                       const RopeScaling& scaling, double time, at::Device device, const Offsets& offsets) {
  const auto axes = rope_axes(model, grid, offsets);
  const auto places = positions(grid, offsets);
  const std::int64_t size[] = {grid.frames, grid.rows, grid.columns};
  std::vector<at::Tensor> cosines, sines;  // of the axes: [frames, rows, columns, pairs of the axis]
  std::vector<float> gains;
  for (std::size_t a = 0; a < axes.size(); ++a) {
    const auto pairs = scaled_axis(axes[a], scaling, time);
    const at::Tensor both = at::empty({2, size[a], axes[a].dim / 2}, at::kFloat);
    float* to = both.data_ptr<float>();
    for (const bool sine : {false, true}) {
      for (const std::int64_t place : places[a]) {
        for (const RopePair& p : pairs) {
          const double angle = static_cast<double>(place) * p.frequency;
          *to++ = static_cast<float>(p.gain * (sine ? std::sin(angle) : std::cos(angle)));
        }
      }
    }
    for (const RopePair& p : pairs) gains.push_back(static_cast<float>(p.gain));
    std::vector<std::int64_t> shape{2, 1, 1, 1, axes[a].dim / 2};
    shape[a + 1] = size[a];
    const at::Tensor there =
        to_device(both, device).view(shape).expand({2, size[0], size[1], size[2], axes[a].dim / 2});
    cosines.push_back(there[0]);
    sines.push_back(there[1]);
  }
  RopeTables tables;
  tables.image = {at::cat(cosines, 3).flatten(0, 2), at::cat(sines, 3).flatten(0, 2)};
  if (text_tokens) {
    const auto pairs = static_cast<std::int64_t>(gains.size());
    const at::Tensor row = to_device(at::tensor(gains), device);
    tables.text = {row.expand({text_tokens, pairs}), at::zeros({text_tokens, pairs}, row.options())};
  }
  return tables;
}

at::Tensor gain_ratio(const DenoiserInfo& model, const Grid& grid, const RopeScaling& scaling, double from, double to,
                      at::Device device) {
  std::vector<float> ratio;
  for (const RopeAxis& axis : rope_axes(model, grid)) {
    const auto before = scaled_axis(axis, scaling, from), now = scaled_axis(axis, scaling, to);
    for (std::size_t i = 0; i < now.size(); ++i) ratio.push_back(static_cast<float>(now[i].gain / before[i].gain));
  }
  return to_device(at::tensor(ratio), device);
}

double text_anchor(std::int64_t image_tokens, std::int64_t trained_tokens) {
  return std::log(static_cast<double>(image_tokens) / static_cast<double>(trained_tokens));
}

}  // namespace trireme
