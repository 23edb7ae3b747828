// How a recipe wants its metrics shown: a chart of the report and, for evaluations, a table on the console. Metrics
// are named as in metrics.jsonl ("tau", "eval/accuracy"). What no chart names is shown all the same, by its name.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct Record;  // framework/metrics/metrics.h

struct MetricChart {
  struct Row {
    std::string label;                 // "image to text"
    std::vector<std::string> metrics;  // one a column
    std::vector<std::string> chance;   // what guessing would score, one a column; empty: not known
  };
  std::string title;                 // "Retrieval"
  std::vector<std::string> columns;  // "R@1"; empty: one column without a name
  std::vector<Row> rows;
  bool fractions = false;  // 0 to 1, shown in percent

  bool names(std::string_view metric) const;
};

// As it stands in env.json of a run folder, which is all that a report has of the recipe. Reading leaves out what it
// does not understand.
std::string charts_to_json(const std::vector<MetricChart>&);
std::vector<MetricChart> charts_from_json(const std::string& text);

std::string format_percent(double fraction);  // "2.07 %", "38.6 %"

// The evaluations of a record, lines joined by newlines; empty if it has none. Few that no chart names are one line.
std::string evaluation_text(const Record&, const std::vector<MetricChart>&);

}  // namespace trireme
