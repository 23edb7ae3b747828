// `trireme train --dry-run`: what a run would be, without a run folder.
#pragma once
#include "comm/communicator.h"

#include <functional>

namespace trireme {

struct Experiment;
class Session;

// Collective. Builds everything, takes three steps on the first batches and prints, on rank 0: the configuration, the
// parameters, memory a rank, bytes sent a step, and the collectives of the third step in order (before it, the order of
// buckets is still being agreed). `after_step`: what the loop itself says to the other ranks after a step.
// In a fake world (comm/local/fake.h) the size may be any; what computing gives is then made up, what is counted is not.
void dry_run(Experiment& run, Communicator& world, const std::function<void(Session&)>& after_step);

}  // namespace trireme
