// A scaling study: what was measured on each number of ranks, and a model of it. The model is fitted without the
// largest number of ranks, which then judges it; only a model within 15 % is carried on to 1,024 ranks.
#pragma once
#include "trainers/scale/model.h"

#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json_fwd.hpp>

namespace trireme::scale {

struct Check {
  int ranks = 0;
  double step_error = 0, comm_error = 0;  // (modelled - measured) / measured
  bool good() const;
};

struct Study {
  std::string title, mode, setting;
  std::vector<Measured> measured;
  std::vector<int> fitted_on;
  std::optional<Link> link;
  double hidden = 0;
  std::optional<Check> check;
  std::vector<Prediction> modelled;
  std::vector<double> batches;  // of `modelled`
};

// Fits and judges the model. Title and setting are the caller's.
Study make_study(std::vector<Measured> measured, bool weak);

nlohmann::json to_json(const Study& study);  // scale.json
void print_table(const Study& study);        // on stdout
std::string page(const Study& study);        // scale.html

}  // namespace trireme::scale
