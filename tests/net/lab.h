// Tests on the hosts of tests/net/lab. Skipped, with the lab's reason, where it cannot be built.
//
//   NET_TEST(Lab, SendsOnlyMessages, {2, 4}) { EXPECT_EQ(comm.size(), ...); }     // one rank a host
#pragma once
#include "tests/mpi_harness.h"

namespace trireme::test {

struct LabOptions {
  int hosts = 2;
  double mbit = 1000;
};

inline std::string lab_path() {
  const char* source = std::getenv("TRIREME_SOURCE");
  return std::string(source ? source : ".") + "/tests/net/lab";
}

// Runs `words` on the first host. Code 77: no lab here, and the reason is the output.
inline Outcome in_lab(const LabOptions& o, const std::vector<std::string>& words,
                      std::chrono::seconds timeout = std::chrono::seconds(120),
                      const std::vector<std::string>& environment = {}) {
  std::vector<std::string> all{lab_path(), "--hosts", std::to_string(o.hosts), "--mbit", std::to_string(o.mbit), "--"};
  all.insert(all.end(), words.begin(), words.end());
  return run_words(all, environment, timeout);
}

inline void run_net_test(const std::vector<int>& hosts, void (*body)(Communicator&)) {
  if (is_rank()) return run_rank(body);
  const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
  const std::string filter = std::string(info->test_suite_name()) + "." + info->name();
  for (const int n : hosts) {
    const Outcome outcome = in_lab({n}, words_of({n, filter}));
    if (outcome.code == 77) GTEST_SKIP() << outcome.output;
    EXPECT_EQ(outcome.code, 0) << "on " << n << " hosts after " << outcome.seconds << " s:\n" << outcome.output;
  }
}

}  // namespace trireme::test

#define NET_TEST(suite, name, ...)                                                             \
  static void suite##_##name##_on_hosts(::trireme::Communicator& comm);                        \
  TEST(suite, name) { ::trireme::test::run_net_test(__VA_ARGS__, suite##_##name##_on_hosts); } \
  static void suite##_##name##_on_hosts([[maybe_unused]] ::trireme::Communicator& comm)
