// A gather is a copy of each rank's share, on a stream for each rank: a card that reads all others at once uses all of
// its link however the ranks drift apart, where one copy after another meets other ranks at the same card. Shares never
// change, hence there is nothing to agree on between the opening (they are written) and the end (nobody reads them any
// more).
#include "comm/cuda/fetched_shares.h"

#include "comm/cuda/ipc.h"
#include "comm/cuda/runtime.h"
#include "comm/engine/arguments.h"
#include "comm/error.h"

#include <exception>
#include <vector>

namespace trireme::cuda {
namespace {

// A copy within a device that leaves the multiprocessors to what computes meanwhile, where the driver can.
void copy_beside(void* to, const void* from, std::size_t bytes, cudaStream_t stream) {
#if CUDART_VERSION >= 13000
  cudaMemcpyAttributes how = {};
  how.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
  how.flags = cudaMemcpyFlagPreferOverlapWithCompute;
  std::size_t first = 0;
  // Not into a graph, whose copies choose by themselves.
  if (!captures(stream) && cudaMemcpyBatchAsync(&to, &from, &bytes, 1, &how, &first, 1, stream) == cudaSuccess) return;
  cudaGetLastError();  // a driver that does not know it
#endif
  TRIREME_CUDA_CHECK(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, stream));
}

using Streams = std::vector<std::unique_ptr<Stream>>;  // by rank

class Fetch final : public Work::State, public std::enable_shared_from_this<Fetch> {
 public:
  Fetch(std::shared_ptr<Streams> streams, Place place) : streams_(std::move(streams)), place_(place) {}
  Event end;

  bool done() override { return end.complete(); }
  bool settled() override try { return end.complete(); } catch (const Error&) {
    return true;  // failed
  }
  void wait() override {
    const OnDevice on(place_.device);
    // What a graph fetches is ordered within it; behind its capture nothing has run.
    if (!end.captured() || captures(stream_of(place_))) end.block(stream_of(place_));
  }
  bool wait_host(std::chrono::milliseconds timeout) override {
    return end.wait(std::chrono::steady_clock::now() + timeout, {});
  }
  // The host waits: no communicator makes progress here.
  std::shared_ptr<State> then(std::function<Work()> next) override {
    end.wait(std::chrono::steady_clock::time_point::max(), {});
    const auto after = next().state();
    return after ? after : shared_from_this();
  }

 private:
  std::shared_ptr<Streams> streams_;
  Place place_;
};

class FetchedShares final : public FrozenShares {
 public:
  FetchedShares(Communicator& ranks, std::vector<ConstBuffer> mine, std::vector<Imported> shares)
      : ranks_(ranks),
        mine_(std::move(mine)),
        shares_(std::move(shares)),
        me_{ranks.rank(), ranks.size(), mine_[0].place.device},
        streams_(std::make_shared<Streams>()) {
    for (int r = 0; r < me_.size; ++r) streams_->push_back(std::make_unique<Stream>(me_.device));
  }

  // An owner frees its share behind this: all ranks have read it and closed it by then. Peers of a rank that fails
  // may never come.
  ~FetchedShares() override {
    const bool failing = std::uncaught_exceptions() > 0;
    try {
      const OnDevice on(me_.device);
      for (const auto& stream : *streams_) TRIREME_CUDA_CHECK(cudaStreamSynchronize(stream->get()));
      // Graphs read shares where they are replayed. Not the whole device: a collective whose peers are gone never ends.
      TRIREME_CUDA_CHECK(cudaStreamSynchronize(stream_of(mine_[0].place)));
      shares_.clear();
      std::int32_t here = 1;
      if (!failing) ranks_.all_reduce({&here, 1, DType::i32, {}}, Op::min).wait();
    } catch (const Error&) {  // whoever needs the ranks next will say so
    }
  }

  Work gather(std::size_t piece, Buffer out) override {
    const ConstBuffer own = mine_.at(piece);
    check_all_gather(me_, own, out);
    if (own.count == 0) return {};
    const auto ranks = static_cast<std::size_t>(me_.size), me = static_cast<std::size_t>(me_.rank);
    const std::size_t bytes = own.bytes();
    const OnDevice on(me_.device);
    const auto work = std::make_shared<Fetch>(streams_, out.place);
    const cudaStream_t last = (*streams_)[me]->get();
    Event free, copied;
    free.record(me_.device, stream_of(out.place));
    free.block(last);
    copy_beside(at(out.data, me * bytes), own.data, bytes, last);
    for (std::size_t r = 0; r < ranks; ++r) {
      if (r == me) continue;
      const cudaStream_t stream = (*streams_)[r]->get();
      free.block(stream);
      TRIREME_CUDA_CHECK(cudaMemcpyAsync(at(out.data, r * bytes), shares_[r * mine_.size() + piece].data, bytes,
                                         cudaMemcpyDefault, stream));
      copied.record(me_.device, stream);
      copied.block(last);
    }
    work->end.record(me_.device, last);
    return Work(work);
  }
  bool fetched() const override { return true; }

 private:
  Communicator& ranks_;
  const std::vector<ConstBuffer> mine_;
  std::vector<Imported> shares_;  // of every rank, its pieces
  const Member me_;
  std::shared_ptr<Streams> streams_;
};

// Empty where one cannot be opened. The first byte of each is read, since what opens may still be out of reach.
std::vector<Imported> opened(const std::vector<Exported>& all, cudaStream_t stream) try {
  std::vector<Imported> shares;
  for (const auto& other : all) {
    if (!within_reach(other)) return {};
    shares.push_back(open_memory(other));
    std::byte first{};
    if (!shares.back().data) continue;
    TRIREME_CUDA_CHECK(cudaMemcpyAsync(&first, shares.back().data, 1, cudaMemcpyDefault, stream));
    TRIREME_CUDA_CHECK(cudaStreamSynchronize(stream));
  }
  return shares;
} catch (const Error&) {  // an answer
  return {};
}

}  // namespace

std::unique_ptr<FrozenShares> fetched_shares(Communicator& ranks, const std::vector<ConstBuffer>& mine) {
  const Place here = mine[0].place;
  const OnDevice on(here.device);
  TRIREME_CUDA_CHECK(cudaStreamSynchronize(stream_of(here)));
  std::vector<Exported> own, all(mine.size() * static_cast<std::size_t>(ranks.size()));
  for (const auto& piece : mine) own.push_back(export_memory(piece.count > 0 ? piece.data : nullptr));
  ranks
      .all_gather({own.data(), own.size() * sizeof own[0], DType::u8, {}},
                  {all.data(), all.size() * sizeof own[0], DType::u8, {}})
      .wait();
  auto shares = opened(all, stream_of(here));
  std::int32_t possible = !shares.empty();
  ranks.all_reduce({&possible, 1, DType::i32, {}}, Op::min).wait();
  if (possible) return std::make_unique<FetchedShares>(ranks, mine, std::move(shares));
  shares.clear();  // behind what follows nobody has another's share open
  ranks.all_reduce({&possible, 1, DType::i32, {}}, Op::min).wait();
  return nullptr;
}

}  // namespace trireme::cuda
