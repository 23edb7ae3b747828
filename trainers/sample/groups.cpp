#include "trainers/sample/groups.h"

#include "comm/error.h"
#include "framework/train_config.h"

namespace trireme::sample {

Placement place(const SampleConfig& config, Communicator& world) {
  TrainConfig train;
  train.device = config.device;
  train.communicator = config.communicator;
  return place_rank(world, train);
}

Groups make_groups(const SampleConfig& c, const Sampler& method, const Placement& placement, Communicator& world) {
  const std::int64_t all = world.size();
  std::int64_t each = c.ranks_per_picture ? c.ranks_per_picture : method.ranks_per_picture();
  if (c.guidance_parallel && !c.ranks_per_picture && each == 1) each = 2;
  if (c.sequence != "none" && !c.ranks_per_picture) each = all;
  if (each == 0) each = all;
  if (each > all || all % each)
    throw UsageError(
        "ranks_per_picture",
        std::to_string(all) + " rank" + (all == 1 ? "" : "s") + " make no whole groups of " + std::to_string(each),
        "start a multiple of " + std::to_string(each) + ", or change ranks_per_picture");
  if (c.guidance_parallel && each % 2)
    throw UsageError("guidance_parallel", std::to_string(each) + " ranks of a picture make no two halves",
                     "ranks_per_picture: 2");
  Groups g{placement, int(all / each), int(world.rank() / each), nullptr, nullptr, nullptr, nullptr};
  g.control = world.split(g.mine, world.rank());
  g.tensors = for_device(world.split(g.mine, world.rank()), placement, {});
  if (c.guidance_parallel) {
    const int half = int(each / 2), rank = g.control->rank();
    g.halves = for_device(g.control->split(rank % half, rank / half), placement, {});
  }
  if (c.sequence != "none") {
    const int share = int(c.guidance_parallel ? each / 2 : each), rank = g.control->rank();
    g.tokens = for_device(g.control->split(rank / share, rank), placement, {});
  }
  return g;
}

}  // namespace trireme::sample
