#include "framework/metrics/metrics.h"

#include "comm/crc32c.h"
#include "comm/error.h"
#include "framework/metrics/progress.h"
#include "framework/metrics/tensorboard.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <sstream>

#include <gtest/gtest.h>

#include <fcntl.h>
#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

class MetricsTest : public testing::Test {
 protected:
  MetricsTest() {
    std::string name = (fs::temp_directory_path() / "trireme-metrics-XXXXXX").string();
    dir = mkdtemp(name.data());
    file = (dir / "metrics.jsonl").string();
  }
  ~MetricsTest() override { fs::remove_all(dir); }
  std::string text(const fs::path& path) const {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  void write(const std::string& s) const { std::ofstream(file, std::ios::binary) << s; }
  std::vector<fs::path> event_files() const {
    std::vector<fs::path> found;
    for (const auto& e : fs::directory_iterator(dir))
      if (e.path().filename().string().starts_with("events.out.tfevents.")) found.push_back(e.path());
    return found;
  }
  // Runs with stdout and stderr caught.
  template <class F>
  std::string console(F f) {
    testing::internal::CaptureStdout();
    testing::internal::CaptureStderr();
    f();
    err = testing::internal::GetCapturedStderr();
    return testing::internal::GetCapturedStdout();
  }
  fs::path dir;
  std::string file, err;
};

constexpr double nan = std::numeric_limits<double>::quiet_NaN();

TEST_F(MetricsTest, ALineHasTheKeysInOrderAndNullsForWhatIsUnknown) {
  const auto out = console([&] {
    Metrics m(dir.string(), 0, 400, false, "pairs");
    m.log({1,
           {{"loss", 3.2104},
            {"lr", 5e-4},
            {"tau", 0.07},
            {"samples_per_s", 152},
            {"eval/chance_r10", 0.1},
            {"mfu", std::numeric_limits<double>::infinity()},
            {"alpha", -1e-30}}});
  });
  EXPECT_EQ(text(file),
            "{\"step\": 1, \"epoch\": null, \"loss\": 3.2104, \"lr\": 5e-04, \"samples_per_s\": 152, "
            "\"step_ms\": null, "
            "\"data_ms\": null, \"forward_ms\": null, \"backward_ms\": null, \"comm_exposed_ms\": null, "
            "\"optimizer_ms\": null, \"bytes_sent\": null, \"bytes_uncompressed\": null, \"mfu\": null, "
            "\"memory_gib\": null, \"alpha\": -1e-30, \"tau\": 0.07, \"eval/chance_r10\": 0.1}\n");
  EXPECT_EQ(out.substr(0, out.find("  eta")), "step   1/400  loss 3.2104  lr 5.0e-04    152 pairs/s");
  EXPECT_NE(out.find("eval at step 1  chance_r10 0.1000\n"), std::string::npos) << out;
  EXPECT_EQ(err, "");
}

TEST_F(MetricsTest, AnEvaluationIsATable) {
  const std::vector<MetricChart> charts = {
      {"Retrieval",
       {"R@1", "R@5", "R@10"},
       {{"image to text", {"eval/i1", "eval/i5", "eval/i10"}, {"eval/c1", "eval/c5", "eval/c10"}},
        {"text to image", {"eval/t1", "eval/t5", "eval/t10"}, {"eval/d1", "eval/d5", "eval/d10"}}},
       true},
      {"Classes", {}, {{"zero-shot top-1", {"eval/top1"}, {"eval/top1_chance"}}}, true},
      {"Temperature", {}, {{"", {"tau"}, {}}}}};
  Record r{800,
           {{"loss", 1}, {"tau", 0.07}, {"eval/odd", 3.25}, {"eval/top1", 0.094}, {"eval/top1_chance", 1 / 103.0}}};
  for (const auto& [key, scale] : {std::pair{"i", 1.0}, {"t", 0.9}, {"c", 0.01}, {"d", 0.01}})
    for (const auto& [column, value] : {std::pair{"1", 0.103}, {"5", 0.254}, {"10", 0.386}})
      r.values[std::string("eval/") + key + column] = scale * value;
  EXPECT_EQ(evaluation_text(r, charts),
            "eval at step 800      R@1     R@5    R@10\n"
            "  image to text    10.3 %  25.4 %  38.6 %\n"
            "  text to image    9.27 %  22.9 %  34.7 %\n"
            "  chance           0.10 %  0.25 %  0.39 %\n"
            "  zero-shot top-1  9.40 %  chance 0.97 %\n"
            "  odd              3.2500");
  // A part of it, and none.
  EXPECT_EQ(evaluation_text({5, {{"eval/i5", 0.5}}}, charts),
            "eval at step 5   R@1     R@5  R@10\n"
            "  image to text    -  50.0 %     -");
  EXPECT_EQ(evaluation_text({5, {{"eval/top1", 0.5}}}, charts), "eval at step 5\n  zero-shot top-1  50.0 %");
  EXPECT_EQ(evaluation_text({5, {{"loss", 0.5}, {"tau", 1}}}, charts), "");
  // A recipe without charts: a line while it is one, else columns.
  Record many{7, {}};
  for (const char* name : {"accuracy", "f1", "a_rather_long_name", "loss", "recall"})
    many.values[std::string("eval/") + name] = 0.5;
  EXPECT_EQ(evaluation_text(many, {}),
            "eval at step 7\n"
            "  a_rather_long_name  0.5000\n"
            "  accuracy            0.5000\n"
            "  f1                  0.5000\n"
            "  loss                0.5000\n"
            "  recall              0.5000");
}

TEST_F(MetricsTest, NumbersComeBackExactly) {
  const std::vector<double> values = {0.1, 1.0 / 3, 5e-324, 1.7976931348623157e308, -0.0, 123456789012345678.0};
  console([&] {
    Metrics m(dir.string(), 0, 10, false);
    for (std::size_t i = 0; i < values.size(); ++i)
      m.log({std::int64_t(i + 1), {{"loss", values[i]}, {"x \"\n", nan}}});
  });
  const auto back = read_metrics(file);
  ASSERT_EQ(back.size(), values.size());
  for (std::size_t i = 0; i < values.size(); ++i) {
    EXPECT_EQ(back[i].step, std::int64_t(i + 1));
    EXPECT_EQ(std::bit_cast<std::uint64_t>(back[i].values.at("loss")), std::bit_cast<std::uint64_t>(values[i]));
    EXPECT_TRUE(std::isnan(back[i].values.at("x \"\n")));
  }
}

TEST_F(MetricsTest, ResumeDropsLaterLinesAndATornOne) {
  write(
      "{\"step\": 1, \"loss\": 1}\n{\"step\": 2, \"loss\": 2}\n{\"step\": 3, \"loss\": 3}\n{\"step\": 4, "
      "\"lo");
  console([&] {
    Metrics m(dir.string(), 2, 10, false);
    m.log({3, {{"loss", 30}}});
  });
  const auto back = read_metrics(file);
  ASSERT_EQ(back.size(), 3u);
  EXPECT_EQ(back[1].values.at("loss"), 2);
  EXPECT_EQ(back[2].values.at("loss"), 30);
  for (const auto& e : fs::directory_iterator(dir))
    EXPECT_EQ(e.path().string().find(".tmp"), std::string::npos) << e.path();
  console([&] { Metrics m(dir.string(), 0, 10, false); });
  EXPECT_EQ(text(file), "");
}

TEST_F(MetricsTest, ResumeInTheSameSecondStartsAnEventsFileOfItsOwn) {
  console([&] {
    for (int i = 0; i < 3; ++i) Metrics(dir.string(), i, 10, false).log({i + 1, {{"loss", 1}}});
  });
  EXPECT_EQ(event_files().size(), 3u);
}

TEST_F(MetricsTest, BadLinesAreNamed) {
  const auto error = [&](const std::string& s) {
    write(s);
    try {
      read_metrics(file);
    } catch (const DataError& e) {
      return std::string(e.what());
    }
    return std::string("no error");
  };
  EXPECT_NE(error("{\"step\": 1}\nnonsense\n{\"step\": 2}\n").find("metrics.jsonl:2: not a JSON"), std::string::npos);
  EXPECT_NE(error("{\"step\": -1}\n").find("metrics.jsonl:1: "), std::string::npos);
  EXPECT_NE(error("{\"loss\": 1}\n").find("metrics.jsonl:1: "), std::string::npos);
  EXPECT_NE(error("[1]\n").find("metrics.jsonl:1: "), std::string::npos);
  EXPECT_NE(error("{\"step\": 1, \"loss\": \"x\"}\n").find("'loss' is not a number"), std::string::npos);
  EXPECT_NE(error(std::string(200000, '[') + "\n").find("metrics.jsonl:1: "), std::string::npos);
  EXPECT_EQ(error("{\"step\": 1}\n{\"st"), "no error");
  EXPECT_EQ(error(""), "no error");
  EXPECT_THROW(read_metrics((dir / "none").string()), DataError);
}

TEST_F(MetricsTest, TheEmptyOneDoesNothing) {
  Metrics m;
  m.log({1, {{"loss", 1}}});
  m.progress(1, 1);
  m.message("x");
  m.flush();
}

TEST_F(MetricsTest, ABarOnATerminalIsNotTornByMessages) {
  setenv("TRIREME_TERMINAL", "80", 1);
  const auto out = console([&] {
    Metrics m(dir.string(), 0, 4, true, "pairs");
    m.progress(1, 2.5);
    m.message("checkpoint written");
    m.log({4, {{"loss", 2}, {"lr", 0.1}, {"eval/zero_shot_top1", 0.25}}});
  });
  unsetenv("TRIREME_TERMINAL");
  EXPECT_EQ(out, "checkpoint written\neval at step 4  zero_shot_top1 0.2500\n");
  EXPECT_NE(err.find("\r 25% "), std::string::npos) << err;
  EXPECT_NE(err.find("\r\x1b[K"), std::string::npos);
  EXPECT_EQ(err.back(), '\n');
}

TEST_F(MetricsTest, ATerminalsSizeIsWhatTheParentSays) {
  const auto size = [](const char* text) {
    setenv("TRIREME_TERMINAL", text, 1);
    const TerminalSize s = terminal_size();
    unsetenv("TRIREME_TERMINAL");
    return std::pair(s.columns, s.rows);
  };
  EXPECT_EQ(size("80x24"), std::pair(80, 24));
  EXPECT_EQ(size("80x0"), std::pair(80, 0)) << "rows are not known";
  EXPECT_EQ(size("80"), std::pair(80, 0));
  for (const char* none : {"", "0x24", "wide", "80x-1", "10000x24"}) EXPECT_EQ(size(none), std::pair(0, 0)) << none;
}

// Before the first step, and on a GPU between logged steps.
TEST_F(MetricsTest, ALossThatIsNotKnownIsNotNan) {
  setenv("TRIREME_TERMINAL", "80", 1);
  console([&] {
    Metrics m(dir.string(), 0, 4, true, "pairs");
    m.message("run folder: a");
    m.progress(3, 2.5);
    m.progress(4, nan);
  });
  unsetenv("TRIREME_TERMINAL");
  EXPECT_EQ(err.find("nan"), std::string::npos) << err;
  EXPECT_NE(err.find("step 4/4  loss 2.5"), std::string::npos) << err;
}

// What a terminal of this width shows after `text`, line by line.
std::vector<std::string> screen(const std::string& text, std::size_t columns) {
  std::vector<std::string> lines = {""};
  std::size_t at = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text.compare(i, 3, "\x1b[K") == 0) {
      lines.back().resize(std::min(at, lines.back().size()));
      i += 2;
    } else if (text[i] == '\r') {
      at = 0;
    } else if (text[i] == '\n') {
      lines.emplace_back();
      at = 0;
    } else {
      if (at == columns) {
        lines.emplace_back();
        at = 0;
      }
      lines.back().resize(std::max(lines.back().size(), at + 1), ' ');
      lines.back()[at++] = text[i];
    }
  }
  return lines;
}

