// One arm on the ranks of a job: batches of pictures, step by step, saved and resumed.
//
// A batch is a fixed list of pictures, whatever the number of ranks, and is over once FOLDER/batch_%05d.json is there;
// what it made lies beside it: %05d.png, %05d.safetensors, maps. A batch that was broken off goes on from its newest
// saved state in FOLDER/state/batch_%05d, or from its noise: its pictures are the same to the bit.
#pragma once
#include "trainers/sample/conditions.h"
#include "trainers/sample/groups.h"
#include "trainers/sample/step_bar.h"

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

namespace trireme::sample {

struct Arm {
  const SampleConfig& config;
  Sampler& method;
  const Conditions& conditions;
  std::string folder;  // seen by all ranks
};

class Engine {
 public:
  // `context`: of this rank's group, with the job's settings; what is made for all levels is the engine's from now on,
  // so it is of no use behind the engine's end. `bar`: told of every step, and of those that a saved state spares.
  Engine(const Arm& arm, Groups& groups, SampleContext& context, StepBar* bar = nullptr);

  std::int64_t pictures() const;
  std::int64_t batches() const;
  bool done(std::int64_t batch) const;
  // Of all groups' batches that are drawn beside this one, the bar's share of it.
  std::int64_t steps_of(std::int64_t batch) const { return beside(batch) * steps_in_all(); }
  // Collective over the group. False: `stop` said so on a rank of it; what is needed to go on is saved.
  bool run(std::int64_t batch, const std::function<bool()>& stop);

 private:
  struct Measured;
  std::int64_t steps_in_all() const { return arm_.method.steps_in_all(arm_.config.steps); }
  std::int64_t beside(std::int64_t batch) const { return std::min<std::int64_t>(groups_.count, batches() - batch); }
  Sampling begin(std::int64_t batch);
  void state(Archive& ar, Sampling& s);
  bool agreed(bool mine);
  void finish(std::int64_t batch, const Sampling& s, const Measured& measured);
  void write_pictures(const Sampling& s);
  void write_maps(const Sampling& s);
  std::string marker(std::int64_t batch) const;

  const Arm arm_;
  Groups& groups_;
  SampleContext& context_;
  LevelModulations modulations_;
  StepBar* bar_;
};

// Shape of one latent, and what a size that does not fit is told: UsageError with the nearest that do.
std::vector<std::int64_t> latent_shape(const SampleConfig& config, const DenoiserInfo& model);

}  // namespace trireme::sample
