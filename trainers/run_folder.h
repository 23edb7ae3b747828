// The folder of one run: config.resolved.yaml, env.json, metrics, checkpoints, report.
#pragma once
#include "comm/communicator.h"
#include "framework/config/config.h"
#include "framework/io/folder_lock.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

namespace trireme {

struct RunFolder {
  std::string dir;
  std::shared_ptr<FolderLock> lock;  // rank 0's, for as long as the job uses the folder
  bool alone = true;                 // on rank 0: no other job can be in it; else the file system has no locks

  std::string file(std::string_view name) const { return dir + "/" + std::string(name); }
};

// Collective. Throws UsageError on all ranks unless they were all started with the same configuration.
void check_same_config(std::uint64_t hash, Communicator& world);

// Which command's results a folder holds. None can take up another's: files of one name would be written over.
enum class Results { training, sweep, pictures };

// By config.resolved.yaml, of which each writes one of its own; nothing where there is none, or a damaged one.
std::optional<Results> results_in(const std::string& dir);

// Throws UsageError where `dir`, which should be a model or an adapter, is a sweep or a task of one; names its winners.
void refuse_sweep(const std::string& dir);

// Makes `dir` or takes up an existing one, locked. fresh: an old one is renamed DIR.old-N, once nobody uses it. Throws
// UsageError where it holds results of another command.
std::shared_ptr<FolderLock> take_folder(const std::string& dir, bool fresh, Results results);

// Keys that differ between two texts of Config::print, comma-separated.
std::string changed_keys(const std::string& saved, const std::string& now);

// Collective. Makes the folder or takes up an existing one: all ranks must see it. Before anything in it is touched,
// rank 0 locks it; while another job holds it, and where a checkpoint in it belongs to a configuration that differs in
// more than cadence, threads and output, it is refused (exit 2, naming the job or the keys). fresh: an old folder is
// renamed DIR.old-N.
RunFolder open_run_folder(const std::string& dir, bool fresh, const Config& config,
                          const std::function<void(Fields&)>& schema, Communicator& world);

// Machine, versions, launch: JSON for env.json.
std::string describe_environment(int ranks, int threads, const std::string& recipe_json);

// Rank 0 writes config.resolved.yaml and env.json when training starts at step 0. A run that goes on keeps both as they
// are and appends what is different now: a comment with the keys that changed, an entry in the list `resumes`.
void record_start(const RunFolder& folder, const Config& config, const std::function<void(Fields&)>& schema,
                  const std::string& environment, std::int64_t step);
// On rank 0: what a recipe's description says more than before goes into env.json, as `measured`; a run that goes on
// keeps it.
void record_measured(const RunFolder& folder, const std::string& before, const std::string& now);

}  // namespace trireme
