// Training over the network is training on threads, bit by bit.
#include "bench/own_run.h"
#include "comm/local/loopback.h"
#include "tests/net/lab.h"

#include <filesystem>
#include <fstream>

namespace trireme::test {
namespace {

// 20 steps of recipes/mlp; the losses, and the weights in `file` by rank 0.
std::vector<double> train(Communicator& world, const std::string& file) {
  Experiment run(Config::parse("recipe: mlp\nsteps: 100\nbatch_size: 32\nsizes: [64, 128, 10]\nbucket_mib: 0.01\n"
      "optimizer: {lr: 3.0e-3, warmup: 10}\n", "benchmark"));
  bench::OwnSession session(run, world, 20);
  std::vector<double> losses;
  for (int step = 0; step < 20; ++step) losses.push_back(session.step());
  session.write(file);
  return losses;
}

std::string bytes_of(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

NET_TEST(NetMlp, EqualsLoopback, {2, 4}) {
  ASSERT_EQ(mpi_transport(comm), "messages");
  const std::string stem = std::filesystem::temp_directory_path() / ("trireme-net-mlp-" + std::to_string(getpid()));
  const auto losses = train(comm, stem + ".net");
  if (comm.rank() != 0) return;
  std::vector<double> expected;
  run_loopback(comm.size(), [&](Communicator& world) {
    const auto own = train(world, stem + ".loopback");
    if (world.rank() == 0) expected = own;
  });
  EXPECT_EQ(losses, expected);
  EXPECT_LT(losses.back(), losses.front());
  const std::string a = bytes_of(stem + ".net"), b = bytes_of(stem + ".loopback");
  EXPECT_FALSE(a.empty());
  EXPECT_TRUE(a == b) << "weights differ";
  std::filesystem::remove(stem + ".net");
  std::filesystem::remove(stem + ".loopback");
}

}  // namespace
}  // namespace trireme::test
