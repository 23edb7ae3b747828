// The second words of `trireme sweep`: each registers itself in its own file. Any other second word is an experiment.
#pragma once
#include "comm/registry.h"

#include <functional>
#include <string>
#include <vector>

namespace trireme::sweep {

struct Verb {
  std::string name, usage;  // usage: what follows the name, and what it does, one line
  std::function<int(const std::vector<std::string>& words)> run;  // words: all after the name; the exit code, or throws
};

using Verbs = Registry<Verb>;

}  // namespace trireme::sweep
