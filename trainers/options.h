// Options that several subcommands share.
#pragma once
#include <CLI/CLI.hpp>

namespace trireme {

// The experiment that a subcommand works on. submit also takes key=a,b,c.
template <class Options>
void add_experiment(CLI::App& command, Options& o) {
  command.add_option("file", o.file, "experiment, a YAML file")->required();
  command.add_option("overrides", o.overrides, "key=value, over the file's values");
}

}  // namespace trireme
