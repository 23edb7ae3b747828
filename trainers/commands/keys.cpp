// `trireme keys RECIPE`, or sample: what its YAML may say, as the Markdown table of docs/config.md.
#include "framework/command.h"
#include "framework/recipe.h"
#include "framework/train_config.h"
#include "trainers/sample/config.h"
#include "trainers/sweep/config.h"

#include <iostream>
#include <memory>

namespace trireme {
namespace {

int keys(const std::string& name) {
  if (name == "lora_sweep") {
    std::cout << sweep::document_keys();
    return 0;
  }
  if (name == "sample") {
    std::cout << sample::document_keys();
    return 0;
  }
  std::vector<std::string> known = Recipes::names();
  known.insert(known.end(), {"lora_sweep", "sample"});
  if (!Recipes::has(name)) {
    std::string list;
    for (const auto& k : known) list += (list.empty() ? "" : ", ") + k;
    const std::string near = nearest(name, known);
    throw UsageError("keys", "unknown name '" + name + "'",
                     (near.empty() ? "" : "did you mean " + near + "? ") + ("known: " + list));
  }
  const auto recipe = Recipes::create(name, "keys");
  TrainConfig common;
  std::cout << "Of every recipe:\n\n" << document([&](Fields& f) { common.fields(f); });
  std::cout << "\nOf " << name << ":\n\n" << document([&](Fields& f) { recipe->fields(f); });
  return 0;
}

const Commands::Entry registered({"keys", "the keys of a recipe: default, range, meaning", [](CommandOptions& o) {
                                    const auto name = std::make_shared<std::string>();
                                    o.text("recipe", *name, "its name, lora_sweep or sample", CommandOptions::required);
                                    return [name](const CommandLine&) { return keys(*name); };
                                  }});

}  // namespace
}  // namespace trireme
