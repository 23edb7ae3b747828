#include "framework/report/chart.h"

#include "data/text/text.h"
#include "framework/metrics/charts.h"
#include "framework/report/svg.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace trireme {

using svg::character;
using svg::length;
using svg::open_svg;
using svg::print;

namespace {

struct Frame {
  double left, right, top, bottom;  // of the plot area
  double x0, x1, y0, y1;            // data range
  Scale scale = Scale::linear;
  double px(double x) const { return left + (x - x0) / (x1 - x0) * (right - left); }
  double py(double y) const {
    const double t =
        scale == Scale::log ? (std::log(y) - std::log(y0)) / (std::log(y1) - std::log(y0)) : (y - y0) / (y1 - y0);
    return bottom - std::clamp(t, -0.02, 1.02) * (bottom - top);
  }
};

std::string path_of(const Curve& c, const Frame& f) {
  std::string d;
  for (std::size_t i = 0; i < c.x.size(); ++i) d += print("%c%.1f %.1f", i ? 'L' : 'M', f.px(c.x[i]), f.py(c.y[i]));
  return d;
}

// Grid lines with their numbers, the step axis.
std::string axes(const Frame& f, const std::vector<double>& ticks, Unit unit) {
  std::string s;
  // Decimals by the distance of the ticks, so that 0.1, 0.15, 0.2 all show what they are.
  const double gap = ticks.size() > 1 ? (ticks[1] - ticks[0]) * (unit == Unit::percent ? 100 : 1) : 1;
  for (double t : ticks) {
    const double y = f.py(t);
    std::string label = format_value(t, unit);
    const double shown = unit == Unit::percent ? t * 100 : t;
    if (f.scale == Scale::linear && std::abs(shown) < 9999 && gap >= 1e-3 && (gap < 1 || std::abs(shown) < 1000))
      label = print("%.*f%s", std::max(0, int(-std::floor(std::log10(gap) + 1e-9))), shown,
                    unit == Unit::percent ? "%" : "");
    s += print("<path class=\"grid\" d=\"M%.1f %.1fH%.1f\"/>", f.left, y, f.right);
    s += print("<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">%s</text>", f.left - 8, y + 4,
               label.c_str());
  }
  const int count = std::max(2, int((f.right - f.left) / 60));
  for (double t : nice_ticks(f.x0, f.x1, count)) {
    if (t < f.x0 || t > f.x1 || t != std::floor(t)) continue;
    s += print("<path class=\"axis\" d=\"M%.1f %.1fv4\"/>", f.px(t), f.bottom);
    s += print("<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>", f.px(t), f.bottom + 18,
               format_value(t).c_str());
  }
  s += print("<path class=\"axis\" d=\"M%.1f %.1fH%.1f\"/>", f.left, f.bottom, f.right);
  s += print("<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">step</text>", f.left - 24, f.bottom + 18);
  return s;
}

struct EndLabel {
  double y;
  std::string text, color;
};

// Labels at the line ends, moved apart where they would touch.
std::string end_labels(std::vector<EndLabel> labels, const Frame& f) {
  std::stable_sort(labels.begin(), labels.end(), [](const EndLabel& a, const EndLabel& b) { return a.y < b.y; });
  constexpr double distance = 15;
  for (int round = 0; round < 50; ++round)
    for (std::size_t i = 1; i < labels.size(); ++i)
      if (const double overlap = distance - (labels[i].y - labels[i - 1].y); overlap > 0) {
        labels[i - 1].y -= overlap / 2;
        labels[i].y += overlap / 2;
      }
  // Back inside: down from the top, then up from the bottom.
  for (std::size_t i = 0; i < labels.size(); ++i)
    labels[i].y = std::max(labels[i].y, i ? labels[i - 1].y + distance : f.top + 4);
  for (std::size_t i = labels.size(); i-- > 0;)
    labels[i].y = std::min(labels[i].y, i + 1 < labels.size() ? labels[i + 1].y - distance : f.bottom);
  std::string s;
  for (const auto& l : labels)
    s +=
        print("<text class=\"label\" x=\"%.1f\" y=\"%.1f\" style=\"fill:%s\">", f.right + 8, l.y + 4, l.color.c_str()) +
        escape_html(l.text) + "</text>";
  return s;
}

std::string nothing(const Chart& c) {
  return open_svg(c.title, c.width, 60) +
         print("<text class=\"tick\" x=\"%d\" y=\"34\" text-anchor=\"middle\">no data</text></svg>", c.width / 2);
}

// Margins by what must fit: tick numbers at the left, the longest label at the right.
Frame frame_of(const Chart& c, std::size_t longest_label) {
  Frame f = {};
  f.left = 58;
  f.right = c.width - (longest_label ? std::min(14 + double(longest_label) * character, c.width * 0.4) : 18);
  f.top = 12;
  f.bottom = c.height - 28;
  f.scale = c.scale;
  return f;
}

std::string end_text(const Chart& c, const Series& s) {
  if (s.label.empty() || !c.values_at_end || s.curve.empty()) return s.label;
  if (c.values_only && s.style != Series::dashed) return format_value(s.curve.y.back(), c.unit);
  return s.label + " " + format_value(s.curve.y.back(), c.unit);
}

// The range of what can be drawn; false if there is nothing.
bool find_range(const Chart& c, Frame& f) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  f.x0 = f.y0 = inf;
  f.x1 = f.y1 = -inf;
  for (const auto& s : c.series) {
    for (double x : s.curve.x) f.x0 = std::min(f.x0, x), f.x1 = std::max(f.x1, x);
    for (double y : s.curve.y)
      if (c.scale == Scale::linear || y > 0) f.y0 = std::min(f.y0, y), f.y1 = std::max(f.y1, y);
  }
  if (!(f.x1 >= f.x0) || !(f.y1 >= f.y0)) return false;
  // A single step stands in the middle.
  if (f.x1 == f.x0) f.x0 -= 0.5, f.x1 += 0.5;
  return true;
}

// Widens the range of y to its ticks and returns them.
std::vector<double> log_range(Frame& f) {
  std::vector<double> ticks;
  for (double p = std::floor(std::log10(f.y0)); p <= std::ceil(std::log10(f.y1)); ++p)
    for (double m : {1.0, 2.0, 5.0})
      if (const double t = m * std::pow(10, p); t > 0 && t >= f.y0 / 2.1 && t <= f.y1 * 2.1) ticks.push_back(t);
  if (ticks.size() > 9)
    std::erase_if(ticks, [](double t) { return std::abs(std::log10(t) - std::round(std::log10(t))) > 1e-9; });
  f.y0 = std::min(ticks.front(), f.y0);
  f.y1 = std::max(ticks.back(), f.y1);
  if (!(f.y1 > f.y0)) f.y1 = f.y0 * 10;
  return ticks;
}

std::vector<double> linear_range(const Chart& c, Frame& f) {
  if (c.from_zero) f.y0 = std::min(f.y0, 0.0), f.y1 = std::max(f.y1, 0.0);
  if (!(f.y1 > f.y0)) {
    const double pad = f.y0 == 0 ? 1 : std::abs(f.y0) / 2;
    if (!c.from_zero) f.y0 -= pad;
    f.y1 += pad;
  }
  const auto ticks = nice_ticks(f.y0, f.y1, c.height > 240 ? 5 : 3);
  f.y0 = ticks.front();
  f.y1 = ticks.back();
  return ticks;
}

std::string drawn(const Series& s, const Frame& f, Unit unit) {
  const char* kind = s.style == Series::faint ? "faint" : s.style == Series::dashed ? "dashed" : "line";
  Curve curve = thinned(s.curve, 1200);
  // A constant measured once still shows as a line.
  if (s.style == Series::dashed) {
    curve.x.insert(curve.x.begin(), f.x0);
    curve.y.insert(curve.y.begin(), curve.y.front());
    curve.x.push_back(f.x1);
    curve.y.push_back(curve.y.back());
  }
  std::string svg =
      "<path class=\"" + std::string(kind) + "\" style=\"stroke:" + s.color + "\" d=\"" + path_of(curve, f) + "\"/>";
  // A line of one point is none: it needs its marker to be seen.
  const bool marked = (s.markers && s.curve.x.size() <= 60) || (s.style != Series::dashed && s.curve.x.size() == 1);
  for (std::size_t i = 0; marked && i < s.curve.x.size(); ++i)
    svg += print("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%d\" style=\"fill:%s\"><title>", f.px(s.curve.x[i]),
                 f.py(s.curve.y[i]), s.curve.x.size() == 1 ? 4 : 3, s.color.c_str()) +
           escape_html(s.label + " step " + format_value(s.curve.x[i]) + ": " + format_value(s.curve.y[i], unit)) +
           "</title></circle>";
  return svg;
}

}  // namespace

