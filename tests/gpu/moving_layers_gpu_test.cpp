// Steps of a sweep on several GPUs, each of which fetches layers by itself, as CUDA graphs.
#include "comm/backends.h"
#include "comm/device.h"
#include "tests/moving_layers.h"
#include "tests/mpi_harness.h"

namespace trireme::test {
namespace {

void recorded_are_plain(Communicator& world) {
  TrainConfig train;
  train.device = "cuda";
  expect_recorded_are_plain(world, place_rank(world, train), true);
}

TEST(Gpu, RecordedStepsOnMovingLayersArePlainOnes) {
  if (!is_rank() && (!device_runtime() || device_runtime()->count() < 2)) GTEST_SKIP() << "fewer than two GPUs";
  run_mpi_test(device_runtime() && device_runtime()->count() >= 4 ? std::vector<int>{2, 4} : std::vector<int>{2},
               recorded_are_plain);
}

}  // namespace
}  // namespace trireme::test
