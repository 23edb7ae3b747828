#include "framework/report/sections.h"

#include "framework/report/page.h"
#include "framework/report/report.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

namespace trireme {
namespace {

constexpr std::array<std::pair<const char*, const char*>, 5> phases = {{{"data_ms", "data"},
                                                                        {"forward_ms", "forward"},
                                                                        {"backward_ms", "backward"},
                                                                        {"comm_exposed_ms", "exposed communication"},
                                                                        {"optimizer_ms", "optimizer"}}};

struct Small {
  std::string metric, title, unit;
  bool noisy = false;      // smoothed, raw in the back
  bool from_zero = false;  // else a log scale where values span much
};
const std::vector<Small>& standard_charts() {
  static const std::vector<Small> charts = {{"samples_per_s", "Throughput", "samples/s", true, true},
                                            {"step_ms", "Step time", "ms", true, true},
                                            {"lr", "Learning rate", "", false, true},
                                            {"gradient_norm", "Gradient norm", ""},
                                            {"bytes_sent", "Bytes sent", "a step", false, true},
                                            {"mfu", "Model FLOPs utilisation", ""},
                                            {"memory_gib", "Memory", "GiB", false, true}};
  return charts;
}

std::string pretty(std::string key) {
  if (key.starts_with("eval/")) key = key.substr(5);
  std::replace(key.begin(), key.end(), '_', ' ');
  return key;
}

// Of all runs; the first that uses a title decides.
std::vector<MetricChart> charts_of(const std::vector<Run>& runs) {
  std::vector<MetricChart> all;
  for (const auto& run : runs)
    for (const auto& chart : run.charts)
      if (std::none_of(all.begin(), all.end(), [&](const MetricChart& c) { return c.title == chart.title; }))
        all.push_back(chart);
  return all;
}

bool anywhere(const std::vector<Run>& runs, const std::string& metric) {
  return std::any_of(runs.begin(), runs.end(), [&](const Run& r) { return r.last(metric).has_value(); });
}

bool named(const std::vector<MetricChart>& charts, const std::string& metric) {
  return std::any_of(charts.begin(), charts.end(), [&](const MetricChart& c) { return c.names(metric); });
}

// Fractions are shown in percent; anything else (a perplexity) as it is.
Unit unit_by_values(const std::vector<Run>& runs, const std::string& metric) {
  for (const auto& run : runs)
    for (double y : run.curve(metric).y)
      if (y < 0 || y > 1) return Unit::plain;
  return Unit::percent;
}

Scale scale_of(const std::vector<Run>& runs, const std::string& metric) {
  double low = HUGE_VAL, high = 0;
  for (const auto& run : runs)
    for (double y : run.curve(metric).y) low = std::min(low, y), high = std::max(high, y);
  return low > 1e-300 && high / low > 40 ? Scale::log : Scale::linear;
}

// Those of a chart that the runs have, labelled by row and column.
std::vector<Evaluation> evaluations_of(const MetricChart& chart, const std::vector<Run>& runs) {
  std::vector<Evaluation> found;
  for (std::size_t r = 0; r < chart.rows.size(); ++r) {
    const auto& row = chart.rows[r];
    for (std::size_t i = 0; i < row.metrics.size(); ++i) {
      if (!row.metrics[i].starts_with("eval/") || !anywhere(runs, row.metrics[i])) continue;
      const std::string column = chart.columns.empty() ? "" : chart.columns[i];
      Evaluation e{row.metrics[i],
                   row.label + (row.label.empty() || column.empty() ? "" : " ") + column,
                   column,
                   {},
                   chart.fractions ? Unit::percent : Unit::plain,
                   r,
                   i + 1 == row.metrics.size()};
      if (e.label.empty()) e.label = chart.title;
      if (!row.chance.empty() && anywhere(runs, row.chance[i])) e.chance = row.chance[i];
      found.push_back(std::move(e));
    }
  }
  return found;
}

std::vector<Evaluation> unnamed_evaluations(const std::vector<Run>& runs) {
  const auto charts = charts_of(runs);
  std::set<std::string> metrics;
  for (const auto& run : runs)
    for (const auto& metric : run.keys("eval/"))
      if (!named(charts, metric)) metrics.insert(metric);
  std::vector<Evaluation> found;
  for (const auto& metric : metrics)
    found.push_back({metric, pretty(metric), "", {}, unit_by_values(runs, metric), 0, true});
  return found;
}

// What training writes of every run and the page shows elsewhere, or not at all.
bool of_the_loop(const std::string& metric) {
  const auto known = reported_metrics();
  return std::find(known.begin(), known.end(), metric) != known.end() || metric == "epoch" || metric == "own_ms" ||
         metric == "straggler" || metric.ends_with("_ms_min") || metric.ends_with("_ms_max");
}

// Lines over the steps; where nothing was evaluated twice, the values themselves.
std::string evaluation_chart(const std::string& title, const std::vector<Evaluation>& lines,
                             const std::vector<Run>& runs, bool full) {
  Chart c{.title = title,
          .unit_text = "",
          .width = full ? 1000 : 500,
          .height = 260,
          .unit = lines.front().unit,
          .from_zero = lines.front().unit == Unit::percent,
          .values_at_end = true,
          .values_only = runs.size() > 1,
          .series = {}};
  std::vector<Value> values;
  std::vector<double> chances;  // shown
  std::size_t longest = 0, i = 0;
  for (const auto& line : lines)
    for (std::size_t r = 0; r < runs.size(); ++r) {
      const Curve curve = runs[r].curve(line.metric);
      if (curve.empty()) continue;
      const std::string label = runs.size() > 1 ? runs[r].name : line.label;
      const std::string paint = color("c", runs.size() > 1 ? r : i++);
      const auto chance = line.chance ? runs[r].last(*line.chance) : std::nullopt;
      values.push_back({label, color("c", runs.size() > 1 ? r : line.row), curve.y.back(), chance});
      longest = std::max(longest, curve.x.size());
      c.series.push_back({label, paint, curve, Series::line, true});
      // Those of the rows of a chart all but lie on each other.
      const auto near = [&](double other) { return std::abs(*chance - other) <= 0.1 * std::abs(other); };
      if (!chance || std::any_of(chances.begin(), chances.end(), near)) continue;
      chances.push_back(*chance);
      c.series.push_back({"chance" + (line.column.empty() ? "" : " " + line.column),
                          "var(--muted)",
                          {{curve.x.back()}, {*chance}},
                          Series::dashed});
    }
  const std::string note = longest < 2 ? "evaluated once" : "";
  return figure(full ? "full" : "half", title, note,
                longest < 2 ? value_chart(title, values, c.unit, c.width) : line_chart(c));
}

std::string small_chart(const std::vector<Run>& runs, const Small& small, Unit unit) {
  Chart c{.title = small.title,
          .unit_text = small.unit,
          .width = 330,
          .height = 190,
          .unit = unit,
          .scale = small.from_zero ? Scale::linear : scale_of(runs, small.metric),
          .from_zero = small.from_zero,
          .series = {}};
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const Curve curve = runs[i].curve(small.metric);
    if (curve.empty()) continue;
    if (small.noisy) c.series.push_back({"", color("c", i), curve, Series::faint});
    c.series.push_back({"", color("c", i), small.noisy ? smoothed(curve) : curve, Series::line});
  }
  return c.series.empty() ? "" : figure("third", small.title, small.unit, line_chart(c));
}

}  // namespace

