// Loss-aware early exit: which jobs of a task go on (ALTO, arXiv 2604.05426, section 5, Algorithm 1), or asynchronous
// successive halving (ASHA, Li et al. 2018, by the stopping rule and the defaults of Ray Tune) in place of its cut.
//
// Signals of an evaluation: e, the running average of the train loss (e_t = a l_t + (1 - a) e_(t-1), e_1 = l_1), and v,
// the raw validation loss. Tests in this order; the first that holds ends the job:
//   not finite     e or v                                                                     -> diverging
//   divergence     both least-squares slopes over the last `window` evaluations >= tau_slope,
//                  patience_div evaluations in a row                                          -> diverging
//   overfitting    (v - e) / e > tau_gap, patience_ovf evaluations in a row, counted from the
//                  `window`-th validation loss on                                             -> overfitting
//   the cut        once, when every job that has not exited has been evaluated at or after its
//                  step ceil(warmup_ratio * total): of n jobs in order of that loss, equal ones in order of their
//                  names, the first ceil(keep_ratio * n) are kept, the others                 -> underperforming
// Slopes are per evaluation. Decisions depend on the histories alone. Torch-free; one thread.
#pragma once
#include "framework/config/config.h"

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace trireme::sweep {

struct EarlyExitConfig {
  bool enabled = true;
  std::string cut = "barrier";
  double warmup_ratio = 0.05, keep_ratio = 0.25, tau_slope = 0.001, tau_gap = 0.1, ema_alpha = 0.1;
  double eval_fraction = 0.01;
  std::int64_t window = 2, patience_div = 2, patience_ovf = 2, val_cap = 0;
  // A unit of ASHA's time is total / asha_max_t steps; rungs at asha_grace * asha_eta^k units, below asha_max_t.
  std::int64_t asha_max_t = 100, asha_grace = 1, asha_eta = 4;
  void fields(Fields&);
};

// ceil(ratio * n), where the product's rounding does not count: 0.05 * 140 is 7.
std::int64_t ceil_share(double ratio, std::int64_t n);
std::int64_t boundary_step(const EarlyExitConfig&, std::int64_t total_steps);
// Is the job evaluated after this step? Every ceil(eval_fraction * total), at the boundary and at the end.
bool evaluates_at(const EarlyExitConfig&, std::int64_t total_steps, std::int64_t step);

// The running average of the train loss.
struct Average {
  double value = std::numeric_limits<double>::quiet_NaN();
  bool begun = false;
  void add(double loss, double alpha) {
    value = begun ? alpha * loss + (1 - alpha) * value : loss;
    begun = true;
  }
};

// Least-squares slope over the last `window` values against 0, 1, ...; NaN where there are fewer.
double slope(const std::vector<double>& values, std::int64_t window);

struct Decision {
  std::string job;
  std::int64_t step = 0;
  std::string decision;  // diverging | overfitting | underperforming | kept | too_large
  double train_ema = 0, val_loss = 0, slope_train = 0, slope_val = 0, gap = 0;  // NaN: not known
  std::int64_t rank = 0;                                                        // from 1, at the cut; 0: none
  std::string json() const;  // one line; null for what is not finite or not known
};

class EarlyExit {
 public:
  enum class State { warmup, waiting, going_on, exited };  // waiting: past its boundary, before the cut
  struct Job {
    std::int64_t total_steps = 0;
    State state = State::warmup;
    std::string reason;  // of the exit
    std::vector<double> e, v;
    std::int64_t diverging = 0, overfitting = 0, step = 0;
    double best = std::numeric_limits<double>::infinity();  // of v
    Decision boundary;                                      // numbers of the evaluation that the cut goes by
    std::vector<std::int64_t> rungs;                        // ASHA's that it has passed
  };

  // total_steps: of every job, by its name.
  EarlyExit(EarlyExitConfig config, const std::map<std::string, std::int64_t>& total_steps);

  // One evaluation of a job, in time order; average: e, null before the first train step. Returns what is decided by
  // it, in order: of this job, then of all at the cut. Of jobs that have exited nothing is heard.
  std::vector<Decision> evaluate(const std::string& job, std::int64_t step, const double* average, double v);

  // Of a job that cannot run, before anything was heard of it: it has exited, as too_large, and counts in no cut. Where
  // that waited for it alone, what is decided there follows.
  std::vector<Decision> refuse(const std::string& job);

  const Job& job(const std::string& name) const { return jobs_.at(name); }
  const std::map<std::string, Job>& jobs() const { return jobs_; }
  // Did the last evaluation of the job give its best v so far?
  bool best_now(const std::string& name) const;
  // Has the cut been, or is there none to wait for?
  bool cut_done() const { return cut_done_; }

  // All of it as one text, for checkpoints; numbers come back to the bit.
  std::string save() const;
  void load(const std::string& text);

 private:
  Decision numbers(const std::string& name, const Job& job) const;
  std::string ended_by(Job& job, const Decision& now) const;
  void rung(Job& job, double v, Decision& now);
  std::vector<Decision> cut();

  EarlyExitConfig config_;
  std::map<std::string, Job> jobs_;
  std::map<std::int64_t, std::vector<double>> rungs_;  // ASHA: losses seen at each
  bool cut_done_ = false;
};

}  // namespace trireme::sweep
