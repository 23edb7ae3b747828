#include "framework/report/report.h"

#include "comm/error.h"
#include "comm/local/self.h"
#include "data/text/text.h"
#include "framework/metrics/metrics.h"
#include "framework/recipe.h"
#include "framework/report/chart.h"
#include "framework/report/run.h"
#include "trainers/loop.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <limits>
#include <random>
#include <set>

#include <gtest/gtest.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

class ReportTest : public testing::Test {
 protected:
  ReportTest() {
    std::string name = (fs::temp_directory_path() / "trireme-report-XXXXXX").string();
    dir = mkdtemp(name.data());
  }
  ~ReportTest() override { fs::remove_all(dir); }
  std::string folder(const std::string& name) const {
    fs::create_directories(dir / name);
    return (dir / name).string();
  }
  void write(const std::string& name, const std::string& text) const {
    fs::create_directories((dir / name).parent_path());
    std::ofstream(dir / name, std::ios::binary) << text;
  }
  std::string page(const std::vector<std::string>& runs) const {
    write_report(runs, (dir / "report.html").string());
    std::ifstream in(dir / "report.html", std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // What a recipe that ranks pictures for texts might want.
  static std::vector<MetricChart> charts() {
    return {{"Retrieval",
             {"R@1", "R@10"},
             {{"image to text", {"eval/found_r1", "eval/found_r10"}, {"eval/guess_r1", "eval/guess_r10"}}},
             true},
            {"Classes", {}, {{"top-1", {"eval/class_top1"}, {"eval/class_guess"}}}, true},
            {"Temperature τ", {}, {{"", {"tau"}, {}}}}};
  }
  // A run with everything the page can show.
  std::string full_run(const std::string& name, int steps = 40) const {
    std::string lines;
    for (int s = 1; s <= steps; ++s) {
      lines += "{\"step\": " + std::to_string(s) + ", \"loss\": " + std::to_string(3.0 / s) +
               ", \"lr\": 5e-4, \"samples_per_s\": 150, \"step_ms\": 800, \"data_ms\": 20, \"forward_ms\": 250, "
               "\"backward_ms\": 400, \"comm_exposed_ms\": 60, \"optimizer_ms\": 30, \"bytes_sent\": 1e6, "
               "\"bytes_uncompressed\": 4e6, \"mfu\": null, \"tau\": 0.07";
      if (s % 10 == 0)
        lines +=
            ", \"eval/found_r1\": 0.2, \"eval/found_r10\": 0.5, \"eval/guess_r1\": 0.01, \"eval/guess_r10\": 0.1, "
            "\"eval/class_top1\": 0.25, \"eval/class_guess\": 0.05, \"eval/left_over\": 12.5";
      lines += "}\n";
    }
    write(name + "/metrics.jsonl", lines);
    write(name + "/config.resolved.yaml", "recipe: fastclip  # a.yaml:1\noptimizer:\n  lr: 5e-4\n  name: adamw\n");
    write(name + "/env.json",
          "{\"ranks\": 4, \"versions\": {\"torch\": \"2.11.0\"}, \"recipe\": {\"pairs\": 7, \"charts\": " +
              charts_to_json(charts()) + "}}");
    return folder(name);
  }
  fs::path dir;
};

// Every tag is closed in order: a broken chart would swallow the rest of the page.
void expect_balanced(const std::string& html) {
  const std::set<std::string> empty = {"meta", "!DOCTYPE"};
  std::vector<std::string> open;
  for (auto at = html.find('<'); at != html.npos; at = html.find('<', at + 1)) {
    const auto end = html.find('>', at);
    ASSERT_NE(end, html.npos);
    const std::string tag = html.substr(at + 1, end - at - 1);
    const std::string name = tag.substr(tag[0] == '/', tag.find(' ') - (tag[0] == '/'));
    if (tag.back() == '/' || empty.contains(name)) continue;
    if (tag[0] != '/') {
      open.push_back(name);
      continue;
    }
    ASSERT_FALSE(open.empty()) << tag;
    ASSERT_EQ(open.back(), name) << "at byte " << at;
    open.pop_back();
  }
  EXPECT_TRUE(open.empty());
}

std::size_t count(const std::string& text, const std::string& what) {
  std::size_t n = 0;
  for (auto at = text.find(what); at != text.npos; at = text.find(what, at + 1)) ++n;
  return n;
}

TEST_F(ReportTest, OneRunShowsItsNumbers) {
  const auto html = page({full_run("run-a")});
  expect_balanced(html);
  for (const char* text :
       {"<h1>run-a</h1>", "recipe <b>fastclip</b>", "ranks <b>4</b>", "LibTorch <b>2.11.0</b>", "image to text R@10",
        "50.0 %", "chance 10.0 %, 5×", "Retrieval", "Classes", ">left over<", "12.5", "4× less than uncompressed",
        "exposed communication", "Temperature τ", "optimizer.lr", "<td>5e-4</td>", "versions.torch", "recipe.pairs"})
    EXPECT_NE(html.find(text), std::string::npos) << text;
  EXPECT_EQ(html.find("a.yaml:1"), std::string::npos);       // origins are no values
  EXPECT_EQ(html.find("recipe.charts"), std::string::npos);  // how, not what
  EXPECT_EQ(html.find("nan"), std::string::npos);
  EXPECT_EQ(html.find("inf"), std::string::npos);
}

// Written by versions whose recipes said nothing of charts.
TEST_F(ReportTest, FoldersWithoutChartsShowWhatIsThereByName) {
  const auto run = full_run("old");
  write("old/env.json", "{\"ranks\": 4}");
  const auto html = page({run});
  expect_balanced(html);
  for (const char* text :
       {"<figcaption>found r10", "<figcaption>class top1", "<figcaption>left over", "<figcaption>tau"})
    EXPECT_NE(html.find(text), std::string::npos) << text;
  expect_balanced(page({run, full_run("new")}));
}

TEST_F(ReportTest, ChartsOfAnotherVersionAreLeftOut) {
  auto text = charts_to_json(charts());
  EXPECT_EQ(charts_to_json(charts_from_json(text)), text);
  for (const char* other : {"", "{}", "[1, {}, {\"title\": 3}]",
                            "[{\"title\": \"a\", \"columns\": [], \"rows\": [1], \"fractions\": true}]"})
    EXPECT_TRUE(charts_from_json(other).empty()) << other;
  // A row that does not fit its columns.
  const auto rows = charts_from_json(
      "[{\"title\": \"a\", \"columns\": [\"x\", \"y\"], \"fractions\": false, \"rows\": "
      "[{\"label\": \"\", \"metrics\": [\"eval/a\"], \"chance\": []}]}]");
  ASSERT_EQ(rows.size(), 1u);
  EXPECT_TRUE(rows[0].rows.empty());
}

// A line of one point draws nothing: `--quick` evaluates at its end only.
TEST_F(ReportTest, WhatWasMeasuredOnceIsSeen) {
  const auto many = page({full_run("many")});
  EXPECT_EQ(count(many, "class=\"chance\""), 0u);
  const auto run = full_run("once", 10);  // one evaluation
  const auto html = page({run});
  expect_balanced(html);
  const auto evaluation =
      html.substr(html.find("<h2>Evaluation"), html.find("<h2>Where") - html.find("<h2>Evaluation"));
  EXPECT_EQ(count(evaluation, "<rect"), 4u) << evaluation;
  EXPECT_EQ(count(evaluation, "class=\"chance\""), 3u);
  EXPECT_EQ(count(evaluation, "class=\"line\""), 0u);
  for (const char* text : {">20.0 %<", ">50.0 %<", ">25.0 %<", ">12.5<"})
    EXPECT_NE(evaluation.find(text), std::string::npos) << text;

  write("first/metrics.jsonl", "{\"step\": 5, \"loss\": 2.5, \"lr\": 0.1, \"eval/x\": null}\n");
  const auto first = page({folder("first")});
  expect_balanced(first);
  EXPECT_GE(count(first, "<circle"), 2u);
  EXPECT_EQ(count(first, ">5<"), 2u);  // the step on both axes, and no other
  EXPECT_EQ(count(first, ">6<"), 0u);
}

// What the page looks for is what training writes: `grad_norm` beside `gradient_norm` was an empty chart for long.
TEST_F(ReportTest, TrainingWritesEveryMetricThatThePageKnows) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "torch's operators are not built for ThreadSanitizer";
#else
  write("tiny.yaml",
        "recipe: mlp\nsteps: 4\nbatch_size: 8\nlog_every: 2\neval_every: 2\nsamples: 100\nsizes: [4, 3]\n");
  TrainOptions options;
  options.file = (dir / "tiny.yaml").string();
  options.out = (dir / "run").string();
  testing::internal::CaptureStdout();
  const int code = train(options, *make_self(), 1);
  const auto out = testing::internal::GetCapturedStdout();
  ASSERT_EQ(code, 0) << out;
  std::set<std::string> written;
  for (const auto& r : read_metrics((dir / "run/metrics.jsonl").string()))
    for (const auto& [key, value] : r.values) written.insert(key);
  for (const auto metric : reported_metrics()) EXPECT_TRUE(written.contains(std::string(metric))) << metric;
  std::ifstream in(dir / "run/report.html");
  const std::string html{std::istreambuf_iterator<char>(in), {}};
  for (const char* text : {"<figcaption>Gradient norm", "<figcaption>accuracy", "ranks <b>1</b>"})
    EXPECT_NE(html.find(text), std::string::npos) << text;

  // What a person reads before the first step.
  const auto lines = out.substr(0, out.find("step "));
  EXPECT_EQ(count(lines, "\n"), 3u) << out;
  for (const std::string& text :
       std::vector<std::string>{"mlp: 15 parameters in f32, 1 rank on CPU (",
                                "data: 90 samples, batch 8, 11 steps an epoch\n", "run folder: " + options.out + "\n"})
    EXPECT_NE(lines.find(text), std::string::npos) << out;
  EXPECT_NE(out.find("eval at step 2  accuracy 0."), std::string::npos) << out;
#endif
}

// How a recipe's metrics are called is the recipe's own matter.
TEST(Report, KnowsNoRecipesMetrics) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "recipes are not built for ThreadSanitizer";
#else
  const char* root = std::getenv("TRIREME_SOURCE");
  if (!root || !*root) GTEST_SKIP() << "TRIREME_SOURCE is not set";
  std::set<std::string> names;
  for (const auto& recipe : Recipes::names()) {
    const auto r = Recipes::create(recipe);
    for (const auto& key : r->headline_metrics()) names.insert(key);
    for (const auto& chart : r->charts())
      for (const auto& row : chart.rows)
        for (const auto* list : {&row.metrics, &row.chance})
          for (const auto& key : *list) names.insert(key.starts_with("eval/") ? key.substr(5) : key);
  }
  names.erase("loss");  // the loop's own
  EXPECT_GE(names.size(), 18u);
  int files = 0;
  for (const char* room : {"framework/report", "framework/metrics", "trainers"})
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(root) / room)) {
      // `trireme eval` is a command for CLIP models alone; `objective` is a key of sweeps. Scores of pictures are named
      // where they are made and in the report of `trireme sample`, for the recipes that train its models.
      const auto file = entry.path().filename(), folder = entry.path().parent_path().filename();
      if (!entry.is_regular_file() || file == "eval.cpp" || (folder == "sweep" && file == "config.cpp") ||
          file == "scene_score.cpp" || (folder == "sample" && file == "report.cpp"))
        continue;
      std::ifstream in(entry.path());
      std::string text;
      for (std::string line; std::getline(in, line);)
        if (!line.starts_with("//")) text += line + "\n";
      for (const auto& name : names)
        EXPECT_EQ(text.find("\"" + name + "\""), std::string::npos) << entry.path() << " names " << name;
      ++files;
    }
  EXPECT_GT(files, 20);
