// The two ends of one arm of a benchmark: the process that measures, and the one that is told when to.
// A folder holds a pipe `command.R` for each rank and one pipe `reply`; what the arm prints goes to `log` there.
#pragma once
#include "framework/base/quantile.h"

#include <chrono>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include <sys/types.h>

namespace trireme::bench {

class Arm {
 public:
  // Starts `command` (searched on PATH). `folder` is made.
  Arm(std::string name, const std::vector<std::string>& command, int ranks, std::string folder);
  ~Arm();  // asks it to end, then makes it
  Arm(const Arm&) = delete;
  Arm& operator=(const Arm&) = delete;

  // Waits until it can step. False, with skipped() saying why, when it ended or took longer than `patience`.
  bool ready(std::chrono::seconds patience);
  // Takes `n` steps. Adds their mean to the blocks unless `discard`. Skips the arm if that takes longer than
  // `patience`.
  void block(int n, bool discard, std::chrono::seconds patience = std::chrono::seconds(600));
  // Sends a command of the benchmark's own to every rank and returns rank 0's reply; none, and the arm is skipped, if
  // it ends or takes longer than `patience`. A command must not begin with "0".
  std::optional<nlohmann::json> ask(const std::string& command,
                                    std::chrono::seconds patience = std::chrono::seconds(600));
  // Leaves this arm out of all that follows.
  void skip(std::string why);

  const std::string& name() const { return name_; }
  const std::string& skipped() const { return skipped_; }
  double last_ms() const { return last_ms_; }  // of a step in the newest block, also a discarded one
  const std::vector<double>& blocks_ms() const { return ms_; }
  std::vector<double> losses(std::size_t first) const;  // of the first steps that told theirs
  double median_ms() const;
  double median_cpu_ms() const;
  // {arm, step_ms, low_ms, high_ms (quartiles), cpu_ms, blocks, losses (of the first 4 steps), last_loss, steps}, or
  // {arm, skipped}.
  nlohmann::json row() const;

 private:
  std::optional<nlohmann::json> reply(std::chrono::seconds patience);
  void end();

  std::string name_, folder_, skipped_, unread_;
  std::vector<int> commands_;
  int reply_ = -1;
  pid_t pid_ = -1;
  bool ready_ = false;
  double last_ms_ = 0;
  std::vector<double> ms_, cpu_ms_, losses_;
};

// Alternates blocks of `steps` steps over all arms that are not skipped: one discarded, then
// `blocks` timed ones. Tells how far it is on stderr.
void alternate(const std::vector<Arm*>& arms, int steps, int blocks);

// CPU time of the calling thread.
double thread_cpu_ms();

// The arm's end, on each rank.
class Server {
 public:
  Server(const std::string& folder, int rank);
  // The first call says that this rank is ready. The next command, or the steps to take now; none: the benchmark is
  // over.
  std::optional<std::string> command();
  std::optional<int> next();
  // Rank 0: the answer to a command, and that to a block of steps: its time and the loss of each step. cpu_ms: of the
  // stepping thread alone, which other programs on the machine hardly change.
  void reply(const nlohmann::json& answer);
  void reply(double total_ms, double cpu_ms, const std::vector<double>& losses);
  // Runs `step`, which returns the global loss, on command until the end.
  void run(const std::function<double()>& step);
  // The same where the host runs ahead of a device: `step` enqueues one, `loss` reads the last one's at a block's end.
  void run(const std::function<void()>& step, const std::function<double()>& loss);

 private:
  int rank_, command_ = -1, reply_ = -1;
  bool ready_ = false;
};

}  // namespace trireme::bench
