#include "framework/metrics/trace.h"

#include "comm/error.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <set>
#include <thread>
#include <vector>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

class TraceTest : public testing::Test {
 protected:
  TraceTest() {
    std::string name = (fs::temp_directory_path() / "trireme-trace-XXXXXX").string();
    dir = mkdtemp(name.data());
    file = (dir / "trace.json").string();
  }
  ~TraceTest() override { fs::remove_all(dir); }
  Json events() const { return Json::parse(std::ifstream(file)).at("traceEvents"); }
  fs::path dir;
  std::string file;
};

// Perfetto's rule: on one row two spans are apart or one holds the other.
void expect_nested(const Json& events) {
  std::map<std::pair<int, int>, std::vector<std::pair<long long, long long>>> rows;
  for (const auto& e : events) {
    if (e.at("ph") != "X") continue;
    const auto ns = [](const Json& v) { return std::llround(v.get<double>() * 1000); };
    rows[{e.at("pid"), e.at("tid")}].emplace_back(ns(e.at("ts")), ns(e.at("ts")) + ns(e.at("dur")));
  }
  for (const auto& [row, spans] : rows)
    for (std::size_t i = 0; i < spans.size(); ++i)
      for (std::size_t j = 0; j < i; ++j) {
        const auto [a, b] = spans[i];
        const auto [c, d] = spans[j];
        EXPECT_TRUE(b <= c || d <= a || (a <= c && d <= b) || (c <= a && b <= d))
            << a << " " << b << " " << c << " " << d;
      }
}

TEST_F(TraceTest, RanksAreMergedOnTheirTracks) {
  for (int rank : {2, 1, 0}) {
    Trace::enable(rank);
    const auto t = Trace::now_ns();
    Trace::add(Trace::Track::step, "step", t, t + 9000);
    Trace::add(Trace::Track::step, "forward", t + 1000, t + 4000);
    Trace::add(Trace::Track::communication, "all_reduce", t + 2000, t + 5000, 4096);
    Trace::add(Trace::Track::communication, "all_gather", t + 3000, t + 6000);
    Trace::write(file);
  }
  const auto all = events();
  std::map<std::string, int> count;
  std::set<std::string> tracks, processes;
  for (const auto& e : all) {
    if (e.at("ph") == "X") ++count[e.at("name")];
    if (e.at("name") == "thread_name") tracks.insert(e.at("args").at("name"));
    if (e.at("name") == "process_name") processes.insert(e.at("args").at("name").get<std::string>().substr(0, 6));
    if (e.at("name") == "all_reduce") {
      EXPECT_EQ(e.at("args").at("bytes"), 4096);
      EXPECT_EQ(e.at("dur"), 3.0);
    }
    if (e.at("ph") == "X") {
      EXPECT_GE(e.at("ts"), 0);
    }
  }
  EXPECT_EQ(count, (std::map<std::string, int>{{"step", 3}, {"forward", 3}, {"all_reduce", 3}, {"all_gather", 3}}));
  EXPECT_EQ(tracks, (std::set<std::string>{"step", "communication", "communication 2"}));
  EXPECT_EQ(processes, (std::set<std::string>{"rank 0", "rank 1", "rank 2"}));
  expect_nested(all);
  EXPECT_EQ(std::distance(fs::directory_iterator(dir), {}), 1);  // the parts are gone
}

TEST_F(TraceTest, AnythingFromManyThreadsStaysNested) {
  Trace::enable(0);
  const auto t0 = Trace::now_ns();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([t, t0] {
      std::uint64_t x = std::uint64_t(t) + 1;
      for (int i = 0; i < 200; ++i) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        const auto begin = t0 + std::int64_t(x >> 40) % 100000;
        Trace::add(Trace::Track((x >> 33) % 3), "span", begin, begin + std::int64_t(x >> 50) % 3000);
      }
    });
  for (auto& t : threads) t.join();
  Trace::write(file);
  const auto all = events();
  EXPECT_EQ(std::count_if(all.begin(), all.end(), [](const Json& e) { return e.at("ph") == "X"; }), 800);
  expect_nested(all);
}

TEST_F(TraceTest, NamesAreEscaped) {
  Trace::enable(0);
  const std::string name = "a\"b\\c\n\x01,\"ts\":5,</script>\xff";
  { Trace::Span span(Trace::Track::data, name); }
  Trace::add(Trace::Track::data, "backwards", Trace::now_ns(), 5);
  Trace::write(file);
  bool found = false;
  for (const auto& e : events())
    if (e.at("ph") == "X" && e.at("name").get<std::string>().starts_with("a\"b\\c\n\x01,\"ts\":5,</script>"))
      found = true;
  EXPECT_TRUE(found);
}

TEST_F(TraceTest, AFolderThatIsNotThereIsAnError) {
  Trace::enable(0);
  EXPECT_THROW(Trace::write((dir / "none" / "trace.json").string()), DataError);
}

}  // namespace
}  // namespace trireme