#endif
}

TEST_F(ReportTest, ThePageNeedsNothingFromOutside) {
  const auto html = page({full_run("a"), full_run("b")});
  for (const char* text : {"<script", "http://", "https://", "src=", "href=", "@import", "url("})
    EXPECT_EQ(html.find(text), std::string::npos) << text;
}

TEST_F(ReportTest, SeveralRunsAreOverlaidAndCompared) {
  const auto a = full_run("x/run"), b = full_run("y/run");
  write("y/run/config.resolved.yaml", "recipe: fastclip\noptimizer:\n  lr: 1e-3\n  name: adamw\n");
  const auto html = page({a, b});
  expect_balanced(html);
  for (const char* text : {"run (2)", "Comparison", "Settings that differ", "<td>1e-3</td>"})
    EXPECT_NE(html.find(text), std::string::npos) << text;
  const auto differ = html.substr(html.find("Settings that differ"));
  EXPECT_EQ(count(differ.substr(0, differ.find("</details>")), "<tr>"), 2u);  // the head and optimizer.lr
}

TEST_F(ReportTest, WhateverIsInTheFilesIsEscaped) {
  const std::string evil = "<script>alert('x')</script>\\\"&";
  const std::string name = "<script>alert(1)<b>&'run";
  write(name + "/metrics.jsonl",
        "{\"step\": 1, \"loss\": 1, \"eval/" + evil + "\": 0.5}\n{\"step\": 2, \"loss\": 1}\n");
  write(name + "/config.resolved.yaml", "recipe: " + evil + "\n" + evil + ": 1\n");
  write(name + "/env.json", "{\"" + evil + "\": \"" + evil + "\", \"ranks\": \"<img onerror=x>\"}");
  for (const auto& runs : {std::vector{folder(name)}, std::vector{folder(name), folder(name)}}) {
    const auto html = page(runs);
    expect_balanced(html);
    EXPECT_EQ(html.find("<script"), std::string::npos);
    EXPECT_EQ(html.find("<img"), std::string::npos);
    EXPECT_EQ(html.find("<b>&'run"), std::string::npos);
    EXPECT_NE(html.find("&lt;script&gt;alert(&#39;x&#39;)"), std::string::npos);
  }
}

