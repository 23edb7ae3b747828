#include "trainers/command_line.h"

#include "comm/error.h"
#include "framework/command.h"

#include <algorithm>

#include <CLI/CLI.hpp>

namespace trireme {
namespace {

class Parser : public CommandOptions {
 public:
  explicit Parser(CLI::App& app) : app_(app) {}

  void text(const char* name, std::string& value, std::string_view doc, Kind kind) override {
    apply(kind, app_.add_option(name, value, std::string(doc)));
  }
  void texts(const char* name, std::vector<std::string>& values, std::string_view doc, Kind kind) override {
    apply(kind, app_.add_option(name, values, std::string(doc)));
  }
  void number(const char* name, int& value, std::string_view doc, Range range) override {
    app_.add_option(name, value, std::string(doc))->check(CLI::Range(range.min, range.max));
  }
  void numbers(const char* name, std::vector<int>& values, std::string_view doc, Range range, Kind kind) override {
    apply(kind, app_.add_option(name, values, std::string(doc))->delimiter(','))
        ->check(CLI::Range(range.min, range.max));
  }
  void flag(const char* name, bool& value, std::string_view doc) override {
    app_.add_flag(name, value, std::string(doc));
  }

 private:
  static CLI::Option* apply(Kind kind, CLI::Option* option) {
    if (kind == required) option->required();
    if (kind == hidden) option->group("");
    return option;
  }

  CLI::App& app_;
};

// The command that the first word names; "" where it is an option.
std::string command_name(int argc, char** argv) {
  const std::string name = argc > 1 && argv[1][0] != '-' ? argv[1] : "";
  if (name.empty() || Commands::has(name)) return name;
  const std::string near = nearest(name, Commands::names());
  throw UsageError("command line", "unknown command '" + name + "'",
                   (near.empty() ? "" : "did you mean " + near + "? ") + "see trireme --help");
}

}  // namespace

std::function<int()> parse_command_line(int argc, char** argv) {
  CLI::App app{"Trireme: distributed training on MPI"};
  app.set_version_flag("--version", "trireme " TRIREME_VERSION);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::simple);
  std::map<std::string, std::function<int(const CommandLine&)>> commands;
  for (const Command& c : Commands::values()) {
    Parser options(*app.add_subcommand(c.name, c.description));
    commands[c.name] = c.set_up(options);
  }

  const std::string name = command_name(argc, argv);
  CommandLine line{{argv + 1, argv + argc}, {}};
  char** end = argv + argc;
  if (!name.empty() && Commands::get(name).takes_rest) end = std::find(argv, end, std::string_view("--"));
  if (end != argv + argc) line.rest.assign(end + 1, argv + argc);
  try {
    app.parse(int(end - argv), argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return [code = app.exit(e)] { return code; };
    throw UsageError("command line", e.what(), "see trireme --help");
  }
  return [run = commands.at(app.get_subcommands().front()->get_name()), line] { return run(line); };
}

}  // namespace trireme
