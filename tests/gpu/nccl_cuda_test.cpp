// links: comm
// What the contract tests cannot see of the CUDA part: kernels against their CPU twins, CUDA graphs, the end
// of a job, and what a call costs the host.
#include "comm/backends.h"
#include "comm/beside.h"
#include "comm/cuda/nccl.h"
#include "comm/cuda/nccl_library.h"
#include "comm/cuda/reduce.h"
#include "comm/cuda/runtime.h"
#include "comm/reduce.h"
#include "comm/wrappers/traced.h"
#include "tests/mpi_harness.h"

#include <algorithm>
#include <cstring>
#include <random>
#include <thread>

namespace trireme::test {
namespace {

using Clock = std::chrono::steady_clock;
using cuda::Event;

std::string missing(const char* backend, int ranks) {
  for (const auto& entry : Communicators::values())
    if (entry.name == backend) return entry.missing(ranks);
  return "built without CUDA";
}

// The device of this rank, made current.
int pick_device(Communicator& world) {
  const int device = world.rank() % device_runtime()->count();
  TRIREME_CUDA_CHECK(cudaSetDevice(device));
  return device;
}

void on_two_cards(void (*rank_main)(Communicator&)) {
  if (!is_rank())
    if (const auto why = missing("nccl", 2); !why.empty()) GTEST_SKIP() << why;
  run_mpi_test({2}, rank_main);
}

// A rank's card, with a buffer of 1,024 floats on a stream.
struct OnItsCard {
  explicit OnItsCard(Communicator& world) : device(pick_device(world)) {}
  const int device;
  const cuda::Stream stream{device};
  const std::shared_ptr<void> memory = device_runtime()->memory(4096);
  const Buffer buffer{memory.get(), 1024, DType::f32, {device, stream.get()}};
};

template <class T>
std::vector<T> read(const void* p, std::size_t count, cudaStream_t stream) {
  std::vector<T> v(count);
  device_runtime()->copy(v.data(), p, count * sizeof(T), {0, stream});
  return v;
}

TEST(CudaReduce, EqualsItsTwin) {
  if (const auto why = missing("mpi-cuda", 1); !why.empty()) GTEST_SKIP() << why;
  std::mt19937_64 random(3);
  const cuda::Stream stream(0);
  const std::size_t room = 1 << 17;
  for (DType t : {DType::f64, DType::f32, DType::f16, DType::bf16, DType::i64, DType::i32, DType::u8})
    for (Op op : {Op::sum, Op::min, Op::max})
      for (int inputs : {1, 2, 3, 5})
        for (std::size_t odd : {0, 1}) {
          const std::size_t count = 4099, bytes = count * size_of(t), skip = odd * size_of(t);
          std::vector<std::vector<std::byte>> host(std::size_t(inputs), std::vector<std::byte>(bytes + 16));
          const auto memory = device_runtime()->memory(room * std::size_t(inputs + 2));
          std::vector<const void*> here, there;
          for (std::size_t r = 0; r < host.size(); ++r) {
            auto* words = reinterpret_cast<std::uint64_t*>(host[r].data());
            for (std::size_t i = 0; i < host[r].size() / 8; ++i)
              words[i] = random();  // any bits: infinities, subnormals, NaN
            here.push_back(host[r].data());
            auto* place = static_cast<std::byte*>(memory.get()) + room * r + skip;
            device_runtime()->copy(place, host[r].data(), bytes, {0, stream.get()});
            there.push_back(place);
          }
          std::vector<std::byte> expected(bytes);
          reduce(op, t, expected.data(), here, count);
          void* outs[] = {static_cast<std::byte*>(memory.get()) + room * host.size() + skip,
                          static_cast<std::byte*>(memory.get()) + room * (host.size() + 1) + skip};
          cuda::reduce(op, t, outs, 2, there.data(), there.size(), count, stream.get());
          for (void* out : outs) {
            const auto found = read<std::byte>(out, bytes, stream.get());
            std::size_t different = 0;
            for (std::size_t i = 0; i < count; ++i) {
              const std::byte *a = expected.data() + i * size_of(t), *b = found.data() + i * size_of(t);
              if (std::memcmp(a, b, size_of(t)) == 0) continue;
              // The payload of a NaN may differ.
              const auto nan = [&](const std::byte* p) {
                std::uint64_t bits = 0;
                std::memcpy(&bits, p, size_of(t));
                if (t == DType::f64) return (bits & ~(1ull << 63)) > 0x7ff0000000000000ull;
                if (t == DType::f32) return (bits & 0x7fffffffu) > 0x7f800000u;
                if (t == DType::f16) return (bits & 0x7fffu) > 0x7c00u;
                return t == DType::bf16 && (bits & 0x7fffu) > 0x7f80u;
              };
              different += !(nan(a) && nan(b));
            }
            EXPECT_EQ(different, 0u) << name(t) << " " << name(op) << " of " << inputs << ", offset " << odd;
          }
        }
}

void captures(Communicator& world) {
  const int device = pick_device(world);
  const auto comm = make_nccl(world.split(0, world.rank()), device);
  EXPECT_TRUE(comm->capturable());
  const cuda::Stream stream(device);
  const std::size_t count = 10000;
  const auto source = device_runtime()->memory(count * 4), memory = device_runtime()->memory(count * 4);
  const Place place{device, stream.get()};
  const Buffer buffer{memory.get(), count, DType::f32, place};
  comm->all_reduce(buffer, Op::sum).wait();  // ranks meet outside the graph
  TRIREME_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  TRIREME_CUDA_CHECK(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  TRIREME_CUDA_CHECK(cudaMemcpyAsync(memory.get(), source.get(), count * 4, cudaMemcpyDeviceToDevice, stream.get()));
  comm->all_reduce(buffer, Op::sum).then([&] { return comm->all_reduce(buffer, Op::max); }).wait();
  TRIREME_CUDA_CHECK(cudaStreamEndCapture(stream.get(), &graph));
  TRIREME_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, 0));
  for (int k = 1; k <= 3; ++k) {
    std::vector<float> mine(count);
    for (std::size_t i = 0; i < count; ++i) mine[i] = float(i % 100) * float(k) + float(world.rank());
    device_runtime()->copy(source.get(), mine.data(), count * 4, place);
    TRIREME_CUDA_CHECK(cudaGraphLaunch(exec, stream.get()));
    const auto found = read<float>(memory.get(), count, stream.get());
    const int n = world.size();
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < count; ++i)
      wrong += found[i] != float(n) * float(i % 100) * float(k) + float(n * (n - 1) / 2);
    EXPECT_EQ(wrong, 0u) << "replay " << k;
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

TEST(Nccl, CollectivesInACudaGraph) { on_two_cards(captures); }

// Calls beside computation and others take turns, in a graph too: each in order behind the one before, though two NCCL
// communicators carry them.
void takes_turns(Communicator& world) {
  const int device = pick_device(world);
  const auto comm = make_nccl(world.split(0, world.rank()), device);
  const cuda::Stream stream(device);
  const std::size_t n = std::size_t(world.size()), each = 1 << 20;
  const auto source = device_runtime()->memory(n * each * 4), there = device_runtime()->memory(n * each * 4),
             back = device_runtime()->memory(n * each * 4);
  const Place place{device, stream.get()};
  const std::vector<std::size_t> counts(n, each);
  const auto exchange = [&](const auto& from, const auto& to, bool beside) {
    const BesideComputation few(beside);
    comm->all_to_all({from.get(), n * each, DType::f32, place}, counts, {to.get(), n * each, DType::f32, place}, counts)
        .wait();
  };
  const auto calls = [&] {  // there and back, twice: what was sent
    for (const bool first : {true, false}) {
      exchange(first ? source : back, there, first);
      exchange(there, back, !first);
    }
  };
  calls();  // ranks meet outside the graph
  TRIREME_CUDA_CHECK(cudaStreamSynchronize(stream.get()));
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  TRIREME_CUDA_CHECK(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
  calls();
  TRIREME_CUDA_CHECK(cudaStreamEndCapture(stream.get(), &graph));
  TRIREME_CUDA_CHECK(cudaGraphInstantiate(&exec, graph, cudaGraphInstantiateFlagUseNodePriority));
  for (int k = 0; k < 4; ++k) {
    std::vector<float> mine(n * each);
    for (std::size_t i = 0; i < mine.size(); ++i) mine[i] = float(i % 1000) + 1000.0F * float(world.rank() + 10 * k);
    device_runtime()->copy(source.get(), mine.data(), mine.size() * 4, place);
    if (k % 2)
      TRIREME_CUDA_CHECK(cudaGraphLaunch(exec, stream.get()));
    else
      calls();
    EXPECT_EQ(read<float>(back.get(), n * each, stream.get()), mine) << "round " << k;
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
}

TEST(Nccl, CallsBesideComputationKeepTheirOrder) { on_two_cards(takes_turns); }

// The copy of an input goes back to the communicator's stream, also where the Work is the last that knows of it.
void work_outlives_its_communicator(Communicator& world) {
  const int device = pick_device(world);
  const cuda::Stream stream(device);
  const std::size_t count = 100000, n = std::size_t(world.size());
  const auto memory = device_runtime()->memory(n * count * 4);
  const Place place{device, stream.get()};
  cudaMemPool_t pool = nullptr;
  TRIREME_CUDA_CHECK(cudaDeviceGetDefaultMemPool(&pool, device));
  const auto used = [&] {
    std::uint64_t bytes = 0;
    TRIREME_CUDA_CHECK(cudaDeviceSynchronize());
    TRIREME_CUDA_CHECK(cudaMemPoolGetAttribute(pool, cudaMemPoolAttrUsedMemCurrent, &bytes));
    return bytes;
  };
  auto comm = make_nccl(world.split(0, world.rank()), device);
  const std::uint64_t before = used();
  {
    // The input is the next rank's block of the output.
    void* in = static_cast<std::byte*>(memory.get()) + (std::size_t(world.rank()) + 1) % n * count * 4;
    Work work = comm->all_gather({in, count, DType::f32, place}, {memory.get(), n * count, DType::f32, place});
    work.wait();
    EXPECT_GT(used(), before) << "nothing was copied: this shows nothing";
    comm.reset();
  }
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(used(), before) << "the copy was not given back";
}

TEST(Nccl, AWorkMayOutliveItsCommunicator) { on_two_cards(work_outlives_its_communicator); }

// The watchdog sees what a peer keeps waiting, though wait() has returned and no handle is left.
void a_late_peer_is_seen(Communicator& world) {
  const OnItsCard here(world);
  const auto host = world.split(0, world.rank());
  Traced traced(make_nccl(world.split(0, world.rank()), here.device));
  const CommLog& log = *traced.recorder()->logs().front();
  const auto reduce = [&] { traced.all_reduce(here.buffer, Op::sum).wait(); };
  const auto ends = [&] {
    TRIREME_CUDA_CHECK(cudaDeviceSynchronize());
    EXPECT_EQ(log.oldest_open().sequence, 0u);
  };
  reduce();
  ends();
  if (world.rank() == 0) {
    reduce();
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    EXPECT_EQ(log.oldest_open().sequence, 2u);
  }
  host->barrier().wait();
  if (world.rank() == 1) reduce();
  ends();
}

TEST(Nccl, ALatePeerIsSeen) { on_two_cards(a_late_peer_is_seen); }

// Two NCCL communicators with kernels that nobody answers: an abort of one alone waits for the other's.
void an_error_ends_both(Communicator& world) {
  const OnItsCard here(world);
  Clock::time_point begin;
  const auto fails = [&] {
    const auto comm = make_nccl(world.split(0, world.rank()), here.device);
    const auto both = [&](const auto& use) {
      for (const bool yes : {true, false}) {
        const BesideComputation beside(yes);
        use(comm->all_reduce(here.buffer, Op::sum));
      }
    };
    both([](Work work) { work.wait_host(std::chrono::seconds(30)); });
    if (world.rank() == 1) both([](const Work&) {});
    begin = Clock::now();
    throw std::domain_error("gives up");
  };
  EXPECT_THROW(fails(), std::domain_error);
  EXPECT_LT(std::chrono::duration<double>(Clock::now() - begin).count(), 20);
  world.barrier().wait();
}

TEST(Nccl, AnErrorEndsBothOfItsCommunicators) { on_two_cards(an_error_ends_both); }

void one_rank_aborts(Communicator& world) {
  const OnItsCard here(world);
  const auto comm = make_nccl(world.split(0, world.rank()), here.device);
  comm->all_reduce(here.buffer, Op::sum).wait_host(std::chrono::seconds(30));
  if (world.rank() == 0) {
    Work work = comm->all_reduce(here.buffer, Op::sum);  // nobody else comes
    EXPECT_THROW(work.wait_host(std::chrono::milliseconds(200)), CommError);
    work.wait_host(std::chrono::seconds(40));
  } else {
    std::this_thread::sleep_for(std::chrono::milliseconds(600));
    comm->abort(4, "rank 1 gives up");
  }
}

TEST(Nccl, AbortEndsTheJob) {
  if (is_rank()) return run_rank(one_rank_aborts);
  if (const auto why = missing("nccl", 2); !why.empty()) GTEST_SKIP() << why;
  const Outcome o = launch({2, "Nccl.AbortEndsTheJob"});
  EXPECT_EQ(o.code, 4) << o.output;
  EXPECT_NE(o.output.find("rank 1 gives up"), std::string::npos) << o.output;
  EXPECT_LT(o.seconds, 20);
}

// Host time of a call and its wait, against the same on bare NCCL with a stream of its own: events so that
// both streams wait for each other. Only enqueued: the device is idle at the start of every block.
void overhead(Communicator& world) {
  const int device = pick_device(world);
  const auto comm = make_nccl(world.split(0, world.rank()), device);
  const cuda::Stream stream(device), own(device);
  const auto memory = device_runtime()->memory(4096);
  const Buffer buffer{memory.get(), 256, DType::f32, {device, stream.get()}};
  comm->all_reduce(buffer, Op::sum).wait();
  ncclUniqueId id = {};
  ncclComm_t bare = nullptr;
  if (world.rank() == 0) nccl().GetUniqueId(&id);
  world.broadcast({&id, sizeof id, DType::u8, {}}, 0).wait();
  ASSERT_EQ(nccl().CommInitRank(&bare, world.size(), id, world.rank()), ncclSuccess);
  cudaEvent_t before, after;
  TRIREME_CUDA_CHECK(cudaEventCreateWithFlags(&before, cudaEventDisableTiming));
  TRIREME_CUDA_CHECK(cudaEventCreateWithFlags(&after, cudaEventDisableTiming));
  const auto ours = [&] { comm->all_reduce(buffer, Op::sum).wait(); };
  const auto with_events = [&] {
    cudaEventRecord(before, stream.get());
    cudaStreamWaitEvent(own.get(), before, 0);
    nccl().AllReduce(memory.get(), memory.get(), 256, ncclFloat32, ncclSum, bare, own.get());
    cudaEventRecord(after, own.get());
    cudaStreamWaitEvent(stream.get(), after, 0);
  };
  const auto call_alone = [&] {
    nccl().AllReduce(memory.get(), memory.get(), 256, ncclFloat32, ncclSum, bare, own.get());
  };
  constexpr int calls = 60, blocks = 15;
  std::vector<double> us[3];
  const auto block = [&](int arm, const auto& f) {
    TRIREME_CUDA_CHECK(cudaDeviceSynchronize());
    world.barrier().wait();
    const auto begin = Clock::now();
    for (int i = 0; i < calls; ++i) f();
    us[arm].push_back(std::chrono::duration<double, std::micro>(Clock::now() - begin).count() / calls);
  };
  for (int b = 0; b < blocks + 2; ++b) {
    block(0, ours);
    block(1, with_events);
    block(2, call_alone);
  }
  TRIREME_CUDA_CHECK(cudaDeviceSynchronize());
  double median[3], low[3], high[3];
  for (int a = 0; a < 3; ++a) {
    us[a].erase(us[a].begin(), us[a].begin() + 2);
    std::sort(us[a].begin(), us[a].end());
    median[a] = us[a][blocks / 2], low[a] = us[a][blocks / 4], high[a] = us[a][3 * blocks / 4];
  }
  const double more = median[0] - median[1];
  if (world.rank() == 0)
    std::printf(
        "host time of an all-reduce call and its wait, us (median, quartiles): ours %.2f [%.2f %.2f], NCCL "
        "with the "
        "same events %.2f [%.2f %.2f], ncclAllReduce alone %.2f [%.2f %.2f]; our layer %.2f\n",
        median[0], low[0], high[0], median[1], low[1], high[1], median[2], low[2], high[2], more);
  EXPECT_LE(more, 2);
  nccl().CommDestroy(bare);
}

TEST(Nccl, CostsTheHostTwoMicrosecondsAtMost) {
  if (is_rank()) return run_rank(overhead);
  if (const auto why = missing("nccl", 2); !why.empty()) GTEST_SKIP() << why;
  const Outcome o = launch({2, "Nccl.CostsTheHostTwoMicrosecondsAtMost"});
  EXPECT_EQ(o.code, 0);
  std::printf("%s", o.output.c_str());
}

}  // namespace
}  // namespace trireme::test
