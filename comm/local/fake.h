// A world of any size with one rank in it, for dry runs: rank r of n builds and runs what it would build and run among
// n, and nothing leaves the process.
//
// Collectives are checked as everywhere and complete at once. What would come from others is made up so that it is
// plausible (indices stay valid, sums finite), not right:
// - all_reduce and broadcast leave the data, as if the others had contributed nothing and the root the same;
// - reduce_scatter gives this rank's block of its own input;
// - all_gather repeats this rank's block for every rank;
// - all_to_all: every rank sends what this one sends to itself, repeated up to the count that is expected (of what it
//   sends to anyone where it sends itself nothing; zeros where it sends nothing at all).
// - split: every other rank is taken to pass the same color and its rank as key.
#pragma once
#include "comm/communicator.h"

namespace trireme {

std::unique_ptr<Communicator> make_fake(int rank, int size);

}  // namespace trireme
