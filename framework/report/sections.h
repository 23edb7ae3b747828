// The parts of the report that draw metrics; each is empty where the runs have nothing for it.
#pragma once
#include "framework/report/chart.h"
#include "framework/report/run.h"

#include <optional>
#include <string>
#include <vector>

namespace trireme {

std::string color(const char* kind, std::size_t i);  // "c": runs and lines, "p": phases

// What one metric of an evaluation is called and measured in, from the recipe's charts or else from its name.
struct Evaluation {
  std::string metric, label, column;
  std::optional<std::string> chance;  // metric that says what guessing would score
  Unit unit = Unit::plain;
  std::size_t row = 0;      // of its chart
  bool last_column = true;  // of that row
};
// Of all runs, in the order of the charts; those that no chart names come last.
std::vector<Evaluation> evaluations(const std::vector<Run>& runs);

std::string loss_section(const std::vector<Run>& runs);
std::string evaluation_section(const std::vector<Run>& runs);
std::string phase_section(const std::vector<Run>& runs);
std::string steps_section(const std::vector<Run>& runs);

}  // namespace trireme
