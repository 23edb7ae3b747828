#include "comm/cuda/nccl.h"

#include "comm/backends.h"
#include "comm/beside.h"
#include "comm/cuda/nccl_library.h"
#include "comm/cuda/runtime.h"
#include "comm/engine/arguments.h"
#include "comm/error.h"

#include <atomic>
#include <exception>
#include <mutex>
#include <stdexcept>
#include <thread>
#include <vector>

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;
using cuda::captures, cuda::Event, cuda::OnDevice, cuda::Scratch, cuda::stream_of;

ncclDataType_t nccl_type(DType t) {
  static constexpr ncclDataType_t types[] = {ncclFloat64, ncclFloat32, ncclFloat16, ncclBfloat16,
                                             ncclInt64,   ncclInt32,   ncclUint8};
  return types[static_cast<int>(t)];
}

ncclRedOp_t nccl_op(Op op) { return op == Op::sum ? ncclSum : op == Op::min ? ncclMin : ncclMax; }

// NCCL wants the calls of one thread at a time, over all communicators.
std::mutex& enqueue_mutex() {
  static std::mutex mutex;
  return mutex;
}

thread_local bool inside_then = false;

// Of a communicator for calls beside computation: a power of two, which NCCL rounds its channels up to.
constexpr int narrow_ctas = 8;

// What a communicator and its Work handles share.
class NcclGroup {
 public:
  NcclGroup(std::unique_ptr<Communicator> h, int device, DeviceSink s)
      : host(std::move(h)), me{host->rank(), host->size(), device}, stream(device), sink(std::move(s)) {}

  ~NcclGroup() {
    if (!connected()) return;
    try {
      const OnDevice on(me.device);
      if (std::uncaught_exceptions() > 0 || broken) {
        abort();  // the peers may never come
      } else {
        for (const auto comm : {whole, narrow})
          if (comm) nccl().CommDestroy(comm);
      }
      cudaFree(token);
    } catch (...) {  // the driver is gone
    }
  }

  // Both at once: an abort waits for the device, where the kernels of one stand behind the other's.
  void abort() {
    std::vector<std::jthread> each;
    for (const auto comm : {whole, narrow})
      if (comm)
        each.emplace_back([this, comm] {
          cudaSetDevice(me.device);
          nccl().CommAbort(comm);
        });
  }

  bool connected() const { return whole || narrow; }

  // What carries the call at hand; ranks meet at the first that needs it. The lock is held, the device is current.
  ncclComm_t connect() {
    const bool beside = BesideComputation::now();
    ncclComm_t& comm = beside ? narrow : whole;
    if (comm) return comm;
    const bool first = !connected();
    ncclUniqueId id = {};
    if (me.rank == 0) check(nccl().GetUniqueId(&id), "ncclGetUniqueId");
    host->broadcast({&id, sizeof id, DType::u8, {}}, 0).wait();
    ncclConfig_t few = NCCL_CONFIG_INITIALIZER;
    few.maxCTAs = narrow_ctas;
    if (beside)
      check(nccl().CommInitRankConfig(&comm, me.size, id, me.rank, &few), "ncclCommInitRankConfig");
    else
      check(nccl().CommInitRank(&comm, me.size, id, me.rank), "ncclCommInitRank");
    if (first) prepare();
    return comm;
  }
  void prepare() {
    TRIREME_CUDA_CHECK(cudaMalloc(&token, 16));
    TRIREME_CUDA_CHECK(cudaMemset(token, 0, 16));
    if (sink) timer = cuda::make_timer({me.device, stream.get()}, sink);
  }

  void check(ncclResult_t result, const char* call) {
    if (result == ncclSuccess || result == ncclInProgress) return;
    broken = true;
    std::string what = std::string(call) + ": " + nccl().GetErrorString(result);
    if (const char* last = connected() ? nccl().GetLastError(whole ? whole : narrow) : nullptr)
      if (*last) what += std::string(", ") + last;
    throw CommError(place(me), what, "NCCL_DEBUG=WARN tells more");
  }

