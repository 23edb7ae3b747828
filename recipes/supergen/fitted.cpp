#include "recipes/supergen/fitted.h"

#include "comm/error.h"
#include "data/file.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <map>
#include <vector>

#include <nlohmann/json.hpp>

namespace trireme {
namespace {

using nlohmann::json;

// The thresholds of all pictures of the arm that fitted, by share.
std::map<std::string, std::vector<double>> curves_of(const json& report) {
  std::map<std::string, std::vector<double>> curves;
  int arms = 0;
  for (const json& arm : report.value("arms", json::array())) {
    bool fitted = false;
    for (const json& batch : arm.value("batches", json::array()))
      for (const json& curve : batch.value("report", json::object()).value("base_by_skip", json::array()))
        for (const auto& [share, base] : curve.items())
          if (base.is_number()) curves[share].push_back(base), fitted = true;
    arms += fitted;
  }
  if (arms > 1)
    throw UsageError("supergen.cache.fit", "the report has several arms that fitted",
                     "name the report of a run of one");
  return curves;
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return (v[(v.size() - 1) / 2] + v[v.size() / 2]) / 2;
}

}  // namespace

double fitted_base(const std::string& path, double skip) {
  const std::string how =
      "run with supergen.cache.base=fit (trireme sample recipes/supergen/fit.yaml) and name its report.json";
  if (!std::filesystem::is_regular_file(path)) throw DataError(path, "is not there", how);
  const auto bytes = read_file(path, 1 << 28);
  const json report = json::parse(bytes.begin(), bytes.end(), nullptr, false);
  std::map<std::string, std::vector<double>> curves;
  try {
    if (report.is_object()) curves = curves_of(report);
  } catch (const json::exception&) {
    curves.clear();  // of other kinds than a report's
  }
  if (curves.empty()) throw DataError(path, "holds no thresholds of a fit", how);
  std::string known;
  for (const auto& [share, bases] : curves) {
    double at = -1;
    std::from_chars(share.data(), share.data() + share.size(), at);
    if (std::fabs(at - skip) <= 0.02) return median(bases);
    known += (known.empty() ? "" : ", ") + share;
  }
  throw UsageError("supergen.cache.skip", "the fit has no threshold for " + std::to_string(skip).substr(0, 4),
                   "one of " + known);
}

}  // namespace trireme
