// NCCL's functions, found at run time.
#pragma once
#include <nccl.h>

namespace trireme {

#define TRIREME_NCCL_FUNCTIONS(F) \
  F(GetVersion)                   \
  F(GetUniqueId)                  \
  F(CommInitRank)                 \
  F(CommInitRankConfig)           \
  F(CommDestroy)                  \
  F(CommAbort)                    \
  F(CommGetAsyncError)            \
  F(GetErrorString)               \
  F(GetLastError) F(AllReduce) F(ReduceScatter) F(AllGather) F(Broadcast) F(Send) F(Recv) F(GroupStart) F(GroupEnd)

struct NcclLibrary {
#define TRIREME_NCCL_MEMBER(f) decltype(&nccl##f) f = nullptr;
  TRIREME_NCCL_FUNCTIONS(TRIREME_NCCL_MEMBER)
#undef TRIREME_NCCL_MEMBER
};

const NcclLibrary* find_nccl();  // null if it is not there or too old
const NcclLibrary& nccl();       // throws UsageError instead

}  // namespace trireme
