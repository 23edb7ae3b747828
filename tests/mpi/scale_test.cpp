// `trireme scale` as its users start it: what it measured adds up, and what cannot be measured is told.
#include "tests/fault/program.h"

#include <set>

#include <nlohmann/json.hpp>

namespace trireme::test {
namespace {

using nlohmann::json;

Outcome scale(const TempFolder& folder, const Words& more) {
  write_text(folder.path / "mlp.yaml", "recipe: mlp\nbatch_size: 24\nsizes: [32, 64, 64, 64]\nsamples: 480\n");
  Words words{"scale", "mlp.yaml", "--steps", "6", "--out", "study"};
  words.insert(words.end(), more.begin(), more.end());
  return run_program(words, {folder.path, {}});
}

TEST(Scale, AddsUp) {
  TempFolder folder;
  const Outcome o = scale(folder, {"--ranks", "3,1,2"});
  ASSERT_EQ(o.code, 0) << o;
  const json study = json::parse(read_text(folder.path / "study/scale.json"));
  ASSERT_EQ(study["measured"].size(), 3u);
  const double gradient = 4 * (32 * 64 + 64 + 64 * 64 + 64 + 64 * 64 + 64);  // nothing to pad
  for (int n = 1; n <= 3; ++n) {
    const json& m = study["measured"][std::size_t(n - 1)];
    EXPECT_EQ(m["ranks"], n);
    EXPECT_EQ(m["batch_size"], 24);
    double sum = 0;
    for (const char* phase : {"data_ms", "forward_ms", "backward_ms", "comm_exposed_ms", "optimizer_ms"}) {
      EXPECT_LE(m[phase]["min"], m[phase]["mean"]) << phase;
      EXPECT_LE(m[phase]["mean"], m[phase]["max"]) << phase;
      sum += m[phase]["mean"].get<double>();
    }
    // On several ranks some of it is waiting for what the loop agrees on.
    EXPECT_GT(sum, (n == 1 ? 0.5 : 0.2) * m["step_ms"].get<double>()) << "the phases are the step";
    // The norm of the gradient and the loss go too, and what the loop agrees on.
    const double reduced = 2 * gradient * (n - 1) / n;
    EXPECT_GE(m["bytes_sent"], reduced) << n;
    EXPECT_LE(m["bytes_sent"], reduced + 100) << n;
    ASSERT_EQ(m["all_reduce"].size(), n == 1 ? 0u : 4u);
    if (n == 1) continue;
    std::set<double> sizes;
    for (const json& e : m["all_reduce"]) {
      sizes.insert(e["buffer_bytes"].get<double>());
      EXPECT_GT(e["seconds"], 0);
    }
    EXPECT_TRUE(sizes.contains(gradient)) << m["all_reduce"];
  }
  EXPECT_EQ(study["setting"].get<std::string>().find("CPUs over mpi"), 0u) << study["setting"];
  EXPECT_NE(read_text(folder.path / "study/scale.html").find("<svg"), std::string::npos);
}

TEST(Scale, TellsWhatCannotBeMeasured) {
  TempFolder folder;
  const Outcome uneven = scale(folder, {"--ranks", "1,5"});
  EXPECT_EQ(uneven.code, 2) << uneven;
  EXPECT_NE(uneven.err.find("24 is not divisible by 5 ranks"), std::string::npos) << uneven;
  const Outcome alone = scale(folder, {"--ranks", "2", "--launcher", "env"});
  EXPECT_EQ(alone.code, 4) << alone;
  EXPECT_NE(alone.err.find("--launcher needs {ranks}"), std::string::npos) << alone;
}

// A study has nothing to save: whoever stops it ends it, and its ranks, at once.
TEST(Scale, CanBeStopped) {
  for (const int s : {SIGTERM, SIGINT}) {
    SCOPED_TRACE(strsignal(s));
    TempFolder folder;
    write_text(folder.path / "mlp.yaml", "recipe: mlp\nbatch_size: 24\nsizes: [32, 64, 64]\nsamples: 480\n");
    Program p({"scale", "mlp.yaml", "--steps", "1000000", "--out", "study", "--ranks", "2,1"}, {folder.path, {}});
    ASSERT_TRUE(wait_until([&] { return p.rank(0) || p.ended(); }));
    std::this_thread::sleep_for(std::chrono::milliseconds(s == SIGINT ? 0 : 1500));
    p.signal(s);
    const Outcome o = p.wait(std::chrono::seconds(20));
    EXPECT_EQ(o.code, 130) << o;
    ASSERT_EQ(o.errors().size(), 1u) << o;
    EXPECT_NE(o.errors()[0].find("stopped by a signal"), std::string::npos) << o;
    EXPECT_LT(p.seconds_from_signal, 5) << o;
    EXPECT_TRUE(p.none_left());
  }
}

}  // namespace
}  // namespace trireme::test