std::string color(const char* kind, std::size_t i) {
  return std::string("var(--") + kind + std::to_string(i % 8) + ")";
}

std::vector<Evaluation> evaluations(const std::vector<Run>& runs) {
  std::vector<Evaluation> all;
  for (const auto& chart : charts_of(runs)) {
    const auto some = evaluations_of(chart, runs);
    all.insert(all.end(), some.begin(), some.end());
  }
  const auto others = unnamed_evaluations(runs);
  all.insert(all.end(), others.begin(), others.end());
  return all;
}

std::string loss_section(const std::vector<Run>& runs) {
  Chart c{.title = "Loss", .unit_text = "", .scale = scale_of(runs, "loss"), .values_at_end = true, .series = {}};
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const Curve raw = runs[i].curve("loss");
    if (raw.empty()) continue;
    c.series.push_back({"", color("c", i), raw, Series::faint});
    c.series.push_back({runs.size() > 1 ? runs[i].name : "loss", color("c", i), smoothed(raw), Series::line});
  }
  return figure("full", "Loss",
                c.scale == Scale::log ? "smoothed, raw in the back; log scale" : "smoothed, raw in the back",
                line_chart(c));
}

// One run: a chart of the recipe with a line a metric. Several: a chart a metric with a line a run.
std::string evaluation_section(const std::vector<Run>& runs) {
  std::vector<std::pair<std::string, std::vector<Evaluation>>> figures;
  if (runs.size() > 1) {
    for (const auto& e : evaluations(runs)) figures.push_back({e.label, {e}});
  } else {
    for (const auto& chart : charts_of(runs))
      if (auto lines = evaluations_of(chart, runs); !lines.empty()) figures.emplace_back(chart.title, std::move(lines));
    for (const auto& e : unnamed_evaluations(runs)) figures.push_back({e.label, {e}});
  }
  std::string s;
  for (const auto& [title, lines] : figures) s += evaluation_chart(title, lines, runs, figures.size() == 1);
  return s.empty() ? s : "<h2>Evaluation</h2><div class=\"grid\">" + s + "</div>\n";
}

