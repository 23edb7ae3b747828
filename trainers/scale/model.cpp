#include "trainers/scale/model.h"

#include <algorithm>
#include <cmath>

namespace trireme::scale {
namespace {

struct Line {
  double at_zero = 0, slope = 0;
};

// Least squares; a constant where x does not vary.
Line fit_line(const std::vector<std::pair<double, double>>& points) {
  double mx = 0, my = 0, xx = 0, xy = 0;
  for (const auto& [x, y] : points) mx += x, my += y;
  mx /= double(points.size()), my /= double(points.size());
  for (const auto& [x, y] : points) xx += (x - mx) * (x - mx), xy += (x - mx) * (y - my);
  const double slope = xx > 1e-12 * (1 + mx * mx) ? xy / xx : 0;
  return {my - slope * mx, slope};
}

double shared(int ranks) { return double(ranks - 1) / ranks; }

}  // namespace

double all_reduce_messages(int ranks) { return 2.0 * (ranks - 1); }
double all_reduce_bytes(int ranks, double buffer_bytes) { return 2 * shared(ranks) * buffer_bytes; }

Link fit_link(const std::vector<Exchange>& exchanges) {
  // Unknowns alpha and 1/beta; each equation is divided by its time.
  double aa = 0, ab = 0, bb = 0, a1 = 0, b1 = 0;
  for (const auto& e : exchanges) {
    if (!(e.seconds > 0)) continue;
    const double a = e.messages / e.seconds, b = e.bytes / e.seconds;
    aa += a * a, ab += a * b, bb += b * b, a1 += a, b1 += b;
  }
  const double determinant = aa * bb - ab * ab;
  double alpha = 0, slowness = bb > 0 ? b1 / bb : 0;
  if (determinant > 1e-9 * aa * bb) {
    const double free_alpha = (a1 * bb - b1 * ab) / determinant, free_slowness = (aa * b1 - ab * a1) / determinant;
    if (free_alpha >= 0 && free_slowness > 0) alpha = free_alpha, slowness = free_slowness;
  }
  return {alpha, slowness > 0 ? 1 / slowness : HUGE_VAL};
}

Model::Model(const std::vector<Measured>& measured, bool weak) : weak_(weak) {
  std::vector<Exchange> exchanges;
  std::vector<std::pair<double, double>> local, whole;
  double calls = 0, backward = 0, hiding = 0;
  int groups = 0;
  for (const auto& m : measured) {
    batch_ = weak ? m.batch / m.ranks : m.batch;
    local.push_back({m.batch / m.ranks, m.local_ms()});
    backward += m.backward.mean / m.local_ms() / double(measured.size());
    if (m.ranks < 2) continue;
    ++groups;
    calls += m.calls;
    whole.push_back({double(m.ranks), m.bytes / shared(m.ranks)});
    exchanges.insert(exchanges.end(), m.exchanges.begin(), m.exchanges.end());
  }
  link_ = fit_link(exchanges);
  // Samples cost time and a step without any takes at least none: otherwise the line has fitted noise.
  Line l = fit_line(local);
  if (l.at_zero < 0 || l.slope < 0) {
    double xx = 0, xy = 0;
    for (const auto& [x, y] : local) xx += x * x, xy += x * y;
    l = {0, xy / xx};
  }
  local_ = l.at_zero, local_slope_ = l.slope;
  // In strong scaling the buffers do not depend on the ranks.
  const Line w = fit_line(whole);
  for (const auto& [ranks, bytes] : whole) whole_ += bytes / double(whole.size());
  if (weak) whole_ = w.at_zero, whole_slope_ = w.slope;
  calls_ = calls / groups;
  backward_share_ = backward;
  for (const auto& m : measured) {
    if (m.ranks < 2) continue;
    const double comm = 1e3 * link_.seconds(m.calls * all_reduce_messages(m.ranks), m.bytes);
    hiding += std::clamp((comm - m.exposed.mean) / m.backward.mean, 0.0, 1.0) / groups;
  }
  hidden_ = hiding;
}

Prediction Model::predict(int ranks) const {
  Prediction p;
  p.ranks = ranks;
  const double samples = weak_ ? batch_ : batch_ / ranks;
  p.local_ms = local_ + local_slope_ * samples;
  if (ranks < 2) return p;
  const double bytes = (whole_ + whole_slope_ * ranks) * shared(ranks);
  p.comm_ms = 1e3 * link_.seconds(calls_ * all_reduce_messages(ranks), bytes);
  p.exposed_ms = std::max(0.0, p.comm_ms - hidden_ * backward_share_ * p.local_ms);
  return p;
}

double efficiency(const Measured& one, int ranks, double batch, double step_ms) {
  const double rate_one = one.batch / one.step_ms / one.ranks;
  return batch / step_ms / ranks / rate_one;
}

}  // namespace trireme::scale
