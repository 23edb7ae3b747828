// The page of a scaling study.
#include "framework/report/page.h"

#include "framework/report/chart.h"
#include "trainers/scale/study.h"

#include <cmath>

namespace trireme::scale {
namespace {

std::string number(double v) { return format_value(v); }

// Ranks double from point to point: their logarithm is what is drawn.
Series against_ranks(const std::string& label, const std::string& color, Series::Style style) {
  Series s{label, color, {}, style};
  s.markers = style == Series::line;
  return s;
}

std::string chart(const std::string& title, const std::string& unit, Unit scale, std::vector<Series> series) {
  Chart c;
  c.title = title;
  c.unit_text = unit;
  c.unit = scale;
  c.width = 500;
  c.from_zero = true;
  c.series = std::move(series);
  return figure("half", title, unit, line_chart(c));
}

std::string row(const std::vector<std::string>& cells, const char* tag) {
  std::string s = "<tr>";
  for (std::size_t i = 0; i < cells.size(); ++i)
    s += std::string("<") + tag + (i ? " class=\"number\">" : ">") + escape_html(cells[i]) + "</" + tag + ">";
  return s + "</tr>";
}

std::string spread(const Spread& s) { return number(s.min) + " / " + number(s.mean) + " / " + number(s.max); }

std::string step_table(const Study& s) {
  std::string t = "<div class=\"scroll\"><table>" +
                  row({"", "ranks", "batch", "step ms", "local ms", "exposed communication ms", "efficiency"}, "th");
  for (const auto& m : s.measured)
    t += row(
        {"measured", number(m.ranks), number(m.batch), number(m.step_ms), number(m.local_ms()), number(m.exposed.mean),
         format_value(efficiency(s.measured.front(), m.ranks, m.batch, m.step_ms), Unit::percent)},
        "td");
  for (std::size_t i = 0; i < s.modelled.size(); ++i) {
    const auto& p = s.modelled[i];
    t += row({p.ranks > s.measured.back().ranks ? "modelled, extrapolated" : "modelled", number(p.ranks),
              number(s.batches[i]), number(p.step_ms()), number(p.local_ms), number(p.exposed_ms),
              format_value(efficiency(s.measured.front(), p.ranks, s.batches[i], p.step_ms()), Unit::percent)},
             "td");
  }
  return t + "</table></div>";
}

std::string phase_table(const Study& s) {
  std::string t = "<div class=\"scroll\"><table>" +
                  row({"ranks", "data ms", "forward ms", "backward ms", "exposed communication ms", "optimizer ms",
                       "collectives a step", "MiB sent a step"},
                      "th");
  for (const auto& m : s.measured)
    t += row({number(m.ranks), spread(m.data), spread(m.forward), spread(m.backward), spread(m.exposed),
              spread(m.optimizer), number(m.calls), number(m.bytes / 1048576)},
             "td");
  return t + "</table></div>";
}

std::string exchange_table(const Study& s) {
  std::string t = "<div class=\"scroll\"><table>" +
                  row({"ranks", "all-reduce bytes", "measured ms", "modelled ms", "GB/s sent a rank"}, "th");
  for (const auto& m : s.measured)
    for (const auto& e : m.exchanges)
      t += row({number(m.ranks), number(e.buffer_bytes), number(1e3 * e.seconds),
                s.link ? number(1e3 * s.link->seconds(e.messages, e.bytes)) : "", number(1e-9 * e.bytes / e.seconds)},
               "td");
  return t + "</table></div>";
}

std::string verdict(const Study& s) {
  std::string text;
  if (!s.link) return "<p class=\"notes\">No model: it takes at least two numbers of ranks above 1.</p>";
  text = "Model: messages x " + number(1e6 * s.link->alpha) + " us + bytes / " + number(1e-6 * s.link->beta) +
         " MB/s, fitted on";
  for (const int n : s.fitted_on) text += " " + std::to_string(n);
  text += " ranks; " + format_value(s.hidden, Unit::percent) + " of the backward time hides communication. ";
  if (!s.check)
    text += "No number of ranks was left to check it, so nothing is extrapolated.";
  else
    text += "On " + std::to_string(s.check->ranks) + " ranks, which it was not fitted to, its step time is " +
            format_value(s.check->step_error, Unit::percent) + " and its all-reduce " +
            format_value(s.check->comm_error, Unit::percent) + " from the measurement: " +
            (s.check->good() ? "good enough to extrapolate." : "not good enough to extrapolate.");
  return "<p class=\"notes\">" + escape_html(text) + "</p>";
}

}  // namespace

std::string page(const Study& s) {
  Series step = against_ranks("measured", "var(--c0)", Series::line),
         step_model = against_ranks("modelled", "var(--c1)", Series::dashed);
  Series good = step, good_model = step_model;
  std::vector<Bar> bars;
  for (const auto& m : s.measured) {
    const double x = std::log2(double(m.ranks));
    step.curve.x.push_back(x), step.curve.y.push_back(m.step_ms);
    good.curve.x.push_back(x), good.curve.y.push_back(efficiency(s.measured.front(), m.ranks, m.batch, m.step_ms));
    bars.push_back({std::to_string(m.ranks) + (m.ranks == 1 ? " rank" : " ranks"),
                    {m.data.mean, m.forward.mean, m.backward.mean, m.exposed.mean, m.optimizer.mean}});
  }
  for (std::size_t i = 0; i < s.modelled.size(); ++i) {
    const auto& p = s.modelled[i];
    const double x = std::log2(double(p.ranks));
    step_model.curve.x.push_back(x), step_model.curve.y.push_back(p.step_ms());
    good_model.curve.x.push_back(x);
    good_model.curve.y.push_back(efficiency(s.measured.front(), p.ranks, s.batches[i], p.step_ms()));
  }
  std::vector<Series> exchanges;
  for (std::size_t i = 0; i < s.measured.size(); ++i) {
    const auto& m = s.measured[i];
    if (m.exchanges.empty()) continue;
    const std::string color = "var(--c" + std::to_string(i % 6) + ")";
    Series real{std::to_string(m.ranks) + " measured", color, {}, Series::line, true},
        modelled{"", color, {}, Series::dashed};
    for (const auto& e : m.exchanges) {
      const double x = std::log2(e.buffer_bytes);
      if (!real.curve.x.empty() && x <= real.curve.x.back()) continue;
      real.curve.x.push_back(x), real.curve.y.push_back(std::log10(1e3 * e.seconds));
      if (s.link)
        modelled.curve.x.push_back(x),
            modelled.curve.y.push_back(std::log10(1e3 * s.link->seconds(e.messages, e.bytes)));
    }
    exchanges.push_back(real);
    if (s.link) exchanges.push_back(modelled);
  }
  Chart c;
  c.title = "All-reduce alone";
  c.width = 1000;
  c.series = exchanges;
  std::string html = page_begin("Scaling of " + s.title) + "<h1>" + escape_html(s.mode + " scaling") + "</h1><p>" +
                     escape_html(s.title) + "<br>" + escape_html(s.setting) + "</p>" + verdict(s);
  html += chart("Time of a step", "ms, against log2 of the ranks", Unit::plain, {step, step_model});
  html += chart("Efficiency", "of perfect scaling, against log2 of the ranks", Unit::percent, {good, good_model});
  html += figure("full", "Phases of a step (measured, mean over ranks)", "ms",
                 bar_chart(bars,
                           {{"data", "var(--c0)"},
                            {"forward", "var(--c1)"},
                            {"backward", "var(--c2)"},
                            {"exposed communication", "var(--c3)"},
                            {"optimizer", "var(--c4)"}},
                           "ms", 1000));
  if (!exchanges.empty())
    html +=
        figure("full", "All-reduce alone (dashed: modelled)", "log10 of ms, against log2 of the bytes", line_chart(c));
  html += details("Steps", step_table(s)) + details("Phases: min / mean / max over ranks", phase_table(s)) +
          details("All-reduces alone", exchange_table(s));
  return html + page_end();
}

}  // namespace trireme::scale
