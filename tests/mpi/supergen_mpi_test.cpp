// Refinement by tiles on MPI ranks equals that of one rank, to the bit (G1).
#include "comm/local/self.h"
#include "tests/fake_tiles.h"
#include "tests/mpi_harness.h"

namespace trireme::test {
namespace {

MPI_TEST(RefinerOnMpi, GivesTheCanvasOfOneRank, {2, 3, 4}) {
  for (const auto& shape : {sizes({24, 20}, {12, 10}, 4), sizes({36, 30}, {12, 10}, 4)})
    for (const double base : {0.5, 1e300})
      for (const bool redistribute : {true, false}) {
        RefinerConfig config = cached(base);
        config.redistribute = redistribute, config.gates = RefinerConfig::Gates::checked;
        const auto alone = make_self();
        const Refined one = refined(*alone, shape, config, 2), many = refined(comm, shape, config, 2);
        EXPECT_EQ((many.canvas - one.canvas).abs().max().item<float>(), 0.0f);
        EXPECT_EQ(many.map, one.map);
        EXPECT_EQ(many.second_map, one.second_map);
      }
}

}  // namespace
}  // namespace trireme::test