  // Has NCCL found a peer or a link dead?
  void check_alive() {
    ncclResult_t result = ncclSuccess;
    for (const auto comm : {whole, narrow})
      if (comm && nccl().CommGetAsyncError(comm, &result) == ncclSuccess) check(result, "nccl");
  }

  const std::unique_ptr<Communicator> host;
  const Member me;
  const cuda::Stream stream;
  const DeviceSink sink;
  std::unique_ptr<StreamTimer> timer;            // with the lock
  ncclComm_t whole = nullptr, narrow = nullptr;  // both on this stream; narrow: for calls beside computation
  void* token = nullptr;                         // what a barrier reduces
  std::atomic<bool> broken{false};
};

class NcclWork final : public Work::State, public std::enable_shared_from_this<NcclWork> {
  std::shared_ptr<NcclGroup> g_;  // first, so that it ends last: the memory below goes back to its stream
  Place place_;

 public:
  NcclWork(std::shared_ptr<NcclGroup> group, Place place) : g_(std::move(group)), place_(place) {}

  Event end;        // behind the last thing enqueued
  Scratch scratch;  // a copied input
  std::exception_ptr error;
  Work inner;                     // of then()
  std::function<Work()> keep;     // what a continuation uses lives as long as this
  std::shared_ptr<State> parent;  // and so does what came before it

  bool done() override {
    rethrow();
    if (!end.complete()) {
      g_->check_alive();
      return false;
    }
    return inner.done();
  }
  bool settled() override try { return error || (end.complete() && inner.settled()); } catch (const Error&) {
    return true;  // failed
  }
  void wait() override {
    if (inside_then)
      throw CommError(place(g_->me), "wait() on a collective inside then()",
                      "return its Work from the function instead");
    rethrow();
    const OnDevice on(g_->me.device);
    Event behind;  // not `end`, which the watchdog may be asking
    if (inner.state()) {
      // What it waits for is in order on the communicator's stream, perhaps behind `end`.
      inner.wait();
      behind.record(g_->me.device, g_->stream.get());
    }
    const Event& last = behind ? behind : end;
    if (place_.host()) {
      last.wait(Clock::time_point::max(), [this] { g_->check_alive(); });
    } else {
      last.block(stream_of(place_));
    }
  }
  bool wait_host(std::chrono::milliseconds timeout) override {
    rethrow();
    const auto until = Clock::now() + timeout;
    if (!end.wait(until, [this] { g_->check_alive(); })) return false;
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now());
    return !inner.state() || inner.state()->wait_host(std::max(left, std::chrono::milliseconds(0)));
  }

  std::shared_ptr<State> then(std::function<Work()> next) override {
    auto state = std::make_shared<NcclWork>(g_, place_);
    state->parent = shared_from_this();
    state->error = error;
    if (error) return state;
    const OnDevice on(g_->me.device);
    order(*this, g_->stream.get());
    const bool before = std::exchange(inside_then, true);
    try {
      in_stream({g_->me.device, g_->stream.get()}, [&] { state->inner = next(); });
    } catch (...) {
      state->error = std::current_exception();
    }
    inside_then = before;
    state->end.record(g_->me.device, g_->stream.get());
    state->keep = std::move(next);
    return state;
  }

 private:
  void rethrow() const {
    if (error) std::rethrow_exception(error);
  }
  // `stream` waits for `work` and for what its continuation posted, perhaps elsewhere.
  static void order(NcclWork& work, cudaStream_t stream) {
    work.end.block(stream);
    if (auto* next = dynamic_cast<NcclWork*>(work.inner.state().get())) {
      order(*next, stream);
    } else {
      work.inner.wait();
    }
  }
};