// Both streams on one screen, as a person has them.
TEST_F(MetricsTest, LinesAndTheBarShareAScreenOfAnyWidth) {
  setenv("LC_ALL", "C", 1);
  for (const std::size_t columns : {8, 20, 35, 80}) {
    setenv("TRIREME_TERMINAL", std::to_string(columns).c_str(), 1);
    const auto both = (dir / "screen").string();
    std::fflush(nullptr);
    const int out = dup(1), err_fd = dup(2), fd = open(both.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0600);
    dup2(fd, 1), dup2(fd, 2);
    {
      Metrics m(dir.string(), 0, 300, true, "pairs");
      m.message("first\nsecond");
      for (int step = 1; step <= 300; ++step) {
        m.progress(step, 1.0 / step);
        if (step % 100 == 0) m.message("line " + std::to_string(step));
      }
    }
    std::printf("done\n");
    std::fflush(nullptr);
    dup2(out, 1), dup2(err_fd, 2);
    for (const int f : {out, err_fd, fd}) close(f);
    const auto lines = screen(text(both), columns);
    ASSERT_EQ(lines.size(), 8u) << columns << " columns: " << text(both);
    EXPECT_EQ((std::vector<std::string>(lines.begin(), lines.begin() + 5)),
              (std::vector<std::string>{"first", "second", "line 100", "line 200", "line 300"}));
    EXPECT_EQ(lines[5].substr(0, 4), "100%") << lines[5];
    EXPECT_EQ(lines[6], "done");
  }
  unsetenv("TRIREME_TERMINAL");
  unsetenv("LC_ALL");
}

