// The folder of one run: config.resolved.yaml, env.json, metrics, checkpoints, report.
#pragma once
#include "comm/communicator.h"
#include "framework/config/config.h"

#include <functional>
#include <string>

namespace trireme {

struct RunFolder {
  std::string dir;

  std::string file(std::string_view name) const { return dir + "/" + std::string(name); }
};

// Collective. Throws UsageError on all ranks unless they were all started with the same configuration.
void check_same_config(const Config& config, const std::function<void(Fields&)>& schema, Communicator& world);

// Collective. Makes the folder or takes up an existing one: all ranks must see it. Once it holds a checkpoint, a
// configuration that differs in more than cadence, threads and output is refused (exit 2, naming the keys). fresh: an
// old folder is renamed DIR.old-N.
RunFolder open_run_folder(const std::string& dir, bool fresh, const Config& config,
                          const std::function<void(Fields&)>& schema, Communicator& world);

// Machine, versions, launch: JSON for env.json.
std::string describe_environment(int ranks, int threads, const std::string& recipe_json);

}  // namespace trireme
