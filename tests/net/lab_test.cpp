// links: comm
// The hosts of tests/net/lab are apart, collectives hold what they promise across them and send no byte too many, and
// nothing of the lab stays.
#include "tests/net/lab.h"

#include <filesystem>
#include <fstream>
#include <numeric>
#include <set>
#include <thread>

namespace trireme::test {
namespace {

// Bytes this host has put on its link.
std::uint64_t bytes_out() {
  std::ifstream in("/proc/net/dev");
  for (std::string line; std::getline(in, line);) {
    std::istringstream words(line);
    std::string name;
    std::uint64_t value = 0;
    words >> name;
    if (name != "eth0:") continue;
    for (int i = 0; i < 9; ++i) words >> value;  // eight of reception, then bytes sent
    return value;
  }
  return 0;
}

NET_TEST(Lab, HostsShareNoMemory, {2, 4}) {
  EXPECT_EQ(mpi_transport(comm), "messages");
  char name[64] = {};
  gethostname(name, sizeof name - 1);
  std::vector<char> all(sizeof name * static_cast<std::size_t>(comm.size()));
  comm.all_gather({name, sizeof name, DType::u8}, {all.data(), all.size(), DType::u8}).wait();
  std::set<std::string> names;
  for (std::size_t at = 0; at < all.size(); at += sizeof name) names.insert(all.data() + at);
  EXPECT_EQ(names.size(), static_cast<std::size_t>(comm.size()));
}

// What a rank sends is what the formula says, and 6 % for the headers of Ethernet, IP and TCP and for acknowledgements.
NET_TEST(Lab, SendsWhatTheFormulaSays, {2, 4}) {
  const std::size_t n = static_cast<std::size_t>(comm.size()), bytes = 12u << 20;
  std::vector<float> v(bytes / sizeof(float)), out(v.size());
  std::iota(v.begin(), v.end(), 0.f);
  const std::vector<std::size_t> even(n, v.size() / n);
  const Buffer whole{v.data(), v.size(), DType::f32}, result{out.data(), v.size(), DType::f32};
  const Buffer part{out.data(), v.size() / n, DType::f32};
  const auto expect = [&](const char* what, double formula, const std::function<Work()>& call) {
    comm.barrier().wait();
    const std::uint64_t before = bytes_out();
    call().wait();
    comm.barrier().wait();
    const double sent = static_cast<double>(bytes_out() - before);
    EXPECT_GE(sent, formula) << what;
    EXPECT_LE(sent, formula * 1.06 + 20000) << what;
  };
  const double b = static_cast<double>(bytes), others = static_cast<double>(n - 1) / static_cast<double>(n);
  expect("all_reduce", 2 * others * b, [&] { return comm.all_reduce(whole, Op::sum); });
  expect("reduce_scatter", others * b, [&] { return comm.reduce_scatter(whole, part, Op::sum); });
  expect("all_gather", others * b, [&] { return comm.all_gather(part, whole); });
  expect("all_to_all", others * b, [&] { return comm.all_to_all(whole, even, result, even); });
}

// --gpus: each host sees one GPU, which NCCL takes for another machine's. (No GPU is asked anything here.)
TEST(Lab, GivesEachHostAGpu) {
  const auto with_gpus = [](const char* hosts, const std::string& command) {
    return run_words({"env", "CUDA_VISIBLE_DEVICES=3,1", lab_path(), "--gpus", "--hosts", hosts, "--", "mpirun", "-n",
                      hosts, "sh", "-c", command},
                     {}, std::chrono::seconds(60));
  };
  const Outcome outcome = with_gpus("2",
                                    "echo \"at $OMPI_COMM_WORLD_RANK: GPU $CUDA_VISIBLE_DEVICES of $NCCL_HOSTID "
                                    "on $(hostname), $NCCL_SOCKET_IFNAME $NCCL_P2P_DISABLE$NCCL_SHM_DISABLE\"");
  if (outcome.code == 77) GTEST_SKIP() << outcome.output;
  EXPECT_NE(outcome.output.find("at 0: GPU 3 of host1 on host1, eth0 11"), std::string::npos) << outcome.output;
  EXPECT_NE(outcome.output.find("at 1: GPU 1 of host2 on host2, eth0 11"), std::string::npos) << outcome.output;
  const Outcome too_few = with_gpus("3", "true");
  EXPECT_EQ(too_few.code, 77);
  EXPECT_NE(too_few.output.find("3 hosts want a GPU each and 2 are here"), std::string::npos) << too_few.output;
}

// All that tests/contract asks for, one rank a host.
TEST(Lab, KeepsTheContract) {
  for (const int n : {2, 4}) {
    const std::string program = std::filesystem::path(self_path()).replace_filename("communicator_test");
    const Outcome outcome = in_lab({n},
                                   {"env", "-u", "TRIREME_TEST_RANK", program, "--gtest_brief=1", "--gtest_color=no",
                                    "--gtest_filter=*/mpi_on_" + std::to_string(n)},
                                   std::chrono::seconds(200));
    if (outcome.code == 77) GTEST_SKIP() << outcome.output;
    EXPECT_EQ(outcome.code, 0) << outcome.output;
    EXPECT_NE(outcome.output.find("1 test"), std::string::npos) << outcome.output;
  }
}

// A folder for the lab's own, and a mark in the environment of all its processes: other labs may run beside this one.
struct Traces {
  std::string folder = (std::filesystem::temp_directory_path() / "trireme-traces-XXXXXX").string();
  Traces() { folder = mkdtemp(folder.data()); }
  ~Traces() { std::filesystem::remove_all(folder); }
  std::vector<std::string> environment() const { return {"TRIREME_LAB_MARK=" + folder, "TMPDIR=" + folder}; }

