#include "framework/experiment.h"

namespace trireme {

Experiment::Experiment(Config c)
    : config(std::move(c)), recipe(Recipes::create(config.string_at("recipe"), config.place("recipe"))) {
  schema = [this](Fields& f) {
    train.fields(f);
    recipe->fields(f);
  };
  config.read(schema);
}

}  // namespace trireme
