#include "framework/report/chart.h"
#include "framework/report/svg.h"

#include <algorithm>
#include <cmath>

namespace trireme {

using svg::character;
using svg::length;
using svg::open_svg;
using svg::print;

constexpr std::size_t longest_label = 28;
constexpr int row = 34;  // height of a bar with its distance

std::string bar_chart(const std::vector<Bar>& bars, const std::vector<std::pair<std::string, std::string>>& legend,
                      const std::string& unit_text, int width) {
  double high = 0;
  std::size_t longest = 0;
  for (const auto& b : bars) {
    double sum = 0;
    for (double p : b.parts) sum += std::max(p, 0.0);
    high = std::max(high, sum);
    longest = std::max(longest, std::min(length(b.label), longest_label));
  }
  if (!(high > 0)) return "";
  const double left = longest ? 14 + double(longest) * character : 2, room = width - left - 90;
  const int height = row * int(bars.size()) + 6;
  std::string page = open_svg("time of a step by phase", width, height);
  for (std::size_t r = 0; r < bars.size(); ++r) {
    const double y = double(r) * row + 4;
    double at = 0;
    page += print("<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", left - 10, y + 17) +
            escape_html(svg::shortened(bars[r].label, longest_label)) + "</text>";
    for (std::size_t i = 0; i < bars[r].parts.size() && i < legend.size(); ++i) {
      const double part = std::max(bars[r].parts[i], 0.0);
      const double w = part / high * room;
      if (w <= 0) continue;
      page += print("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"24\" style=\"fill:%s\"><title>",
                    left + at / high * room, y, std::max(w - 1.5, 0.5), legend[i].second.c_str()) +
              escape_html(legend[i].first + " " + format_value(part) + " " + unit_text) + "</title></rect>";
      const std::string text = format_value(std::round(part * 10) / 10);
      if (w > 12 + double(text.size()) * character)
        page += print("<text class=\"inside\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>",
                      left + at / high * room + w / 2, y + 16.5, text.c_str());
      at += part;
    }
    page += print("<text class=\"label\" x=\"%.1f\" y=\"%.1f\">%s %s</text>", left + at / high * room + 8, y + 17,
                  format_value(std::round(at * 10) / 10).c_str(), escape_html(unit_text).c_str());
  }
  page += "</svg><div class=\"legend\">";
  for (const auto& [name, color] : legend)
    page += "<span><i style=\"background:" + color + "\"></i>" + escape_html(name) + "</span>";
  return page + "</div>";
}

std::string value_chart(const std::string& title, const std::vector<Value>& values, Unit unit, int width) {
  double high = 0;
  std::size_t longest = 0;
  bool any_chance = false;
  for (const auto& v : values) {
    high = std::max({high, v.value, v.chance.value_or(0)});
    longest = std::max(longest, std::min(length(v.label), longest_label));
    any_chance |= v.chance.has_value();
  }
  if (!(high > 0)) high = 1;
  const double left = 14 + double(longest) * character, room = width - left - 90;
  const int height = row * int(values.size()) + 6;
  std::string s = open_svg(title, width, height);
  for (std::size_t r = 0; r < values.size(); ++r) {
    const auto& v = values[r];
    const double y = double(r) * row + 4, w = std::max(v.value, 0.0) / high * room;
    s += print("<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", left - 10, y + 17) +
         escape_html(svg::shortened(v.label, longest_label)) + "</text>";
    s += print("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"24\" style=\"fill:%s\"/>", left, y,
               std::max(w, 1.0), v.color.c_str());
    if (v.chance)
      s += print("<path class=\"chance\" d=\"M%.1f %.1fv28\"><title>", left + *v.chance / high * room, y - 2) +
           "chance " + format_value(*v.chance, unit) + "</title></path>";
    s += print("<text class=\"label\" x=\"%.1f\" y=\"%.1f\">", left + w + 8, y + 17) + format_value(v.value, unit) +
         "</text>";
  }
  s += "</svg>";
  if (any_chance) s += "<div class=\"legend\"><span><i class=\"mark\"></i>chance</span></div>";
  return s;
}

}  // namespace trireme
