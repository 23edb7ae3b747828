// One task on the ranks of one executor: all its jobs, many in a pass, on one frozen backbone (ALTO, sections 3 to 7).
// Passes go in ticks, of a kind that all ranks agree on, so that ranks which share a backbone gather the same layers:
//   evaluate   where any rank has a job to evaluate; ranks without one make an empty pass
//   train      a step of every job that can go on
//   idle       no rank has anything to do: the task is over
// What an evaluation found travels to all ranks at the end of its tick (scalars); each then moves its own jobs as the
// roster, the same on all, says. No adapter's number travels, but where a parked job moves to a rank without jobs.
#pragma once
#include "comm/communicator.h"
#include "framework/adapter_step.h"
#include "framework/formats/peft.h"
#include "framework/io/checkpoint.h"
#include "framework/placement.h"
#include "trainers/sweep/job.h"
#include "trainers/sweep/journal.h"
#include "trainers/sweep/pace.h"
#include "trainers/sweep/pack.h"
#include "trainers/sweep/roster.h"
#include "trainers/sweep/sharded_backbone.h"
#include "trainers/sweep/stage.h"

#include <chrono>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace trireme::sweep {

struct JobOutcome {
  Candidate candidate;
  std::string end;  // done, diverging, overfitting, underperforming; too_large: it never began
  std::int64_t steps = 0, total_steps = 0;
  double best = 0, seconds = 0;  // seconds: its share, by tokens, of the time of its train passes since the last start
  double exact_match = std::numeric_limits<double>::quiet_NaN();  // of the best jobs alone
};

struct TaskOutcome {
  std::vector<JobOutcome> jobs;
  std::int64_t winner = -1;                                       // none: every job diverged
  std::string winner_folder;                                      // of PEFT
  std::int64_t samples = 0, all_samples = 0;                      // trained, and without early exit
  double exact_match = std::numeric_limits<double>::quiet_NaN();  // share of the questions that the winner answers
  double seconds = 0, evaluation_seconds = 0, empty_share = 0;
  std::int64_t moves_between_ranks = 0, gathers = 0, gathered_bytes = 0;  // bytes: received by a rank
  double memory_forecast = 0, memory_peak = 0;  // bytes: the most that the model said of what ran, and was reserved
  double evaluation_ratio = 0;                  // forecast: time of evaluation over that of training
};

class Executor {
 public:
  // backbone: the task's, the same on all ranks. folder: the task's, seen by all; state goes there.
  // Collective, as all members are. A job that is too large is told on stderr; UsageError where all are, or where a
  // module is not there.
  // place: where this rank's device memory travels over.
  Executor(const SweepConfig& sweep, const TaskConfig& task, Backbone backbone, const Instructions& data,
           Communicator& ranks, std::string folder, const Placement& place = {});
  ~Executor();

  // Runs until the task is over, from its newest checkpoint where there is one, and writes the winner's folder. `stop`:
  // asked once a tick; where it says so on any rank, the state is saved and nothing is returned.
  std::optional<TaskOutcome> run(const std::function<bool()>& stop = {});
  // The same in pieces: restore once, tick until it returns something else than going (`stop` as above), then finish.
  enum class Progress { going, over, stopped };
  bool restore();  // had what was saved made its cut? What is refused then (there may be less room) may make it
  Progress tick(bool stop);
  TaskOutcome finish();
  void save();  // after a tick that was stopped, or any that left no evaluation half done
  // What steps of the first jobs take, where that is not known yet. Collective, before restore() and the first tick.
  void measure_steps();
  // Seconds that what is left takes if no more job exits, by the steps so far or measure_steps(). Collective.
  double remaining_seconds();
  double seconds() const { return seconds_; }           // in ticks, so far
  bool evaluated() const { return last_ == evaluate; }  // did the last tick? The same on all ranks
  const std::vector<Profiled>& profiles() const { return profiles_; }
  // Called on every rank with what early exit decided, as it comes: what a scheduler of tasks listens to.
  void on_decisions(std::function<void(const Roster&, const std::vector<Decision>&)> f) { heard_ = std::move(f); }

  // Text of ids: with it the best jobs answer the task's questions once the task is over.
  void on_answers(std::function<std::string(std::span<const std::int64_t>)> decode) { decode_ = std::move(decode); }

  // Flat weights of a job of this rank, for tests: as they stand, or undefined.
  at::Tensor weights(const std::string& job) const;
  const Roster& roster() const { return *roster_; }
  bool pipelined() const { return stage_ != nullptr; }
  // What speaks for either use of several ranks; none: no room for a pipeline, or recorded steps. As measure_steps().
  std::optional<ParallelCosts> parallel_costs();
  std::int64_t replayed() const { return step_->replayed(); }  // passes that ran as a graph

 private:
  struct Evaluation {
    std::vector<std::int64_t> jobs;
    std::vector<double> sums, counts;
    std::int64_t next = 0;
    double seconds = 0;
  };
  static constexpr double longest_burst = 10;  // seconds: so soon a request to stop is heard
  enum Tick : std::int64_t { idle = 0, train = 1, halt = 2, evaluate = 3 };  // the largest that a rank wants is taken
  Tick last_ = idle;

