#include "trainers/ranks.h"

#include "comm/error.h"
#include "comm/local/self.h"
#include "comm/mpi/mpi.h"
#include "trainers/launch.h"
#include "trainers/stop.h"

#include <chrono>
#include <csignal>
#include <iostream>
#include <thread>

namespace trireme {
namespace {

// An error that all ranks share is told by rank 0, whose end lets mpirun end the others meanwhile (it takes a second);
// another rank's own error by that rank, later.
void let_rank_0_speak() {
  if (launched_rank() == 0) return;
  std::signal(SIGTERM, SIG_DFL);
  std::this_thread::sleep_for(std::chrono::milliseconds(2500));
}

}  // namespace

int print_failure(const Failure& f) {
  let_rank_0_speak();
  std::cerr << "trireme: error: " << f.what << std::endl;
  return int(f.code);
}

int on_ranks(const std::function<int(Communicator&, int)>& work) {
  if (const int tasks = tasks_alone()) {
    if (launched_rank() != 0) return int(ExitCode::usage);  // one of them says it
    throw UsageError("launch",
                     "srun started " + std::to_string(tasks) + " tasks that MPI cannot connect: each would train alone",
                     "use srun --mpi=pmix, or mpirun");
  }
  catch_stop_signals();
  announce_ready();
  if (!launched_ranks()) {
    const auto self = make_self();
    return work(*self, 1);
  }
  MpiWorld mpi;
  int code = 0;
  try {
    if (mpi.world().size() != launched_ranks())
      throw UsageError("launch",
                       "this is one of " + std::to_string(launched_ranks()) + " tasks but MPI finds " +
                           std::to_string(mpi.world().size()) + " ranks: each task would train alone",
                       "use srun --mpi=pmix, or mpirun");
    code = work(mpi.world(), mpi.node_size());
  } catch (...) {
    const Failure f = failure_of(std::current_exception());
    let_rank_0_speak();
    mpi.abort(int(f.code), f.what);
  }
  mpi.finalize();
  return code;
}

}  // namespace trireme
