// Proves that ranks wait for each other on different communicators, which no comparison within one
// communicator can see: there, each waits for a call that the other never makes.
//
// A rank that has waited for a while posts where it waits; the k-th posts of all ranks make round k. Each
// rank posts round k + 1 only when round k is complete, so if two successive rounds are equal, all ranks were
// in these waits at one moment, and none of them can make the call that another one waits for. (This takes
// the thread that waits for the only one that posts.)
#pragma once
#include "comm/communicator.h"

#include <mutex>
#include <vector>

namespace trireme {

class Parley {
 public:
  // Where a rank waits: in a call that some rank has not entered.
  struct Spot {
    char communicator[40] = {};
    std::int64_t sequence = 0;  // 0: nowhere, the rank has come to its end
    std::int64_t operation = 0, dtype = 0, count = 0;
    bool operator==(const Spot&) const = default;
  };

  explicit Parley(std::unique_ptr<Communicator> channel);  // for this alone
  // Collective, unless an exception is on its way or was thrown from here.
  ~Parley();

  // Called again and again while the rank waits. Throws CommError when the proof is there.
  void waits(const Spot& here);

 private:
  struct Round {
    std::vector<Spot> mine, all;
    Work work;
  };
  void post(const Spot& here);
  bool ended() const;  // a rank's last word is in the last round
  [[noreturn]] void prove(const std::vector<Spot>& all);

  std::unique_ptr<Communicator> channel_;
  std::mutex mutex_;
  std::shared_ptr<Round> round_;  // the last one posted
  std::vector<Spot> before_;      // what the one before it brought
  bool proved_ = false;
};

}  // namespace trireme