std::string phase_section(const std::vector<Run>& runs) {
  std::vector<std::pair<std::string, std::string>> legend;
  for (std::size_t p = 0; p < phases.size(); ++p) legend.emplace_back(phases[p].second, color("p", p));
  legend.emplace_back("other", color("p", phases.size()));
  std::vector<Bar> bars;
  for (const auto& run : runs) {
    Bar bar{runs.size() > 1 ? run.name : "", {}};
    double sum = 0;
    for (const auto& [key, name] : phases) {
      bar.parts.push_back(run.median(key).value_or(0));
      sum += bar.parts.back();
    }
    bar.parts.push_back(std::max(0.0, run.median("step_ms").value_or(0) - sum));
    bars.push_back(bar);
  }
  const std::string bar = bar_chart(bars, legend, "ms", 1000);
  if (bar.empty()) return {};
  std::string s = "<h2>Where a step's time goes</h2><div class=\"grid\">" + figure("full", "Median step", "ms", bar);
  if (runs.size() == 1) {
    Chart c{.title = "Phases over the run", .unit_text = "ms", .width = 1000, .height = 240, .series = {}};
    // Every phase at the steps where all are known, smoothed: single steps are noise.
    for (std::size_t p = 0; p < phases.size(); ++p) {
      Curve phase = runs[0].curve(phases[p].first);
      if (phase.empty()) continue;
      if (!c.series.empty() && phase.x != c.series.front().curve.x) continue;
      c.series.push_back({phases[p].second, color("p", p), smoothed(phase), Series::line});
    }
    if (c.series.size() > 1 && c.series.front().curve.x.size() > 1)
      s += figure("full", "Over the run", "ms, smoothed", stacked_chart(c));
  }
  return s + "</div>\n";
}

// What every run has, then what the recipe logs: as its charts say, the rest by name.
std::string steps_section(const std::vector<Run>& runs) {
  std::string s;
  for (const auto& small : standard_charts())
    s += small_chart(runs, small, small.metric == "mfu" ? Unit::percent : Unit::plain);
  const auto charts = charts_of(runs);
  for (const auto& chart : charts)
    for (const auto& row : chart.rows)
      for (std::size_t i = 0; i < row.metrics.size(); ++i) {
        if (row.metrics[i].starts_with("eval/")) continue;
        std::string title = chart.title;
        for (const auto& part : {row.label, chart.columns.empty() ? "" : chart.columns[i]})
          if (!part.empty()) title += " " + part;
        s += small_chart(runs, {row.metrics[i], title, ""}, chart.fractions ? Unit::percent : Unit::plain);
      }
  std::set<std::string> others;
  for (const auto& run : runs)
    for (const auto& metric : run.keys(""))
      if (!metric.starts_with("eval/") && !named(charts, metric) && !of_the_loop(metric)) others.insert(metric);
  for (const auto& metric : others) s += small_chart(runs, {metric, pretty(metric), ""}, Unit::plain);
  return s.empty() ? s : "<h2>Over the steps</h2><div class=\"grid\">" + s + "</div>\n";
}

std::vector<std::string_view> reported_metrics() {
  std::vector<std::string_view> metrics = {"loss", "bytes_uncompressed"};
  for (const auto& [metric, name] : phases) metrics.push_back(metric);
  for (const auto& small : standard_charts()) metrics.push_back(small.metric);
  return metrics;
}

}  // namespace trireme
