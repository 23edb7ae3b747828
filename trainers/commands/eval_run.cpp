#include "trainers/commands/eval_run.h"

#include "comm/error.h"
#include "data/file.h"
#include "framework/experiment.h"
#include "framework/init_from.h"
#include "framework/metrics/metrics.h"
#include "framework/session.h"
#include "trainers/run_folder.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>

#include <ATen/Parallel.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

std::string config_of(const std::string& run) { return run + "/config.resolved.yaml"; }

// As a value on the command line, whatever the path holds.
std::string quoted(const std::string& path) {
  std::string s = "'";
  for (const char c : path) s += c == '\'' ? "''" : std::string(1, c);
  return s + "'";
}

void print(const EvalRun& o, const std::map<std::string, double>& metrics, const Recipe& recipe, std::int64_t step) {
  if (o.json) {
    nlohmann::json all = metrics;
    all["model"] = o.run;
    std::cout << all.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << std::endl;
    return;
  }
  Record r;
  for (const auto& [key, value] : metrics) r.values["eval/" + key] = value;
  r.step = step;
  std::cout << o.run << "\n" << evaluation_text(r, recipe.charts()) << std::endl;
}

void write_predictions(const EvalRun& o, Session& session, Recipe& recipe, Communicator& world) {
  const auto predict = [&](std::ostream& out) { recipe.predict(session.context(), out); };
  if (world.rank() > 0) {
    std::ostream nowhere(nullptr);
    return predict(nowhere);
  }
  write_whole(o.predictions, [&](const std::string& name) {
    std::ofstream out(name);
    out.precision(9);
    predict(out);
    out.flush();
    if (!out) throw DataError(o.predictions, "cannot be written", "is the disk full?");
  });
}

}  // namespace

std::string model_of(const std::string& path) {
  refuse_sweep(path);
  if (!std::filesystem::exists(config_of(path))) return "clip";
  if (results_in(path) == Results::pictures)
    throw UsageError(path, "holds pictures, no model", "name a run of trireme train");
  const Config config = Config::load(config_of(path));
  return std::string(Recipes::create(config.string_at("recipe"), config.place("recipe"))->model());
}

int evaluate_run(const EvalRun& o, Communicator& world) {
  std::vector<std::string> keys{"device=" + o.device, "init_from=''", "ema=0"};
  if (!o.data.empty()) keys.push_back("data.file=" + quoted(o.data));
  Experiment e(Config::load(config_of(o.run), keys));
  at::set_num_threads(o.threads ? o.threads : std::max(1, at::get_num_threads()));
  Session session(world, e.train, *e.recipe);
  // The step that the checkpoint was saved after: what follows a schedule is as it was then.
  const std::int64_t step = init_from(o.run, session, session.context().comm("control"));
  session.context().now.step = std::max<std::int64_t>(step - 1, 0);
  const auto metrics = session.evaluate();
  if (!o.predictions.empty()) write_predictions(o, session, *e.recipe, world);
  if (world.rank() == 0) print(o, metrics, *e.recipe, step);
  return 0;
}

}  // namespace trireme
