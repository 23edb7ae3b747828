// What a logged line says of the steps since the last one: mean times over all ranks, bytes, memory, who is slow.
#pragma once
#include "comm/wrappers/traced.h"
#include "framework/metrics/metrics.h"
#include "framework/session.h"
#include "trainers/straggler.h"

namespace trireme {

// One per rank, used from the training thread; everything it is made from must outlive it.
class StepReport {
 public:
  // flops_per_sample: the recipe's; 0 = not known.
  StepReport(const TrainConfig& config, Session& session, Traced& world, double flops_per_sample);

  void begin_step();
  void loaded();    // its batch is there
  void add_step();  // its update is enqueued
  // Collective, and reads the device: the line of `step`, of all steps since the last record. Names stragglers.
  Record record(std::int64_t step, double loss);

 private:
  void gather_times(Record& r);
  void name_stragglers(Record& r, const std::vector<double>& own_ms);
  std::pair<double, double> bytes_since_last_log();

  const TrainConfig& config_;
  Session& session_;
  Traced& world_;
  StragglerReport stragglers_;
  const double flops_, peak_tflops_;  // of a step on all ranks; of a rank's device, 0 = not known
  std::map<std::string, double> sums_;  // ms
  std::int64_t steps_ = 0, begin_ = 0, loaded_ = 0;
  std::uint64_t blocked_before_ = 0;
  double bytes_logged_ = 0, others_logged_ = 0;
};

}  // namespace trireme
