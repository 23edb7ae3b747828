// links: comm
// The times of a modelled link. That collectives still give what they must: tests/contract, loopback-shaped.
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "comm/wrappers/shaped.h"

#include <vector>

#include <gtest/gtest.h>

namespace trireme {
namespace {

using Clock = std::chrono::steady_clock;
double seconds_since(Clock::time_point t) { return std::chrono::duration<double>(Clock::now() - t).count(); }

// 3 ranks; `f` gets a shaped communicator, on a fresh link for each rank, and the time when all had come.
void on_three(LinkModel model, const std::function<void(Communicator&, Clock::time_point)>& f) {
  run_loopback(3, [&](Communicator& comm) {
    Shaped shaped(comm, model);
    comm.barrier().wait();
    f(shaped, Clock::now());
  });
}

TEST(Shaped, TakesWhatTheFormulaSays) {
  const LinkModel model{2e-3, 1e8};
  struct Case {
    const char* name;
    double expected;  // seconds, for 3 ranks
    std::function<Work(Communicator&, std::vector<float>&, std::vector<float>&)> post;
  };
  constexpr std::size_t n = 300000;  // floats of the whole buffer: 1.2 MB
  const std::vector<std::size_t> third(3, n / 3);
  const Case cases[] = {{"all_reduce", 4 * 2e-3 + 4.0 / 3 * 1.2e6 / 1e8,
                         [](auto& c, auto& a, auto&) {
                           return c.all_reduce({a.data(), n, DType::f32}, Op::sum);
                         }},
                        {"reduce_scatter", 2 * 2e-3 + 2.0 / 3 * 1.2e6 / 1e8,
                         [](auto& c, auto& a, auto& b) {
                           return c.reduce_scatter({a.data(), n, DType::f32}, {b.data(), n / 3, DType::f32}, Op::sum);
                         }},
                        {"all_gather", 2 * 2e-3 + 2.0 / 3 * 1.2e6 / 1e8,
                         [](auto& c, auto& a, auto& b) {
                           return c.all_gather({a.data(), n / 3, DType::f32}, {b.data(), n, DType::f32});
                         }},
                        {"all_to_all", 2 * 2e-3 + 2.0 / 3 * 1.2e6 / 1e8,
                         [&](auto& c, auto& a, auto& b) {
                           return c.all_to_all({a.data(), n, DType::f32}, third, {b.data(), n, DType::f32}, third);
                         }},
                        {"broadcast", 2 * 2e-3 + 1.2e6 / 1e8,
                         [](auto& c, auto& a, auto&) {
                           return c.broadcast({a.data(), n, DType::f32}, 1);
                         }},
                        {"barrier", 4 * 2e-3, [](auto& c, auto&, auto&) { return c.barrier(); }}};
  for (const auto& test : cases) {
    on_three(model, [&](Communicator& comm, Clock::time_point begin) {
      std::vector<float> a(n, 1), b(n);
      const auto posted = Clock::now();
      Work work = test.post(comm, a, b);
      const bool done = work.done();
      EXPECT_FALSE(done && seconds_since(posted) < test.expected) << test.name;
      work.wait();
      EXPECT_GE(seconds_since(posted), test.expected) << test.name;
      EXPECT_LT(seconds_since(begin), test.expected + 5) << test.name;
    });
  }
}

TEST(Shaped, CallsQueueOnOneLinkAlsoThoseOfSplitGroups) {
  on_three({5e-3, 1e12}, [](Communicator& comm, Clock::time_point) {
    const auto other = comm.split(0, comm.rank());
    const auto posted = Clock::now();
    double a = 1, b = 1;
    Work first = comm.all_reduce({&a, 1, DType::f64}, Op::sum),
         second = other->all_reduce({&b, 1, DType::f64}, Op::sum);
    first.wait();
    const double one = seconds_since(posted);
    second.wait();
    EXPECT_GE(one, 20e-3);
    EXPECT_GE(seconds_since(posted), 40e-3);
    EXPECT_EQ(a, 3);
    EXPECT_EQ(b, 3);
  });
}

TEST(Shaped, ThenWaitsForTheLinkAndKeepsOrder) {
  on_three({5e-3, 1e12}, [](Communicator& comm, Clock::time_point) {
    const auto posted = Clock::now();
    double a = 1, b = 1, c = 1, ran = 0, ran_again = 0;
    Work chained = comm.all_reduce({&a, 1, DType::f64}, Op::sum)
                       .then([&] {
                         ran = seconds_since(posted);
                         b = a;
                         return comm.all_reduce({&b, 1, DType::f64}, Op::sum);
                       })
                       .then([&] {
                         ran_again = seconds_since(posted);
                         EXPECT_EQ(b, 9);
                         return Work();
                       });
    Work behind = comm.all_reduce({&c, 1, DType::f64}, Op::sum);
    chained.wait();
    EXPECT_GE(ran, 20e-3);
    EXPECT_GE(ran_again, 40e-3);
    behind.wait();
    EXPECT_EQ(c, 3);
  });
}

TEST(Shaped, WaitsNoLongerThanTold) {
  on_three({0.5, 1e12}, [](Communicator& comm, Clock::time_point) {  // 2 s
    Work work = comm.barrier();
    const auto begin = Clock::now();
    EXPECT_THROW(work.wait_host(std::chrono::milliseconds(30)), CommError);
    EXPECT_LT(seconds_since(begin), 1.5);
    work.wait_host(std::chrono::milliseconds(30000));
    EXPECT_TRUE(work.done());
  });
}

TEST(Shaped, SaysThatItIsModelled) {
  run_loopback(1, [](Communicator& comm) {
    Shaped shaped(comm, {10, 1});
    EXPECT_EQ(shaped.backend(), "loopback, modelled link");
    const auto begin = Clock::now();
    shaped.barrier().wait();  // nothing crosses a link in a group of one
    EXPECT_LT(seconds_since(begin), 5);
    EXPECT_THROW(Shaped(comm, {-1, 1}), UsageError);
    EXPECT_THROW(Shaped(comm, {0, 0}), UsageError);
  });
}

}  // namespace
}  // namespace trireme
