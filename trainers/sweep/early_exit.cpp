#include "trainers/sweep/early_exit.h"

#include "comm/error.h"

#include <algorithm>
#include <cmath>

#include <nlohmann/json.hpp>

namespace trireme::sweep {
namespace {

using nlohmann::json;
constexpr double unknown = std::numeric_limits<double>::quiet_NaN();

json number(double v) { return std::isfinite(v) ? json(v) : json(); }
double number(const json& v, double otherwise) { return v.is_null() ? otherwise : v.get<double>(); }

}  // namespace

void EarlyExitConfig::fields(Fields& f) {
  f("enabled", enabled, "false: every job runs to its end; evaluations stay");
  f.choice("cut", cut, {"barrier", "asha"},
           "barrier: once, at the end of warm-up; asha: at each rung, without waiting");
  f("warmup_ratio", warmup_ratio, "share of a job's steps before the cut", {.min = 0, .max = 1});
  f("keep_ratio", keep_ratio, "share of the jobs that the cut keeps", {.min = 0, .max = 1});
  f("window", window, "evaluations that a slope is taken over", {.min = 2, .max = 1000});
  f("patience_div", patience_div, "evaluations in a row that make a job diverging", {.min = 1});
  f("patience_ovf", patience_ovf, "evaluations in a row that make a job overfitting", {.min = 1});
  f("tau_slope", tau_slope, "least slope per evaluation of both losses that counts as diverging");
  f("tau_gap", tau_gap, "gap (v - e) / e above which a job counts as overfitting");
  f("ema_alpha", ema_alpha, "weight of the newest train loss in e", {.min = 1e-6, .max = 1});
  f("eval_fraction", eval_fraction, "share of a job's steps between two evaluations", {.min = 1e-6, .max = 1});
  f("val_cap", val_cap, "validation samples, a seeded subset fixed once; 0: so many that evaluation costs a fifth",
    {.min = 0});
  f("asha_max_t", asha_max_t, "ASHA: units of time in a job", {.min = 1, .max = 1'000'000});
  f("asha_grace", asha_grace, "ASHA: the first rung, in units", {.min = 1});
  f("asha_eta", asha_eta, "ASHA: one in so many goes on at a rung", {.min = 2});
}

std::int64_t ceil_share(double ratio, std::int64_t n) {
  return std::int64_t(std::ceil(ratio * double(n) * (1 - 1e-12)));
}

std::int64_t boundary_step(const EarlyExitConfig& c, std::int64_t total_steps) {
  return std::max<std::int64_t>(1, ceil_share(c.warmup_ratio, total_steps));
}

bool evaluates_at(const EarlyExitConfig& c, std::int64_t total_steps, std::int64_t step) {
  const std::int64_t interval = std::max<std::int64_t>(1, ceil_share(c.eval_fraction, total_steps));
  return step > 0 && (step % interval == 0 || step == boundary_step(c, total_steps) || step == total_steps);
}

double slope(const std::vector<double>& values, std::int64_t window) {
  const auto w = std::size_t(window);
  if (values.size() < w) return unknown;
  const double* y = values.data() + (values.size() - w);
  double ym = 0, above = 0, below = 0;
  const double xm = double(w - 1) / 2;
  for (std::size_t x = 0; x < w; ++x) ym += y[x];
  ym /= double(w);
  for (std::size_t x = 0; x < w; ++x) {
    above += (double(x) - xm) * (y[x] - ym);
    below += (double(x) - xm) * (double(x) - xm);
  }
  return above / below;
}

std::string Decision::json() const {
  nlohmann::ordered_json o;  // keys as they are listed
  o["job"] = job;
  o["step"] = step;
  o["decision"] = decision;
  o["train_ema"] = number(train_ema);
  o["val_loss"] = number(val_loss);
  o["slope_train"] = number(slope_train);
  o["slope_val"] = number(slope_val);
  o["gap"] = number(gap);
  o["rank"] = rank ? nlohmann::json(rank) : nlohmann::json();
  return o.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

EarlyExit::EarlyExit(EarlyExitConfig config, const std::map<std::string, std::int64_t>& total_steps)
    : config_(std::move(config)) {
  for (const auto& [name, steps] : total_steps) jobs_[name].total_steps = steps;
  cut_done_ = !config_.enabled || config_.cut == "asha";
  if (cut_done_)
    for (auto& [name, job] : jobs_) job.state = State::going_on;
}

std::vector<Decision> EarlyExit::refuse(const std::string& name) {
  Job& job = jobs_.at(name);
  job.state = State::exited;
  job.reason = "too_large";
  std::vector<Decision> decisions = {{name, 0, job.reason, unknown, unknown, unknown, unknown, unknown, 0}};
  if (!cut_done_)
    for (auto& d : cut()) decisions.push_back(std::move(d));
  return decisions;
}

bool EarlyExit::best_now(const std::string& name) const {
  const Job& job = jobs_.at(name);
  return !job.v.empty() && job.v.back() == job.best &&
         std::find(job.v.begin(), job.v.end() - 1, job.best) == job.v.end() - 1;
}

Decision EarlyExit::numbers(const std::string& name, const Job& job) const {
  Decision d;
  d.job = name;
  d.step = job.step;
  d.train_ema = job.e.empty() ? unknown : job.e.back();
  d.val_loss = job.v.back();
  d.slope_train = slope(job.e, config_.window);
  d.slope_val = slope(job.v, config_.window);
  d.gap = (d.val_loss - d.train_ema) / std::max(std::abs(d.train_ema), 1e-12);
  return d;
}

std::string EarlyExit::ended_by(Job& job, const Decision& now) const {
  if (!std::isfinite(now.val_loss) || (!job.e.empty() && !std::isfinite(now.train_ema))) return "diverging";
  const bool rising = now.slope_train >= config_.tau_slope && now.slope_val >= config_.tau_slope;
  job.diverging = rising ? job.diverging + 1 : 0;
  if (job.diverging >= config_.patience_div) return "diverging";
  const bool apart = std::int64_t(job.v.size()) >= config_.window && now.gap > config_.tau_gap;
  job.overfitting = apart ? job.overfitting + 1 : 0;
  return job.overfitting >= config_.patience_ovf ? "overfitting" : "";
}

// Ray's rule: at the highest rung it has reached and not been at, a job stops if its loss is above the 1/eta quantile
// (linear between two) of the losses recorded there before it.
void EarlyExit::rung(Job& job, double v, Decision& now) {
  std::vector<std::int64_t> milestones;
  for (std::int64_t m = config_.asha_grace; m < config_.asha_max_t; m *= config_.asha_eta) milestones.push_back(m);
  for (auto m = milestones.rbegin(); m != milestones.rend(); ++m) {
    if (job.step * config_.asha_max_t < *m * job.total_steps) continue;
    if (std::find(job.rungs.begin(), job.rungs.end(), *m) != job.rungs.end()) return;
    job.rungs.push_back(*m);
    auto& seen = rungs_[*m];
    std::sort(seen.begin(), seen.end());
    double limit = std::numeric_limits<double>::infinity();
    if (!seen.empty()) {
      const double at = double(seen.size() - 1) / double(config_.asha_eta);
      const auto low = std::size_t(at);
      const double next = low + 1 < seen.size() ? seen[low + 1] : seen[low];
      limit = seen[low] + (at - double(low)) * (next - seen[low]);
    }
    now.rank = 1 + std::count_if(seen.begin(), seen.end(), [&](double other) { return other < v; });
    now.decision = v > limit ? "underperforming" : "kept";
    seen.push_back(v);
    return;
  }
}

std::vector<Decision> EarlyExit::cut() {
  std::vector<Job*> ranking;
  for (auto& [name, job] : jobs_) {
    if (job.state == State::exited) continue;
    if (job.state != State::waiting) return {};
    ranking.push_back(&job);
  }
  cut_done_ = true;
  // jobs_ is in the order of names: a stable sort leaves ties so.
  std::stable_sort(ranking.begin(), ranking.end(),
                   [](const Job* a, const Job* b) { return a->boundary.val_loss < b->boundary.val_loss; });
  const std::int64_t keep = ceil_share(config_.keep_ratio, std::int64_t(ranking.size()));
  std::vector<Decision> decisions;
  for (std::size_t i = 0; i < ranking.size(); ++i) {
    Decision d = ranking[i]->boundary;
    d.rank = std::int64_t(i) + 1;
    d.decision = d.rank <= keep ? "kept" : "underperforming";
    ranking[i]->state = d.rank <= keep ? State::going_on : State::exited;
    if (d.rank > keep) ranking[i]->reason = d.decision;
    decisions.push_back(std::move(d));
  }
  return decisions;
}

std::vector<Decision> EarlyExit::evaluate(const std::string& name, std::int64_t step, const double* average, double v) {
  Job& job = jobs_.at(name);
  if (job.state == State::exited) return {};
  job.step = step;
  if (average) job.e.push_back(*average);
  job.v.push_back(v);
  if (v < job.best) job.best = v;
  if (!config_.enabled && std::isfinite(v) && (!average || std::isfinite(*average))) return {};
  std::vector<Decision> decisions;
  Decision now = numbers(name, job);
  now.decision = config_.enabled ? ended_by(job, now) : "diverging";
  if (now.decision.empty() && config_.cut == "asha") rung(job, v, now);
  if (now.decision.empty() && job.state == State::warmup && step >= boundary_step(config_, job.total_steps)) {
    job.state = State::waiting;
    job.boundary = now;
  }
  if (!now.decision.empty()) {
    if (now.decision != "kept") {
      job.state = State::exited;
      job.reason = now.decision;
    }
    decisions.push_back(now);
  }
  if (!cut_done_)
    for (auto& d : cut()) decisions.push_back(std::move(d));
  return decisions;
}

std::string EarlyExit::save() const {
  json all{{"cut_done", cut_done_}, {"rungs", json::array()}, {"jobs", json::object()}};
  for (const auto& [milestone, losses] : rungs_) all["rungs"].push_back({milestone, losses});
  for (const auto& [name, job] : jobs_) {
    json& j = all["jobs"][name];
    j = {{"state", int(job.state)},
         {"reason", job.reason},
         {"diverging", job.diverging},
         {"step", job.step},
         {"overfitting", job.overfitting},
         {"best", number(job.best)},
         {"rungs", job.rungs},
         {"e", json::array()},
         {"v", json::array()}};
    for (double e : job.e) j["e"].push_back(number(e));
    for (double v : job.v) j["v"].push_back(number(v));
    const Decision& b = job.boundary;
    j["boundary"] = {b.step,       number(b.train_ema), number(b.val_loss), number(b.slope_train), number(b.slope_val),
                     number(b.gap)};
  }
  return all.dump();
}

void EarlyExit::load(const std::string& text) {
  const json all = json::parse(text);
  cut_done_ = all.at("cut_done").get<bool>();
  rungs_.clear();
  for (const auto& r : all.at("rungs")) rungs_[r[0].get<std::int64_t>()] = r[1].get<std::vector<double>>();
  for (auto& [name, job] : jobs_) {
    if (!all.at("jobs").contains(name))
      throw DataError("checkpoint of the sweep", "has no job " + name, "start afresh, or restore the search space");
    const json& j = all["jobs"][name];
    job.state = State(j.at("state").get<int>());
    job.reason = j.at("reason").get<std::string>();
    job.diverging = j.at("diverging").get<std::int64_t>();
    job.overfitting = j.at("overfitting").get<std::int64_t>();
    job.step = j.at("step").get<std::int64_t>();
    job.best = number(j.at("best"), std::numeric_limits<double>::infinity());
    job.rungs = j.at("rungs").get<std::vector<std::int64_t>>();
    job.e.clear(), job.v.clear();
    for (const auto& e : j.at("e")) job.e.push_back(number(e, unknown));
    for (const auto& v : j.at("v")) job.v.push_back(number(v, unknown));
    const json& b = j.at("boundary");
    job.boundary = {name,
                    b[0].get<std::int64_t>(),
                    "",
                    number(b[1], unknown),
                    number(b[2], unknown),
                    number(b[3], unknown),
                    number(b[4], unknown),
                    number(b[5], unknown),
                    0};
  }
}

}  // namespace trireme::sweep
