// links: comm
// Ranks that make different calls, on every registered backend. With Checked each case is an error that names
// both ranks and the field; without it, ranks that call on different communicators are named by the watchdog.
// The table was written before the code's behaviour was known.
#include "comm/backends.h"
#include "comm/watchdog/watchdog.h"
#include "comm/wrappers/checked.h"
#include "tests/mpi_harness.h"

#include <algorithm>

namespace trireme {

void PrintTo(const CommunicatorEntry& entry, std::ostream* out) { *out << entry.name; }

namespace test {
namespace {

// Two communicators as a training has them. `odd`: this rank makes the other call.
struct Ranks2 {
  Communicator& grad;
  Communicator& control;
  bool odd;
};

struct Case {
  const char* field;
  std::vector<const char*> words;  // that the error must hold, besides both ranks
  void (*calls)(const Ranks2&);
};

float values[4096];
Buffer floats(std::size_t count, DType dtype = DType::f32) { return {values, count, dtype}; }

const Case cases[] = {
    {"operation",
     {"operation", "all_reduce", "all_gather"},
     [](const Ranks2& r) {
       (r.odd ? r.grad.all_gather(floats(8), floats(8 * static_cast<std::size_t>(r.grad.size())))
              : r.grad.all_reduce(floats(8), Op::sum))
           .wait();
     }},
    {"dtype",
     {"dtype", "f32", "i32"},
     [](const Ranks2& r) { r.grad.all_reduce(floats(8, r.odd ? DType::i32 : DType::f32), Op::sum).wait(); }},
    {"count",
     {"count", "101", "100"},
     [](const Ranks2& r) { r.grad.all_reduce(floats(r.odd ? 100 : 101), Op::sum).wait(); }},
    {"root", {"root", "0", "1"}, [](const Ranks2& r) { r.grad.broadcast(floats(8), r.odd ? 1 : 0).wait(); }},
    {"reduction",
     {"reduction", "sum", "max"},
     [](const Ranks2& r) { r.grad.all_reduce(floats(8), r.odd ? Op::max : Op::sum).wait(); }},
    {"order",
     {"operation", "all_reduce", "broadcast"},
     [](const Ranks2& r) {
       const auto reduce = [&] { r.grad.all_reduce(floats(8), Op::sum).wait(); };
       const auto send = [&] { r.grad.broadcast(floats(8), 0).wait(); };
       if (r.odd) send();
       reduce();
       if (!r.odd) send();
     }},
    {"communicator",
     {"communicator", "\"grad\"", "\"control\""},
     [](const Ranks2& r) { (r.odd ? r.control : r.grad).all_reduce(floats(8), Op::sum).wait(); }},
    {"sizes",
     {"sends 3", "expects 2"},
     [](const Ranks2& r) {
       std::vector<std::size_t> send(static_cast<std::size_t>(r.grad.size()), 2), recv = send;
       if (r.grad.rank() == 0) send[1] = 3;
       r.grad.all_to_all(floats(100), send, {values + 100, 100, DType::f32}, recv).wait();
     }},
};

std::string missing(const CommunicatorEntry& entry, int n) { return entry.missing ? entry.missing(n) : ""; }

// What the run said, and how it ended.
Outcome run(const CommunicatorEntry& entry, int n, void (*body)(Communicator&)) {
  if (entry.ranks == Ranks::threads || is_rank()) {
    const auto begin = std::chrono::steady_clock::now();
    Outcome said;
    try {
      entry.run(n, body);
    } catch (const Error& e) {
      said = {static_cast<int>(e.code()), e.what()};
    }
    said.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    return said;
  }
  const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
  return launch({n, std::string(info->test_suite_name()) + "." + info->name()});
}

template <std::size_t k>
void checked_case(Communicator& comm) {
  Checked grad(comm, "grad");
  Checked control(comm.split(0, comm.rank()), "control", grad.parley());
  for (int i = 0; i < 3; ++i) {  // in step until then
    grad.all_reduce(floats(16), Op::sum).wait();
    control.barrier().wait();
  }
  cases[k].calls({grad, control, comm.rank() == 1});
}

using Body = void (*)(Communicator&);
template <std::size_t... k>
constexpr std::array<Body, sizeof...(k)> checked_bodies(std::index_sequence<k...>) {
  return {checked_case<k>...};
}
constexpr auto bodies = checked_bodies(std::make_index_sequence<std::size(cases)>());

class Mismatch : public ::testing::TestWithParam<std::tuple<CommunicatorEntry, int, std::size_t>> {};

TEST_P(Mismatch, IsNamedByChecked) {
  const auto& [entry, n, k] = GetParam();
  if (const auto why = missing(entry, n); !why.empty()) GTEST_SKIP() << why;
  const Outcome said = run(entry, n, bodies[k]);
  if (is_rank()) return;
  expect_code(4, said);
  EXPECT_LT(said.seconds, 15);
  EXPECT_NE(said.output.find("rank 0 and rank 1"), std::string::npos) << said.output;
  for (const char* word : cases[k].words)
    EXPECT_NE(said.output.find(word), std::string::npos) << word << ":\n" << said.output;
}

INSTANTIATE_TEST_SUITE_P(Backends, Mismatch,
                         ::testing::Combine(::testing::ValuesIn(Communicators::values()), ::testing::Values(2, 4),
                                            ::testing::Range<std::size_t>(0, std::size(cases))),
                         [](const auto& info) {
                           return case_name(std::get<0>(info.param).name, std::get<1>(info.param)) + "_" +
                                  cases[std::get<2>(info.param)].field;
                         });

// Rank 1 calls on the other communicator, and nobody compares.
void unchecked(Communicator& comm) {
  std::mutex mutex;
  std::string line;
  Traced job(comm, {}, "job");
  Watchdog::Options options{.warn = 0, .first = 1, .later = 1};
  if (comm.backend() == "loopback") {  // ranks of one process: none may end it
    options.print = [&](std::string_view text) {
      std::lock_guard lock(mutex);
      line = text;
    };
    options.end = [&] {
      std::lock_guard lock(mutex);
      if (!line.empty()) comm.abort(4, line);
    };
  }
  const auto same = [](Communicator& inner) { return inner.split(0, inner.rank()); };
  auto grad = job.derive("grad", same, {}), control = job.derive("control", same, {});
  const CallSite here("test", 7);
  grad->barrier().wait();  // NCCL connects in it, which takes longer than the limit
  Watchdog watchdog(job, options);
  (comm.rank() == 1 ? *control : *grad).all_reduce(floats(8), Op::sum).wait();
}

class Unchecked : public ::testing::TestWithParam<std::tuple<CommunicatorEntry, int>> {};

TEST_P(Unchecked, OtherCommunicatorIsNamedByTheWatchdog) {
  const auto& [entry, n] = GetParam();
  if (const auto why = missing(entry, n); !why.empty()) GTEST_SKIP() << why;
  const Outcome said = run(entry, n, unchecked);
  if (is_rank()) return;
  expect_code(4, said);
  EXPECT_LT(said.seconds, 10);
  const bool on_grad =
      said.output.find("collective 2 of \"grad\" (all_reduce of 8 f32, 32 bytes, at test 7)") != std::string::npos;
  const bool on_control =
      said.output.find("collective 1 of \"control\" (all_reduce of 8 f32, 32 bytes, at test 7)") != std::string::npos;
  EXPECT_TRUE(on_grad && on_control) << said.output;
  EXPECT_NE(said.output.find("did not enter it"), std::string::npos) << said.output;
}

INSTANTIATE_TEST_SUITE_P(Backends, Unchecked,
                         ::testing::Combine(::testing::ValuesIn(Communicators::values()), ::testing::Values(2, 4)),
                         [](const auto& info) {
                           return case_name(std::get<0>(info.param).name, std::get<1>(info.param));
                         });

}  // namespace
}  // namespace test
}  // namespace trireme
