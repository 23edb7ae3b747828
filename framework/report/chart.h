// Charts as inline SVG. Colours are CSS variables of the page (--c0..., --muted), so that light and dark both
// work.
#pragma once
#include "framework/report/run.h"

#include <string>
#include <vector>

namespace trireme {

std::string escape_html(std::string_view);

enum class Scale { linear, log };
enum class Unit { plain, percent };

// About `count` round numbers (1, 2 or 5 times a power of ten) that span [low, high].
std::vector<double> nice_ticks(double low, double high, int count);
std::string format_value(double v, Unit unit = Unit::plain);  // four digits, "12.3k", "5e-4", "23.4 %"

struct Series {
  std::string label;  // written at the end of the line; empty: none
  std::string color;  // CSS colour, "var(--c0)"
  Curve curve;
  enum Style { line, faint, dashed } style = line;
  bool markers = false;
};

struct Chart {
  std::string title, unit_text;  // "ms", "samples/s"
  int width = 1000, height = 300;
  Unit unit = Unit::plain;
  Scale scale = Scale::linear;
  bool from_zero = false;
  bool values_at_end = false;  // the last value after the label
  bool values_only = false;    // ... or instead of it, where colours alone tell the lines apart
  std::vector<Series> series;
};

std::string line_chart(const Chart&);
// Areas on top of each other, first at the bottom; all curves have the same x.
std::string stacked_chart(const Chart&);

struct Bar {
  std::string label;
  std::vector<double> parts;  // in the order of the legend
};
// Horizontal stacked bars with their totals.
std::string bar_chart(const std::vector<Bar>& bars, const std::vector<std::pair<std::string, std::string>>& legend,
                      const std::string& unit_text, int width);

struct Value {
  std::string label, color;
  double value;
  std::optional<double> chance;  // marked on its bar
};
// One bar a value: for what was measured once and makes no line. No values: no data.
std::string value_chart(const std::string& title, const std::vector<Value>& values, Unit unit, int width);

}  // namespace trireme
