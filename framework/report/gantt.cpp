#include "framework/report/gantt.h"

#include "comm/error.h"
#include "data/json.h"
#include "framework/report/chart.h"
#include "framework/report/page.h"
#include "framework/report/svg.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <limits>
#include <map>

namespace trireme {
namespace {

using svg::print;

std::size_t index_of(const std::vector<std::string>& names, const std::string& task) {
  return std::size_t(std::find(names.begin(), names.end(), task) - names.begin());
}

// [first, last] of each run of neighbours.
std::vector<std::pair<int, int>> runs_of(const std::vector<int>& gpus) {
  std::vector<std::pair<int, int>> runs;
  for (int g : gpus) {
    if (!runs.empty() && runs.back().second + 1 == g)
      runs.back().second = g;
    else
      runs.emplace_back(g, g);
  }
  return runs;
}

std::string seconds_text(double s) {
  if (s < 120) return format_value(std::round(s * 10) / 10) + " s";
  if (s < 7200) return format_value(std::round(s / 6) / 10) + " min";
  return format_value(std::round(s / 360) / 10) + " h";
}

void take(const nlohmann::json& line, TaskSchedule& s, std::map<std::string, std::size_t>& open) {
  const double t = line.at("t");
  const std::string event = line.at("event");
  const auto close = [&](const std::string& task) {
    if (const auto it = open.find(task); it != open.end()) s.actual[it->second].end = t, open.erase(it);
  };
  if (event == "begin" || event == "stop")  // begin: also after a kill
    while (!open.empty()) close(open.begin()->first);
  if (event == "begin") {
    s.gpus = std::max(s.gpus, line.at("gpus").get<int>());
  } else if (event == "plan") {
    if (!line.at("arrived").get<bool>()) return;
    s.plan.clear(), s.planned_at = t;
    for (const auto& b : line.at("bars"))
      s.plan.push_back({b.at("task"), b.at("gpus"), b.at("start"), b.at("end"), b.at("after_cut")});
  } else if (event == "start" || event == "cut") {
    const std::string task = line.at("task");
    close(task);
    open[task] = s.actual.size();
    s.actual.push_back({task, line.at("gpus"), t, t, line.at("after_cut")});
  } else if (event == "done" || event == "failed") {
    close(line.at("task"));
  }
  for (const auto& [task, bar] : open) s.actual[bar].end = t;
}

}  // namespace

std::string gantt_chart(const std::string& title, const std::vector<GanttBar>& bars, int gpus, double end,
                        const std::vector<std::string>& names, int width) {
  constexpr double left = 66, top = 4;
  const double row = std::clamp(360.0 / std::max(gpus, 1), 7.0, 28.0), room = width - left - 24;
  const double bottom = top + row * gpus, scale = room / (end > 0 ? end : 1);
  std::string s = svg::open_svg(title, width, int(bottom) + 26);
  const int every = std::max(1, int(std::ceil(18 / row)));
  for (int g = 0; g < gpus; g += every)
    s += print("<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">GPU %d</text>", left - 8,
               top + row * (g + 0.5) + 4, g);
  for (const double t : nice_ticks(0, end, 8)) {
    if (t < 0 || t > end * 1.0001) continue;
    s += print("<path class=\"grid\" d=\"M%.1f %.1fV%.1f\"/>", left + t * scale, top, bottom);
    s += print("<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>", left + t * scale,
               bottom + 18, seconds_text(t).c_str());
  }
  for (const auto& b : bars) {
    const std::string color = "var(--c" + std::to_string(index_of(names, b.task) % 8) + ")";
    const double w = (b.end - b.start) * scale;
    for (const auto& [first, last] : runs_of(b.gpus)) {
      s += print("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" style=\"fill:%s;opacity:%s\"><title>",
                 left + b.start * scale, top + row * first + 0.5, std::max(w - 1, 0.5), row * (last - first + 1) - 1,
                 color.c_str(), b.after_cut ? ".55" : "1") +
           escape_html(b.task + (b.after_cut ? ", after its cut: " : ": ") + seconds_text(b.start) + " to " +
                       seconds_text(b.end)) +
           "</title></rect>";
      const std::string label = svg::shortened(b.task, std::size_t(std::max(1.0, (w - 8) / svg::character)));
      if (w > 24 && row * (last - first + 1) >= 14)
        s += print("<text class=\"inside\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">",
                   left + b.start * scale + w / 2, top + row * (first + last + 1) / 2 + 4) +
             escape_html(label) + "</text>";
    }
  }
  return s + "</svg>";
}

std::string gantt_text(const std::vector<GanttBar>& bars, int gpus, double end, const std::vector<std::string>& names,
                       int columns) {
  std::vector<std::string> rows(std::size_t(gpus), std::string(std::size_t(columns), '.'));
  const double scale = columns / (end > 0 ? end : 1);
  for (const auto& b : bars) {
    const char letter = char((b.after_cut ? 'a' : 'A') + index_of(names, b.task) % 26);
    const int first = std::min(int(b.start * scale), columns - 1), last = int(std::ceil(b.end * scale - 1e-9));
    for (int g : b.gpus)
      for (int c = first; c < std::clamp(last, first + 1, columns); ++c) rows[std::size_t(g)][std::size_t(c)] = letter;
  }
  std::string text;
  for (int g = 0; g < gpus; ++g) text += print("%5d ", g) + rows[std::size_t(g)] + "\n";
  return text + "      0" + std::string(std::size_t(std::max(1, columns - 1 - int(seconds_text(end).size()))), ' ') +
         seconds_text(end) + "\n";
}

std::vector<std::string> task_names(const TaskSchedule& s) {
  std::vector<GanttBar> all = s.actual;
  std::stable_sort(all.begin(), all.end(), [](const GanttBar& a, const GanttBar& b) { return a.start < b.start; });
  all.insert(all.end(), s.plan.begin(), s.plan.end());
  std::vector<std::string> names;
  for (const auto& b : all)
    if (index_of(names, b.task) == names.size()) names.push_back(b.task);
  return names;
}

double last_end(const TaskSchedule& s) {
  double end = 0;
  for (const auto* bars : {&s.plan, &s.actual})
    for (const auto& b : *bars) end = std::max(end, b.end);
  return end;
}

TaskSchedule read_schedule(const std::string& run_dir) {
  TaskSchedule s;
  const std::string path = run_dir + "/schedule.jsonl";
  std::ifstream file(path);
  std::map<std::string, std::size_t> open;
  std::string text;
  for (int line = 1; std::getline(file, text); ++line) {
    const auto json = parse_json(text);
    if (json.is_discarded() && file.eof()) break;
    try {
      if (!json.is_object()) throw DataError(path, "no JSON object");
      take(json, s, open);
    } catch (const std::exception& e) {
      throw DataError(path + ":" + std::to_string(line), "is no line of a schedule", "remove the line");
    }
  }
  for (auto* bars : {&s.plan, &s.actual})
    for (const auto& b : *bars)
      for (int g : b.gpus)
        if (g < 0 || g >= s.gpus || s.gpus > 65536 || !(b.start >= 0 && b.end >= b.start && b.end < 1e12))
          throw DataError(path,
                          "task " + b.task + " lies on GPU " + std::to_string(g) + " of " + std::to_string(s.gpus));
  return s;
}

std::string schedule_section(const std::string& run_dir) {
  const TaskSchedule s = read_schedule(run_dir);
  if (s.actual.empty()) return "";
  const auto names = task_names(s);
  const double end = last_end(s);
  return "<h2>Tasks on GPUs</h2><div class=\"grid\">" +
         figure("full", "Planned",
                s.planned_at > 0 ? "when the last task had arrived, at " + seconds_text(s.planned_at) : "",
                gantt_chart("planned schedule", s.plan, s.gpus, end, names, 1000)) +
         figure("full", "Actual", "lighter: after the cut",
                gantt_chart("actual schedule", s.actual, s.gpus, end, names, 1000)) +
         "</div>\n";
}

}  // namespace trireme
