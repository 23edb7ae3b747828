// What the two directions of the exchange lose: bounds of this step, and counts for the metrics.
#pragma once
#include "recipes/dlrm/config.h"
#include "recipes/dlrm/tables.h"

#include <map>
#include <optional>

namespace trireme::dlrm {

// What this recipe does not train. UsageError.
void check_training(const CompressionConfig& compression, const TrainConfig& train);

class Coder {
 public:
  // UsageError for an unknown codec, and for gradients that are combined without one.
  Coder(const CompressionConfig& config, const DataConfig& data, std::int64_t tables);

  // What a GPU has no kernels for, where something is coded. UsageError naming the key. goes_on: a run of before, when
  // compression.nonfinite was passed over there.
  void check_device(at::Device device, bool goes_on) const;

  bool forward_on() const { return !codecs_.empty() && !forward_raw_; }
  bool backward_on() const { return backward_.has_value() && !backward_raw_; }
  // Raw rows travel all, also those of zeros: nothing is combined where the link is too fast for codes.
  bool combines() const { return backward_on() && config_.backward.combine; }
  // The link is too fast for codes.
  void send_raw(bool forward, bool backward) { forward_raw_ = forward, backward_raw_ = backward; }
  const Bounds& bounds() const { return bounds_; }
  std::string codec_of(std::int64_t table) const;  // of the forward exchange
  // decay_steps: 0 stands for 0.21 of the run.
  void run_length(std::int64_t steps) { steps_ = steps; }
  double relative(std::int64_t table, std::int64_t step) const { return bounds_.relative(table, step, steps_); }
  double factor(std::int64_t step) const { return bounds_.factor(step, steps_); }

  // rows [ranks * mine, b, d], destination by destination: for start_fetch(). Empty where nothing is coded.
  // training: in room of a fixed size, if the configuration says so.
  ShardedTables::CodingOf forward(const std::vector<std::int64_t>& mine, std::int64_t step,
                                  bool training = false) const;
  ShardedTables::CodingOf backward(bool training = false) const;
  bool simulates() const { return config_.forward.simulate || config_.backward.simulate; }
  bool has_room() const { return config_.sizes == "capacity"; }

 private:
  void choose(const DataConfig& data, std::int64_t tables);
  CompressionConfig config_;
  Bounds bounds_;
  std::map<std::string, Bounded> by_name_;  // of the forward exchange
  std::vector<const Bounded*> codecs_;      // of each table; empty: raw
  std::optional<Bounded> backward_;
  std::int64_t steps_ = 0;
  bool forward_raw_ = false, backward_raw_ = false;
};

}  // namespace trireme::dlrm
