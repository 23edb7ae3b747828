#include "trainers/sweep/order.h"

#include "comm/error.h"

#include <filesystem>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace trireme::sweep {
namespace {

namespace fs = std::filesystem;

void check_one(const SweepConfig& sweep, const std::string& place) {
  if (sweep.tasks.size() != 1)
    throw UsageError(place, "names " + std::to_string(sweep.tasks.size()) + " tasks", "hand in one a file");
}

// As YAML has it.
std::string whole_path(const std::string& path) {
  std::string quoted = "'";
  for (const char c : fs::absolute(path).string()) quoted += c == '\'' ? "''" : std::string(1, c);
  return quoted + "'";
}

}  // namespace

Order read_order(const std::string& text) {
  const auto own = nlohmann::json::parse(text, nullptr, false);
  Order order;
  if (own.is_object() && own.contains("settings")) {
    order.sweep = begun_sweep(own.at("settings").get<std::string>(), "config.resolved.yaml");
    const std::string name = own.at("task").get<std::string>();
    std::erase_if(order.sweep.tasks, [&](const TaskConfig& t) { return t.name != name; });
  } else {
    order.sweep = parse_sweep(text, "task");
  }
  check_one(order.sweep, "task");
  order.task = order.sweep.tasks[0];
  if (own.is_object() && own.contains("file"))
    order.task.place = own.at("file").get<std::string>() + ": tasks." + order.task.name;
  return order;
}

std::string write_order(const std::string& settings, const std::string& task, const std::string& file) {
  nlohmann::json order{{"task", task}, {"settings", settings}};
  if (!file.empty()) order["file"] = file;
  return order.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string order_of(const std::string& file) {
  SweepConfig sweep = read_sweep(file, {});
  check_one(sweep, file);
  const TaskConfig& task = sweep.tasks[0];
  check_ignored(sweep);
  const std::pair<const char*, std::string> paths[] = {{"model", task.model},
                                                       {"adapter", task.adapter},
                                                       {"validation", task.data.validation},
                                                       {"test_file", task.data.test_file}};
  std::vector<std::string> whole;
  const auto say = [&](const std::string& key, const std::string& value) {
    whole.push_back("tasks." + task.name + "." + key + "=" + value);
  };
  for (const auto& [key, path] : paths)
    if (!path.empty()) say(key, whole_path(path));
  std::string texts;
  for (const auto& path : task.data.texts) texts += (texts.empty() ? "" : ", ") + whole_path(path);
  if (!texts.empty())
    say("data", "[" + texts + "]");
  else if (task.data.data != "arithmetic")
    say("data", whole_path(task.data.data));
  return write_order(read_sweep(file, whole).settings, task.name, file);
}

}  // namespace trireme::sweep
