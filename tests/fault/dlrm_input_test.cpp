// links: comm
// A user's first hour with `dlrm`, through the program: own CSV, train, predictions, export and back. And what goes
// wrong on the way: the code, one line, the cure.
#include "tests/fault/experiment.h"
#include "tests/fault/stop_at.h"

#include <cmath>

namespace trireme::test {
namespace {

class DlrmInput : public ::testing::Test {
 protected:
  Outcome run(const Words& words) { return run_program(words, {folder_.path, {"XDG_CACHE_HOME=" + path("cache")}}); }
  std::string path(const std::string& name) const { return (folder_.path / name).string(); }

  // An own CSV, prepared, and an experiment on it.
  void prepare() {
    std::string csv = "clicked,price,tags,shop\n";
    for (int i = 0; i < 400; ++i)
      csv += std::to_string(i % 5 < 2) + "," + std::to_string(i % 7) + "," +
             (i % 3 ? "a|b" + std::to_string(i % 11) : "") + ",s" + std::to_string(i % 5) + "\n";
    write_text(path("own.csv"), csv);
    const Outcome o = run({"data", "table", "--from", "own.csv", "--label", "clicked", "--sparse", "tags:mean,shop",
                           "--dense", "price", "--out", "own.h5"});
    ASSERT_EQ(o.code, 0) << o;
    write_text(path("own.yaml"),
               "recipe: dlrm\nsteps: 60\nbatch_size: 40\nlog_every: 100\ndevice: cpu\noptimizer: {name: sgd, lr: 0.5, "
               "momentum: 0.0, "
               "weight_decay: 0.0, schedule: const}\ndata: {file: own.h5}\nmodel: {dim: 4, bottom: [8], top: [8]}\n"
               "compression: {forward: {codec: auto}, backward: {codec: auto}}\n");
  }

  void refused(const Words& words, int code, const Words& parts) {
    const Outcome o = run(words);
    EXPECT_EQ(o.code, code) << o;
    ASSERT_EQ(o.errors().size(), 1u) << o;
    for (const auto& part : parts) EXPECT_NE(o.errors()[0].find(part), std::string::npos) << part << "\n" << o;
  }