  std::set<std::string> left() const {
    std::set<std::string> found;
    std::error_code ignored;
    for (const auto& entry : std::filesystem::directory_iterator("/proc", ignored)) {
      std::ifstream in(entry.path() / "environ", std::ios::binary);
      const std::string environment{std::istreambuf_iterator<char>(in), {}};
      if (environment.find("TRIREME_LAB_MARK=" + folder) != std::string::npos) found.insert(entry.path().string());
    }
    for (const auto& entry : std::filesystem::directory_iterator(folder))
      if (entry.path().filename().string().starts_with("trireme-lab-")) found.insert(entry.path().string());
    return found;
  }
};

TEST(Lab, LeavesNothingAndPassesTheCodeOn) {
  const Traces traces;
  const Outcome outcome =
      in_lab({3, 100}, {"sh", "-c", "sleep 1000 & exit 7"}, std::chrono::seconds(120), traces.environment());
  if (outcome.code == 77) GTEST_SKIP() << outcome.output;
  EXPECT_EQ(outcome.code, 7) << outcome.output;
  EXPECT_EQ(traces.left(), std::set<std::string>{});
}

// ^C, and a death that runs no handler: once all ranks are up.
TEST(Lab, LeavesNothingWhenItIsStopped) {
  for (const char* signal : {"INT", "KILL"}) {
    const Traces traces;
    const std::string up = traces.folder + "/up.", ranks = ": >" + up + "$OMPI_COMM_WORLD_RANK; exec sleep 1000";
    const Outcome outcome =
        run_words({"sh", "-c",
                   lab_path() + " --hosts 3 -- mpirun --oversubscribe -n 3 sh -c '" + ranks +
                       "' & lab=$!; until [ -e " + up + "0 -a -e " + up + "1 -a -e " + up +
                       "2 ] || grep -q '^State:.Z' /proc/$lab/status; " + "do sleep 0.1; done; ls -d " + traces.folder +
                       "/trireme-lab-* && kill -" + signal + " $lab; wait $lab; echo code $?"},
                  traces.environment(), std::chrono::seconds(60));
    if (outcome.output.find("code 77") != std::string::npos) GTEST_SKIP() << outcome.output;
    EXPECT_TRUE(std::filesystem::exists(up + "2")) << outcome.output;
    EXPECT_NE(outcome.output.find(traces.folder + "/trireme-lab-"), std::string::npos) << outcome.output;
    // Killed, it is taken down by another process, which nobody waits for.
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!traces.left().empty() && std::chrono::steady_clock::now() < end)
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_EQ(traces.left(), std::set<std::string>{}) << signal << ": " << outcome.output;
  }
}

TEST(Lab, TheStudiesOfGpusKnowTheirParts) {
  const char* source = std::getenv("TRIREME_SOURCE");
  for (const char* script : {"/bench/gpu_lab", "/bench/dlrm_lab"}) {
    const Outcome outcome =
        run_words({std::string(source ? source : ".") + script, "--self-test"}, {}, std::chrono::seconds(30));
    EXPECT_EQ(outcome.code, 0) << outcome.output;
  }
}

TEST(Lab, RefusesNonsense) {
  for (const auto& words :
       std::vector<std::vector<std::string>>{{"--hosts", "1"}, {"--hosts", "9"}, {"--mbit", "0"}, {"--mbit", "x"}}) {
    std::vector<std::string> all{lab_path()};
    all.insert(all.end(), words.begin(), words.end());
    all.insert(all.end(), {"--", "true"});
    EXPECT_EQ(run_words(all, {}, std::chrono::seconds(20)).code, 2);
  }
}

}  // namespace
}  // namespace trireme::test
