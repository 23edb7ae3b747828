// The page of one or more runs. It knows run folders only: which charts a recipe wants stands in their env.json.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

// One self-contained HTML page (inline SVG, no script, opens offline) for one or more run folders: loss, metrics,
// phase times, throughput, configuration, environment. Throws DataError where there is nothing to show.
void write_report(const std::vector<std::string>& run_dirs, const std::string& out_file);

// The metrics that it looks for in every run, whatever the recipe: all of them are written by training.
std::vector<std::string_view> reported_metrics();

}  // namespace trireme