  TempFolder folder_;
};

TEST_F(DlrmInput, FirstHour) {
  prepare();
  const Outcome trained = run({"train", "own.yaml", "--out", "a", "--ranks", "2"});
  ASSERT_EQ(trained.code, 0) << trained;
  EXPECT_NE((trained.out + trained.err).find("step, but for its updates"), std::string::npos) << trained;
  const Outcome eval = run({"eval", "a", "--predictions", "p.csv"});
  ASSERT_EQ(eval.code, 0) << eval;
  EXPECT_NE(eval.out.find("AUC"), std::string::npos) << eval;
  const Words lines = lines_of(read_text(path("p.csv")));
  ASSERT_EQ(lines.size(), 41u);
  EXPECT_EQ(lines[0], "sample,label,probability");
  EXPECT_TRUE(lines[1].starts_with("360,1,")) << lines[1];
  ASSERT_EQ(run({"eval", "a", "--ranks", "2", "--predictions", "p2.csv"}).code, 0);
  EXPECT_EQ(lines_of(read_text(path("p2.csv"))).size(), 41u);
  // The export is all of the model: a run that begins with it says the same.
  ASSERT_EQ(run({"export", "a", "--out", "weights"}).code, 0);
  const Outcome back = run({"train", "own.yaml", "--out", "b", "steps=1", "optimizer.lr=0",
                            "init_from=" + path("weights/model.safetensors")});
  ASSERT_EQ(back.code, 0) << back;
  ASSERT_EQ(run({"eval", "b", "--predictions", "p3.csv"}).code, 0);
  EXPECT_EQ(read_text(path("p.csv")), read_text(path("p3.csv")));
  refused({"export", "a", "--out", "other", "--step", "best"}, 2, {"--step"});
  refused({"eval", "a", "--raw"}, 2, {"--raw"});
  refused({"export", "a", "--out", "other", "--precision", "bf16"}, 2, {"--precision", "hf, diffusers", "safetensors"});
  for (const Words& of_clip : {Words{"--split", "train"}, {"--protocol", "open_clip"}, {"--classes", "own.csv"}})
    refused({"eval", "a", of_clip[0], of_clip[1]}, 2, {of_clip[0], "leave it out"});
  fs::copy_file(path("own.h5"), path("it's own.h5"));
  const Outcome elsewhere = run({"eval", "a", "--data", "it's own.h5"});
  EXPECT_EQ(elsewhere.code, 0) << elsewhere;
  EXPECT_EQ(elsewhere.out, eval.out) << "the step, and the same table";
  const Outcome analysis =
      run({"dlrm", "analyze", "a", "--rows", "64", "--ranks", "1,4", "--out", "classes.yaml", "--dump", "rows"});
  ASSERT_EQ(analysis.code, 0) << analysis;
  const std::string rows = read_text(path("rows/table_0_batch_0.f32"));  // tags: a third are empty bags
  int empty = 0;
  for (std::size_t at = 0; at < rows.size(); at += 16) empty += rows.substr(at, 16) == std::string(16, '\0');
  EXPECT_GT(empty, 5) << "an empty bag travels as zeros";
  EXPECT_NE(analysis.out.find("backward, 4 ranks, 16 rows a chunk:"), std::string::npos) << analysis;
  for (const std::string codec : {", auto ", ", dedup_sparse ", ", dedup_packed "})
    EXPECT_NE(analysis.out.find(codec), std::string::npos) << codec << "\n" << analysis;
  // Over a slow link every table is coded, over a fast one none, and that is said with what would be smallest.
  const Words analyze{"dlrm", "analyze", "a", "--rows", "64", "--device", "cpu", "--out", "link.yaml", "--link"};
  const auto over = [&](const std::string& link) {
    Words words = analyze;
    words.push_back(link);
    const Outcome o = run(words);
    EXPECT_EQ(o.code, 0) << o;
    return o.out + read_text(path("link.yaml"));
  };
  const std::string slow = over("0.0001"), fast = over("10000");
  EXPECT_EQ(slow.find("codecs: [raw"), std::string::npos) << slow;
  EXPECT_NE(slow.find("codec=analysis"), std::string::npos) << slow;
  for (const std::string part :
       {"2 of 2 tables are raw", "smallest of them there: ", "codecs: [raw, raw]", "as chosen 0.9", "codec=auto"})
    EXPECT_NE(fast.find(part), std::string::npos) << part << "\n" << fast;
  refused({"dlrm", "analyze", "a", "--device", "gpu"}, 2, {"--device", "auto, cpu or cuda"});
  const Outcome guided =
      run({"train", "own.yaml", "--out", "c", "steps=2", "compression.forward.classes=classes.yaml"});
  EXPECT_EQ(guided.code, 0) << guided;
  // Evaluation under compression takes the bounds of the step that the checkpoint was saved after.
  const Outcome coded = run({"train", "own.yaml", "--out", "d", "compression.eval=true", "compression.forward.base=0.2",
                             "compression.forward.decay_steps=70"});
  ASSERT_EQ(coded.code, 0) << coded;
  const Outcome again = run({"eval", "d", "--json"});
  ASSERT_EQ(again.code, 0) << again;
  const auto bce = nlohmann::json::parse(again.out).at("bce").get<double>();
  EXPECT_EQ(bce, logged(path("d"), "eval/bce").back().second);
}

TEST_F(DlrmInput, ACodecAsksForShapeAndOneBound) {
  write_text(path("rows.f32"), std::string(64, '\0'));
  refused({"codec", "rows.f32", "--dim", "4", "--rel-eb", "0.1"}, 2, {"codec --rows", "is missing"});
  refused({"codec", "rows.f32", "--rows", "4", "--rel-eb", "0.1"}, 2, {"codec --dim", "is missing"});
  const Words shape{"codec", "rows.f32", "--rows", "4", "--dim", "4"};
  refused(shape, 2, {"it needs a bound", "--rel-eb", "--abs-eb"});
  Words both = shape;
  for (const char* word : {"--rel-eb", "0.1", "--abs-eb", "0.1"}) both.emplace_back(word);
  refused(both, 2, {"--rel-eb and --abs-eb are both given", "leave one"});
}

TEST_F(DlrmInput, Mistakes) {
  prepare();
  std::string good = "1";
  for (int k = 0; k < 39; ++k) good += "\t1";
  write_text(path("short.txt"), good + "\n" + good.substr(0, good.size() - 2) + "\n");
  refused({"data", "criteo", "--from", "short.txt", "--out", "c.h5", "--broken-share", "0"}, 3,
          {"short.txt:2", "has too few columns", "26 hexadecimal words"});
  EXPECT_FALSE(fs::exists(path("c.h5"))) << "nothing is left behind";
  refused({"data", "criteo", "--from", "none.txt", "--out", "c.h5"}, 3, {"none.txt"});
  refused({"data", "table", "--from", "own.csv", "--label", "nothing", "--out", "d.h5"}, 3, {"no column nothing"});
  refused({"data", "table", "--from", "own.csv", "--label", "clicked", "--out", "/proc/d.h5"}, 3,
          {"/proc", "no file can be made there", "choose another"});
  refused({"data", "table", "--from", "own.csv", "--label", "clicked", "--samples", "9", "--out", "d.h5"}, 2,
          {"knows no --samples", "criteo_like"});
  write_text(path("open.csv"), "clicked,word\n1,a\n0,\"b\n");
  refused({"data", "table", "--from", "open.csv", "--label", "clicked", "--out", "d.h5"}, 3,
          {"open.csv:3", "a quote that does not end", "close it"});
  refused({"train", "own.yaml", "--out", "a", "data.file=none.h5"}, 3, {"none.h5", "no such file", "data.file"});
  // What is there was made from another file, or in another way.
  write_text(path("other.csv"), read_text(path("own.csv")));
  refused({"data", "table", "--from", "other.csv", "--label", "clicked", "--sparse", "shop", "--out", "own.h5"}, 3,
          {"own.csv", "--force"});
  refused({"train", "own.yaml", "--out", "a", "planner.memory_gib=1e-9"}, 2, {"table", "planner.memory_gib"});
  refused({"train", "own.yaml", "--out", "a", "compression.forward.codec=zip"}, 2,
          {"compression.forward.codec", "zip"});
  refused({"train", "own.yaml", "--out", "a", "compression.backward.codec=raw", "compression.backward.combine=true"}, 2,
          {"compression.backward.combine", "raw", "combine=false"});
  refused({"train", "own.yaml", "--out", "a", "precision=f64"}, 2, {"f64"});
  refused({"train", "own.yaml", "--out", "a", "ema=0.9"}, 2, {"ema"});
  refused({"train", "own.yaml", "--out", "a", "data.file=own.csv"}, 3, {"own.csv"});
  refused({"train", "own.yaml", "--out", "a", "compression.forward.classes=own.yaml"}, 2, {"own.yaml"});
  fs::create_directories(path("job/arms"));
  write_text(path("job/arms/none.yaml"), "recipe: dlrm\n");
  refused({"bench", "dlrm_link", "--ranks", "3", "--problem", path("job") + " 96,64"}, 2,
          {"a batch of 64 does not divide by 3 ranks", "take 66"});
  // An id beyond the table: the file is damaged where ids lie.
  std::string file = read_text(path("own.h5"));
  const std::string pattern("\xff\xff\xff\xff\xff\xff\xff\xff\x00\x00\x00\x00", 12);  // an empty bag, then shop s0
  auto at = file.find(pattern);
  ASSERT_NE(at, file.npos);
  for (; at != file.npos; at = file.find(pattern, at + 12)) file[at + 9] = 0x7f;
  write_text(path("own.h5"), file);
  refused({"train", "own.yaml", "--out", "a"}, 3, {"table shop", "has 5 rows", "asks for row 32512"});
}

// A dry run refuses what the run would.
TEST_F(DlrmInput, ADryRunRefusesWhatARunWould) {
  prepare();
  const auto dry = [&](const Words& keys) {
    Words words{"train", "own.yaml", "--dry-run", "--ranks", "2"};
    words.insert(words.end(), keys.begin(), keys.end());
    return words;
  };
  EXPECT_EQ(run(dry({})).code, 0);
  const std::string forward = "compression.forward.codec", classes = "compression.forward.classes";
  refused(dry({"compression.forward.codec=zip"}), 2, {forward, "zip"});
  refused(dry({"compression.forward.codec=analysis"}), 2, {forward, classes, "published", "trireme dlrm analyze"});
  refused(dry({"compression.forward.classes=none.yaml"}), 2, {classes, "none.yaml", "no such file"});
  refused(dry({"precision=f64"}), 2, {"f64"});
  const Outcome sgd = run(dry({"planner.memory_gib=1e-9"}));
  EXPECT_EQ(sgd.code, 2) << sgd;
  EXPECT_NE(sgd.err.find("--max-ind-range"), std::string::npos) << sgd;
  EXPECT_EQ(sgd.err.find("embedding.optimizer"), std::string::npos) << "it is sgd\n" << sgd;
  refused(dry({"planner.memory_gib=1e-9", "embedding.optimizer=adagrad"}), 2, {"embedding.optimizer: sgd"});
  refused(dry({"data.file=criteo_like", "data.scale=1", "model.dim=65536"}), 2, {"table", "GiB", "data.scale"});
  for (const std::string key :
       {"compression.nonfinite=error", "compression.checksum=true", "compression.forward.codec=smallest"})
    refused(dry({"device=cuda", key}), 2, {key.substr(0, key.find('=')), "GPU", "device=cpu"});
}

// No sizes go ahead (between processes, by MPI): the same losses, and metrics that say how full the room was.
TEST_F(DlrmInput, RoomOfAFixedSize) {
  prepare();
  for (const std::string sizes : {"exact", "capacity"}) {
    const Outcome o =
        run({"train", "own.yaml", "--ranks", "2", "--out", sizes, "log_every=1", "compression.sizes=" + sizes});
    ASSERT_EQ(o.code, 0) << o;
  }
  EXPECT_EQ(logged(path("exact")), logged(path("capacity")));
  for (const std::string way : {"forward", "backward"}) {
    EXPECT_TRUE(logged(path("exact"), way + "_fill").empty());
    const auto fill = logged(path("capacity"), way + "_fill"), over = logged(path("capacity"), way + "_overflows");
    ASSERT_FALSE(fill.empty());
    EXPECT_GT(fill.back().second, 0.3);
    EXPECT_LT(over.back().second, 30) << "most steps have enough";
    EXPECT_GT(logged(path("capacity"), way + "_capacity").back().second, 0);
  }
}

// What `choose: link` measured and chose stays with the run, and its report shows it.
TEST_F(DlrmInput, TheChoiceIsInTheRunFolder) {
  prepare();
  const Outcome o = run({"train", "own.yaml", "--ranks", "2", "--out", "a", "steps=2", "compression.choose=link"});
  ASSERT_EQ(o.code, 0) << o;
  const auto exchange = nlohmann::json::parse(read_text(path("a/env.json"))).at("measured").at("exchange");
  for (const std::string way : {"forward", "backward"}) {
    const auto& e = exchange.at(way);
    const double raw = e.at("raw_ms").get<double>(), coded = e.at("coded_ms").get<double>();
    EXPECT_GT(raw, 0);
    EXPECT_EQ(e.at("choice").get<std::string>(), coded < raw ? "coded" : "raw");
  }
  EXPECT_NE(read_text(path("a/report.html")).find("measured.exchange.forward.choice"), std::string::npos);
}

// A rank that is killed, and one that announces a code of a size that cannot be: the job ends with one line, its
// checkpoints are whole, and the same command goes on from them, on as many ranks to the bit, on others nearly.
TEST_F(DlrmInput, NothingIsLost) {
  prepare();
  const auto into = [&](const std::string& out, const std::string& ranks = "2") {
    return Words{"train", "own.yaml", "--ranks", ranks, "--out", out, "steps=800", "checkpoint.every=100", "threads=1"};
  };
  const auto go_on = [&](const std::string& out, const std::string& ranks) {
    const Outcome o = run(into(out, ranks));
    EXPECT_EQ(o.code, 0) << o;
    EXPECT_NE(o.out.find("resumed at step"), std::string::npos) << o;
  };
  ASSERT_EQ(run(into("whole")).code, 0);

  Program p(into("killed"), {folder_.path, stopping_at("killed/ckpt/step_00000100/")});
  const pid_t saver = await_stopped(p), victim = p.rank(1);
  ASSERT_TRUE(saver == p.rank(0) && victim > 0) << "the run was never where a rank is to be killed";
  kill(victim, SIGKILL);
  kill(saver, SIGCONT);
  const Outcome killed = p.wait(std::chrono::seconds(20));
  EXPECT_EQ(killed.code, 4) << killed;
  ASSERT_EQ(killed.errors().size(), 1u) << killed;
  EXPECT_NE(killed.errors()[0].find("rank 1: was lost"), std::string::npos) << killed;
  EXPECT_NE(killed.errors()[0].find("the same command resumes"), std::string::npos) << killed;
  fs::copy(path("killed"), path("moved"), fs::copy_options::recursive);
  go_on("killed", "2");
  EXPECT_EQ(final_state(path("killed")), final_state(path("whole")));
  go_on("moved", "4");  // tables move to other owners
  EXPECT_NEAR(logged(path("moved")).back().second, logged(path("whole")).back().second, 1e-3);

  // Two messages of sizes a step: about step 250.
  const Program::Options lying{folder_.path,
                               {"LD_PRELOAD=" TRIREME_FORGED_SIZES, "TRIREME_MPI_TRANSPORT=p2p", "FORGE_AT=500"}};
  const Outcome forged = run_program(into("forged"), lying);
  EXPECT_EQ(forged.code, 4) << forged;
  ASSERT_EQ(forged.errors().size(), 1u) << forged;
  for (const std::string part : {"error: step 2", ", table ", "from rank 1", "announces 10995116", "same program"})
    EXPECT_NE(forged.errors()[0].find(part), std::string::npos) << part << "\n" << forged;
  EXPECT_FALSE(checkpoint_steps(path("forged")).empty());
  go_on("forged", "2");
  EXPECT_EQ(final_state(path("forged")), final_state(path("whole")));
}

}  // namespace
}  // namespace trireme::test
