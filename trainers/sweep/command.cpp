// `trireme sweep`: runs an experiment of many LoRA jobs, or one of the verbs that register themselves (verb.h).
#include "framework/command.h"

#include "comm/error.h"
#include "trainers/launch.h"
#include "trainers/ranks.h"
#include "trainers/sweep/run.h"
#include "trainers/sweep/verb.h"

#include <filesystem>
#include <iostream>
#include <memory>

namespace trireme::sweep {
namespace {

struct SweepOptions : SweepRun {
  std::string to;
  int ranks = 0;
  bool print_config = false;
};

// Options that a verb does not know would be passed over.
void check_options(const SweepOptions& o) {
  if (!o.to.empty() && o.file != "add") throw UsageError("--to", "is for trireme sweep add", "leave it out");
  const std::pair<const char*, bool> of_experiments[] = {
      {"--ranks", o.ranks != 0}, {"--out", !o.out.empty()}, {"--fresh", o.fresh}, {"--print-config", o.print_config}};
  for (const auto& [name, given] : of_experiments)
    if (given && Verbs::has(o.file))
      throw UsageError(name, "is for an experiment, and this is trireme sweep " + o.file, "leave it out");
}

int sweep_command(SweepOptions o, const CommandLine& line) {
  check_options(o);
  if (!o.to.empty()) o.overrides.insert(o.overrides.end(), {"--to", o.to});
  if (Verbs::has(o.file)) return Verbs::get(o.file).run(o.overrides);
  if (o.print_config) {
    std::cout << read_sweep(o.file, o.overrides).resolved;
    return 0;
  }
  if (o.out.empty()) o.out = "runs/" + std::filesystem::path(o.file).stem().string();
  if (const int ranks = ranks_to_start(o.ranks)) {
    read_sweep(o.file, o.overrides);  // a mistake is told once, before any rank starts
    return launch_ranks(ranks, line.words);
  }
  return on_ranks([&](Communicator& world, int local) { return run_sweep(o, world, local); });
}

std::string description() {
  std::string text = "many LoRA jobs on one backbone; FILE is an experiment, a YAML file, or one of:";
  for (const auto& verb : Verbs::values()) text += "\n  " + verb.name + " " + verb.usage;
  return text;
}

const Commands::Entry registered({"sweep", "many LoRA jobs on one backbone", [](CommandOptions& command) {
                                    const auto o = std::make_shared<SweepOptions>();
                                    static const std::string doc = description();
                                    command.text("file", o->file, doc, command.required);
                                    command.texts("overrides", o->overrides, "key=value, over the file's values");
                                    command.number("--ranks", o->ranks, "start this many MPI ranks", {1, 100000});
                                    command.text("--to", o->to, "of add: folder of the sweep that runs");
                                    command.text("--out", o->out, "folder of the sweep (default runs/<yaml stem>)");
                                    command.flag("--fresh", o->fresh, "rename an existing folder and start over");
                                    command.flag("--print-config", o->print_config,
                                                 "every key with its value and who set it, and nothing else");
                                    return [o](const CommandLine& line) { return sweep_command(*o, line); };
                                  }});

}  // namespace
}  // namespace trireme::sweep
