// What a job made, read from its folder: the sheet, report.json and report.html.
#pragma once
#include "trainers/sample/config.h"

#include <string>

#include <nlohmann/json_fwd.hpp>

namespace trireme::sample {

// An arm as its batches tell: pictures, seconds, mean milliseconds a step, mean of each series, batches.
nlohmann::json arm_report(const SampleConfig& arm, const std::string& folder);

// Of a job, as far as its arms have come (pictures up to the first that is missing), in OUT: sheet.png where there are
// pictures, report.json, report.html. `machine`: JSON of where it ran. Returns a line an arm for the terminal.
std::string write_report(const SampleJob& job, const std::string& out, const nlohmann::json& machine);

}  // namespace trireme::sample
