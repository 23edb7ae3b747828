// What the report page needs of a run folder, read with tolerance: what is missing becomes a note.
#pragma once
#include "framework/metrics/metrics.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace trireme {

struct Curve {
  std::vector<double> x, y;  // steps and finite values, x ascending
  bool empty() const { return x.empty(); }
};

using KeyValues = std::vector<std::pair<std::string, std::string>>;

struct Run {
  std::string name;  // last part of the folder's path, made unique among the runs shown
  std::vector<Record> records;
  KeyValues config, environment;        // dotted keys
  std::vector<MetricChart> charts;  // what its recipe wants to see; empty in folders of older versions
  std::vector<std::string> notes;

  Curve curve(const std::string& key) const;
  std::vector<std::string> keys(const std::string& prefix) const;  // with at least one finite value, sorted
  std::optional<double> last(const std::string& key) const;
  std::optional<double> median(const std::string& key) const;  // the first tenth, which warms up, left out
};

std::vector<Run> read_runs(const std::vector<std::string>& run_dirs);

// The value of the first of `keys` in the table; also matches the last part of a dotted key. Empty if none.
std::string find_value(const KeyValues&, const std::vector<std::string>& keys);

// By a moving straight line: no lag, also at the ends; at most 1000 points. And at most `points` points, each
// stretch kept by its extremes.
Curve smoothed(const Curve&);
Curve thinned(const Curve&, std::size_t points);

}  // namespace trireme
