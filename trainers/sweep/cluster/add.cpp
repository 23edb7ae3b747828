// `trireme sweep add FILE --to RUN`: hands a task to a sweep that runs, from another process.
#include "comm/error.h"
#include "framework/base/agree.h"
#include "trainers/run_folder.h"
#include "trainers/sweep/cluster/inbox.h"
#include "trainers/sweep/order.h"
#include "trainers/sweep/verb.h"

#include <filesystem>
#include <iostream>

namespace trireme::cluster {
namespace {

int add(const std::vector<std::string>& words) {
  std::string file, run;
  for (std::size_t i = 0; i < words.size(); ++i) {
    std::string& to = words[i] == "--to" ? run : file;
    if (&to == &run && ++i == words.size()) throw UsageError("sweep add", "--to names no run", "write --to RUN");
    if (!to.empty()) throw UsageError("sweep add", "'" + words[i] + "' is one word too many", "write FILE --to RUN");
    to = words[i];
  }
  if (file.empty() || run.empty())
    throw UsageError("sweep add", "a file and a run are wanted", "write trireme sweep add FILE --to RUN");
  if (!std::filesystem::is_directory(run + "/inbox") && results_in(run) == Results::sweep)
    throw DataError(run, "is a sweep that takes no tasks: it has one process, or no task of it says ranks",
                    "start it with --ranks 2 or more and ranks: N in a task");
  std::optional<std::string> order;  // else it is for the sweep to say what is wrong with the file
  if (const auto unread = attempt([&] { sweep::read_sweep(file, {}); }); !unread) order = sweep::order_of(file);
  const std::string id = post(run, file, order);
  const auto answer = await_answer(run, id, std::chrono::seconds(30));
  if (!answer) {
    std::cout << "posted, no answer yet: " << run << " is busy or does not run; it takes " << file
              << " up when it does\n";
    return 0;
  }
  if (!answer->accepted) throw UsageError(file, "refused: " + answer->line);
  std::cout << "accepted " << answer->line << std::endl;
  return 0;
}

const sweep::Verbs::Entry registered({"add", "FILE --to RUN: hands a task to a sweep that runs", add});

}  // namespace
}  // namespace trireme::cluster
