// A subcommand of `trireme`. Each registers itself in its own file, with its options; trainers/main.cpp knows none.
#pragma once
#include "comm/registry.h"

#include <functional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace trireme {

struct CommandLine {
  std::vector<std::string> words;  // all after the program, as they were given
  std::vector<std::string> rest;   // those after `--`, for a command with `takes_rest`
};

struct Command {
  std::string name, description;
  // Adds its options to the parser and returns what runs once they are read: the exit code, or it throws.
  std::function<std::function<int(const CommandLine&)>(CLI::App&)> set_up;
  bool takes_rest = false;  // words after `--` are not ours
};

using Commands = Registry<Command>;

}  // namespace trireme
