// Internals of the mpi backend: what its communicators and operations share.
#pragma once
#include "comm/engine/arguments.h"
#include "comm/engine/engine.h"
#include "comm/mpi/mpi.h"
#include "comm/mpi/shm_channel.h"
#include "comm/mpi/tags.h"

#define OMPI_SKIP_MPICXX 1  // the C++ bindings of old, which do not compile cleanly
#define MPICH_SKIP_MPICXX 1
#include <mpi.h>

namespace trireme {

// This process's MPI. All calls go through the thread that polls the engine.
struct MpiLink {
  MPI_Comm comm = MPI_COMM_NULL;  // a duplicate of the world: every message travels on it
  std::shared_ptr<Engine> engine;
  MpiOptions options;
  std::vector<int> node_of;  // world rank -> lowest world rank of its node
  std::unique_ptr<Tags> tags;
};

// A group of ranks. Its messages carry its own tag (tags.h), so that no MPI communicator has to be made.
class MpiGroup final : public Queue {
 public:
  MpiGroup(std::shared_ptr<MpiLink> l, std::vector<int> ranks, int rank, int t)
      : Queue(l->engine),
        link(std::move(l)),
        me{rank, static_cast<int>(ranks.size())},
        world(std::move(ranks)),
        tag(t) {}
  ~MpiGroup() override { link->tags->give_back(tag); }

  const std::shared_ptr<MpiLink> link;
  const Member me;
  const std::vector<int> world;  // group rank -> world rank
  const int tag;
  std::unique_ptr<ShmChannel> shm;  // null: messages
};

// A collective posted with `in` and `out` of one buffer would overwrite what it still has to send: then the
// operation sends from a copy.
class InputCopy {
 public:
  ConstBuffer separate(const ConstBuffer& in) {
    const std::byte* begin = at(in.data, 0);
    copy_.assign(begin, begin + in.bytes());
    return {copy_.data(), in.count, in.dtype, in.place};
  }

 private:
  std::vector<std::byte> copy_;
};

}  // namespace trireme