class Nccl final : public Communicator {
 public:
  Nccl(std::unique_ptr<Communicator> host, int device, DeviceSink sink)
      : g_(std::make_shared<NcclGroup>(std::move(host), device, std::move(sink))) {}
  ~Nccl() override {
    if (std::uncaught_exceptions() > 0) g_->broken = true;  // also where another thread ends the group
  }

  int rank() const override { return g_->me.rank; }
  int size() const override { return g_->me.size; }

  Work all_reduce(Buffer inout, Op op) override {
    if (inout.place.host()) return g_->host->all_reduce(inout, op);
    check_all_reduce(g_->me, inout);
    if (size() == 1 || inout.count == 0) return {};
    return enqueue("all_reduce", 2 * inout.bytes() * others() / ranks(), inout.place, inout.place,
                   [&](auto&, ncclComm_t comm) {
                     return nccl().AllReduce(inout.data, inout.data, inout.count, nccl_type(inout.dtype), nccl_op(op),
                                             comm, stream());
                   });
  }

  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override {
    if (out.place.host()) return g_->host->reduce_scatter(in, out, op);
    check_reduce_scatter(g_->me, in, out);
    if (size() == 1) return copy(in, out);
    if (out.count == 0) return {};
    return enqueue("reduce_scatter", out.bytes() * others(), in.place, out.place, [&](NcclWork& work, ncclComm_t comm) {
      const void* from = misplaced(in.data, in.bytes(), out.data, out.bytes(), rank()) ? separate(work, in) : in.data;
      return nccl().ReduceScatter(from, out.data, out.count, nccl_type(out.dtype), nccl_op(op), comm, stream());
    });
  }

