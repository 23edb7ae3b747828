// A configuration with the recipe that it names: what `train`, `scale` and the benchmarks begin with.
#pragma once
#include "framework/recipe.h"
#include "framework/train_config.h"

#include <functional>
#include <memory>

namespace trireme {

// Read and checked; outlives the Session made from it.
struct Experiment {
  Config config;
  TrainConfig train;
  std::unique_ptr<Recipe> recipe;
  std::function<void(Fields&)> schema;  // of both

  // Throws UsageError for an unknown recipe, and whatever Config::read refuses.
  explicit Experiment(Config c);
  Experiment(const Experiment&) = delete;
  Experiment& operator=(const Experiment&) = delete;
};

}  // namespace trireme
