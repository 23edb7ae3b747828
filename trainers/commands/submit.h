// `trireme submit`: one training, or a sweep over lists of values, as a Slurm job. docs/slurm.md.
#pragma once
#include <string>
#include <vector>

namespace trireme {

struct SubmitOptions {
  std::string file;
  std::vector<std::string> overrides;  // key=value as in `train`, where key=a,b,c is a sweep
  std::vector<std::string> sbatch;     // further options of sbatch, such as --account=NAME: what follows `--`
  std::string out;                     // run folder; empty: runs/<yaml stem>. Of task K of a sweep: OUT.K
  int nodes = 1, ranks_per_node = 1;
  std::string time, partition;  // empty: the cluster's default
  int requeues = 20;            // how often the job may queue itself again after code 85
  bool print = false;           // show the script, do nothing
};

// slurm/launch.sbatch as it was when this program was built.
extern const char* const launch_sbatch;

// Every combination of the values of `key=a,b,c`, the last key fastest; one combination if there is no such list.
// Commas within [...], {...} or a quoted item do not separate. Throws UsageError on an empty item or more than
// 10,000 combinations.
std::vector<std::vector<std::string>> tasks_of(const std::vector<std::string>& overrides);

// The script for these tasks, made from launch.sbatch: every value is quoted, control characters (newlines above all)
// are refused with UsageError. `program` and `folder`: absolute paths of this program and of where it runs.
std::string sbatch_script(const SubmitOptions&, const std::vector<std::vector<std::string>>& tasks,
                          const std::string& program, const std::string& folder);

// Checks the configuration of every task, writes OUT.sbatch, and submits it. Throws UsageError, DataError.
int submit_command(const SubmitOptions&);

}  // namespace trireme
