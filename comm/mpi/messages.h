// Collectives on messages between the ranks of an MpiGroup.
#pragma once
#include "comm/mpi/group.h"

namespace trireme::p2p {

// The group must outlive the operation: pushing it to the group's queue sees to that. Arguments are checked
// already.
std::shared_ptr<Operation> all_reduce(MpiGroup& group, Buffer inout, Op op);
std::shared_ptr<Operation> reduce_scatter(MpiGroup& group, ConstBuffer in, Buffer out, Op op);
std::shared_ptr<Operation> all_gather(MpiGroup& group, ConstBuffer in, Buffer out);
std::shared_ptr<Operation> all_to_all(MpiGroup& group, ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                                      std::span<const std::size_t> recv);
std::shared_ptr<Operation> broadcast(MpiGroup& group, Buffer inout, int root);
std::shared_ptr<Operation> barrier(MpiGroup& group);

}  // namespace trireme::p2p