std::string escape_html(std::string_view text) {
  std::string s;
  for (char c : utf8_or_latin1(text)) switch (c) {
      case '&':
        s += "&amp;";
        break;
      case '<':
        s += "&lt;";
        break;
      case '>':
        s += "&gt;";
        break;
      case '"':
        s += "&quot;";
        break;
      case '\'':
        s += "&#39;";
        break;
      default:
        s += static_cast<unsigned char>(c) < 0x20 && c != '\n' ? ' ' : c;
    }
  return s;
}

std::vector<double> nice_ticks(double low, double high, int count) {
  if (!(high > low) || count < 1) return {low};
  const double raw = (high - low) / count;
  const double power = std::pow(10, std::floor(std::log10(raw)));
  const double step = power * (raw / power > 5 ? 10 : raw / power > 2 ? 5 : raw / power > 1 ? 2 : 1);
  std::vector<double> ticks;
  const double first = std::floor(low / step + 1e-9), last = std::ceil(high / step - 1e-9);
  for (double k = first; k <= last && ticks.size() < 100; ++k) ticks.push_back(k * step);
  return ticks;
}

std::string format_value(double v, Unit unit) {
  if (!std::isfinite(v)) return "–";
  if (unit == Unit::percent) return format_percent(v);
  const double a = std::abs(v);
  if (a == 0) return "0";
  if (a >= 1e15 || a < 1e-3) {  // 5.0e-04 to 5e-4
    std::string s = print("%.2e", v);
    const auto e = s.find('e');
    std::string mantissa = s.substr(0, e);
    mantissa.resize(mantissa.find_last_not_of('0') + 1);
    if (mantissa.back() == '.') mantissa.pop_back();
    return mantissa + "e" + std::to_string(std::stoi(s.substr(e + 1)));
  }
  const char* suffix = "";
  double shown = v;
  for (const char* next : {"k", "M", "G", "T"}) {
    if (std::abs(shown) < (suffix[0] ? 999.95 : 9999.5)) break;
    shown /= 1000;
    suffix = next;
  }
  std::string s = print("%.4g", shown);
  if (s.find('e') != s.npos) s = print("%.0f", shown);
  return s + suffix;
}