TEST(Progress, BarsFitTheirWidth) {
  const ProgressState p = {120, 400, 3.2104, 5e-4, 152.4, 72, "pairs"};
  for (int columns = 10; columns < 200; ++columns)
    for (bool utf8 : {false, true}) {
      const auto bar = progress_bar(p, columns, utf8);
      int shown = 0;
      for (unsigned char c : bar) shown += (c & 0xc0) != 0x80;  // characters, not bytes
      EXPECT_LT(shown, columns) << bar;
      EXPECT_EQ(bar.substr(0, 5), " 30% ");
    }
  EXPECT_EQ(progress_bar(p, 100, false),
            " 30% ############---------------------------- step 120/400  loss 3.2104  eta 01:12  152 pairs/s");
  EXPECT_EQ(progress_line(p), "step 120/400  loss 3.2104  lr 5.0e-04    152 pairs/s  eta 01:12");
  ProgressState known = p;
  known.mfu = 0.412;
  EXPECT_EQ(progress_line(known), "step 120/400  loss 3.2104  lr 5.0e-04    152 pairs/s  mfu 41.2 %  eta 01:12");
}

TEST(Progress, TimesAndRates) {
  EXPECT_EQ(format_eta(72), "01:12");
  EXPECT_EQ(format_eta(3599.4), "59:59");
  EXPECT_EQ(format_eta(3600), "1:00:00");
  EXPECT_EQ(format_eta(200000), "2d 07h");
  EXPECT_EQ(format_eta(-1), "--:--");
  EXPECT_EQ(format_eta(nan), "--:--");
  EXPECT_EQ(format_rate(1.5), "1.50");
  EXPECT_EQ(format_rate(15.25), "15.2");
  EXPECT_EQ(format_rate(9999), "9999");
  EXPECT_EQ(format_rate(15249), "15.2k");
}