TEST_F(ReportTest, MissingAndBrokenFilesBecomeNotes) {
  write("a/metrics.jsonl", "{\"step\": 1, \"loss\": 2.5}\n");
  write("a/env.json", "{broken");
  const auto html = page({folder("a")});
  expect_balanced(html);
  EXPECT_NE(html.find("config.resolved.yaml: cannot open"), std::string::npos);
  EXPECT_NE(html.find("env.json: not JSON"), std::string::npos);
  EXPECT_THROW(page({folder("empty")}), DataError);
  EXPECT_THROW(page({}), UsageError);
  EXPECT_THROW(write_report({folder("a")}, (dir / "none/report.html").string()), DataError);
}

TEST_F(ReportTest, APathThatIsNoUtf8StandsInIt) {
  write("l\xe4tin/metrics.jsonl", "{\"step\": 1, \"loss\": 2.5}\n");
  const auto html = page({folder("l\xe4tin")});
  EXPECT_TRUE(valid_utf8(html));
  EXPECT_NE(html.find("l\u00e4tin"), std::string::npos);
}

TEST_F(ReportTest, OddValuesDoNotBreakCharts) {
  for (const std::string values : {"null", "0", "-1", "1e300", "-1e300", "5e-324", "1"}) {
    std::string lines;
    for (int s = 1; s <= 3; ++s) {
      lines += "{\"step\": " + std::to_string(s);
      for (const char* key : {"loss", "lr", "samples_per_s", "step_ms", "data_ms", "forward_ms", "bytes_sent", "eval/x",
                              "eval/chance_x", "mfu"})
        lines += std::string(", \"") + key + "\": " + (s == 2 ? "0.5" : values);
      lines += "}\n";
    }
    write("a/metrics.jsonl", lines);
    const auto html = page({folder("a")});
    expect_balanced(html);
    EXPECT_EQ(html.find("nan"), std::string::npos) << values;
    EXPECT_EQ(html.find("inf"), std::string::npos) << values;
  }
}