  std::vector<Load> make_jobs();
  at::Tensor weights_from(const PeftAdapter& adapter);
  void set_memory_limit();
  Profiled profiled_step(std::size_t jobs);
  double mean_seconds(const std::function<double()>& step);
  double timed_step(const Pack& pack, const std::vector<std::int64_t>& slots);
  double held_seconds(const std::vector<std::size_t>& jobs);
  Pack profiled_pack(const std::vector<std::size_t>& jobs) const;
  void reference_pairs();
  std::vector<ReferencedPair> referenced(const std::vector<Pair>& pairs);
  void cap_validation();
  void begin_roster(const std::vector<std::int64_t>& steps);
  void begin_steps();
  void move_jobs();
  void take(const Roster::Move& move);
  Tick agree(Tick mine);
  Tick wanted() const;
  bool due(std::int64_t job) const;
  bool here(std::int64_t job) const;  // in a slot of this rank
  void train_pass();
  void begin_stages(const Placement& place);
  bool wants_pipeline();
  MemoryLimit pipeline_limit() const;
  void burst();
  std::int64_t burst_steps() const;
  AdapterPipeline::Pack piece_of(std::int64_t job, std::int64_t step, std::size_t piece) const;
  void add_step(std::vector<Pack>& packs, std::int64_t job, std::int64_t step) const;
  at::Tensor step_in_pieces(const std::vector<std::int64_t>& jobs, const std::vector<Pack>& packs);
  std::vector<Pack> step_packs(const std::vector<std::int64_t>& jobs) const;
  std::int64_t padded_length(const std::vector<std::int64_t>& jobs) const;
  void accumulate(const Pack& pack, const std::map<std::int64_t, std::int64_t>& counts, at::Tensor& losses);
  void settle();
  double recorded_seconds(const Pack& pack);
  std::vector<std::int64_t> at_work() const;
  void evaluate_pass();
  void begin_evaluation();
  at::Tensor evaluated(const Pack& pack);
  void finish_evaluation();
  void exchange();
  void hear(const std::vector<double>& payload);
  void drop_ended();
  at::Tensor losses_of(const Pack& pack);
  void fill(Pack& pack, bool training, std::int64_t sample) const;
  void state(Archive& ar);
  std::string losses_header() const, data_identity() const;
  TaskOutcome outcome();
  void write_winner(std::int64_t winner);
  void ask(TaskOutcome& out);
  void answer(const std::vector<std::int64_t>& jobs, std::vector<double>& shares);

  const SweepConfig& sweep_;
  const TaskConfig& task_;
  CausalLm model_;
  const Instructions& data_;
  Communicator& ranks_;
  std::string folder_;
  std::vector<Candidate> candidates_;
  std::vector<PeftConfig> adapters_;
  std::unique_ptr<nn::AdapterStore> store_;
  std::unique_ptr<nn::AdapterOptimizer> optimizer_;
  std::unique_ptr<Communicator> gathers_;
  std::unique_ptr<ShardedBackbone> sharded_;
  std::unique_ptr<Stage> stage_;  // where the task's ranks are a pipeline
  std::vector<double> job_seconds_;
  std::map<std::int64_t, double> unsettled_tokens_;  // of each job, in passes whose time is not yet its own
  double unsettled_seconds_ = 0;
  Pace pace_;
  struct Window {  // steps in a row, the device idle before the first
    std::vector<std::int64_t> jobs;
    std::int64_t warm = 0, passes = 0;  // warm: steps that do not count yet
    std::int64_t last = 0;              // tokens of a pass of this rank's last step
    double tokens = 0;                  // of every step the most on any rank: all wait for that one
    std::chrono::steady_clock::time_point begin;
  } window_;
  double job_evaluation_seconds_ = 0;  // of a job's evaluation, by the last ones
  std::vector<Load> loads_;
  MemoryLimit limit_;
  std::vector<Profiled> profiles_;
  double evaluation_token_seconds_ = 0, memory_forecast_ = 0;
  std::unique_ptr<AdapterStep> step_;
  std::vector<Job> jobs_;  // all of the task; those of other ranks stay as they began
  std::unique_ptr<Roster> roster_;
  Journal journal_;
  std::unique_ptr<Checkpoints> checkpoints_;
  std::vector<ReferencedPair> train_pairs_, validation_pairs_;
  std::vector<std::int64_t> validation_;  // the samples that count, in order
  std::optional<Evaluation> evaluation_;
  std::vector<double> payload_;  // what this rank tells at the end of the tick
  std::function<void(const Roster&, const std::vector<Decision>&)> heard_;
  std::function<std::string(std::span<const std::int64_t>)> decode_;
  std::int64_t tick_ = 0, passes_ = 0, empty_passes_ = 0, moves_ = 0, chunk_tokens_ = 4096, sample_tokens_ = 1;
  std::int64_t restored_ = -1;  // the tick it went on from
  double seconds_ = 0, evaluation_seconds_ = 0, evaluation_ratio_ = 0, burst_step_seconds_ = 0;  // the last: of a step
};

}  // namespace trireme::sweep
