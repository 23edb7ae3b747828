// Memory that lies in shares on all ranks and no longer changes (a frozen backbone, a share of every layer), gathered
// piece by piece. Nothing has to be agreed on to read it: where the ranks' devices reach each other's memory (processes
// of one machine, CUDA IPC), copy engines fetch the pieces, no kernel takes multiprocessors from what computes
// meanwhile, and no rank waits for another. Elsewhere pieces go through the communicator's all_gather.
#pragma once
#include "comm/communicator.h"

#include <vector>

namespace trireme {

class FrozenShares {
 public:
  virtual ~FrozenShares() = default;
  // The piece of all ranks, in rank order. What a collective promises holds (communicator.h, device.h), and all ranks
  // make the same calls in the same order unless `fetched`.
  virtual Work gather(std::size_t piece, Buffer out) = 0;
  // Does each rank read the others' shares by itself?
  virtual bool fetched() const = 0;
};

// Collective, as the result's end is. mine: this rank's share of every piece, each as long on every rank, all in one
// place, written by then in the order of its stream; they stay as they are until the result is gone. ranks must outlive
// that.
std::unique_ptr<FrozenShares> open_shares(Communicator& ranks, std::vector<ConstBuffer> mine);

}  // namespace trireme
