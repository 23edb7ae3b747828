// links: comm
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "comm/wrappers/traced.h"

#include <atomic>
#include <chrono>
#include <stdexcept>
#include <thread>
#include <vector>

#include <gtest/gtest.h>

namespace trireme {
namespace {

std::string error_of(int n, const std::function<void(Communicator&)>& rank_main) {
  try {
    run_loopback(n, rank_main);
  } catch (const std::exception& e) {
    return e.what();
  }
  return "";
}

TEST(Loopback, AnExceptionInOneRankEndsAll) {
  std::atomic<int> woken{0};
  const std::string error = error_of(4, [&](Communicator& comm) {
    if (comm.rank() == 2) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      throw std::runtime_error("the first cause");
    }
    try {
      comm.barrier().wait();
    } catch (const CommError&) {
      ++woken;
      throw;
    }
  });
  EXPECT_EQ(error, "the first cause");
  EXPECT_EQ(woken, 3);
}

TEST(Loopback, ARankThatLeavesEarlyIsAnError) {
  const std::string error = error_of(3, [](Communicator& comm) {
    if (comm.rank() != 1) comm.barrier().wait();
  });
  EXPECT_NE(error.find("rank 1 has ended"), std::string::npos) << error;
}

TEST(Loopback, AbortWakesAllAndKeepsItsCode) {
  try {
    run_loopback(3, [](Communicator& comm) {
      if (comm.rank() == 0) comm.abort(5, "loss is not finite");
      comm.barrier().wait();
    });
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::nonfinite);
    EXPECT_NE(std::string(e.what()).find("loss is not finite"), std::string::npos);
  }
}

TEST(Loopback, MismatchedCallsAreNamedNotExecuted) {
  std::vector<float> guard(2, 7.0f);
  const std::string error = error_of(2, [&](Communicator& comm) {
    float v[8] = {};
    comm.all_reduce({v, comm.rank() == 0 ? 4u : 8u, DType::f32}, Op::sum).wait();
  });
  EXPECT_NE(error.find("rank 0 and rank 1 differ in the count"), std::string::npos) << error;
}

TEST(Loopback, TwoThreadsOfARankUseTwoCommunicators) {
  run_loopback(3, [](Communicator& comm) {
    auto other = comm.split(0, comm.rank());
    std::atomic<std::int64_t> total{0};
    const auto work = [&total](Communicator& c) {
      for (int i = 0; i < 200; ++i) {
        std::int64_t v = c.rank();
        c.all_reduce({&v, 1, DType::i64}, Op::sum).wait();
        total += v;
      }
    };
    std::thread thread([&] { work(*other); });
    work(comm);
    thread.join();
    EXPECT_EQ(total, 2 * 200 * 3);
  });
}

TEST(Self, InPlaceCollectivesDoNothing) {
  auto self = make_self();
  EXPECT_EQ(self->size(), 1);
  float v[3] = {1, 2, 3}, out[3] = {};
  EXPECT_TRUE(self->all_reduce({v, 3, DType::f32}, Op::sum).done());
  EXPECT_EQ(v[2], 3);
  self->reduce_scatter({v, 3, DType::f32}, {out, 3, DType::f32}, Op::sum).wait();
  EXPECT_EQ(out[2], 3);
  const std::size_t two[] = {2};
  out[0] = out[2] = 0;
  self->all_to_all({v, 3, DType::f32}, two, {out, 3, DType::f32}, two).wait();
  EXPECT_EQ(out[0], 1);
  EXPECT_EQ(out[2], 0) << "more than the counts was copied";
}

TEST(Traced, CountsBlockedTimeAndKeepsTheLastCalls) {
  run_loopback(2, [](Communicator& comm) {
    struct Span {
      std::string name;
      std::int64_t begin, end;
      std::uint64_t bytes;
    };
    std::vector<Span> spans;
    Traced traced(comm, [&](const char* name, std::int64_t begin, std::int64_t end, std::uint64_t bytes) {
      spans.push_back({name, begin, end, bytes});
    });
    if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(600));
    traced.barrier().wait();
    if (comm.rank() == 0) {
      EXPECT_GT(traced.stats().blocked_ns, 100'000'000u) << "rank 0 waited for rank 1";
      EXPECT_GT(traced.recent().back().end_ns - traced.recent().back().begin_ns, 100'000'000);
    } else {
      EXPECT_LT(traced.stats().blocked_ns, 500'000'000u);
    }
    double v = 1;
    for (int i = 0; i < 300; ++i) traced.all_reduce({&v, 1, DType::f64}, Op::max).wait();
    ASSERT_EQ(traced.recent().size(), 256u);
    EXPECT_EQ(traced.recent().back().sequence, 301u);
    EXPECT_EQ(traced.recent().front().sequence, 301u - 255u);
    ASSERT_EQ(spans.size(), 301u);
    EXPECT_EQ(spans[0].name, "barrier");
    EXPECT_EQ(spans[1].bytes, 8u);
    EXPECT_LE(spans[1].begin, spans[1].end);
  });
}

}  // namespace
}  // namespace trireme
