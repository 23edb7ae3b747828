// NCCL as a plain program uses it: one communicator, one call or one group of sends and receives, one wait.
#include "bench/comm_device.h"
#include "comm/cuda/nccl_library.h"
#include "comm/error.h"

#include <cuda_runtime_api.h>

namespace trireme::bench {
namespace {

void check(ncclResult_t result) {
  if (result != ncclSuccess) throw CommError("bare nccl", nccl().GetErrorString(result), "NCCL_DEBUG=WARN tells more");
}

class Bare {
 public:
  explicit Bare(Communicator& host) : rank_(host.rank()), size_(host.size()) {
    ncclUniqueId id = {};
    if (rank_ == 0) check(nccl().GetUniqueId(&id));
    host.broadcast({&id, sizeof id, DType::u8, {}}, 0).wait();
    check(nccl().CommInitRank(&comm_, size_, id, rank_));
    if (cudaMalloc(&token_, sizeof(float)) != cudaSuccess) throw CommError("bare nccl", "no device memory");
  }
  ~Bare() {
    nccl().CommDestroy(comm_);
    cudaFree(token_);
  }
  Bare(const Bare&) = delete;
  Bare& operator=(const Bare&) = delete;

  void call(const Exchange& x, Place place) {
    const auto stream = static_cast<cudaStream_t>(place.stream);
    check(enqueue(x, stream));
    if (cudaStreamSynchronize(stream) != cudaSuccess) throw CommError("bare nccl", "cudaStreamSynchronize failed");
  }

 private:
  ncclResult_t enqueue(const Exchange& x, cudaStream_t stream) {
    if (x.op == "all_reduce") return nccl().AllReduce(x.out, x.out, x.out_count, ncclFloat, ncclSum, comm_, stream);
    if (x.op == "reduce_scatter")
      return nccl().ReduceScatter(x.in, x.out, x.out_count, ncclFloat, ncclSum, comm_, stream);
    if (x.op == "all_gather") return nccl().AllGather(x.in, x.out, x.in_count, ncclFloat, comm_, stream);
    if (x.op == "broadcast") return nccl().Broadcast(x.out, x.out, x.out_count, ncclFloat, 0, comm_, stream);
    if (x.op == "barrier") return nccl().AllReduce(token_, token_, 1, ncclFloat, ncclSum, comm_, stream);
    const std::size_t part = x.in_count / std::size_t(size_);
    check(nccl().GroupStart());
    for (int r = 0; r < size_; ++r) {  // to itself too, as NCCL's own test of all-to-all does
      check(nccl().Send(x.in + std::size_t(r) * part, part, ncclFloat, r, comm_, stream));
      check(nccl().Recv(x.out + std::size_t(r) * part, part, ncclFloat, r, comm_, stream));
    }
    return nccl().GroupEnd();
  }

  int rank_, size_;
  ncclComm_t comm_ = nullptr;
  void* token_ = nullptr;  // what a barrier reduces
};

const bool registered = [] {
  set_bare_nccl([](Communicator& host) -> BareCall {
    return [bare = std::make_shared<Bare>(host)](const Exchange& x, Place place) { bare->call(x, place); };
  });
  return true;
}();

}  // namespace
}  // namespace trireme::bench
