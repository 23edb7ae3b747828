// Ranks of a job in groups that share a picture; the groups take batches in turn.
#pragma once
#include "comm/wrappers/traced.h"
#include "framework/models/dit/sequence_parallel.h"
#include "framework/placement.h"
#include "framework/sampler.h"
#include "trainers/sample/config.h"

#include <memory>

namespace trireme::sample {

struct Groups {
  Placement placement;
  int count = 1, mine = 0;          // groups, and this rank's
  std::unique_ptr<Traced> control;  // of this rank's group, for what the host decides by
  std::unique_ptr<Traced> tensors;  // the same ranks, for memory of the device
  std::unique_ptr<Traced> halves;   // two that share a picture's guidance; or null
  std::unique_ptr<Traced> parts;    // those that share a forward's tokens; or null
  std::unique_ptr<SequenceParallel> sequence;

  // Of tensors, halves and parts together, since the start.
  CommStats sent() const;
  bool first() const { return control->rank() == 0; }
};

// Collective over the world, with which the groups are recorded and watched. UsageError on all ranks: a number of ranks
// that makes no whole groups, or ranks of a group that would all do the same.
Groups make_groups(const SampleConfig& config, const Sampler& method, const Placement& placement, Traced& world);

// Where this rank computes. Collective.
Placement place(const SampleConfig& config, Communicator& world);

}  // namespace trireme::sample
