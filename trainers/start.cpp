#include "trainers/start.h"

#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

std::string grouped(std::int64_t n) {
  std::string s = std::to_string(n);
  for (std::ptrdiff_t at = std::ptrdiff_t(s.size()) - 3; at > 0; at -= 3) s.insert(std::size_t(at), 1, ',');
  return s;
}

std::string counted(std::int64_t n, const std::string& what) { return grouped(n) + " " + what + (n == 1 ? "" : "s"); }

nlohmann::json described(const Recipe& recipe) {
  auto json = nlohmann::json::parse(recipe.describe(), nullptr, false);
  return json.is_object() ? json : nlohmann::json::object();
}

}  // namespace

std::string start_banner(const Experiment& setup, Session& session, const RunFolder& folder, std::int64_t samples,
                         std::int64_t step) {
  const TrainConfig& config = setup.train;
  Context& c = session.context();
  std::string s = config.recipe + ": " + grouped(session.parameter_count()) + " parameters in " + config.precision +
                  ", " + counted(c.size(), "rank") + " on " + (c.device().is_cpu() ? "CPU" : "GPU") + " (";
  if (c.size() > 1) s += std::string(c.comm().backend()) + ", ";
  s += counted(at::get_num_threads(), "thread") + (c.size() > 1 ? " each)\n" : ")\n");
  const auto json = described(*setup.recipe);
  const auto data = json.find("data");
  s += "data: " + (data != json.end() && data->is_string() ? data->get<std::string>() + ", " : "") + grouped(samples) +
       " " + setup.recipe->unit() + ", batch " + grouped(config.batch_size) + ", " +
       counted(c.steps_per_epoch, "step") + " an epoch\n";
  s += "run folder: " + folder.dir;
  if (step > 0) s += "\nresumed at step " + std::to_string(step) + " of " + std::to_string(c.steps);
  return s;
}

std::string recipe_description(const Recipe& recipe) {
  auto json = described(recipe);
  json["charts"] = nlohmann::json::parse(charts_to_json(recipe.charts()));
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace trireme