TEST_F(ReportTest, LongRunsStaySmall) {
  const auto html = page({full_run("long", 20000)});
  EXPECT_LT(html.size(), 1u << 20);
}

TEST(SvgChart, TicksAreRoundAndCoverTheRange) {
  EXPECT_EQ(nice_ticks(0, 1, 5), (std::vector<double>{0, 0.2, 0.4, 0.6000000000000001, 0.8, 1}));
  std::mt19937_64 random(4);
  for (int i = 0; i < 1000; ++i) {
    const double low = std::ldexp(double(random() % 1000) - 500, int(random() % 40) - 20);
    const double high = low + std::ldexp(double(random() % 1000 + 1), int(random() % 40) - 20);
    const int wanted = 2 + int(random() % 6);
    const auto t = nice_ticks(low, high, wanted);
    ASSERT_GE(t.size(), 2u);
    const double step = t[1] - t[0];
    EXPECT_LE(t.front(), low + step * 1e-6);
    EXPECT_GE(t.back(), high - step * 1e-6);
    EXPECT_LE(t.size(), std::size_t(wanted) + 2);
    const double mantissa = step / std::pow(10, std::floor(std::log10(step) + 1e-6));
    EXPECT_TRUE(std::abs(mantissa - 1) < 1e-3 || std::abs(mantissa - 2) < 1e-3 || std::abs(mantissa - 5) < 1e-3)
        << mantissa;
  }
}

