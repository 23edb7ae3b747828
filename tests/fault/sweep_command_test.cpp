// links: comm
// `trireme sweep` as its users start it: tasks beside each other, one that another process hands in, one that fails;
// what is left to export, and PEFT on it.
#include "tests/fault/stop_at.h"

#include <cstring>
#include <map>

#include <nlohmann/json.hpp>

namespace trireme::test {
namespace {

using std::chrono::seconds;

class SweepCommand : public ::testing::Test {
 protected:
  // A backbone of two layers, trained for some steps, once for all tests.
  static void SetUpTestSuite() {
    shared_ = new TempFolder;
    write_text(
        dir() / "backbone.yaml",
        "recipe: causal_lm\nsteps: 20\nbatch_size: 8\nthreads: 1\noptimizer: {lr: 3.0e-3}\neval_every: 0\n"
        "checkpoint: {every: 20}\nmodel: {layers: 2, width: 32, intermediate: 64, heads: 2, kv_heads: 1, vocab: 300}\n"
        "text: {sources: [arithmetic], length: 64, arithmetic: 200}\n");
    const Outcome o = trireme({"train", "backbone.yaml", "--out", "backbone"});
    ASSERT_EQ(o.code, 0) << o;
  }
  static void TearDownTestSuite() { delete std::exchange(shared_, nullptr); }
  static const fs::path& dir() { return shared_->path; }
  static Outcome trireme(const Words& words) { return run_program(words, {.folder = dir()}); }

