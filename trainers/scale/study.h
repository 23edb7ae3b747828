// `trireme scale`: one experiment on several numbers of ranks; what a step's time is made of on each, and a model of
// it. Strong scaling keeps the batch of a step, weak scaling the batch of a rank. The model is fitted without the
// largest number of ranks, which then judges it; only a model within 15 % is carried on to 1,024 ranks. Files in the
// folder: ranks_N/{measured.json, config.resolved.yaml}, scale.json, scale.html. What was timed is labelled measured,
// what the model says modelled, and beyond the largest measured number of ranks also extrapolated.
#pragma once
#include "comm/communicator.h"
#include "trainers/scale/model.h"

#include <optional>
#include <string>
#include <vector>

namespace trireme {

struct ScaleOptions {
  std::string file;
  std::vector<std::string> overrides;
  std::vector<int> ranks;
  bool weak = false;
  int steps = 20;        // timed ones, after a few that are not
  std::string out;       // empty: runs/scale-<yaml stem>
  std::string launcher;  // what starts {ranks} ranks of a program, e.g. "srun --mpi=pmix -n {ranks}"; empty: mpirun
  std::string measure;   // set in the ranks that it starts: the folder of their results
};

// Starts the ranks, prints a table, writes the files. Returns the exit code.
int scale_command(const ScaleOptions& options);
// Collective: what the started ranks do.
int scale_measure(const ScaleOptions& options, Communicator& world, int local_ranks);

namespace scale {

struct Check {
  int ranks = 0;
  double step_error = 0, comm_error = 0;  // (modelled - measured) / measured
  bool good() const;
};

struct Study {
  std::string title, mode, setting;
  std::vector<Measured> measured;
  std::vector<int> fitted_on;
  std::optional<Link> link;
  double hidden = 0;
  std::optional<Check> check;
  std::vector<Prediction> modelled;
  std::vector<double> batches;  // of `modelled`
};

Study make_study(std::vector<Measured> measured, bool weak);
std::string page(const Study& study);

}  // namespace scale
}  // namespace trireme
