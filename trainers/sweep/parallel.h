// How the ranks of a task share its steps, by what these take: gathered (a rank steps its own jobs and gathers the
// backbone's layers) or as a pipeline that all jobs fill (pipeline.h). Torch-free, without a clock.
#pragma once
#include <cstdint>
#include <string>

namespace trireme::sweep {

// Packs of a step of all jobs, a job's in a row; of_job: the most of one.
struct PipelineShape {
  std::int64_t packs = 0, of_job = 1;
};
std::int64_t pipeline_period(PipelineShape shape, std::int64_t ranks);                     // ticks a step of all jobs
std::int64_t pipeline_ticks(PipelineShape shape, std::int64_t ranks, std::int64_t steps);  // from empty to empty

// Seconds, of the slowest rank.
struct ParallelCosts {
  std::int64_t ranks = 0;
  PipelineShape shape;
  double gather = 0;       // what a step gathers, alone
  double compute = 0;      // a step of a rank's jobs on layers that are there
  double pack = 0;         // the same of the largest pack alone, through all layers
  double move = 0;         // all adapters between their ranks and the stages, after a burst
  std::int64_t steps = 1;  // of a burst
};
double gathered_seconds(const ParallelCosts& costs);   // a step
double pipelined_seconds(const ParallelCosts& costs);  // a step

// What a task has chosen, as its folder keeps it: chosen once, whatever later clocks say.
struct ParallelChoice {
  bool pipeline = false;
  double gathered = 0, pipelined = 0;  // seconds a step, predicted
  std::string save() const;
  static ParallelChoice load(const std::string& text, const std::string& place);  // DataError
};
ParallelChoice choose_parallel(const ParallelCosts& costs);

}  // namespace trireme::sweep