  static std::string sweep(const std::string& tasks) {
    return "recipe: lora_sweep\nmodel: backbone\nthreads: 1\ncheckpoint: {every: 0}\n"
           "search: {lr: [2.0e-2, 5.0e-2], rank: [4], batch_size: [4]}\n"
           "early_exit: {eval_fraction: 0.1, val_cap: 4}\ntasks:\n" +
           tasks;
  }
  static std::string task(const std::string& name, const std::string& more, int train = 24) {
    return "  " + name + ": {data: arithmetic, level: 1, length: 64, train: " + std::to_string(train) +
           ", held_out: 8, test: 0, template: plain" + more + "}\n";
  }
  static bool over(const std::string& task) { return fs::exists(dir() / task / "result.json"); }
  static TempFolder* shared_;
};
TempFolder* SweepCommand::shared_ = nullptr;

bool holds(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
int count(const std::string& text, const std::string& part) {
  int n = 0;
  for (std::size_t at = text.find(part); at != text.npos; at = text.find(part, at + 1)) ++n;
  return n;
}

// A sweep that is over, that was stopped, and that runs beside others.
void expect_page(const Outcome& o, const fs::path& file, const std::vector<std::string>& parts) {
  EXPECT_EQ(o.code, 0) << o;
  const std::string page = read_text(file);
  for (const auto& part : parts) EXPECT_TRUE(holds(page, part)) << part << " in " << page;
}

// What was handed in to a sweep and not read yet.
int letters(const fs::path& inbox) {
  int n = 0;
  for (const auto& entry : fs::directory_iterator(inbox))
    n += entry.is_regular_file() && !entry.path().filename().string().starts_with(".");
  return n;
}

// By every policy, on its own two GPUs and on four, with its exits and without.
void expect_replayed(const Outcome& o) {
  ASSERT_EQ(o.code, 0) << o;
  const auto rows = nlohmann::json::parse(o.out).at("rows");
  EXPECT_EQ(rows.size(), 2u * 2u * 5u);
  for (const auto& row : rows) {
    EXPECT_EQ(row.at("tasks"), 4) << row;
    EXPECT_EQ(row.at("real_gpus"), 2) << row;
    EXPECT_GT(row.at("makespan_s"), 0.0) << row;
    if (row.at("gpus") != 2 || row.at("exits") != "as recorded") continue;
    EXPECT_LE(row.at("makespan_s"), row.at("real_makespan_s").get<double>() * 2) << row;
  }
}

TEST_F(SweepCommand, RefusesToReplayWhatIsNoRecording) {
  const auto bench = [](const std::string& problem) {
    return trireme({"bench", "sweep_cluster", "--problem", problem});
  };
  const Outcome none = bench("run backbone");
  EXPECT_EQ(none.code, 3) << none;
  EXPECT_TRUE(holds(none.err, "backbone: has no schedule.jsonl") && none.errors().size() == 1) << none;
  EXPECT_EQ(bench("run backbone on four").code, 2);
  EXPECT_EQ(bench("runs backbone").code, 2);
  EXPECT_EQ(bench("run ").code, 2);
}

TEST_F(SweepCommand, SaysWhatAReplayLacks) {
  fs::create_directories(dir() / "silent");
  write_text(dir() / "silent/schedule.jsonl",
             R"({"t": 0, "event": "begin", "gpus": 1}
{"t": 0, "event": "arrive", "task": "a", "gpus": 1, "seconds": 2, "text": "", "letter": ""}
{"t": 0, "event": "begin", "gpus": 4}
{"t": 0, "event": "start", "task": "a", "gpus": [0], "after_cut": false}
{"t": 3, "event": "done", "task": "a"}
)");
  const Outcome o = trireme({"bench", "sweep_cluster", "--json", "--problem", "run silent"});
  ASSERT_EQ(o.code, 0) << o;
  EXPECT_TRUE(holds(o.err, "silent: task a told nothing before it ended: no rows without exits\n")) << o;
  const auto rows = nlohmann::json::parse(o.out).at("rows");
  ASSERT_EQ(rows.size(), 5u) << o;
  EXPECT_EQ(count(o.err, "\"makespan_s\":3"), 5) << "as they come: " << o;
  EXPECT_EQ(rows[0].at("real_gpus"), 4);
  EXPECT_EQ(rows[0].at("real_gpus_least"), 1);
}

TEST_F(SweepCommand, TakesTasksWhileItRunsAndOneFailsAlone) {
  const std::string good = "{\"instruction\": \"2 and 3\", \"output\": \"5\"}\n";
  std::string lines;
  for (int i = 0; i < 20; ++i) lines += good;
  write_text(dir() / "bad.jsonl", lines + "{\"instruction\": NaN, \"output\": \"5\"}\n");
  write_text(dir() / "live.yaml", sweep(task("long", ", ranks: 1", 700) + task("short", ", ranks: 1") +
                                        "  bad: {data: bad.jsonl, length: 256, template: alpaca, ranks: 1}\n"));
  write_text(dir() / "late.yaml", sweep(task("late", ", ranks: 2")));
  write_text(dir() / "broken.yaml", sweep(task("broken", ", rankz: 2")));
  write_text(dir() / "wide.yaml", sweep(task("wide", ", ranks: 3")));
  Program live({"sweep", "live.yaml", "--out", "live", "--ranks", "2"},
               {dir(), stopping_at("live/long/losses.jsonl/")});
  const pid_t stopped = await_stopped(live);
  ASSERT_GT(stopped, 0) << live.wait();
  // It goes on when all have posted: it cannot be over before.
  const auto add = [](const std::string& file) {
    return std::make_unique<Program>(Words{"sweep", "add", file, "--to", "live"}, Program::Options{dir()});
  };
  const auto adds_late = add("late.yaml"), adds_broken = add("broken.yaml"), adds_wide = add("wide.yaml");
  EXPECT_TRUE(wait_until([] { return letters(dir() / "live/inbox") == 3; }));
  expect_page(trireme({"report", "live"}), dir() / "live/report.html",
              {"Actual", "<h2>long</h2>", "not over", "best so far", "<h2>bad</h2>", "waiting after"});
  kill(stopped, SIGCONT);
  const Outcome late = adds_late->wait();
  EXPECT_EQ(late.code, 0) << late;
  EXPECT_TRUE(holds(late.out, "accepted")) << late;
  const Outcome broken = adds_broken->wait();
  EXPECT_EQ(broken.code, 2) << broken;
  EXPECT_TRUE(holds(broken.err, "broken.yaml: refused") && holds(broken.err, "rankz")) << broken;
  const Outcome wide = adds_wide->wait();
  EXPECT_EQ(wide.code, 2) << wide;
  const Outcome end = live.wait(seconds(120));
  EXPECT_EQ(end.code, 3) << end;
  ASSERT_EQ(end.errors().size(), 1u) << end;
  EXPECT_TRUE(holds(end.errors()[0], "task bad: ") && holds(end.errors()[0], "bad.jsonl:21")) << end;
  EXPECT_EQ(count(end.out, "task bad failed"), 1) << end;
  for (const char* name : {"long", "short", "late"}) {
    EXPECT_TRUE(over(std::string("live/") + name)) << name;
    EXPECT_TRUE(holds(end.out, "winner: live/" + std::string(name) + "/winner")) << end;
  }
  EXPECT_FALSE(over("live/bad"));
  const std::string page = read_text(dir() / "live/report.html");
  EXPECT_TRUE(holds(page, "Planned") && holds(page, "Actual") && holds(page, "<h2>late</h2>"));
  // Mended, the same command does what is left.
  write_text(dir() / "bad.jsonl", lines + good);
  const Outcome again = trireme({"sweep", "live.yaml", "--out", "live", "--ranks", "2"});
  EXPECT_EQ(again.code, 0) << again;
  EXPECT_TRUE(over("live/bad"));
  EXPECT_TRUE(holds(again.out, "winner: live/late/winner")) << again;
  expect_page(trireme({"report", "live", "--out", "again.html"}), dir() / "again.html", {"Actual", "<h2>late</h2>"});
  EXPECT_EQ(trireme({"sweep", "add", "late.yaml", "--to", "nowhere"}).code, 3);
  expect_replayed(trireme({"bench", "sweep_cluster", "--json", "--problem", "run live on 4,2,4"}));
}

// Paths are those of who hands in. A sweep without room for tasks says so, and a task without room in it too.
TEST_F(SweepCommand, TakesPathsOfAnotherFolder) {
  std::string lines;
  for (int i = 0; i < 20; ++i) lines += "{\"instruction\": \"2 and 3\", \"output\": \"5\"}\n";
  fs::create_directories(dir() / "elsewhere");
  write_text(dir() / "elsewhere/chats.jsonl", lines);
  const std::string data = "  far: {data: chats.jsonl, validation: chats.jsonl, template: alpaca, ranks: 1";
  std::string far = sweep(data + ", length: 256}\n");
  far.replace(far.find("backbone"), 8, "../backbone");
  write_text(dir() / "elsewhere/far.yaml", far);
  write_text(dir() / "elsewhere/odd.yaml", sweep(data + ", train: 9, level: 2}\n"));
  write_text(dir() / "host.yaml", sweep(task("host", ", ranks: 1", 300)));
  Program host({"sweep", "host.yaml", "--out", "host", "--ranks", "2"},
               {dir(), stopping_at("host/host/losses.jsonl/")});
  const pid_t stopped = await_stopped(host);
  ASSERT_GT(stopped, 0) << host.wait();
  const Program::Options there{dir() / "elsewhere"};
  Program adds({"sweep", "add", "far.yaml", "--to", "../host"}, there);
  EXPECT_TRUE(wait_until([] { return letters(dir() / "host/inbox") == 1; }));
  const Outcome odd = run_program({"sweep", "add", "odd.yaml", "--to", "../host"}, there);
  EXPECT_EQ(odd.code, 2) << odd;
  EXPECT_TRUE(holds(odd.err, "tasks.far: level, train: of data: arithmetic alone")) << odd;
  kill(stopped, SIGCONT);
  EXPECT_EQ(adds.wait().code, 0);
  const Outcome end = host.wait(seconds(120));
  EXPECT_EQ(end.code, 0) << end;
  EXPECT_TRUE(over("host/far")) << end;
}

TEST_F(SweepCommand, RefusesWhatItWouldPassOver) {
  const std::string line = "{\"instruction\": \"2 and 3\", \"output\": \"5\"}\n";
  write_text(dir() / "few.jsonl", line + line + line);
  write_text(dir() / "over.yaml", sweep("  a: {data: few.jsonl, template: alpaca, length: 64, train: 9}\n"));
  write_text(dir() / "ranks.yaml", sweep(task("a", ", ranks: 2")));
  const auto says = [](const Words& words, int code, const std::string& part) {
    const Outcome o = trireme(words);
    EXPECT_EQ(o.code, code) << o;
    ASSERT_EQ(o.errors().size(), 1u) << o;
    EXPECT_TRUE(holds(o.errors()[0], part)) << o;
  };
  says({"sweep", "over.yaml", "--out", "over"}, 2, "tasks.a: train: of data: arithmetic alone");
  says({"sweep", "ranks.yaml", "--out", "ranks"}, 2, "tasks.a: says ranks: 2, and the sweep has one process");
  EXPECT_FALSE(fs::exists(dir() / "ranks"));
  // Jobs that all diverge leave no winner; the other task has its own.
  write_text(dir() / "wild.yaml", sweep(task("wild", ", search: {lr: [1.0e+30]}") + task("tame", "")));
  says({"sweep", "wild.yaml", "--out", "wild"}, 5, "task wild: no job has a result, 1 of 1 diverged");
  EXPECT_TRUE(over("wild/tame"));
  says({"sweep", "add", "ranks.yaml", "--to", "wild"}, 3, "takes no tasks: it has one process");
  expect_page(trireme({"report", "wild"}), dir() / "wild/report.html", {"<h2>wild</h2>", "<h2>tame</h2>", "winner"});
  const std::string winners = "its winners are adapters: wild/tame/winner;";
  says({"export", "wild", "--format", "hf", "--out", "x"}, 2, winners);
  says({"export", "backbone", "--format", "hf", "--adapter", "wild", "--out", "x"}, 2, winners);
  says({"generate", "backbone", "--adapter", "wild", "--prompt", "2"}, 2, winners);
  says({"generate", "wild", "--prompt", "2"}, 2, winners);
  says({"generate", "backbone", "--adapter", "wild/tame", "--prompt", "2"}, 2,
       "its winners are adapters: wild/tame/winner;");
}

// The last number of a file of weights is no number any more.
void poison(const fs::path& file) {
  std::string bytes = read_text(file);
  bytes.replace(bytes.size() - 4, 4, std::string("\0\0\xc0\x7f", 4));
  write_text(file, bytes);
}

// A layer is read as it is cut: what is wrong with it is told by all ranks, and the next task runs.
TEST_F(SweepCommand, RanksReadLayersOfTheirOwn) {
  ASSERT_EQ(trireme({"export", "backbone", "--format", "hf", "--out", "layer"}).code, 0);
  const fs::path file = dir() / "layer/model.safetensors";
  std::string bytes = read_text(file);
  std::uint64_t header = 0;
  std::memcpy(&header, bytes.data(), 8);
  const auto tensors = nlohmann::json::parse(bytes.substr(8, header));
  const std::string name = "model.layers.1.mlp.up_proj.weight";
  bytes.replace(8 + header + tensors[name]["data_offsets"][0].get<std::size_t>(), 4, std::string("\0\0\xc0\x7f", 4));
  write_text(file, bytes);
  write_text(dir() / "none.jsonl", "{\"instruction\": 1e999\n");
  write_text(dir() / "layer.yaml", sweep("  data: {data: none.jsonl, length: 64, template: plain, model: layer}\n" +
                                         task("weights", ", model: layer") + task("fine", "")));
  const Outcome end = trireme({"sweep", "layer.yaml", "--ranks", "2", "--out", "layered", "precision=fp8"});
  EXPECT_EQ(end.code, 3) << end;
  ASSERT_EQ(end.errors().size(), 2u) << end;
  EXPECT_TRUE(holds(end.errors()[0], "task data: ") && holds(end.errors()[0], "none.jsonl:1"))
      << "layers come last" << end;
  EXPECT_TRUE(holds(end.errors()[1], "task weights: layer: tensor '" + name) && holds(end.errors()[1], "not finite"))
      << end;
  EXPECT_TRUE(over("layered/fine"));
}

TEST_F(SweepCommand, InTurnTooOneFailsAlone) {
  ASSERT_EQ(trireme({"export", "backbone", "--format", "hf", "--out", "nan"}).code, 0);
  poison(dir() / "nan/model.safetensors");
  write_text(dir() / "none.jsonl", "{\"instruction\": 1e999\n");
  write_text(dir() / "turn.yaml",
             sweep("  bad: {data: none.jsonl, length: 256, template: alpaca}\n" + task("fine", "") +
                   task("module", ", model: nowhere") + task("weights", ", model: nan")));
  const Outcome end = trireme({"sweep", "turn.yaml", "--out", "turn"});
  EXPECT_EQ(end.code, 3) << end;
  ASSERT_EQ(end.errors().size(), 3u) << end;
  EXPECT_TRUE(holds(end.errors()[0], "task bad: ") && holds(end.errors()[0], "none.jsonl:1")) << end;
  EXPECT_TRUE(holds(end.errors()[1], "task module: nowhere")) << end;
  EXPECT_TRUE(holds(end.errors()[2], "task weights: nan: tensor '") && holds(end.errors()[2], "not finite")) << end;
  EXPECT_TRUE(over("turn/fine"));
}

// A folder from before some keys of lora, train.pad and execution.parallel went without, and goes on so.
TEST_F(SweepCommand, GoesOnInAFolderThatKnowsNoPadding) {
  write_text(dir() / "old.yaml", sweep(task("one", "")));
  const Words again = {"sweep", "old.yaml", "--out", "old"};
  ASSERT_EQ(trireme(again).code, 0);
  const fs::path saved = dir() / "old/config.resolved.yaml";
  std::string settings = read_text(saved);
  const auto without = [&](const std::vector<std::string>& lines) {
    for (const std::string& line : lines) {
      const std::size_t at = settings.find(line);
      ASSERT_NE(at, settings.npos) << settings;
      settings.erase(at, line.size());
    }
    write_text(saved, settings);
    fs::remove(dir() / "old/one/result.json");
  };
  without({"  exclude: []\n", "  rank_pattern: {}\n", "  alpha_pattern: {}\n", "  init: default\n"});
  const Outcome patterns = trireme(again);
  EXPECT_EQ(patterns.code, 0) << patterns;
  EXPECT_EQ(read_text(saved), settings);
  without({"  pad: auto\n", "  parallel: auto\n"});
  for (const char* pad : {"auto", "off", "auto"}) {
    const Outcome o = trireme({"sweep", "old.yaml", "train.pad=" + std::string(pad), "--out", "old"});
    EXPECT_EQ(o.code, 0) << o;
    EXPECT_EQ(read_text(saved), settings);
  }
  const Outcome other = trireme({"sweep", "old.yaml", "train.pad=longest", "--out", "old"});
  EXPECT_EQ(other.code, 2) << other;
  ASSERT_EQ(other.errors().size(), 1u) << other;
  EXPECT_TRUE(holds(other.errors()[0], "holds a sweep with other values of train.pad;")) << other;
}

// A user's own questions are asked, of jobs on both ranks; plain text is data.
TEST_F(SweepCommand, FilesHaveQuestionsAndTextIsData) {
  std::string rows, text;
  for (int i = 0; i < 24; ++i) {
    rows += R"({"instruction":"say","output":"ok"})"
            "\n";
    text += "a line of " + std::to_string(i) + "\n\n";
  }
  write_text(dir() / "q.jsonl", rows);
  write_text(dir() / "plain.txt", text);
  write_text(dir() / "long.jsonl", rows + R"({"instruction":")" + std::string(99, 'w') + "\",\"output\":\"ok\"}\n");
  write_text(dir() / "own.yaml", sweep("  asked: {data: q.jsonl, length: 32, template: plain, test: 3}\n"
                                       "  other: {data: q.jsonl, length: 32, template: plain, test_file: long.jsonl}\n"
                                       "  text: {data: [plain.txt, plain.txt], length: 16}\n"));
  const Outcome end = trireme({"sweep", "own.yaml", "early_exit.keep_ratio=1", "--ranks", "2", "--out", "own"});
  ASSERT_EQ(end.code, 0) << end;
  for (const char* name : {"asked", "other"}) {
    const auto result = nlohmann::json::parse(read_text(dir() / "own" / name / "result.json"));
    EXPECT_TRUE(result.at("exact_match").is_number()) << end;
    for (const auto& job : result.at("jobs")) EXPECT_TRUE(job.at("exact_match").is_number()) << end;
  }
  EXPECT_EQ(count(end.out, "% of the questions"), 2) << end;
  EXPECT_EQ(count(end.out, "exact match"), 2) << end;
  EXPECT_EQ(count(end.err, "other: 1 of 25 questions, of 32 ids or more, are left out; raise length"), 1) << end;
  EXPECT_TRUE(over("own/text"));
}

// Ranks as a pipeline, by the key alone; one rank is told.
TEST_F(SweepCommand, RanksAreAPipeline) {
  write_text(dir() / "pipe.yaml", sweep(task("one", "")));
  const auto decisions = [&](const std::string& parallel) {
    const std::string out = "pipe_" + parallel;
    const Outcome o = trireme({"sweep", "pipe.yaml", "execution.parallel=" + parallel, "--ranks", "2", "--out", out});
    EXPECT_EQ(o.code, 0) << o;
    std::vector<std::string> all;
    std::istringstream lines(read_text(dir() / out / "one/decisions.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const auto d = nlohmann::json::parse(line);
      all.push_back(d.at("job").get<std::string>() + d.at("step").dump() + d.at("decision").get<std::string>());
    }
    return all;
  };
  EXPECT_EQ(decisions("pipeline"), decisions("gather"));
  const Outcome alone = trireme({"sweep", "pipe.yaml", "execution.parallel=pipeline", "--out", "pipe_alone"});
  EXPECT_EQ(alone.code, 2) << alone;
  ASSERT_EQ(alone.errors().size(), 1u) << alone;
  EXPECT_TRUE(holds(alone.errors()[0], "execution.parallel is pipeline, but a pipeline takes several ranks")) << alone;
}

// Quickstarts have one file name, so one default folder: what another command left there is not written over.
TEST_F(SweepCommand, ResultsOfAnotherCommandAreKept) {
  write_text(dir() / "one.yaml", sweep(task("one", "")));
  write_text(dir() / "drawing.yaml", "model: nowhere\nprompts: [a circle]\n");
  const auto refused = [](const Words& words, const std::string& holds_what) {
    const Outcome o = trireme(words);
    EXPECT_EQ(o.code, 2) << o;
    ASSERT_EQ(o.errors().size(), 1u) << o;
    EXPECT_TRUE(holds(o.errors()[0], holds_what)) << o;
  };
  const std::string before = read_text(dir() / "backbone/config.resolved.yaml");
  refused({"sweep", "one.yaml", "--out", "backbone"}, "backbone: holds a run of trireme train; choose another --out");
  refused({"sample", "drawing.yaml", "--out", "backbone"}, "backbone: holds a run of trireme train");
  EXPECT_EQ(read_text(dir() / "backbone/config.resolved.yaml"), before);
  const Outcome first = trireme({"sweep", "one.yaml", "--out", "kept"});
  ASSERT_EQ(first.code, 0) << first;
  refused({"train", "backbone.yaml", "--out", "kept"}, "kept: holds a sweep");
  refused({"eval", "kept"}, "is a sweep");
  refused({"sweep", "one.yaml", "train.epochs=9", "seed=7", "--out", "kept"}, "other values of seed, train.epochs;");
  fs::create_directories(dir() / "drawn");
  write_text(dir() / "drawn/config.resolved.yaml", "model: nowhere\nmethod: plain\n");
  refused({"train", "backbone.yaml", "--out", "drawn"}, "drawn: holds pictures of trireme sample");
  refused({"eval", "drawn"}, "holds pictures, no model");
  const Outcome fresh = trireme({"sweep", "one.yaml", "--out", "drawn", "--fresh"});
  EXPECT_EQ(fresh.code, 0) << fresh;
  EXPECT_TRUE(fs::exists(dir() / "drawn.old-1/config.resolved.yaml"));
}

TEST_F(SweepCommand, SaysThatItWasStopped) {
  write_text(dir() / "stop.yaml", sweep(task("long", "", 2000)));
  Program running({"sweep", "stop.yaml", "--out", "stop"}, {dir(), stopping_at("stop/long/losses.jsonl/")});
  ASSERT_EQ(await_stopped(running), running.pid());
  running.signal(SIGINT);
  running.signal(SIGCONT);
  const Outcome end = running.wait(seconds(60));
  EXPECT_EQ(end.code, 85) << end;
  EXPECT_TRUE(holds(end.out, "the same command resumes")) << end;
}

// While it runs, and after a kill.
TEST_F(SweepCommand, ReportsASweepThatIsNotOver) {
  write_text(dir() / "part.yaml", sweep(task("first", "", 200) + task("second", "")));
  Program running({"sweep", "part.yaml", "--out", "part"}, {dir(), stopping_at("\"val_loss\"")});
  ASSERT_EQ(await_stopped(running), running.pid());
  const std::vector<std::string> parts = {"<h2>first</h2>",
                                          "not over",
                                          "best so far",
                                          "under way after",
                                          "<h2>second</h2>",
                                          "waiting after",
                                          "samples saved by early exit so far"};
  expect_page(trireme({"report", "part"}), dir() / "part/report.html", parts);
  running.signal(SIGKILL);
  running.wait(seconds(60));
  fs::remove(dir() / "part/report.html");
  expect_page(trireme({"report", "part"}), dir() / "part/report.html", parts);
  const Outcome two = trireme({"report", "part", "backbone"});
  EXPECT_EQ(two.code, 2) << two;
}

// A row of the ids 3, 4, ..., as `trireme logits` reads it.
void write_ids(const fs::path& file) {
  constexpr int n = 24;
  std::string header = R"({"ids":{"dtype":"I64","shape":[2,12],"data_offsets":[0,192]}})", bytes;
  header.resize((header.size() + 7) / 8 * 8, ' ');
  const auto put = [&](std::int64_t v) { bytes.append(reinterpret_cast<const char*>(&v), 8); };
  put(std::int64_t(header.size()));
  bytes += header;
  for (std::int64_t i = 0; i < n; ++i) put(3 + i * 11 % 290);
  write_text(file, bytes);
}

TEST_F(SweepCommand, ExportsAWinner) {
  write_text(dir() / "two.yaml", sweep(task("one", "") + task("two", "")));
  const Outcome end = trireme({"sweep", "two.yaml", "--out", "two"});
  ASSERT_EQ(end.code, 0) << end;
  EXPECT_TRUE(end.errors().empty()) << end;
  const Words words{"export", "two", "--format", "peft", "--out", "best"};
  const Outcome which = trireme(words);
  EXPECT_EQ(which.code, 2) << which;
  EXPECT_TRUE(holds(which.err, "one, two")) << which;
  EXPECT_EQ(trireme({"export", "two", "--format", "peft", "--task", "three", "--out", "best"}).code, 2);
  EXPECT_EQ(trireme({"export", "backbone", "--format", "peft", "--out", "best"}).code, 3);
  const Outcome gone = trireme({"export", "backbone", "--step", "3", "--out", "best"});
  EXPECT_EQ(gone.code, 3) << gone;
  EXPECT_TRUE(holds(gone.err, "backbone/ckpt/step_00000003: is not there")) << gone;
  const Outcome done = trireme({"export", "two", "--format", "peft", "--task", "two", "--out", "best"});
  ASSERT_EQ(done.code, 0) << done;
  write_ids(dir() / "ids.safetensors");
  const auto logits = [&](const std::string& adapter) {
    return trireme({"logits", "backbone", "--adapter", adapter, "--ids", "ids.safetensors", "--out", "l.safetensors"});
  };
  const Outcome ours = logits("best");
  ASSERT_EQ(ours.code, 0) << ours;
  const std::string exported = read_text(dir() / "l.safetensors");
  ASSERT_EQ(logits("two/two/winner").code, 0);
  EXPECT_EQ(read_text(dir() / "l.safetensors"), exported);
  // One number of it is no number: refused by name.
  fs::copy(dir() / "best", dir() / "poisoned");
  poison(dir() / "poisoned/adapter_model.safetensors");
  const Outcome poisoned = logits("poisoned");
  EXPECT_EQ(poisoned.code, 3) << poisoned;
  EXPECT_TRUE(holds(poisoned.err, "poisoned/adapter_model.safetensors") && holds(poisoned.err, "not finite"))
      << poisoned;
}

// A shape alone is enough for speed; the weights are the same on any number of ranks.
TEST_F(SweepCommand, DrawsABackbone) {
  write_text(dir() / "shape.json",
             R"({"model_type": "qwen2", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4,
                 "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 300, "tie_word_embeddings": false})");
  std::string yaml = sweep(task("one", ""));
  yaml.replace(yaml.find("backbone"), 8, "shape.json\nweights: random");
  write_text(dir() / "shaped.yaml", yaml);
  const auto losses = [&](const std::string& out, const Words& more) {
    Words words{"sweep", "shaped.yaml", "tasks.one.length=256", "early_exit.enabled=false", "--out", out};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome o = trireme(words);
    EXPECT_EQ(o.code, 0) << o;
    std::map<std::string, double> all;
    std::istringstream lines(read_text(dir() / out / "one/losses.jsonl"));
    for (std::string line; std::getline(lines, line);)
      if (const auto l = nlohmann::json::parse(line); l.contains("val_loss"))
        all[l.at("job").get<std::string>() + l.at("step").dump()] = l.at("val_loss");
    return all;
  };
  const auto one = losses("shaped", {}), two = losses("shaped2", {"--ranks", "2"}),
             other = losses("shaped3", {"seed=5"});
  ASSERT_GT(one.size(), 4u);
  ASSERT_EQ(one.size(), two.size());
  for (const auto& [key, loss] : one) {
    EXPECT_NEAR(loss, two.at(key), 1e-3 * loss) << key;
    EXPECT_NE(loss, other.at(key)) << "another seed";
  }
  const Outcome made = trireme({"export", "shaped2", "--format", "peft", "--out", "shaped_best"});
  EXPECT_EQ(made.code, 0) << made;
  EXPECT_TRUE(holds(made.out, "whose base has no folder: its weights were drawn")) << made;
  EXPECT_TRUE(holds(read_text(dir() / "shaped2/report.html"), "losses nothing"));
  const Outcome none = trireme({"sweep", "shaped.yaml", "model=no.json", "--out", "shaped4"});
  EXPECT_EQ(none.code, 3) << none;
  EXPECT_TRUE(holds(none.err, "no.json: is no file")) << none;
  const Outcome both = trireme({"sweep", "shaped.yaml", "pretrain=x.yaml", "--out", "shaped5"});
  EXPECT_EQ(both.code, 2) << both;
  write_text(dir() / "vast.json",
             R"({"model_type": "llama", "hidden_size": 1048576, "intermediate_size": 1048576, "vocab_size": 1048576,
                 "num_hidden_layers": 9999, "num_attention_heads": 1024})");
  const Outcome vast = trireme({"sweep", "shaped.yaml", "model=vast.json", "--out", "shaped6"});
  EXPECT_EQ(vast.code, 3) << vast;
  write_text(dir() / "large.json",
             R"({"model_type": "llama", "hidden_size": 65536, "intermediate_size": 65536, "vocab_size": 300,
                 "num_hidden_layers": 400, "num_attention_heads": 512})");
  const Outcome large = trireme({"sweep", "shaped.yaml", "model=large.json", "--out", "shaped7"});
  EXPECT_EQ(large.code, 6) << large;
  EXPECT_TRUE(holds(large.err, "large.json: has weights of ") && holds(large.err, "give the task several ranks"));
  write_text(dir() / "few.json",
             R"({"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
                 "num_attention_heads": 4, "vocab_size": 60})");
  const Outcome few = trireme({"sweep", "shaped.yaml", "model=few.json", "tasks.one.length=256", "--out", "shaped8"});
  EXPECT_EQ(few.code, 3) << few;
  EXPECT_TRUE(holds(few.err, "without a tokenizer.json beside config.json it is at least 260")) << few;
}

