// `trireme sweep`: runs an experiment of many LoRA jobs, or one of the verbs that register themselves (verb.h).
#include "framework/command.h"
#include "trainers/sweep/verb.h"

#include <memory>

namespace trireme::sweep {
namespace {

struct SweepOptions {
  std::string file;
  std::vector<std::string> words;
};

std::string description() {
  std::string text = "many LoRA jobs on one backbone; FILE is an experiment, a YAML file, or one of:";
  for (const auto& verb : Verbs::values()) text += "\n  " + verb.name + " " + verb.usage;
  return text;
}

const Commands::Entry registered({"sweep", "many LoRA jobs on one backbone", [](CommandOptions& command) {
                                    const auto o = std::make_shared<SweepOptions>();
                                    static const std::string doc = description();
                                    command.text("file", o->file, doc, command.required);
                                    command.texts("words", o->words, "key=value, over the file's values");
                                    return [o](const CommandLine&) {
                                      if (Verbs::has(o->file)) return Verbs::get(o->file).run(o->words);
                                      throw UsageError(o->file, "is no experiment");
                                    };
                                  }});

}  // namespace
}  // namespace trireme::sweep
