// A subcommand of `trireme`. Each registers itself in its own file, with its options; trainers/main.cpp knows none.
#pragma once
#include "comm/registry.h"

#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace trireme {

struct CommandLine {
  std::vector<std::string> words;  // all after the program, as they were given
  std::vector<std::string> rest;   // those after `--`, for a command with `takes_rest`
};

// The options of one command. Variables keep their value unless the user says another, and must live until the command
// runs. A name without dashes is a word by its place: the next one that the user writes. What does not fit (a word too
// many, no number, outside the range) is a UsageError before the command runs.
class CommandOptions {
 public:
  enum Kind { optional, required, hidden };  // hidden: not in --help, for processes that the command itself starts
  struct Range {
    int min, max;  // inclusive
  };

  virtual ~CommandOptions() = default;
  virtual void text(const char* name, std::string& value, std::string_view doc, Kind kind = optional) = 0;
  virtual void texts(const char* name, std::vector<std::string>& values, std::string_view doc,
                     Kind kind = optional) = 0;
  virtual void number(const char* name, int& value, std::string_view doc, Range range) = 0;
  virtual void numbers(const char* name, std::vector<int>& values, std::string_view doc, Range range,
                       Kind kind = optional) = 0;  // 1,2,4
  virtual void flag(const char* name, bool& value, std::string_view doc) = 0;

  // The experiment a command works on.
  void experiment(std::string& file, std::vector<std::string>& overrides) {
    text("file", file, "experiment, a YAML file", required);
    texts("overrides", overrides, "key=value, over the file's values");
  }
};

struct Command {
  std::string name, description;
  // Says its options and returns what runs once they are read: the exit code, or it throws.
  std::function<std::function<int(const CommandLine&)>(CommandOptions&)> set_up;
  bool takes_rest = false;  // words after `--` are not ours
};

using Commands = Registry<Command>;

}  // namespace trireme
