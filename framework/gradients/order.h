// The order in which buckets are filled: one for all ranks, though each may hold other parameters and see them become
// ready in another order. So what two ranks share they reduce in the same order.
#pragma once
#include "comm/archive.h"
#include "comm/communicator.h"
#include "framework/base/param.h"

#include <cstdint>
#include <string>
#include <vector>

namespace trireme {

class SharedOrder {
 public:
  // Collective, checks as all_names(). Starts as the reverse of registration.
  SharedOrder(const std::vector<Param>& params, Communicator& comm);

  // This rank's parameters in it.
  const std::vector<std::int64_t>& own() const { return own_; }
  // That of all ranks' parameters: the same on all ranks.
  const std::vector<std::int64_t>& shared() const { return order_; }
  // Collective. `seen`: this rank's parameters in the order it would like. Of each parameter the wish of the lowest
  // rank that holds it counts. True when the order changed, on all ranks.
  bool adopt(const std::vector<std::int64_t>& seen);
  // Throws DataError for anything but an order of these parameters. Not collective.
  void state(Archive& ar);

 private:
  void set(std::vector<std::int64_t> order);

  Communicator& comm_;
  std::vector<std::string> names_;   // of all ranks' parameters
  std::vector<std::int64_t> id_of_;  // of this rank's parameters, into names_
  std::vector<std::int64_t> order_;  // of names_
  std::vector<std::int64_t> own_;
};

}  // namespace trireme