TEST(Progress, TheRateForgetsASlowStart) {
  StepRate rate;
  auto t = StepRate::Clock::time_point{};
  rate.add(0, t);
  EXPECT_EQ(rate.seconds_per_step(), 0);
  rate.add(1, t += std::chrono::seconds(20));
  EXPECT_NEAR(rate.seconds_per_step(), 20, 1e-9);
  for (int step = 2; step < 400; ++step) rate.add(step, t += std::chrono::milliseconds(500));
  EXPECT_NEAR(rate.seconds_per_step(), 0.5, 0.1);
}

// The record of {loss: 1.5} at step 300, laid out by hand from the format's description.
TEST(TensorBoard, BytesOfOneRecord) {
  const auto bytes = [](std::initializer_list<int> list) {
    std::string s;
    for (int b : list) s += char(b);
    return s;
  };
  const std::string event = bytes({0x09, 0,    0,    0,    0,   0,   0, 0xf8, 0x3f,  // 1: double 1.5
                                   0x10, 0xac, 0x02,                                 // 2: varint 300
                                   0x2a, 0x0d,                                       // 5: 13 bytes
                                   0x0a, 0x0b,                                       // 1: 11 bytes
                                   0x0a, 0x04, 'l',  'o',  's', 's',                 // 1: "loss"
                                   0x15, 0x00, 0x00, 0xc0, 0x3f});                   // 2: float 1.5
  const auto masked = [](const std::string& s) {
    const std::uint32_t c = crc32c(s.data(), s.size());
    const std::uint32_t m = ((c >> 15) | (c << 17)) + 0xa282ead8u;
    std::string out(4, '\0');
    std::memcpy(out.data(), &m, 4);
    return out;
  };
  const std::string length = bytes({int(event.size()), 0, 0, 0, 0, 0, 0, 0});
  EXPECT_EQ(event_record(1.5, 300, {{"loss", 1.5}}), length + masked(length) + event + masked(event));
}

