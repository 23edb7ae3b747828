#include "framework/report/chart.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdarg>
#include <cstdio>
#include <limits>

namespace trireme {
namespace {

__attribute__((format(printf, 1, 2))) std::string print(const char* format, ...) {
  std::array<char, 512> text;
  va_list args;
  va_start(args, format);
  std::vsnprintf(text.data(), text.size(), format, args);
  va_end(args);
  return text.data();
}

constexpr double character = 7.5;  // mean width of a bold 12 px letter in the widest of the fonts

// Characters, not bytes.
std::size_t length(std::string_view s) {
  return std::size_t(std::count_if(s.begin(), s.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

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
  const int count = std::max(2, int((f.right - f.left) / 80));
  for (double t : nice_ticks(f.x0, f.x1, count)) {
    if (t < f.x0 || t > f.x1 || t != std::floor(t)) continue;
    s += print("<path class=\"axis\" d=\"M%.1f %.1fv4\"/>", f.px(t), f.bottom);
    s += print("<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>", f.px(t), f.bottom + 18,
               format_value(t).c_str());
  }
  s += print("<path class=\"axis\" d=\"M%.1f %.1fH%.1f\"/>", f.left, f.bottom, f.right);
  s += print("<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">step</text>", f.left - 8, f.bottom + 18);
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

std::string open_svg(const std::string& title, int width, int height) {
  return print("<svg viewBox=\"0 0 %d %d\" role=\"img\" aria-label=\"", width, height) + escape_html(title) + "\">";
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

}  // namespace

std::string escape_html(std::string_view text) {
  std::string s;
  for (char c : text) switch (c) {
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
  if (unit == Unit::percent) return print(std::abs(v) < 0.0995 ? "%.2f %%" : "%.1f %%", 100 * v);
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
  constexpr double inf = std::numeric_limits<double>::infinity();
  double x0 = inf, x1 = -inf, y0 = inf, y1 = -inf;
  std::size_t longest = 0;
  for (const auto& s : c.series) {
    for (double x : s.curve.x) x0 = std::min(x0, x), x1 = std::max(x1, x);
    for (double y : s.curve.y)
      if (c.scale == Scale::linear || y > 0) y0 = std::min(y0, y), y1 = std::max(y1, y);
    longest = std::max(longest, length(end_text(c, s)));
  }
  if (!(x1 >= x0) || !(y1 >= y0)) return nothing(c);
  Frame f = frame_of(c, longest);
  f.x0 = x0;
  f.x1 = x1 > x0 ? x1 : x0 + 1;
  std::vector<double> ticks;
  if (c.scale == Scale::log) {
    for (double p = std::floor(std::log10(y0)); p <= std::ceil(std::log10(y1)); ++p)
      for (double m : {1.0, 2.0, 5.0})
        if (const double t = m * std::pow(10, p); t > 0 && t >= y0 / 2.1 && t <= y1 * 2.1) ticks.push_back(t);
    if (ticks.size() > 9)
      std::erase_if(ticks, [](double t) { return std::abs(std::log10(t) - std::round(std::log10(t))) > 1e-9; });
    f.y0 = std::min(ticks.front(), y0);
    f.y1 = std::max(ticks.back(), y1);
    if (!(f.y1 > f.y0)) f.y1 = f.y0 * 10;
  } else {
    if (c.from_zero) y0 = std::min(y0, 0.0), y1 = std::max(y1, 0.0);
    if (!(y1 > y0)) {
      const double pad = y0 == 0 ? 1 : std::abs(y0) / 2;
      if (!c.from_zero) y0 -= pad;
      y1 += pad;
    }
    ticks = nice_ticks(y0, y1, c.height > 240 ? 5 : 3);
    f.y0 = ticks.front();
    f.y1 = ticks.back();
  }
  std::string svg = open_svg(c.title, c.width, c.height) + axes(f, ticks, c.unit);
  std::vector<EndLabel> labels;
  for (const auto& s : c.series) {
    if (s.curve.empty()) continue;
    const char* kind = s.style == Series::faint ? "faint" : s.style == Series::dashed ? "dashed" : "line";
    Curve curve = thinned(s.curve, 1200);
    // A constant measured once still shows as a line.
    if (s.style == Series::dashed) {
      curve.x.insert(curve.x.begin(), f.x0);
      curve.y.insert(curve.y.begin(), curve.y.front());
      curve.x.push_back(f.x1);
      curve.y.push_back(curve.y.back());
    }
    svg +=
        "<path class=\"" + std::string(kind) + "\" style=\"stroke:" + s.color + "\" d=\"" + path_of(curve, f) + "\"/>";
    if (s.markers && s.curve.x.size() <= 60)
      for (std::size_t i = 0; i < s.curve.x.size(); ++i)
        svg +=
            print("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3\" style=\"fill:%s\"><title>", f.px(s.curve.x[i]),
                  f.py(s.curve.y[i]), s.color.c_str()) +
            escape_html(s.label + " step " + format_value(s.curve.x[i]) + ": " + format_value(s.curve.y[i], c.unit)) +
            "</title></circle>";
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

std::string bar_chart(const std::vector<Bar>& bars, const std::vector<std::pair<std::string, std::string>>& legend,
                      const std::string& unit_text, int width) {
  double high = 0;
  std::size_t longest = 0;
  for (const auto& b : bars) {
    double sum = 0;
    for (double p : b.parts) sum += std::max(p, 0.0);
    high = std::max(high, sum);
    longest = std::max(longest, std::min<std::size_t>(length(b.label), 28));
  }
  if (!(high > 0)) return "";
  const double left = longest ? 14 + double(longest) * character : 2, room = width - left - 90;
  constexpr int row = 34;
  const int height = row * int(bars.size()) + 6;
  std::string svg = open_svg("time of a step by phase", width, height);
  for (std::size_t r = 0; r < bars.size(); ++r) {
    const double y = double(r) * row + 4;
    double at = 0;
    std::string label = bars[r].label;
    if (length(label) > 28) label = label.substr(0, 27) + "…";
    svg += print("<text class=\"tick\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"end\">", left - 10, y + 17) +
           escape_html(label) + "</text>";
    for (std::size_t i = 0; i < bars[r].parts.size() && i < legend.size(); ++i) {
      const double part = std::max(bars[r].parts[i], 0.0);
      const double w = part / high * room;
      if (w <= 0) continue;
      svg += print("<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"24\" style=\"fill:%s\"><title>",
                   left + at / high * room, y, std::max(w - 1.5, 0.5), legend[i].second.c_str()) +
             escape_html(legend[i].first + " " + format_value(part) + " " + unit_text) + "</title></rect>";
      const std::string text = format_value(std::round(part * 10) / 10);
      if (w > 12 + double(text.size()) * character)
        svg += print("<text class=\"inside\" x=\"%.1f\" y=\"%.1f\" text-anchor=\"middle\">%s</text>",
                     left + at / high * room + w / 2, y + 16.5, text.c_str());
      at += part;
    }
    svg += print("<text class=\"label\" x=\"%.1f\" y=\"%.1f\">%s %s</text>", left + at / high * room + 8, y + 17,
                 format_value(std::round(at * 10) / 10).c_str(), escape_html(unit_text).c_str());
  }
  svg += "</svg><div class=\"legend\">";
  for (const auto& [name, color] : legend)
    svg += "<span><i style=\"background:" + color + "\"></i>" + escape_html(name) + "</span>";
  return svg + "</div>";
}

}  // namespace trireme