TEST_F(SweepCommand, DrawsATableOnATerminal) {
  write_text(dir() / "table.yaml", sweep(task("one", "")));
  const Outcome o = run_program({"sweep", "table.yaml", "--out", "table"},
                                {.folder = dir(), .environment = {"TRIREME_TERMINAL=100x30"}});
  EXPECT_EQ(o.code, 0) << o;
  EXPECT_TRUE(holds(o.err,
                    "\x1b"
                    "Ejob "))
      << o;
  EXPECT_TRUE(holds(o.err, "one: best ")) << o;
  EXPECT_FALSE(holds(o.err.substr(o.err.rfind("\x1b[J")),
                     "\x1b"
                     "E"))
      << "the counts alone stay: " << o;
}

TEST_F(SweepCommand, PeftGivesTheLogitsOfTheWinner) {
  const char* python = std::getenv("TRIREME_PEFT_PYTHON");
  if (!python || !*python) GTEST_SKIP() << "TRIREME_PEFT_PYTHON names no python with transformers and peft";
  write_text(dir() / "peft.yaml", sweep(task("only", "")) +
                                      "lora:\n  targets: '.*layers\\.[01]\\..*_proj'\n  exclude: [1.mlp.up_proj]\n"
                                      "  rslora: true\n  rank_pattern: {v_proj: 2, 'layers.1.mlp.*': 8}\n"
                                      "  alpha_pattern: {q_proj: 3}\n  init: gaussian\n");
  ASSERT_EQ(trireme({"sweep", "peft.yaml", "--out", "peft"}).code, 0);
  ASSERT_EQ(trireme({"export", "peft", "--format", "peft", "--out", "only"}).code, 0);
  ASSERT_EQ(trireme({"export", "backbone", "--format", "hf", "--out", "hf"}).code, 0);
  write_ids(dir() / "ids.safetensors");
  ASSERT_EQ(
      trireme({"logits", "backbone", "--adapter", "only", "--ids", "ids.safetensors", "--out", "p.safetensors"}).code,
      0);
  const std::string at = dir().string() + "/", command = std::string(python) + " " + std::getenv("TRIREME_SOURCE") +
                                                         "/tests/peers/sweep_winner.py " + at + "hf " + at + "only " +
                                                         at + "ids.safetensors " + at + "p.safetensors";
  EXPECT_EQ(std::system(command.c_str()), 0);
}

}  // namespace
}  // namespace trireme::test
