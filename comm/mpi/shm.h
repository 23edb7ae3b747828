// Collectives through shared memory between the ranks of an MpiGroup that has a ShmChannel.
#pragma once
#include "comm/mpi/group.h"

namespace trireme::shm {

// As in messages.h.
std::shared_ptr<Operation> all_reduce(MpiGroup& group, Buffer inout, Op op);
std::shared_ptr<Operation> reduce_scatter(MpiGroup& group, ConstBuffer in, Buffer out, Op op);
std::shared_ptr<Operation> all_gather(MpiGroup& group, ConstBuffer in, Buffer out);
std::shared_ptr<Operation> all_to_all(MpiGroup& group, ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                                      std::span<const std::size_t> recv);
std::shared_ptr<Operation> broadcast(MpiGroup& group, Buffer inout, int root);
std::shared_ptr<Operation> barrier(MpiGroup& group);

}  // namespace trireme::shm
