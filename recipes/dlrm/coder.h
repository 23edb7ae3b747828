// What the two directions of the exchange lose: bounds of this step, and counts for the metrics.
#pragma once
#include "recipes/dlrm/config.h"
#include "recipes/dlrm/tables.h"

#include <optional>

namespace trireme::dlrm {

class Coder {
 public:
  // UsageError for an unknown codec.
  Coder(const CompressionConfig& config, const DataConfig& data, std::int64_t tables);

  bool forward_on() const { return forward_.has_value(); }
  bool backward_on() const { return backward_.has_value(); }
  const Bounds& bounds() const { return bounds_; }
  // decay_steps: 0 stands for 0.21 of the run.
  void run_length(std::int64_t steps) { steps_ = steps; }
  double relative(std::int64_t table, std::int64_t step) const { return bounds_.relative(table, step, steps_); }
  double factor(std::int64_t step) const { return bounds_.factor(step, steps_); }

  // rows [ranks * mine, b, d], destination by destination: for start_fetch(). Empty where nothing is coded.
  ShardedTables::CodingOf forward(const std::vector<std::int64_t>& mine, std::int64_t step) const;
  ShardedTables::CodingOf backward() const;

 private:
  CompressionConfig config_;
  Bounds bounds_;
  std::optional<Bounded> forward_, backward_;
  std::int64_t steps_ = 0;
};

}  // namespace trireme::dlrm
