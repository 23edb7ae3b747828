#include "trainers/scale/study.h"

#include "trainers/scale/measure.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include <nlohmann/json.hpp>

namespace trireme::scale {
namespace {

using nlohmann::json;

// A model that misses the largest measured number of ranks by more is not carried on beyond it.
constexpr double tolerance = 0.15;
constexpr int farthest = 1024;

}  // namespace

bool Check::good() const { return std::abs(step_error) <= tolerance && std::abs(comm_error) <= tolerance; }

Study make_study(std::vector<Measured> measured, bool weak) {
  std::sort(measured.begin(), measured.end(), [](const auto& a, const auto& b) { return a.ranks < b.ranks; });
  Study s;
  s.mode = weak ? "weak" : "strong";
  s.measured = measured;
  std::vector<Measured> fitted = measured;
  const auto several = std::count_if(measured.begin(), measured.end(), [](const auto& m) { return m.ranks > 1; });
  if (several < 2) return s;
  if (several > 2) fitted.pop_back();
  for (const auto& m : fitted) s.fitted_on.push_back(m.ranks);
  const Model model(fitted, weak);
  s.link = model.link();
  s.hidden = model.hidden();
  const Measured& last = measured.back();
  if (several > 2) {
    const Exchange& gradient = last.exchanges.back();
    s.check = {last.ranks, model.predict(last.ranks).step_ms() / last.step_ms - 1,
               s.link->seconds(gradient.messages, gradient.bytes) / gradient.seconds - 1};
  }
  const double batch = measured.front().batch;
  const auto add = [&](int n) {
    s.modelled.push_back(model.predict(n));
    s.batches.push_back(weak ? batch / measured.front().ranks * n : batch);
  };
  for (const auto& m : measured) add(m.ranks);
  if (s.check && s.check->good())
    for (int n = 2 * last.ranks; n <= farthest && (weak || n <= batch); n *= 2) add(n);
  return s;
}

json to_json(const Study& s) {
  json study{{"experiment", s.title},
             {"scaling", s.mode},
             {"setting", s.setting},
             {"measured", json::array()},
             {"fitted_on", s.fitted_on}};
  for (const auto& m : s.measured) study["measured"].push_back(to_json(m));
  if (s.link)
    study["model"] = {
        {"alpha_us", 1e6 * s.link->alpha}, {"beta_gbps", 1e-9 * s.link->beta}, {"hidden_share_of_backward", s.hidden}};
  if (s.check)
    study["check"] = {{"ranks", s.check->ranks},
                      {"step_error", s.check->step_error},
                      {"comm_error", s.check->comm_error},
                      {"within", tolerance},
                      {"good", s.check->good()}};
  study["modelled"] = json::array();
  for (std::size_t i = 0; i < s.modelled.size(); ++i) {
    const auto& p = s.modelled[i];
    study["modelled"].push_back({{"ranks", p.ranks},
                                 {"batch_size", s.batches[i]},
                                 {"local_ms", p.local_ms},
                                 {"comm_ms", p.comm_ms},
                                 {"comm_exposed_ms", p.exposed_ms},
                                 {"step_ms", p.step_ms()},
                                 {"efficiency", efficiency(s.measured.front(), p.ranks, s.batches[i], p.step_ms())},
                                 {"kind", p.ranks > s.measured.back().ranks ? "modelled, extrapolated" : "modelled"}});
  }
  return study;
}

void print_table(const Study& s) {
  const auto line = [](const char* kind, int ranks, double batch, double step, double local, double exposed, double mib,
                       double efficiency) {
    std::printf("%-22s %6d %8.0f %10.2f %10.2f %10.2f %10.3f %9.1f %%\n", kind, ranks, batch, step, local, exposed, mib,
                100 * efficiency);
  };
  std::printf("%s scaling of %s\n%s\n", s.mode.c_str(), s.title.c_str(), s.setting.c_str());
  std::printf("%-22s %6s %8s %10s %10s %10s %10s %11s\n", "", "ranks", "batch", "step ms", "local ms", "exposed ms",
              "MiB sent", "efficiency");
  for (const auto& m : s.measured)
    line("measured", m.ranks, m.batch, m.step_ms, m.local_ms(), m.exposed.mean, m.bytes / 1048576,
         efficiency(s.measured.front(), m.ranks, m.batch, m.step_ms));
  for (std::size_t i = 0; i < s.modelled.size(); ++i) {
    const auto& p = s.modelled[i];
    line(p.ranks > s.measured.back().ranks ? "modelled, extrapolated" : "modelled", p.ranks, s.batches[i], p.step_ms(),
         p.local_ms, p.exposed_ms, std::nan(""), efficiency(s.measured.front(), p.ranks, s.batches[i], p.step_ms()));
  }
  if (s.link)
    std::printf("model: alpha = %.1f us a message, beta = %.4g MB/s, fitted on", 1e6 * s.link->alpha,
                1e-6 * s.link->beta);
  for (const int n : s.fitted_on) std::printf(" %d", n);
  std::printf(s.fitted_on.empty() ? "no model: it takes two numbers of ranks above 1\n" : " ranks\n");
  if (s.check)
    std::printf("check on %d ranks: step %+.1f %%, all-reduce %+.1f %% from the measurement: %s\n", s.check->ranks,
                100 * s.check->step_error, 100 * s.check->comm_error,
                s.check->good() ? "good enough to extrapolate" : "not good enough to extrapolate");
}

}  // namespace trireme::scale
