// This process as one rank of its job, and how a failure leaves it.
#pragma once
#include "comm/communicator.h"
#include "framework/base/agree.h"

#include <functional>

namespace trireme {

// `work(world, ranks on this node)` on this process alone or as one rank of the job that it was started in. Returns its
// exit code. An exception on one of several ranks ends the job (MPI_Abort); alone, it is thrown. Throws UsageError
// where tasks were started that nothing connects.
int on_ranks(const std::function<int(Communicator& world, int local_ranks)>& work);

// Prints it on stderr, once for all ranks that share it. Returns the code.
int print_failure(const Failure& failure);

}  // namespace trireme
