#include "framework/models/dit/flow_schedule.h"

#include "comm/error.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <optional>

#include <ATen/ATen.h>

namespace trireme {
namespace {

std::optional<double> number(const std::string& text) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || !std::isfinite(value)) return {};
  return value;
}

double on_line(const std::array<double, 4>& p, double (*scale)(double), double tokens) {
  return p[1] + (p[3] - p[1]) * (scale(tokens) - scale(p[0])) / (scale(p[2]) - scale(p[0]));
}

double same(double n) { return n; }
double root(double n) { return std::sqrt(n); }
double logarithm(double n) { return std::log(n); }

}  // namespace

bool is_mu_mode(const std::string& mode) {
  for (const auto* word : {"none", "linear", "sqrt", "log", "clamp"})
    if (mode == word) return true;
  return number(mode).has_value();
}

double flow_mu(const FlowShift& s, double tokens) {
  if (s.mu_mode == "linear") return on_line(s.points, same, tokens);
  if (s.mu_mode == "sqrt") return on_line(s.points, root, tokens);
  if (s.mu_mode == "log") return on_line(s.points, logarithm, tokens);
  if (s.mu_mode == "clamp") return std::min(on_line(s.points, same, tokens), s.points[3]);
  if (const auto fixed = number(s.mu_mode)) return *fixed;
  throw UsageError("mu_mode", "'" + s.mu_mode + "' is no way to shift time",
                   "none, linear, sqrt, log, clamp, or a number");
}

std::vector<double> flow_sigmas(std::int64_t steps, const FlowShift& s, double tokens) {
  const bool dynamic = s.mu_mode != "none";
  const double e = dynamic ? std::exp(flow_mu(s, tokens)) : 0, n = double(steps);
  std::vector<double> sigmas;
  for (std::int64_t i = 0; i < steps; ++i) {
    const double base = (n - double(i)) / n;
    const double shifted = dynamic ? e / (e + (1 / base - 1)) : s.shift * base / (1 + (s.shift - 1) * base);
    sigmas.push_back(double(float(shifted)));
  }
  sigmas.push_back(0);
  return sigmas;
}

at::Tensor euler_step(const at::Tensor& x, const at::Tensor& v, double from, double to) {
  return at::add(x, v, to - from);
}

at::Tensor predicted_clean(const at::Tensor& x, const at::Tensor& v, double sigma) { return at::sub(x, v, sigma); }

at::Tensor renoise_flow(const at::Tensor& x0, const at::Tensor& e, double sigma) {
  return at::add(at::mul(x0, 1 - sigma), e, sigma);
}

at::Tensor renoise_ddim(const at::Tensor& x, const at::Tensor& e, double abar_t, double abar_0) {
  const double kept = abar_t / abar_0;
  return at::add(at::mul(x, std::sqrt(kept)), e, std::sqrt(1 - kept));
}

}  // namespace trireme
