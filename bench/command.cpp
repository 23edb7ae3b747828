// `trireme bench NAME [--json]`: one benchmark with its peer arm; a table on stdout, or one object {"rows": [...]}
// alone there. A peer that cannot run here is a row that says why.
#include "framework/command.h"

#include "bench/bench.h"
#include "comm/device.h"
#include "comm/error.h"
#include "trainers/ranks.h"
#include "trainers/stop.h"

#include <cstdio>
#include <cstdlib>
#include <iostream>

namespace trireme {
namespace {

// A wrong name lists them all with what they do.
const bench::Benchmark& find(const std::string& name) {
  if (bench::Benchmarks::has(name)) return bench::Benchmarks::get(name);
  std::string known;
  for (const auto& b : bench::Benchmarks::values()) known += "\n  " + b.name + ": " + b.description;
  const std::string near = nearest(name, bench::Benchmarks::names());
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

int bench_command(const bench::Options& options) {
  const auto& benchmark = find(options.name);
  if (options.device != "cpu" && options.device != "cuda")
    throw UsageError("--device", "'" + options.device + "' is none", "write cpu or cuda");
  if (options.device == "cuda" && !benchmark.on_devices)
    throw UsageError("--device", "bench " + options.name + " has one place to run", "leave it out");
  if (options.device == "cuda" && (!device_runtime() || device_runtime()->count() == 0))
    throw UsageError("--device", "no GPU is here that this program can use",
                     "run it where `trireme doctor` names one, built with the preset cuda");
  catch_stop_signals();  // arms look for it (bench/arm.h)
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

const Commands::Entry registered({"bench", "one benchmark with its peer arm", [](CommandOptions& command) {
                                    const auto o = std::make_shared<bench::Options>();
                                    command.text("name", o->name, "which; a wrong name lists them", command.required);
                                    command.flag("--json", o->json, "one JSON object on stdout");
                                    command.number("--blocks", o->blocks, "timed blocks of each arm", {1, 1000});
                                    command.number("--ranks", o->ranks, "ranks of an arm", {1, 1024});
                                    command.text("--problem", o->problem,
                                                 "a part of it, e.g. all_reduce:1048576 of comm");
                                    command.text("--device", o->device, "cpu or cuda");
                                    command.text("--serve", o->serve, "",
                                                 command.hidden);  // of the processes that a benchmark starts
                                    command.text("--arm", o->arm, "", command.hidden);
                                    return [o](const CommandLine&) {
                                      if (o->serve.empty()) return bench_command(*o);
                                      return on_ranks([&](Communicator& world, int) {
                                        find(o->name).serve(*o, world);
                                        return 0;
                                      });
                                    };
                                  }});

}  // namespace
}  // namespace trireme
