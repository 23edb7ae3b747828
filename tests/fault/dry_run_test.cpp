// links: comm
// `train --dry-run`: what it says about a run is what a run then does.
#include "tests/fault/experiment.h"

namespace trireme::test {
namespace {

struct Call {
  std::string on, collective;
  std::uint64_t bytes;
};

// The lines "1  grad  all_reduce  1234" at the end.
std::vector<Call> schedule(const Outcome& o) {
  std::vector<Call> calls;
  for (const auto& line : lines_of(o.out)) {
    std::istringstream in(line);
    std::size_t number = 0;
    Call c;
    if (in >> number >> c.on >> c.collective >> c.bytes && number == calls.size() + 1) calls.push_back(c);
  }
  return calls;
}

std::uint64_t bytes(const std::vector<Call>& calls, const std::string& on = "") {
  std::uint64_t sum = 0;
  for (const auto& c : calls)
    if (on.empty() || c.on == on) sum += c.bytes;
  return sum;
}

TEST(DryRun, CountsWhatARunSends) {
  if (const auto why = missing_for_pairs(); !why.empty()) GTEST_SKIP() << why;
  TempFolder folder;
  write_text(folder.path / "mlp.yaml",
             "recipe: mlp\nsteps: 6\nbatch_size: 16\neval_every: 0\nfirst_bucket_mib: 0.01\n"
             "bucket_mib: 0.02\nsizes: [64, 128, 64, 10]\n");
  prepare_pairs(folder.path);
  write_text(folder.path / "clip.yaml", experiment(6, 32, 8));
  const double for_the_log = 64;  // bytes a step by which ranks tell each other their times, when they log
  for (const std::string name : {"mlp", "clip"}) {
    SCOPED_TRACE(name);
    const Outcome dry =
        run_program({"train", name + ".yaml", "log_every=3", "--dry-run", "--ranks", "2"}, {folder.path});
    ASSERT_EQ(dry.code, 0) << dry;
    EXPECT_FALSE(fs::exists(folder.path / "runs")) << "a dry run leaves nothing behind";
    const Outcome run = run_program({"train", name + ".yaml", "log_every=3", "--ranks", "2"}, {folder.path});
    ASSERT_EQ(run.code, 0) << run;
    const auto sent = logged(folder.path / "runs" / name, "bytes_sent");
    ASSERT_EQ(sent.size(), 2u);
    EXPECT_NEAR(double(bytes(schedule(dry))), sent[1].second, for_the_log) << dry;
    fs::remove_all(folder.path / "runs");
  }
}

TEST(DryRun, AThousandRanks) {
  TempFolder folder;
  write_text(folder.path / "e.yaml", "recipe: mlp\nsteps: 10\nbatch_size: 2048\nsizes: [64, 128, 10]\n");
  const Outcome o = run_program({"train", "e.yaml", "--dry-run", "--ranks", "1024"}, {folder.path});
  ASSERT_EQ(o.code, 0) << o;
  EXPECT_LT(o.seconds, 20);
  EXPECT_NE(o.out.find("rank 0 of 1024, alone in a fake world"), std::string::npos) << o;
  const std::uint64_t parameters = 64 * 128 + 128 + 128 * 10 + 10;
  EXPECT_NE(o.out.find("parameters " + std::to_string(parameters)), std::string::npos) << o;
  // A ring of n ranks sends each byte 2(n-1)/n times; each of the four parameters is padded by less than 64 bytes.
  const auto grad = bytes(schedule(o), "grad");
  EXPECT_NEAR(double(grad), 2.0 * 1023 / 1024 * 4 * double(parameters), 2 * 4 * 64) << o;
  EXPECT_EQ(o.out.find("0 MiB a step"), std::string::npos);
  const Outcome odd = run_program({"train", "e.yaml", "--dry-run", "--ranks", "1000"}, {folder.path});
  EXPECT_EQ(odd.code, 2) << odd;
  EXPECT_NE(odd.err.find("not divisible by 1000 ranks"), std::string::npos) << odd;
}

}  // namespace
}  // namespace trireme::test
