// The live inter-task scheduler on MPI ranks: tasks of one and two ranks on sub-communicators, one that shrinks and one
// that another process hands in while they run.
#include "tests/fake_task.h"
#include "tests/mpi_harness.h"
#include "trainers/sweep/cluster/inbox.h"
#include "trainers/sweep/cluster/journal.h"

#include <filesystem>

namespace trireme::test {
namespace {

namespace fs = std::filesystem;

MPI_TEST(Driver, TakesATaskOfAnotherProcess, {2, 4}) {
  const std::string folder = (fs::temp_directory_path() / ("trireme-driver-" + std::to_string(getppid()))).string();
  if (comm.rank() == 0) {
    fs::remove_all(folder), fs::create_directories(folder);
    std::ofstream(folder + "/late") << "late 2 0.02 20 0 0 0";
  }
  comm.barrier().wait();
  bool posted = comm.rank() != comm.size() - 1;  // the last rank plays the other process
  const auto result = drive_fakes(comm, folder, {"a 1 0.05 50 0 0 0", "b 2 0.2 200 50 1 0", "c 1 0.03 30 0 0 0"}, [&] {
    if (!posted) posted = true, cluster::post(folder, folder + "/late");
    return false;
  });
  EXPECT_EQ(result.done, 4);
  EXPECT_EQ(result.failed, 0);
  if (comm.rank() != 0) return;
  const TaskSchedule s = read_schedule(folder);
  expect_apart(s.actual);
  EXPECT_EQ(s.actual.size(), 5u);
  EXPECT_TRUE(cluster::recover(folder).unfinished.empty());
  std::cout << gantt_text(s.plan, s.gpus, last_end(s), task_names(s), 60)
            << gantt_text(s.actual, s.gpus, last_end(s), task_names(s), 60);
  fs::remove_all(folder);
}

}  // namespace
}  // namespace trireme::test
