#include "framework/report/report.h"

#include "comm/error.h"
#include "framework/io/file_io.h"
#include "framework/report/gantt.h"
#include "framework/report/page.h"
#include "framework/report/sections.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace trireme {
namespace {

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
  for (const auto& e : evaluations({run})) {
    if (!e.last_column || ++shown > 6) continue;
    const double value = *run.last(e.metric);
    const auto chance = e.chance ? run.last(*e.chance) : std::nullopt;
    s += card(e.label, format_value(value, e.unit),
              chance && *chance > 0 ? "chance " + format_value(*chance, e.unit) + ", " + times(value / *chance) : "");
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

std::string run_legend(const std::vector<Run>& runs) {
  std::string s = "<div class=\"legend\">";
  for (std::size_t i = 0; i < runs.size(); ++i)
    s += "<span><i style=\"background:" + color("c", i) + "\"></i>" + escape_html(runs[i].name) + "</span>";
  return s + "</div>\n";
}

std::string head_cell(const std::string& name) { return "<th class=\"number\">" + escape_html(name) + "</th>"; }

std::string comparison(const std::vector<Run>& runs) {
  const auto evals = evaluations(runs);
  std::string s =
      "<h2>Comparison</h2><figure class=\"full\"><div class=\"scroll\"><table "
      "class=\"compare\"><tr><th>run</th>";
  for (const char* name : {"steps", "final loss", "samples/s", "ms a step", "sent a step"}) s += head_cell(name);
  for (const auto& e : evals) s += head_cell(e.label);
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
    for (const auto& e : evals) cell(runs[i].last(e.metric), e.unit);
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
  const auto line = [&](const KeyValues& table,
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
  std::string schedules;
  for (const auto& dir : run_dirs) schedules += schedule_section(dir);
  if (schedules.empty() && std::all_of(runs.begin(), runs.end(), [](const Run& r) { return r.records.empty(); }))
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
  page += schedules;
  page += "<h2>Training</h2><div class=\"grid\">" + loss_section(runs) + "</div>\n";
  page += evaluation_section(runs) + phase_section(runs) + steps_section(runs);
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
