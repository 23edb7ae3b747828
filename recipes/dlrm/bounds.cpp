#include "recipes/dlrm/bounds.h"

#include "comm/error.h"
#include "data/tables/shapes.h"

#include <algorithm>
#include <cmath>
#include <filesystem>

namespace trireme::dlrm {

void BoundsConfig::fields(Fields& f) {
  f("classes", classes,
    "which tables get which bound: published (of the Criteo shapes), uniform (all base), explicit (the lists below), "
    "or a file of trireme dlrm analyze");
  f("tight", tight, "bound of the tight class, a share of a table's range of values", {.min = 0, .max = 1});
  f("base", base, "bound of the base class", {.min = 0, .max = 1});
  f("loose", loose, "bound of the loose class", {.min = 0, .max = 1});
  f("tight_tables", tight_tables, "explicit: numbers of the tight tables");
  f("loose_tables", loose_tables, "explicit: numbers of the loose tables");
  f.choice("decay", decay, {"step", "linear", "log", "constant", "none"},
           "how bounds come down to their class's from decay_factor times as much");
  f("decay_factor", decay_factor, "how much wider bounds begin", {.min = 1, .max = 100});
  f("decay_steps", decay_steps, "steps until bounds are their class's; 0: 0.21 of the run", {.min = 0});
}

double decay_factor(const std::string& function, double c, std::int64_t t, std::int64_t T) {
  if (function == "none" || t >= T) return 1;
  const double x = double(t) / double(T);
  if (function == "step") return c * std::max(1 - double(10 * t / T) * (1 - 1 / c) / 10, 1 / c);
  if (function == "linear") return c * (1 - x * (1 - 1 / c));
  if (function == "log") {
    const double s = 1 - std::log(1 + x * (std::exp(1.0) - 1));
    return c * (s * (1 - 1 / c) + 1 / c);
  }
  return c;
}

void Analysis::fields(Fields& f) {
  f("classes", classes, "tight, base or loose, of each table");
  f("codecs", codecs, "codec of each table");
  f("rows", rows, "of each table");
  f("unique_ratio", unique_ratio, "distinct rows of codes among the distinct rows of values");
  f("merged_share", merged_share, "1 - unique_ratio");
  f("ratio", ratio, "f32 bytes by coded bytes, with the chosen codec at the class's bound");
}

Analysis Analysis::load(const std::string& path, std::int64_t tables) {
  if (!std::filesystem::exists(path))
    throw UsageError("compression.forward.classes", "'" + path + "': no such file",
                     "write it with trireme dlrm analyze, or choose published, uniform or explicit");
  Analysis a;
  const Config file = Config::load(path);
  file.read([&](Fields& f) { a.fields(f); });
  if (std::int64_t(a.classes.size()) != tables)
    throw UsageError(
        path, "has classes of " + std::to_string(a.classes.size()) + " tables, the model has " + std::to_string(tables),
        "analyze a run on the same data");
  for (const auto& c : a.classes)
    if (c != "tight" && c != "base" && c != "loose")
      throw UsageError(path, "unknown class '" + c + "'", "known: tight, base, loose");
  return a;
}

Bounds::Bounds(const BoundsConfig& config, const std::string& shape, std::int64_t tables, const std::string& place)
    : config_(config), classes_(std::size_t(tables), 'B') {
  const auto mark = [&](const std::vector<std::int64_t>& list, char c) {
    for (const std::int64_t t : list) {
      if (t < 0 || t >= tables)
        throw UsageError(place, "table " + std::to_string(t) + " is not among " + std::to_string(tables),
                         "tables count from 0");
      classes_[std::size_t(t)] = c;
    }
  };
  if (config.classes == "explicit") {
    mark(config.tight_tables, 'T');
    mark(config.loose_tables, 'L');
  } else if (config.classes == "published") {
    const auto* s = shape_named(shape);
    if (!s || std::int64_t(s->tables.size()) != tables || s->tables[0].bound == 0) return;  // all base
    for (std::int64_t t = 0; t < tables; ++t) classes_[std::size_t(t)] = s->tables[std::size_t(t)].bound;
  } else if (config.classes != "uniform") {
    const Analysis a = Analysis::load(config.classes, tables);
    for (std::size_t t = 0; t < a.classes.size(); ++t)
      classes_[t] = a.classes[t] == "tight" ? 'T' : a.classes[t] == "loose" ? 'L' : 'B';
  }
}

double Bounds::factor(std::int64_t step, std::int64_t steps) const {
  const std::int64_t T = config_.decay_steps ? config_.decay_steps : std::int64_t(0.21 * double(steps));
  return decay_factor(config_.decay, config_.decay_factor, step, T);
}

double Bounds::relative(std::int64_t table, std::int64_t step, std::int64_t steps) const {
  const char c = class_of(table);
  return (c == 'T' ? config_.tight : c == 'L' ? config_.loose : config_.base) * factor(step, steps);
}

}  // namespace trireme::dlrm
