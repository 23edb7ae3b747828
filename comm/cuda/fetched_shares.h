// Frozen shares of device memory (comm/frozen_shares.h) that each rank fetches by its copy engines.
#pragma once
#include "comm/frozen_shares.h"

namespace trireme::cuda {

// Collective; null on all ranks where some rank cannot open another's share.
std::unique_ptr<FrozenShares> fetched_shares(Communicator& ranks, const std::vector<ConstBuffer>& mine);

}  // namespace trireme::cuda