// A run killed at step 7, resumed from the checkpoint of step 4: what readers find is each step once, in order. They
// read a folder's files by name, and a file from its start.
TEST_F(MetricsTest, ResumeDropsLaterEventsAndATornOne) {
  const auto part = [&](std::int64_t from, std::int64_t to) {
    Metrics m(dir.string(), from, 10, false);
    for (std::int64_t step = from + 1; step <= to; ++step) m.log({step, {{"loss", double(step)}}});
  };
  console([&] { part(0, 3); });
  console([&] { part(3, 7); });
  auto files = event_files();
  std::sort(files.begin(), files.end());
  ASSERT_EQ(files.size(), 2u);
  const std::string early = text(files[0]), late = text(files[1]);
  fs::resize_file(files[1], late.size() - 5);
  console([&] { part(4, 6); });
  EXPECT_EQ(text(files[0]), early);
  const std::string cut = text(files[1]);
  ASSERT_EQ(cut, late.substr(0, cut.size()));
  const auto kept = event_record(0, 4, {{"loss", 4}}).size();
  EXPECT_EQ(late.size() - cut.size(), 3 * kept) << "steps 5 to 7 are gone, and nothing else";
  // A TensorBoard that has read them already forgets them: SessionLog START (field 7) at step 5.
  files = event_files();
  std::sort(files.begin(), files.end());
  ASSERT_EQ(files.size(), 3u);
  const std::string start = {0x10, 5, 0x3a, 2, 0x08, 1};
  EXPECT_NE(text(files[2]).find(start), std::string::npos);
  EXPECT_EQ(early.find(start.substr(2)), std::string::npos) << "a new run voids nothing";
  // Foreign bytes in the place of such a file neither crash it nor grow.
  write("");
  std::ofstream(dir / "events.out.tfevents.1.x", std::ios::binary) << std::string(1000, '\xff');
  std::ofstream(dir / "events.out.tfevents.2.x", std::ios::binary) << "short";
  console([&] { part(0, 1); });
  EXPECT_EQ(fs::file_size(dir / "events.out.tfevents.1.x"), 0u);
}

TEST_F(MetricsTest, TensorBoardItselfReadsTheEvents) {
  const char* python = std::getenv("TRIREME_TENSORBOARD_PYTHON");
  if (!python || !*python) GTEST_SKIP() << "TRIREME_TENSORBOARD_PYTHON names no python with tensorboard";
  const char* source = std::getenv("TRIREME_SOURCE");
  if (!source || !*source) GTEST_SKIP() << "TRIREME_SOURCE is not set";
  console([&] {
    for (int part = 0; part < 2; ++part) {  // the second is a resume, from before the end of the first
      Metrics m(dir.string(), part * 50, 100, false);
      for (int step = part * 50 + 1; step <= part * 50 + (part ? 50 : 70); ++step)
        m.log({step, {{"loss", 1.0 / step}, {"eval/zero_shot_top1", step / 128.0}}});
      m.flush();
    }
  });
  const std::string command = std::string(python) + " " + source + "/tests/reference/read_events.py " + dir.string() +
                              " 2>/dev/null > " + (dir / "out.txt").string();
  ASSERT_EQ(std::system(command.c_str()), 0);
  std::ifstream in(dir / "out.txt");
  int step = 0, count = 0;
  std::string tag;
  for (double value; in >> step >> tag >> value; ++count)
    EXPECT_EQ(float(value), tag == "loss" ? float(1.0 / step) : float(step / 128.0)) << step << tag;
  EXPECT_EQ(count, 200);
}

}  // namespace
}  // namespace trireme