  Work all_gather(ConstBuffer in, Buffer out) override {
    if (out.place.host()) return g_->host->all_gather(in, out);
    check_all_gather(g_->me, in, out);
    if (size() == 1) return copy(in, out);
    if (in.count == 0) return {};
    return enqueue("all_gather", in.bytes() * others(), in.place, out.place, [&](NcclWork& work, ncclComm_t comm) {
      const void* from = misplaced(out.data, out.bytes(), in.data, in.bytes(), rank()) ? separate(work, in) : in.data;
      return nccl().AllGather(from, out.data, in.count, nccl_type(in.dtype), comm, stream());
    });
  }

  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    if (out.place.host()) return g_->host->all_to_all(in, send, out, recv);
    check_all_to_all(g_->me, in, send, out, recv);
    const auto from = byte_offsets(send, in.dtype), to = byte_offsets(recv, in.dtype);
    const auto self = static_cast<std::size_t>(rank());
    const std::uint64_t sent = from.back() - (from[self + 1] - from[self]);
    return enqueue("all_to_all", sent, in.place, out.place, [&](NcclWork& work, ncclComm_t comm) {
      const void* source = overlap(in.data, in.bytes(), out.data, out.bytes()) ? separate(work, in) : in.data;
      ncclResult_t result = nccl().GroupStart();
      const auto keep_first = [&](ncclResult_t r) { result = result == ncclSuccess ? r : result; };
      for (int r = 0; r < size(); ++r) {
        const auto i = static_cast<std::size_t>(r);  // this rank too: NCCL copies beside what it sends
        if (send[i] > 0) keep_first(nccl().Send(at(source, from[i]), send[i], nccl_type(in.dtype), r, comm, stream()));
        if (recv[i] > 0) keep_first(nccl().Recv(at(out.data, to[i]), recv[i], nccl_type(in.dtype), r, comm, stream()));
      }
      keep_first(nccl().GroupEnd());
      return result;
    });
  }

  Work broadcast(Buffer inout, int root) override {
    if (inout.place.host()) return g_->host->broadcast(inout, root);
    check_broadcast(g_->me, inout, root);
    if (size() == 1 || inout.count == 0) return {};
    return enqueue("broadcast", inout.bytes(), inout.place, inout.place, [&](auto&, ncclComm_t comm) {
      return nccl().Broadcast(inout.data, inout.data, inout.count, nccl_type(inout.dtype), root, comm, stream());
    });
  }

  // Behind all that was posted before it, on every rank.
  Work barrier() override {
    if (size() == 1) return {};
    return enqueue("barrier", 0, {}, {}, [&](auto&, ncclComm_t comm) {
      return nccl().AllReduce(g_->token, g_->token, 1, ncclInt32, ncclMax, comm, stream());
    });
  }

  std::unique_ptr<Communicator> split(int color, int key) override {
    return make_nccl(g_->host->split(color, key), g_->me.device, g_->sink);
  }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return g_->host->allocate(bytes); }
  bool capturable() const override { return true; }

  void abort(int code, std::string_view why) noexcept override {
    // It ends kernels that wait for peers; but a job must end even if NCCL itself is stuck.
    auto aborted = std::make_shared<std::atomic<bool>>(!g_->connected());
    if (g_->connected()) {
      std::thread([g = g_, aborted] {
        g->abort();
        aborted->store(true);
      }).detach();
    }
    const auto end = Clock::now() + std::chrono::seconds(1);
    while (!aborted->load() && Clock::now() < end) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    g_->host->abort(code, why);
  }
  std::string_view backend() const override { return "nccl"; }

 private:
  cudaStream_t stream() const { return g_->stream.get(); }
  std::uint64_t ranks() const { return static_cast<std::uint64_t>(size()); }
  std::uint64_t others() const { return ranks() - 1; }

  // `post(work, comm)` enqueues on stream(), which waits for the callers' streams first.
  template <class F>
  Work enqueue(const char* name, std::uint64_t bytes, Place in, Place out, const F& post) {
    auto work = std::make_shared<NcclWork>(g_, out);
    const std::lock_guard lock(enqueue_mutex());
    const OnDevice on(g_->me.device);
    const ncclComm_t comm = g_->connect();
    follow(out);
    if (in.stream != out.stream) follow(in);
    const bool captured = captures(stream());
    StreamTimer* const timer = captured ? nullptr : g_->timer.get();  // a graph's times are not its calls'
    if (timer) timer->begin();
    g_->check(post(*work, comm), name);
    if (timer) timer->end(name, bytes);
    work->end.record(g_->me.device, stream());
    if (!captured) newest_ = work;
    return Work(std::move(work));
  }
  void follow(Place place) {
    if (place.host() || stream_of(place) == stream()) return;
    Event here;
    here.record(g_->me.device, stream_of(place));
    here.block(stream());
  }
  // A copy of `in`, for results that would overwrite what is still to be sent.
  const void* separate(NcclWork& work, const ConstBuffer& in) {
    if (captures(stream())) throw std::runtime_error("buffers of a collective overlap, which no graph can hold");
    work.scratch = Scratch(in.bytes(), stream());
    TRIREME_CUDA_CHECK(cudaMemcpyAsync(work.scratch.data(), in.data, in.bytes(), cudaMemcpyDeviceToDevice, stream()));
    return work.scratch.data();
  }
  Work copy(const ConstBuffer& in, const Buffer& out) {
    if (in.count == 0 || in.data == out.data) return {};
    const OnDevice on(g_->me.device);
    TRIREME_CUDA_CHECK(cudaMemcpyAsync(out.data, in.data, in.bytes(), cudaMemcpyDeviceToDevice, stream_of(out.place)));
    return {};
  }

  std::shared_ptr<NcclGroup> g_;
  // A device works on when all handles are gone. A log that asks this one knows of all before it: they are in order.
  std::shared_ptr<NcclWork> newest_;
};

}  // namespace

std::unique_ptr<Communicator> make_nccl(std::unique_ptr<Communicator> host, int device, DeviceSink sink) {
  nccl();  // found, or refused here
  return std::make_unique<Nccl>(std::move(host), device, std::move(sink));
}

}  // namespace trireme
