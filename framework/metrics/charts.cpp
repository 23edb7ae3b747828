#include "framework/metrics/charts.h"

#include "framework/metrics/metrics.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

using Lines = std::vector<std::vector<std::string>>;  // cells; the first is a label

constexpr std::size_t line_width = 78;

std::string format_number(double v) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), std::abs(v) < 1e6 ? "%.4f" : "%.6g", v);
  return text.data();
}

// The values of a row; empty if the record has none of them.
std::vector<std::string> cells(const Record& r, const std::vector<std::string>& metrics, bool fractions) {
  std::vector<std::string> row;
  bool any = false;
  for (const auto& metric : metrics) {
    const auto it = r.values.find(metric);
    any |= it != r.values.end();
    row.push_back(it == r.values.end() ? "-" : fractions ? format_percent(it->second) : format_number(it->second));
  }
  return any ? row : std::vector<std::string>();
}

// Chance once: rows of a chart differ little in it, and metrics.jsonl has each.
Lines lines_of(const Record& r, const MetricChart& chart, const std::string& head) {
  Lines lines;
  std::vector<std::string> chance;
  for (const auto& row : chart.rows) {
    auto line = cells(r, row.metrics, chart.fractions);
    if (line.empty()) continue;
    line.insert(line.begin(), "  " + (row.label.empty() ? chart.title : row.label));
    lines.push_back(std::move(line));
    if (chance.empty()) chance = cells(r, row.chance, chart.fractions);
  }
  if (lines.empty()) return lines;
  if (chart.columns.empty()) {
    if (!chance.empty()) lines.front().push_back("chance " + chance.front());
  } else if (!chance.empty()) {
    chance.insert(chance.begin(), "  chance");
    lines.push_back(std::move(chance));
  }
  if (!head.empty() || !chart.columns.empty()) {
    lines.insert(lines.begin(), {head});
    lines.front().insert(lines.front().end(), chart.columns.begin(), chart.columns.end());
  }
  return lines;
}

std::string aligned(const Lines& lines, std::size_t label_width) {
  std::vector<std::size_t> widths;
  for (const auto& line : lines) {
    widths.resize(std::max(widths.size(), line.size()));
    for (std::size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string text;
  for (const auto& line : lines) {
    text += (text.empty() ? "" : "\n") + line[0];
    if (line.size() > 1) text.append(label_width - line[0].size(), ' ');
    for (std::size_t i = 1; i < line.size(); ++i) text.append(2 + widths[i] - line[i].size(), ' ') += line[i];
  }
  return text;
}

nlohmann::json to_json(const MetricChart& c) {
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& r : c.rows) rows.push_back({{"label", r.label}, {"metrics", r.metrics}, {"chance", r.chance}});
  return {{"title", c.title}, {"columns", c.columns}, {"rows", rows}, {"fractions", c.fractions}};
}

}  // namespace

bool MetricChart::names(std::string_view metric) const {
  const auto in = [&](const std::vector<std::string>& list) {
    return std::find(list.begin(), list.end(), metric) != list.end();
  };
  return std::any_of(rows.begin(), rows.end(), [&](const Row& r) { return in(r.metrics) || in(r.chance); });
}

std::string charts_to_json(const std::vector<MetricChart>& charts) {
  nlohmann::json all = nlohmann::json::array();
  for (const auto& c : charts) all.push_back(to_json(c));
  return all.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::vector<MetricChart> charts_from_json(const std::string& text) {
  std::vector<MetricChart> charts;
  const auto all = nlohmann::json::parse(text, nullptr, false);
  if (!all.is_array()) return charts;
  for (const auto& j : all) {
    try {
      MetricChart c{j.at("title"), j.at("columns"), {}, j.at("fractions")};
      const std::size_t width = std::max<std::size_t>(c.columns.size(), 1);
      for (const auto& row : j.at("rows")) {
        MetricChart::Row r{row.at("label"), row.at("metrics"), row.at("chance")};
        if (r.metrics.size() == width && (r.chance.empty() || r.chance.size() == width)) c.rows.push_back(std::move(r));
      }
      charts.push_back(std::move(c));
    } catch (const nlohmann::json::exception&) {  // of another version
    }
  }
  return charts;
}

std::string format_percent(double fraction) {
  std::array<char, 32> text;
  std::snprintf(text.data(), text.size(), std::abs(fraction) < 0.0995 ? "%.2f %%" : "%.1f %%", 100 * fraction);
  return text.data();
}

std::string evaluation_text(const Record& r, const std::vector<MetricChart>& charts) {
  const std::string head = "eval at step " + std::to_string(r.step);
  std::vector<Lines> blocks;
  for (const auto& chart : charts) {
    const bool evaluation = std::any_of(r.values.begin(), r.values.end(), [&](const auto& v) {
      return v.first.starts_with("eval/") && chart.names(v.first);
    });
    if (!evaluation) continue;
    if (auto lines = lines_of(r, chart, blocks.empty() ? head : ""); !lines.empty()) blocks.push_back(std::move(lines));
  }
  Lines others;
  std::string one_line = head;
  for (const auto& [key, value] : r.values) {
    if (!key.starts_with("eval/")) continue;
    if (std::any_of(charts.begin(), charts.end(), [&](const MetricChart& c) { return c.names(key); })) continue;
    others.push_back({"  " + key.substr(5), format_number(value)});
    one_line += others.back()[0] + " " + others.back()[1];
  }
  if (blocks.empty() && others.empty()) return {};
  if (blocks.empty() && one_line.size() <= line_width) return one_line;
  if (blocks.empty()) others.insert(others.begin(), {head});
  if (!others.empty()) blocks.push_back(std::move(others));
  std::size_t label_width = 0;
  for (const auto& block : blocks)
    for (const auto& line : block)
      if (line.size() > 1) label_width = std::max(label_width, line[0].size());
  std::string text;
  for (const auto& block : blocks) text += (text.empty() ? "" : "\n") + aligned(block, label_width);
  return text;
}

}  // namespace trireme
