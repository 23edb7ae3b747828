// What `trireme bench ap_step` is asked for:
//   --problem SHAPE[/LAYERS][@TOKENS]:LENGTHxBATCH,...[:ARM,...[:SECONDS]]
// TOKENS: the most of a rank in a pass. No arm: all of them ("collective": ours, with the communicator's gathers where
// ours fetches layers by copy engines). SECONDS: after these, a row's arms take no further turn.
#pragma once
#include "bench/adapter_jobs.h"

#include <set>
#include <string>
#include <vector>

namespace trireme::bench {

struct ApRow {
  int length = 0, batch = 0;
};

struct ApProblem {
  std::string name;
  AdapterJobs jobs;
  std::vector<ApRow> rows;
  std::set<std::string> arms;
  double seconds = 0;  // 0: no limit
  bool has(const std::string& arm) const { return arms.empty() || arms.contains(arm); }
};
ApProblem ap_problem(const std::string& text);  // throws UsageError

}  // namespace trireme::bench
