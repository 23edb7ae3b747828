// links: comm
// What only real processes show: how a job ends, overlap with computation, starting without mpirun.
#include "comm/engine/engine.h"
#include "tests/mpi_harness.h"

#include <cmath>
#include <deque>
#include <future>
#include <thread>

#include <sched.h>
#include <sys/mman.h>

namespace trireme::test {
namespace {

using Clock = std::chrono::steady_clock;

// Runs `body` in ranks started for this test, which then checks how they ended.
Outcome ended(int ranks, std::vector<std::string> environment = {}) {
  const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
  return launch({ranks, std::string(info->test_suite_name()) + "." + info->name(), std::move(environment)});
}

TEST(MpiEnd, AnExceptionInOneRankEndsAllWithItsCode) {
  if (is_rank())
    return run_rank([](Communicator& comm) {
      if (comm.rank() == 1) throw DataError("shard 3", "is truncated");
      float v = 0;
      comm.all_reduce({&v, 1, DType::f32}, Op::sum).wait();
    });
  const Outcome outcome = ended(3);
  expect_code(3, outcome);
  EXPECT_LT(outcome.seconds, 10);
  EXPECT_NE(outcome.output.find("trireme: error: shard 3: is truncated\n"), std::string::npos) << outcome.output;
}

TEST(MpiEnd, AbortKeepsItsCode) {
  if (is_rank())
    return run_rank([](Communicator& comm) {
      if (comm.rank() == 0) comm.abort(6, "out of memory");
      comm.barrier().wait();
    });
  const Outcome outcome = ended(2);
  expect_code(6, outcome);
  EXPECT_NE(outcome.output.find("trireme: error: out of memory\n"), std::string::npos) << outcome.output;
}

TEST(MpiEnd, DifferentCallsAreAnErrorNotAHang) {
  if (is_rank())
    return run_rank([](Communicator& comm) {
      std::vector<float> v(100000);
      comm.all_reduce({v.data(), comm.rank() == 0 ? v.size() : v.size() / 2, DType::f32}, Op::sum).wait();
    });
  const Outcome outcome = ended(2);
  expect_code(4, outcome);
  EXPECT_NE(outcome.output.find("all_reduce of 50000 f32"), std::string::npos) << outcome.output;
}

// Two ranks on one core, both free to leave it: they part at once, and what they may use stays what it was.
void part_after_meeting(Communicator& comm) {
  cpu_set_t allowed, meeting, after;
  sched_getaffinity(0, sizeof allowed, &allowed);
  int core = 0, parted = 0;
  while (!CPU_ISSET(core, &allowed)) ++core;
  CPU_ZERO(&meeting);
  CPU_SET(core, &meeting);
  constexpr int rounds = 20;
  for (int round = 0; round < rounds; ++round) {
    comm.barrier().wait();
    // Or it is too soon to part again. After the barrier: in that, too, ranks part that met, and this round would count
    // it against them, and they would begin the next one together.
    std::this_thread::sleep_for(std::chrono::milliseconds(60));
    sched_setaffinity(0, sizeof meeting, &meeting);
    sched_setaffinity(0, sizeof allowed, &allowed);
    for (int i = 0; i < 30; ++i) {
      float v = 1;
      comm.all_reduce({&v, 1, DType::f32}, Op::sum).wait();
    }
    int here = sched_getcpu(), cores[2];
    comm.all_gather({&here, 1, DType::i32}, {cores, 2, DType::i32}).wait();
    parted += cores[0] != cores[1];
  }
  sched_getaffinity(0, sizeof after, &after);
  EXPECT_TRUE(CPU_EQUAL(&allowed, &after));
  EXPECT_GE(parted, rounds / 4) << "the load balancer alone parts none in this time";
}

TEST(MpiWait, RanksThatMeetOnACorePart) {
  cpu_set_t allowed;
  sched_getaffinity(0, sizeof allowed, &allowed);
  if (CPU_COUNT(&allowed) < 2) GTEST_SKIP() << "one core";
  run_mpi_test({2}, part_after_meeting);
}

// Works whose handles were dropped, also on a communicator that is gone, complete before MPI ends.
MPI_TEST(MpiEnd, DroppedWorkCompletesBeforeFinalize, {1, 3}) {
  static std::vector<float> v(300000, 1.0f), w(10, 1.0f);
  static int size = comm.size();
  std::atexit([] {
    if (v.back() != static_cast<float>(size) || w[3] != static_cast<float>(size)) _exit(99);
  });
  comm.all_reduce({v.data(), v.size(), DType::f32}, Op::sum);
  auto other = comm.split(0, comm.rank());
  other->barrier().then([c = other.get()] { return c->all_reduce({w.data(), w.size(), DType::f32}, Op::sum); }).wait();
}

TEST(MpiStart, WithoutMpirunThereIsOneRank) {
  if (is_rank())
    return run_rank([](Communicator& comm) {
      EXPECT_EQ(comm.size(), 1);
      EXPECT_EQ(comm.backend(), "mpi");
      float v = 2;
      comm.all_reduce({&v, 1, DType::f32}, Op::sum).wait();
      EXPECT_EQ(v, 2);
    });
  const Outcome outcome = ended(0);
  EXPECT_EQ(outcome.code, 0) << outcome.output;
}

TEST(MpiStart, TheTransportIsTheOneAskedFor) {
  if (is_rank())
    return run_rank([](Communicator& comm) {
      const char* asked = std::getenv("TRIREME_MPI_TRANSPORT");
      const std::string used(mpi_transport(comm));
      if (!asked)
        EXPECT_TRUE(used.starts_with("shared memory")) << used;
      else
        EXPECT_EQ(used, std::string_view(asked) == "p2p" ? "messages" : "shared memory");
    });
  for (const std::vector<std::string>& environment :
       {std::vector<std::string>{}, {"TRIREME_MPI_TRANSPORT=p2p"}, {"TRIREME_MPI_TRANSPORT=staged"}}) {
    const Outcome outcome = ended(2, environment);
    EXPECT_EQ(outcome.code, 0) << outcome.output;
  }
}

// Posted and not waited for, a large all-reduce runs beside the caller's computation, whatever the caller did before.
void overlaps(Communicator& comm, int calls_waited_for) {
  std::vector<float> v(4u << 20, 1.0f), other(1u << 20);
  comm.barrier().wait();
  for (int i = 0; i < calls_waited_for; ++i) comm.all_reduce({other.data(), other.size(), DType::f32}, Op::sum).wait();
  Work work = comm.all_reduce({v.data(), v.size(), DType::f32}, Op::sum);
  volatile double x = 1;
  const auto end = Clock::now() + std::chrono::milliseconds(1500);
  while (Clock::now() < end)
    for (int i = 0; i < 1000; ++i) x = std::sqrt(x + i);
  EXPECT_TRUE(work.settled()) << "it had not finished in the meantime";
  work.wait();
  EXPECT_EQ(v[12345], 2.0f);
}
MPI_TEST(MpiOverlap, ALargeCollectiveProgressesWhileTheCallerComputes, {2}) { overlaps(comm, 0); }
MPI_TEST(MpiOverlap, AlsoWhereEveryCallBeforeWasWaitedForAtOnce, {2}) { overlaps(comm, 20); }

// Two threads split two communicators at once, while others of the last rounds still live; with so few tags each is
// used many times. Odd ranks post in another order: where two groups had one tag, each would get the other's messages.
void split_from_two_threads(Communicator& comm) {
  const auto a = comm.split(0, comm.rank()), b = comm.split(0, -comm.rank());
  const auto n = static_cast<std::size_t>(comm.size());
  std::deque<std::unique_ptr<Communicator>> live;
  for (int round = 0; round < 100; ++round) {
    auto other = std::async(std::launch::async, [&] { return b->split(0, comm.rank()); });
    live.push_back(a->split(0, comm.rank()));
    live.push_back(other.get());
    if (live.size() > 8) live.erase(live.begin(), live.begin() + 2);
    std::vector<std::vector<int>> got(live.size(), std::vector<int>(n));
    std::vector<Work> works;
    for (std::size_t i = 0; i < live.size(); ++i) {
      const std::size_t k = comm.rank() % 2 == 0 ? i : live.size() - 1 - i;
      const auto r = static_cast<std::size_t>(comm.rank());
      got[k][r] = static_cast<int>(100 * k + r);
      works.push_back(live[k]->all_gather({&got[k][r], 1, DType::i32}, {got[k].data(), n, DType::i32}));
    }
    for (auto& work : works) work.wait();
    for (std::size_t k = 0; k < live.size(); ++k)
      for (std::size_t r = 0; r < n; ++r) ASSERT_EQ(got[k][r], static_cast<int>(100 * k + r)) << "round " << round;
  }
}
TEST(MpiSplit, TwoThreadsNeverDrawOneTag) {
  run_mpi_test({2, 3, 4}, split_from_two_threads, {"TRIREME_MPI_TRANSPORT=p2p", "TRIREME_MPI_TAGS=60"});
}
TEST(MpiSplit, NorWhereTheyShareMemory) { run_mpi_test({3}, split_from_two_threads, {"TRIREME_MPI_TAGS=60"}); }

// Far more communicators than tags, one after the other, in groups of every form.
void split_many_times(Communicator& comm) {
  for (int i = 0; i < 200; ++i) {
    const auto part = comm.split(comm.rank() % (1 + i % 3), i % 2 ? comm.rank() : -comm.rank());
    const auto inner = part->split(0, 0);
    int v = 1;
    inner->all_reduce({&v, 1, DType::i32}, Op::sum).wait();
    ASSERT_EQ(v, part->size());
  }
}
TEST(MpiSplit, TagsComeBack) {
  run_mpi_test({1, 2, 3, 4}, split_many_times, {"TRIREME_MPI_TRANSPORT=p2p", "TRIREME_MPI_TAGS=20"});
}

// Tags that are free where the leader is and taken where a member is: the next choice must be free on all.
void split_beside_kept_parts(Communicator& comm) {
  std::vector<std::unique_ptr<Communicator>> kept;
  for (int i = 0; i < 6; ++i) {
    auto part = comm.split(comm.rank() > 0, comm.rank());
    if (comm.rank() > 0) kept.push_back(std::move(part));
  }
  for (int i = 0; i < 4; ++i) {
    const auto all = comm.split(0, comm.rank());
    int ours = 1, theirs = 1;
    Work whole = all->all_reduce({&ours, 1, DType::i32}, Op::sum);
    for (auto& part : kept) {
      theirs = 1;
      part->all_reduce({&theirs, 1, DType::i32}, Op::sum).wait();
      ASSERT_EQ(theirs, comm.size() - 1);
    }
    whole.wait();
    ASSERT_EQ(ours, comm.size());
  }
}
TEST(MpiSplit, WhatAMemberHoldsIsNotDrawnAgain) {
  run_mpi_test({3, 4}, split_beside_kept_parts, {"TRIREME_MPI_TRANSPORT=p2p", "TRIREME_MPI_TAGS=40"});
}

TEST(MpiSplit, TooManyAtOnceIsAnError) {
  if (is_rank())
    return run_rank([](Communicator& comm) {
      std::vector<std::unique_ptr<Communicator>> all;
      for (int i = 0; i < 21; ++i) all.push_back(comm.split(0, comm.rank()));
    });
  const Outcome outcome = ended(2, {"TRIREME_MPI_TAGS=20"});
  expect_code(4, outcome);
  EXPECT_NE(outcome.output.find("communicators"), std::string::npos) << outcome.output;
}

TEST(PromptWaits, AreExpectedAfterSomeInARowOnly) {
  PromptWaits waits;
  waits.posted(), waits.waits();
  EXPECT_FALSE(waits.expected());
  for (int i = 0; i < 1000 && !waits.expected(); ++i)
    waits.posted(), waits.waits();  // one that was held up begins anew
  EXPECT_TRUE(waits.expected());
  // Two posts, the first one long before anybody waits: a step with buckets.
  waits.posted();
  std::this_thread::sleep_for(std::chrono::milliseconds(2));
  waits.posted();
  waits.waits(), waits.waits();
  EXPECT_FALSE(waits.expected());
  waits.posted(), waits.waits();  // and its norm
  EXPECT_FALSE(waits.expected());
}

// Private buffers may have the same address on every rank.
MPI_TEST(MpiMemory, EqualAddressesAreDifferentBuffers, {3}) {
  constexpr std::size_t count = 50000;  // of each rank
  const auto n = static_cast<std::size_t>(comm.size());
  void* const place = reinterpret_cast<void*>(0x200000000000);
  void* const memory = mmap(place, n * count * sizeof(float), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
  ASSERT_EQ(memory, place);
  auto* v = static_cast<float*>(memory);
  std::fill(v, v + count, static_cast<float>(comm.rank()));
  comm.broadcast({v, count, DType::f32}, 1).wait();
  EXPECT_EQ(v[count - 1], 1.0f);
  float* own = v + static_cast<std::size_t>(comm.rank()) * count;
  std::fill(own, own + count, static_cast<float>(comm.rank()));
  comm.all_gather({own, count, DType::f32}, {v, n * count, DType::f32}).wait();
  for (std::size_t r = 0; r < n; ++r) EXPECT_EQ(v[r * count + 7], static_cast<float>(r));
}

// Rank 1 gives its memory back before rank 0 reads it, as a rank does on its way to an error: waiting still ends in
// time, and the job with an error that names the rank.
TEST(MpiMemory, WhatCannotBeReadDoesNotHoldAWaiter) {
  if (is_rank())
    return run_rank([](Communicator& comm) {
      if (mpi_transport(comm) != "shared memory, one copy") {
        std::printf("nothing is read here\n");
        return;
      }
      constexpr std::size_t count = 1u << 18, bytes = count * sizeof(float);
      void* const memory = mmap(nullptr, 2 * bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
      ASSERT_NE(memory, MAP_FAILED);
      auto* all = static_cast<float*>(memory);
      float* own = all + static_cast<std::size_t>(comm.rank()) * count;
      const auto gone = comm.split(0, comm.rank());
      if (comm.rank() == 0) gone->barrier().wait();
      Work work = comm.all_gather({own, count, DType::f32}, {all, 2 * count, DType::f32});
      if (comm.rank() == 1) {
        std::this_thread::sleep_for(std::chrono::milliseconds(200));  // it has entered
        munmap(own, bytes);
        gone->barrier().wait();
      } else {
        const auto begin = Clock::now();
        EXPECT_THROW(work.wait_host(std::chrono::milliseconds(300)), CommError);
        // (Not an expectation: the error that ends the job would hide that it failed.)
        if (Clock::now() - begin > std::chrono::seconds(2)) throw Error(ExitCode::bug, "test", "the wait was held");
      }
      work.wait();
    });
  const Outcome outcome = ended(2);
  if (outcome.output.find("nothing is read here") != std::string::npos)
    GTEST_SKIP() << "ranks may not read each other's memory here";
  expect_code(4, outcome);
  EXPECT_NE(outcome.output.find("the memory of rank 1 cannot be read"), std::string::npos) << outcome.output;
  EXPECT_LT(outcome.seconds, 15);
}

// Random calls on several communicators, many ranks on few cores.
MPI_TEST(MpiStress, RandomCallsOnThreeCommunicators, {4}) {
  std::unique_ptr<Communicator> comms[] = {comm.split(0, comm.rank()), comm.split(0, -comm.rank()),
                                           comm.split(comm.rank() / 2, comm.rank())};
  std::uint64_t state = 88172645463325252ull;
  const auto next = [&] {  // the same sequence on every rank
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
  };
  const auto memory = comms[0]->allocate(1u << 20);
  for (int round = 0; round < 60; ++round) {
    struct Posted {
      std::vector<std::int32_t> own;
      std::int32_t* data;
      std::size_t count;
      std::int32_t expected;
      Work work;
    };
    std::vector<Posted> posted(6);
    bool memory_used = false;
    for (auto& p : posted) {
      Communicator& c = *comms[next() % 3];
      p.count = next() % 2 ? next() % 300 : next() % 100000;
      const bool shared = next() % 4 == 0 && !memory_used;
      memory_used |= shared;
      p.own.resize(p.count);
      p.data = shared ? static_cast<std::int32_t*>(memory.get()) : p.own.data();
      std::fill(p.data, p.data + p.count, c.rank() + 1);
      if (next() % 3 == 0) {
        const int root = static_cast<int>(next() % static_cast<unsigned>(c.size()));
        p.expected = root + 1;
        p.work = c.broadcast({p.data, p.count, DType::i32}, root);
      } else {
        p.expected = c.size() * (c.size() + 1) / 2;
        p.work = c.all_reduce({p.data, p.count, DType::i32}, Op::sum);
      }
    }
    for (std::size_t i = 0; i < posted.size(); ++i) posted[(i + static_cast<std::size_t>(comm.rank())) % 6].work.wait();
    for (const auto& p : posted)
      for (std::size_t i = 0; i < p.count; ++i) ASSERT_EQ(p.data[i], p.expected) << "round " << round;
  }
}

}  // namespace
}  // namespace trireme::test
