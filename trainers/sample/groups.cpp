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

CommStats Groups::sent() const {
  CommStats sum;
  for (const auto* c : {tensors.get(), halves.get(), parts.get()})
    if (c && c->size() > 1) sum += c->stats();
  return sum;
}

Groups make_groups(const SampleConfig& c, const Sampler& method, const Placement& placement, Traced& world) {
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
  // Arms have groups of their own at the same time: each is named by its arm and its place.
  const auto part_of = [&](Traced& ranks, const char* what, int color, int key, bool on_device) {
    const auto make = [&](Communicator& inner) {
      auto host = inner.split(color, key);
      return on_device ? for_device(std::move(host), placement, {}) : std::move(host);
    };
    return ranks.derive(ranks.name() + "/" + c.arm + " " + what + " " + std::to_string(color), make, {});
  };
  Groups g;
  g.placement = placement;
  g.count = int(all / each);
  g.mine = int(world.rank() / each);
  g.control = part_of(world, "control", g.mine, world.rank(), false);
  g.tensors = part_of(world, "tensors", g.mine, world.rank(), true);
  const int rank = g.control->rank(), half = int(each / 2);
  if (c.guidance_parallel) g.halves = part_of(*g.control, "halves", rank % half, rank / half, true);
  const int part = c.guidance_parallel ? half : int(each);
  if (!parted || part == 1) return g;
  g.parts = part_of(*g.control, "parts", rank / part, rank % part, true);
  g.sequence = sequence_parallel(c.sequence, *g.parts);
  return g;
}

}  // namespace trireme::sample
