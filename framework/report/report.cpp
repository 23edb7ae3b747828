#include "comm/error.h"
#include "framework/io/file_io.h"
#include "framework/metrics/metrics.h"
#include "framework/report/run.h"
#include "framework/report/page.h"
#include "framework/report/chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <set>

namespace trireme {
namespace {

std::string color(const char* kind, std::size_t i) {
  return std::string("var(--") + kind + std::to_string(i % 8) + ")";
}

// "eval/image_to_text_r10" as a person writes it.
std::string pretty(std::string key) {
  if (key.starts_with("eval/")) key = key.substr(5);
  const auto replace = [&](std::string_view from, std::string_view to) {
    for (auto at = key.find(from); at != key.npos; at = key.find(from, at + to.size()))
      key.replace(at, from.size(), to);
  };
  replace("image_to_text", "image → text");
  replace("text_to_image", "text → image");
  replace("zero_shot", "zero-shot");
  replace("_top", " top-");
  if (const auto at = key.rfind("_r"); at != key.npos && at + 2 < key.size() && std::isdigit(key[at + 2]))
    key.replace(at, 2, " R@");
  replace("_", " ");
  return key;
}

// The key that says what guessing would score: eval/chance_r10 for ..._r10, eval/zero_shot_chance for
// zero_shot_....
std::string chance_key(const Run& run, const std::string& key) {
  const auto has = [&](const std::string& k) { return run.last(k).has_value(); };
  for (auto at = key.find('_'); at != key.npos; at = key.find('_', at + 1)) {
    if (const std::string k = "eval/chance_" + key.substr(at + 1); has(k)) return k;
    if (const std::string k = key.substr(0, at) + "_chance"; has(k)) return k;
  }
  return {};
}

bool is_chance(const std::string& key) { return key.find("chance") != key.npos; }

std::vector<std::string> eval_keys(const std::vector<Run>& runs) {
  std::set<std::string> keys;
  for (const auto& run : runs)
    for (const auto& key : run.keys("eval/"))
      if (!is_chance(key)) keys.insert(key);
  return {keys.begin(), keys.end()};
}

// Fractions are shown in percent; anything else (a perplexity) as it is.
Unit unit_of(const std::vector<Run>& runs, const std::string& key) {
  for (const auto& run : runs)
    for (double y : run.curve(key).y)
      if (y < 0 || y > 1) return Unit::plain;
  return Unit::percent;
}

std::string card(const std::string& name, const std::string& value, const std::string& below) {
  return "<div><small>" + escape_html(name) + "</small><strong>" + escape_html(value) + "</strong><small>" +
         escape_html(below) + "&nbsp;</small></div>";
}

std::string duration(double seconds) {
  const auto s = static_cast<long long>(std::llround(seconds));
  if (s < 60) return format_value(std::round(seconds * 10) / 10) + " s";
  if (s < 3600) return std::to_string(s / 60) + " min " + std::to_string(s % 60) + " s";
  return std::to_string(s / 3600) + " h " + std::to_string(s / 60 % 60) + " min";
}

std::string bytes_text(double bytes) {
  const std::string s = format_value(bytes);
  return std::isalpha(static_cast<unsigned char>(s.back())) ? s.substr(0, s.size() - 1) + " " + s.back() + "B"
                                                            : s + " B";
}

std::string times(double ratio) {
  return format_value(ratio < 10 ? std::round(ratio * 10) / 10 : std::round(ratio)) + "×";
}

std::string cards(const Run& run) {
  std::string s = "<div class=\"cards\">";
  const Curve loss = run.curve("loss");
  if (!loss.empty())
    s += card("final loss", format_value(smoothed(loss).y.back()), "from " + format_value(loss.y.front()));
  int shown = 0;
  for (const auto& key : run.keys("eval/")) {
    if (is_chance(key) || ++shown > 6) continue;
    const Unit unit = unit_of({run}, key);
    std::string below;
    if (const auto chance = chance_key(run, key); !chance.empty() && *run.last(chance) > 0)
      below = "chance " + format_value(*run.last(chance), unit) + ", " + times(*run.last(key) / *run.last(chance));
    s += card(pretty(key), format_value(*run.last(key), unit), below);
  }
  if (const auto rate = run.median("samples_per_s")) {
    const auto ms = run.median("step_ms");
    s += card("throughput", format_value(*rate) + "/s",
              ms ? format_value(*ms) + " ms a step (median)" : "samples, median");
  }
  if (const auto mfu = run.median("mfu"))
    s += card("model FLOPs utilisation", format_value(*mfu, Unit::percent), "median");
  const auto sent = run.median("bytes_sent"), whole = run.median("bytes_uncompressed");
  if (sent && *sent > 0)
    s += card("sent per step", bytes_text(*sent),
              whole && *whole > *sent * 1.001 ? times(*whole / *sent) + " less than uncompressed" : "uncompressed");
  const Curve ms = run.curve("step_ms");
  if (!ms.empty() && !loss.empty()) {
    double total = 0;
    for (std::size_t i = 0; i < ms.x.size(); ++i) total += ms.y[i] * (ms.x[i] - (i ? ms.x[i - 1] : 0)) / 1000;
    s += card("time in steps", duration(total), format_value(loss.x.back()) + " steps");
  }
  return s + "</div>\n";
}

Scale scale_of(const std::vector<Run>& runs, const std::string& key) {
  double low = HUGE_VAL, high = 0;
  for (const auto& run : runs)
    for (double y : run.curve(key).y) low = std::min(low, y), high = std::max(high, y);
  return low > 1e-300 && high / low > 40 ? Scale::log : Scale::linear;
}

std::string loss_chart(const std::vector<Run>& runs) {
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

void add_chance(Chart& c, const std::vector<Run>& runs, const std::string& key) {
  for (const auto& run : runs) {
    const auto chance = chance_key(run, key);
    if (chance.empty()) continue;
    Curve one{{run.curve(chance).x.back()}, {*run.last(chance)}};
    c.series.push_back({pretty(chance), "var(--muted)", one, Series::dashed});
    return;
  }
}

// One run: one chart a family (retrieval, zero-shot, the rest) with a line a metric. Several: a chart a
// metric.
std::string eval_charts(const std::vector<Run>& runs) {
  const auto keys = eval_keys(runs);
  if (keys.empty()) return {};
  std::string s = "<h2>Evaluation</h2><div class=\"grid\">";
  const auto chart_of = [&](const std::string& title, int width, Unit unit) {
    return Chart{.title = title,
                 .unit_text = "",
                 .width = width,
                 .height = 260,
                 .unit = unit,
                 .from_zero = unit == Unit::percent,
                 .values_at_end = true,
                 .series = {}};
  };
  if (runs.size() > 1) {
    for (const auto& key : keys) {
      Chart c = chart_of(pretty(key), 500, unit_of(runs, key));
      c.values_only = true;
      for (std::size_t i = 0; i < runs.size(); ++i)
        c.series.push_back({runs[i].name, color("c", i), runs[i].curve(key), Series::line, true});
      add_chance(c, runs, key);
      s += figure("half", pretty(key), "", line_chart(c));
    }
    return s + "</div>\n";
  }
  std::map<std::string, std::vector<std::string>> families;
  for (const auto& key : keys)
    families[key.find("_to_") != key.npos        ? "Retrieval"
             : key.find("zero_shot") != key.npos ? "Zero-shot classification"
                                                 : pretty(key)]
        .push_back(key);
  for (const auto& [title, members] : families) {
    const bool wide = families.size() == 1;
    Chart c = chart_of(title, wide ? 1000 : 500, unit_of(runs, members.front()));
    std::size_t i = 0;
    std::set<std::string> chances;
    for (const auto& key : members) {
      c.series.push_back({pretty(key), color("c", i++), runs[0].curve(key), Series::line, true});
      if (const auto k = chance_key(runs[0], key); !k.empty() && chances.insert(k).second) add_chance(c, runs, key);
    }
    s += figure(wide ? "full" : "half", title, c.unit == Unit::percent ? "higher is better" : "", line_chart(c));
  }
  return s + "</div>\n";
}

constexpr std::array<std::pair<const char*, const char*>, 5> phases = {{{"data_ms", "data"},
                                                                        {"forward_ms", "forward"},
                                                                        {"backward_ms", "backward"},
                                                                        {"comm_exposed_ms", "exposed communication"},
                                                                        {"optimizer_ms", "optimizer"}}};

std::string phase_charts(const std::vector<Run>& runs) {
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
    Curve total = runs[0].curve("step_ms");
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

std::string small_charts(const std::vector<Run>& runs) {
  constexpr std::array<std::array<const char*, 3>, 11> wanted = {{{"samples_per_s", "Throughput", "samples/s"},
                                                                  {"step_ms", "Step time", "ms"},
                                                                  {"lr", "Learning rate", ""},
                                                                  {"tau", "Temperature τ", ""},
                                                                  {"gamma", "Inner rate γ", ""},
                                                                  {"objective", "Objective", ""},
                                                                  {"u_mean", "Mean of u", ""},
                                                                  {"grad_norm", "Gradient norm", ""},
                                                                  {"bytes_sent", "Bytes sent", "a step"},
                                                                  {"mfu", "Model FLOPs utilisation", ""},
                                                                  {"memory_gib", "Memory", "GiB"}}};
  std::string s;
  for (const auto& [key, title, unit] : wanted) {
    const bool from_zero = *unit || std::string(key) == "lr";
    Chart c{.title = title,
            .unit_text = unit,
            .width = 330,
            .height = 190,
            .unit = std::string(key) == "mfu" ? Unit::percent : Unit::plain,
            .scale = from_zero ? Scale::linear : scale_of(runs, key),
            .from_zero = from_zero,
            .series = {}};
    for (std::size_t i = 0; i < runs.size(); ++i) {
      const Curve curve = runs[i].curve(key);
      if (curve.empty()) continue;
      const bool noisy = std::string(unit) == "samples/s" || std::string(unit) == "ms";
      if (noisy) c.series.push_back({"", color("c", i), curve, Series::faint});
      c.series.push_back({"", color("c", i), noisy ? smoothed(curve) : curve, Series::line});
    }
    if (!c.series.empty()) s += figure("third", title, unit, line_chart(c));
  }
  return s.empty() ? s : "<h2>Over the steps</h2><div class=\"grid\">" + s + "</div>\n";
}

std::string run_legend(const std::vector<Run>& runs) {
  std::string s = "<div class=\"legend\">";
  for (std::size_t i = 0; i < runs.size(); ++i)
    s += "<span><i style=\"background:" + color("c", i) + "\"></i>" + escape_html(runs[i].name) + "</span>";
  return s + "</div>\n";
}

std::string head_cell(const std::string& name) { return "<th class=\"number\">" + escape_html(name) + "</th>"; }

std::string comparison(const std::vector<Run>& runs) {
  const auto evals = eval_keys(runs);
  std::string s =
      "<h2>Comparison</h2><figure class=\"full\"><div class=\"scroll\"><table "
      "class=\"compare\"><tr><th>run</th>";
  for (const char* name : {"steps", "final loss", "samples/s", "ms a step", "sent a step"}) s += head_cell(name);
  for (const auto& key : evals) s += head_cell(pretty(key));
  s += "</tr>";
  for (std::size_t i = 0; i < runs.size(); ++i) {
    const auto text_cell = [&](const std::string& text) { s += "<td class=\"number\">" + text + "</td>"; };
    const auto cell = [&](std::optional<double> v, Unit unit = Unit::plain) {
      text_cell(v ? format_value(*v, unit) : "–");
    };
    s += "<tr><td><i style=\"background:" + color("c", i) + "\"></i>" + escape_html(runs[i].name) + "</td>";
    const Curve loss = runs[i].curve("loss");
    cell(loss.empty() ? std::nullopt : std::optional(loss.x.back()));
    cell(loss.empty() ? std::nullopt : std::optional(smoothed(loss).y.back()));
    cell(runs[i].median("samples_per_s"));
    cell(runs[i].median("step_ms"));
    const auto sent = runs[i].median("bytes_sent");
    text_cell(sent ? bytes_text(*sent) : "–");
    for (const auto& key : evals) cell(runs[i].last(key), unit_of(runs, key));
    s += "</tr>";
  }
  s += "</table></div></figure>\n";

  // What was changed between them explains the curves.
  std::vector<std::string> keys;
  for (const auto& run : runs)
    for (const auto& [key, value] : run.config)
      if (std::find(keys.begin(), keys.end(), key) == keys.end()) keys.push_back(key);
  std::string rows;
  for (const auto& key : keys) {
    std::set<std::string> values;
    std::string row = "<tr><td>" + escape_html(key) + "</td>";
    for (const auto& run : runs) {
      const auto it = std::find_if(run.config.begin(), run.config.end(), [&](const auto& e) { return e.first == key; });
      const std::string value = it == run.config.end() ? "–" : it->second;
      values.insert(value);
      row += "<td>" + escape_html(value) + "</td>";
    }
    if (values.size() > 1) rows += row + "</tr>";
  }
  if (rows.empty()) return s;
  s += "<details open><summary>Settings that differ</summary><div class=\"scroll\"><table><tr><th>key</th>";
  for (const auto& run : runs) s += "<th>" + escape_html(run.name) + "</th>";
  return s + "</tr>" + rows + "</table></div></details>\n";
}

std::string heading(const std::vector<Run>& runs) {
  std::string title;
  for (const auto& run : runs) title += (title.empty() ? "" : ", ") + run.name;
  std::string s = "<h1>" + escape_html(title) + "</h1>";
  const auto line = [&](const Table& table,
                        std::initializer_list<std::pair<const char*, std::vector<std::string>>> fields) {
    std::string spans;
    for (const auto& [name, keys] : fields)
      if (const auto value = find_value(table, keys); !value.empty() && value.size() < 200)
        spans += "<span>" + escape_html(name) + " <b>" + escape_html(value) + "</b></span>";
    return spans.empty() ? spans : "<p class=\"sub\">" + spans + "</p>";
  };
  if (!runs.empty()) {
    s += line(runs[0].config, {{"recipe", {"recipe"}},
                               {"dataset", {"data.name", "dataset", "data.file", "data.path"}},
                               {"batch", {"batch_size"}},
                               {"precision", {"precision"}}});
    s += line(runs[0].environment, {{"ranks", {"ranks", "world_size"}},
                                    {"device", {"device", "gpu", "devices"}},
                                    {"started", {"date", "started", "start_time", "time"}},
                                    {"Trireme", {"trireme", "version"}},
                                    {"LibTorch", {"torch", "libtorch"}},
                                    {"MPI", {"mpi"}}});
  }
  return s;
}

}  // namespace

void write_report(const std::vector<std::string>& run_dirs, const std::string& out_file) {
  if (run_dirs.empty()) throw UsageError("report", "no run folder given");
  const auto runs = read_runs(run_dirs);
  if (std::all_of(runs.begin(), runs.end(), [](const Run& r) { return r.records.empty(); }))
    throw DataError(run_dirs.front(), "no metrics in it",
                    "give the folder that `trireme train` wrote, the one with metrics.jsonl");
  std::string page = page_begin("Trireme: " + runs.front().name) + heading(runs);
  if (runs.size() > 1)
    page += run_legend(runs);
  else
    page += cards(runs[0]);
  std::string notes;
  for (const auto& run : runs)
    for (const auto& note : run.notes) notes += "<p>" + escape_html(note) + "</p>";
  if (!notes.empty()) page += "<div class=\"notes\">" + notes + "</div>\n";
  if (runs.size() > 1) page += comparison(runs);
  page += "<h2>Training</h2><div class=\"grid\">" + loss_chart(runs) + "</div>\n";
  page += eval_charts(runs) + phase_charts(runs) + small_charts(runs);
  page += "<h2>Setting</h2>";
  for (const auto& run : runs) {
    const std::string suffix = runs.size() > 1 ? " of " + run.name : "";
    if (!run.config.empty()) page += details("Configuration" + suffix, html_table(run.config, "key", "value"));
    if (!run.environment.empty()) page += details("Environment" + suffix, html_table(run.environment, "what", "found"));
  }
  page += page_end();
  replace_durably(system_io(), out_file, page);
}

}  // namespace trireme
