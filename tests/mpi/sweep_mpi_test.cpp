// A sweep's pipeline on MPI ranks: the sweep of the same ranks with gathered layers.
#include "tests/mpi_harness.h"
#include "tests/unit/task_run.h"

namespace trireme::test {
namespace {

struct OnRanks : sweep::TaskRun {
  void TestBody() override {}
};

MPI_TEST(SweepRanks, APipelineIsTheGatheredSweep, {2, 4}) {
  OnRanks task;
  task.dir = std::filesystem::temp_directory_path() / ("trireme-sweep-" + std::to_string(getppid()));
  task.SetUp();
  task.sweep.slots = 2;  // eight jobs rotate
  std::vector<sweep::Result> of;
  for (const char* parallel : {"gather", "pipeline"}) {
    task.sweep.parallel = parallel;
    of.push_back(*task.run(comm, task.folder()));
  }
  EXPECT_TRUE(of[1].pipelined && !of[0].pipelined);
  comm.barrier().wait();
  if (comm.rank() != 0) return;
  sweep::expect_close(of[0].losses, of[1].losses, 2e-4);
  EXPECT_EQ(sweep::exits(of[0].decisions), sweep::exits(of[1].decisions));
  EXPECT_EQ(of[0].outcome.winner, of[1].outcome.winner);
  task.TearDown();
}

}  // namespace
}  // namespace trireme::test
