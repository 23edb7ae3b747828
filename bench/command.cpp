#include "bench/command.h"

#include "comm/error.h"
#include "framework/config/config.h"

#include <cstdio>
#include <cstdlib>
#include <iostream>

namespace trireme {
namespace {

const bench::Benchmark& find(const std::string& name) {
  std::vector<std::string> names;
  std::string known;
  for (const auto& b : bench::all()) {
    if (b.name == name) return b;
    names.push_back(b.name);
    known += "\n  " + b.name + ": " + b.description;
  }
  const std::string near = nearest(name, names);
  throw UsageError("bench " + name.substr(0, 60), "no such benchmark",
                   (near.empty() ? "" : "did you mean " + near + "? ") + std::string("known:") + known);
}

std::string cell(const nlohmann::json& v) {
  if (v.is_string()) return v.get<std::string>();
  if (!v.is_number_float()) return v.dump();
  char text[32];
  std::snprintf(text, sizeof text, "%.5g", v.get<double>());
  return text;
}

// One line a row, `key=value` in the row's own order of importance.
void print_table(const nlohmann::json& rows) {
  for (const auto& row : rows) {
    std::string line;
    for (const char* key : {"problem", "arm"})
      if (row.contains(key)) line += cell(row[key]) + "  ";
    for (const auto& [key, value] : row.items()) {
      if (key == "problem" || key == "arm") continue;
      std::string text = value.is_array() ? "" : cell(value);
      if (value.is_array())
        for (const auto& v : value) text += (text.empty() ? "" : ",") + cell(v);
      line += " " + key + "=" + text;
    }
    std::cout << line << "\n";
  }
  std::cout << std::flush;
}

}  // namespace

int bench_command(const bench::Options& options) {
  const auto& benchmark = find(options.name);
  double before[1] = {0}, after[1] = {0};
  (void)getloadavg(before, 1);
  nlohmann::json rows = benchmark.run(options);
  (void)getloadavg(after, 1);
  for (auto& row : rows) row["load"] = {before[0], after[0]};
  if (options.json)
    std::cout << nlohmann::json{{"rows", rows}}.dump() << std::endl;
  else
    print_table(rows);
  return 0;
}

int bench_serve(const bench::Options& options, Communicator& world) {
  find(options.name).serve(options, world);
  return 0;
}

}  // namespace trireme