TEST(SvgChart, NumbersAsPeopleWriteThem) {
  EXPECT_EQ(format_value(0), "0");
  EXPECT_EQ(format_value(2.16), "2.16");
  EXPECT_EQ(format_value(5e-4), "5e-4");
  EXPECT_EQ(format_value(1.25e-7), "1.25e-7");
  EXPECT_EQ(format_value(12345), "12.35k");
  EXPECT_EQ(format_value(21.3e6), "21.3M");
  EXPECT_EQ(format_value(999999), "1M");
  EXPECT_EQ(format_value(-1500), "-1500");
  EXPECT_EQ(format_value(0.2345, Unit::percent), "23.4 %");
  EXPECT_EQ(format_value(0.0156, Unit::percent), "1.56 %");
  EXPECT_EQ(format_value(std::numeric_limits<double>::quiet_NaN()), "–");
}

TEST(SvgChart, SmoothingKeepsLinesAndDampsNoise) {
  Curve line, noise;
  std::mt19937_64 random(5);
  std::normal_distribution<double> normal;
  for (int i = 0; i < 400; ++i) {
    line.x.push_back(i);
    line.y.push_back(3 - 0.01 * i);
    noise.x.push_back(i);
    noise.y.push_back(normal(random));
  }
  const auto same = smoothed(line);
  for (int i = 0; i < 400; ++i) EXPECT_NEAR(same.y[std::size_t(i)], line.y[std::size_t(i)], 1e-12);
  double before = 0, after = 0;
  const auto calm = smoothed(noise);
  for (int i = 0; i < 400; ++i) {
    before += noise.y[std::size_t(i)] * noise.y[std::size_t(i)];
    after += calm.y[std::size_t(i)] * calm.y[std::size_t(i)];
  }
  EXPECT_LT(after, before / 5);
}

TEST(SvgChart, ThinningKeepsExtremes) {
  Curve c;
  for (int i = 0; i < 100000; ++i) {
    c.x.push_back(i);
    c.y.push_back(i == 77777 ? 50 : i == 12345 ? -50 : std::sin(i));
  }
  const auto t = thinned(c, 1000);
  EXPECT_LE(t.x.size(), 1000u);
  EXPECT_EQ(*std::max_element(t.y.begin(), t.y.end()), 50);
  EXPECT_EQ(*std::min_element(t.y.begin(), t.y.end()), -50);
  EXPECT_TRUE(std::is_sorted(t.x.begin(), t.x.end()));
}

}  // namespace
}  // namespace trireme
