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
  const bool parted = c.sequence != "none";
  if (!c.ranks_per_picture && each == 1 && parted) each = 0;
  if (!c.ranks_per_picture && each == 1 && c.guidance_parallel) each = 2;
  if (each == 0) each = all;
  if (each > all || all % each)
    throw UsageError(
        "ranks_per_picture",
        std::to_string(all) + " rank" + (all == 1 ? "" : "s") + " make no whole groups of " + std::to_string(each),
        "start a multiple of " + std::to_string(each) + ", or change ranks_per_picture");
  if (c.guidance_parallel && each % 2)
    throw UsageError("guidance_parallel", std::to_string(each) + " ranks of a picture make no two halves",
                     "ranks_per_picture: 2");
  if (each > 1 && !parted && method.ranks_per_picture() == 1 && each != (c.guidance_parallel ? 2 : 1))
    throw UsageError("ranks_per_picture", std::to_string(each) + " ranks would all compute the same",
                     "sequence: ulysses or ring, or guidance_parallel: true on 2 ranks");
  Groups g;
  g.placement = placement;
  g.count = int(all / each);
  g.mine = int(world.rank() / each);
  g.control = world.split(g.mine, world.rank());
  g.tensors = for_device(world.split(g.mine, world.rank()), placement, {});
  const int rank = g.control->rank(), half = int(each / 2);
  if (c.guidance_parallel) g.halves = for_device(g.control->split(rank % half, rank / half), placement, {});
  const int part = c.guidance_parallel ? half : int(each);
  if (!parted || part == 1) return g;
  g.parts = for_device(g.control->split(rank / part, rank % part), placement, {});
  g.sequence = sequence_parallel(c.sequence, *g.parts);
  return g;
}

}  // namespace trireme::sample