std::string line_chart(const Chart& c) {
  std::size_t longest = 0;
  for (const auto& s : c.series) longest = std::max(longest, length(end_text(c, s)));
  Frame f = frame_of(c, longest);
  if (!find_range(c, f)) return nothing(c);
  const auto ticks = c.scale == Scale::log ? log_range(f) : linear_range(c, f);
  std::string svg = open_svg(c.title, c.width, c.height) + axes(f, ticks, c.unit);
  std::vector<EndLabel> labels;
  for (const auto& s : c.series) {
    if (s.curve.empty()) continue;
    svg += drawn(s, f, c.unit);
    if (!s.label.empty()) labels.push_back({f.py(s.curve.y.back()), end_text(c, s), s.color});
  }
  return svg + end_labels(std::move(labels), f) + "</svg>";
}

std::string stacked_chart(const Chart& c) {
  if (c.series.empty() || c.series.front().curve.empty()) return nothing(c);
  const auto& x = c.series.front().curve.x;
  std::size_t longest = 0;
  std::vector<double> top(x.size(), 0);
  for (const auto& s : c.series) {
    longest = std::max(longest, length(s.label));
    for (std::size_t i = 0; i < top.size() && i < s.curve.y.size(); ++i) top[i] += std::max(s.curve.y[i], 0.0);
  }
  // A few slow steps (the first, an evaluation) must not flatten the rest.
  auto sorted = top;
  std::sort(sorted.begin(), sorted.end());
  double high = sorted[std::min(sorted.size() - 1, sorted.size() * 97 / 100)] * 1.05;
  if (!(high > 0)) high = 1;
  Frame f = frame_of(c, longest);
  f.x0 = x.front();
  f.x1 = x.back() > x.front() ? x.back() : x.front() + 1;
  const auto ticks = nice_ticks(0, high, 4);
  f.y0 = 0;
  f.y1 = ticks.back();
  std::string svg = open_svg(c.title, c.width, c.height) + axes(f, ticks, c.unit);
  std::vector<double> base(x.size(), 0);
  std::vector<EndLabel> labels;
  for (const auto& s : c.series) {
    std::string d;
    auto next = base;
    for (std::size_t i = 0; i < x.size(); ++i) {
      next[i] += i < s.curve.y.size() ? std::max(s.curve.y[i], 0.0) : 0;
      d += print("%c%.1f %.1f", i ? 'L' : 'M', f.px(x[i]), f.py(std::min(next[i], f.y1)));
    }
    for (std::size_t i = x.size(); i-- > 0;) d += print("L%.1f %.1f", f.px(x[i]), f.py(std::min(base[i], f.y1)));
    svg += "<path class=\"area\" style=\"fill:" + s.color + "\" d=\"" + d + "Z\"/>";
    labels.push_back({f.py(std::min((base.back() + next.back()) / 2, f.y1)), s.label, s.color});
    base = next;
  }
  return svg + end_labels(std::move(labels), f) + "</svg>";
}

}  // namespace trireme
