// links: comm
// Planted mistakes: each one is told in one line with the place and the cure, ends with the right exit code,
// and leaves an existing run as it was.
#include "tests/fault/experiment.h"

#include <bit>

#include <sys/mount.h>

namespace trireme::test {
namespace {

using std::chrono::seconds;

const Words two_ranks{"mpirun", "--oversubscribe", "--bind-to", "none", "-n", "2"};

struct Mistake {
  std::string name;
  Words words;
  int code;
  Words said;  // what the line must hold: the place, what is wrong, the cure
  Words environment = {}, launcher = {};
};

// Bob Jenkins' lookup3, with which HDF5 guards its object headers.
std::uint32_t lookup3(std::string_view bytes) {
  const auto word = [&](std::size_t at) {
    std::uint32_t w = 0;
    for (std::size_t k = 0; k < 4 && at + k < bytes.size(); ++k)
      w |= std::uint32_t(std::uint8_t(bytes[at + k])) << 8 * k;
    return w;
  };
  std::uint32_t v[3];
  v[0] = v[1] = v[2] = 0xdeadbeef + std::uint32_t(bytes.size());
  std::size_t at = 0;
  for (; bytes.size() - at > 12; at += 12) {
    for (std::size_t k = 0; k < 3; ++k) v[k] += word(at + 4 * k);
    constexpr int turns[] = {4, 6, 8, 16, 19, 4};
    for (int k = 0; k < 6; ++k) {
      auto &a = v[k % 3], &b = v[(k + 1) % 3], &c = v[(k + 2) % 3];
      a = (a - c) ^ std::rotl(c, turns[k]);
      c += b;
    }
  }
  for (std::size_t k = 0; k < 3; ++k) v[k] += word(at + 4 * k);
  constexpr int turns[] = {14, 11, 25, 16, 4, 14, 24};
  for (int k = 0; k < 7; ++k) {
    auto &a = v[(k + 2) % 3], &b = v[(k + 1) % 3];
    a = (a ^ b) - std::rotl(b, turns[k]);
  }
  return v[2];
}

// A prepared file whose first i64 array says that it holds i32, in a header that is sound.
std::string as_i32(std::string file) {
  const auto type = file.find(std::string("\x10\x08\0\0\x08\0\0\0\0\0\x40\0", 12));
  const auto header = file.rfind("OHDR", type);
  if (type == file.npos || header == file.npos) return {};
  file[type + 4] = 4;                      // bytes
  file[type + 10] = 32;                    // bits
  std::size_t end = header + 6, size = 0;  // signature, version, flags; then the size of the messages
  const int width = 1 << (file[header + 5] & 3);
  for (int k = 0; k < width; ++k) size |= std::size_t(std::uint8_t(file[end + k])) << 8 * k;
  end += width + size;
  const std::uint32_t sum = lookup3(std::string_view(file).substr(header, end - header));
  for (int k = 0; k < 4; ++k) file[end + k] = char(sum >> 8 * k);
  return file;
}

class BadInput : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!missing_for_pairs().empty()) return;
    folder_ = new TempFolder;
    prepare_pairs(dir());
    write_text(dir() / "e.yaml", experiment(6, 32, 8, "checkpoint: {every: 2, keep: 2}\n"));
    ASSERT_EQ(run({"train", "e.yaml", "--out", "good"}).code, 0);
    // As if the run had been killed in step 6.
    fs::remove_all(dir() / "good/ckpt/step_00000006");
    ASSERT_EQ(checkpoint_steps(dir() / "good"), std::vector<std::int64_t>{4});
  }
  static void TearDownTestSuite() { delete std::exchange(folder_, nullptr); }
  void SetUp() override {
    if (const auto why = missing_for_pairs(); !why.empty()) GTEST_SKIP() << why;
  }

  static fs::path dir() { return folder_->path; }
  static Outcome run(const Words& words, const Words& environment = {}, const Words& launcher = {}) {
    Program p(words, {dir(), environment, launcher});
    const Outcome o = p.wait();
    EXPECT_TRUE(p.none_left());
    return o;
  }
  // `trireme train e.yaml WORDS --out good`
  static Words train(Words more) {
    more.insert(more.begin(), {"train", "e.yaml"});
    more.insert(more.end(), {"--out", "good"});
    return more;
  }

  static void expect_told(const Mistake& m) {
    SCOPED_TRACE(m.name);
    const auto before = listing(dir() / "good");
    const Outcome o = run(m.words, m.environment, m.launcher);
    EXPECT_EQ(o.code, m.code) << o;
    ASSERT_EQ(o.errors().size(), 1u) << o;
    const std::string line = o.errors()[0];
    for (const auto& part : m.said) EXPECT_NE(line.find(part), std::string::npos) << part << "\n" << line;
    if (std::getenv("TRIREME_SHOW_ERRORS"))
      std::cout << m.name << "\t" << o.code << "\t" << o.seconds << "\t" << line << "\n";
    EXPECT_EQ(listing(dir() / "good"), before) << "the existing run was touched";
    EXPECT_LT(o.seconds, 20);
  }
  static void expect_told(const std::vector<Mistake>& mistakes) {
    for (const auto& m : mistakes) expect_told(m);
  }

 private:
  static TempFolder* folder_;
};

TempFolder* BadInput::folder_ = nullptr;

TEST_F(BadInput, CommandLine) {
  expect_told({
      {"no subcommand", {}, 2, {"subcommand", "trireme --help"}},
      {"unknown subcommand", {"trian", "e.yaml"}, 2, {"trian", "did you mean train"}},
      {"unknown flag", train({"--rank", "2"}), 2, {"--rank", "trireme --help"}},
      {"no file", {"train"}, 2, {"file is required", "trireme --help"}},
      {"ranks 0", train({"--ranks", "0"}), 2, {"--ranks", "1 to", "trireme --help"}},
      {"ranks not a number", train({"--ranks", "two"}), 2, {"--ranks", "two", "trireme --help"}},
      {"no such file",
       {"train", "none/such.yaml", "--out", "good"},
       2,
       {"none/such.yaml: no such file", "check the path"}},
      {"a folder as file", {"train", "pictures", "--out", "good"}, 2, {"pictures"}},
      {"no equals sign", train({"seed"}), 2, {"seed", "key=value"}},
      {"comma list", train({"seed=1,2"}), 2, {"seed", "sweep", "[a,b]"}},
      {"unknown key", train({"batchsize=16"}), 2, {"batchsize=16", "did you mean batch_size"}},
      {"unknown nested key", train({"optimizer.lrr=1"}), 2, {"optimizer.lrr", "did you mean", "lr"}},
      {"out of range", train({"steps=0"}), 2, {"steps=0", "out of range", "allowed"}},
      {"not a number", train({"steps=many"}), 2, {"steps=many", "integer"}},
      {"unknown choice", train({"precision=f31"}), 2, {"precision", "did you mean f32"}},
      {"unknown recipe", train({"recipe=fastclap"}), 2, {"recipe=fastclap", "did you mean fastclip"}},
      {"report of nothing", {"report", "nope"}, 3, {"nope", "trireme train"}},
      {"report into nowhere", {"report", "good", "--out", "no/such/r.html"}, 3, {"no/such/r.html", "check the path"}},
      {"unknown data set", {"data", "clipart"}, 2, {"clipart", "openclipart", "folder"}},
      {"data without --from", {"data", "folder"}, 2, {"--from"}},
      {"data size", {"data", "folder", "--from", "pictures", "--size", "4"}, 2, {"--size", "8"}},
      {"size of text", {"data", "arithmetic", "--size", "32"}, 2, {"arithmetic", "knows no --size", "folder"}},
      {"source of problems", {"data", "arithmetic", "--from", "x"}, 2, {"arithmetic", "knows no --from", "gcide"}},
      {"window of rans",
       {"codec", "x", "--rows", "1", "--dim", "1", "--rel-eb", "0", "--codec", "rans", "--window", "8"},
       2,
       {"--window", "vector_lz", "rans", "leave it out"}},
      {"two sizes of a file",
       {"export", "x", "--out", "y", "--format", "diffusers", "--shard-mib", "1", "--shard-kib", "2"},
       2,
       {"--shard-kib", "--shard-mib", "one of them"}},
      {"fresh sweep decide", {"sweep", "decide", "x", "--fresh"}, 2, {"--fresh", "sweep decide", "leave it out"}},
      {"folder of sweep add", {"sweep", "add", "x", "--to", "y", "--out", "z"}, 2, {"--out", "sweep add"}},
      {"ranks of sweep add", {"sweep", "add", "x", "--to", "y", "--ranks", "2"}, 2, {"--ranks", "sweep add"}},
      {"another verb's --to", {"sweep", "decide", "x", "--to", "y"}, 2, {"--to", "sweep add"}},
  });
}

TEST_F(BadInput, ExperimentFile) {
  const std::string base = experiment(6, 32, 8);
  const auto file = [&](const std::string& name, const std::string& text) {
    write_text(dir() / name, text);
    return Words{"train", name, "--out", "good"};
  };
  expect_told({
      {"typo", file("typo.yaml", base + "log_evry: 1\n"), 2, {"typo.yaml:9:1", "log_evry", "did you mean log_every"}},
      {"type", file("type.yaml", base + "seed: [1]\n"), 2, {"type.yaml:9:7", "seed"}},
      {"twice", file("twice.yaml", base + "seed: 1\nseed: 2\n"), 2, {"twice.yaml:10:1", "seed"}},
      {"syntax", file("syntax.yaml", base + "loss: {name: rgclg\n"), 2, {"syntax.yaml:"}},
      {"empty", file("empty.yaml", ""), 2, {"empty.yaml", "empty"}},
      {"binary", file("binary.yaml", std::string("\0\x01\x02\xff", 4)), 2, {"binary.yaml"}},
      {"no recipe", file("plain.yaml", "steps: 3\n"), 2, {"plain.yaml", "recipe"}},
      {"extends nothing", file("orphan.yaml", "extends: none.yaml\n"), 2, {"orphan.yaml:1", "none.yaml"}},
      {"extends itself", file("self.yaml", "extends: self.yaml\n"), 2, {"self.yaml", "extends"}},
      {"accumulate", train({"accumulate=3"}), 2, {"accumulate", "does not divide batch_size", "choose a divisor"}},
      {"patch",
       train({"model.patch_size=7"}),
       2,
       {"model.patch_size", "does not divide image_size", "choose a divisor"}},
      {"heads",
       train({"model.text_heads=5"}),
       2,
       {"model.text_heads", "does not divide text_width", "choose a divisor"}},
      {"tau", train({"loss.tau=50"}), 2, {"loss.tau", "tau_max"}},
      {"vocab below bytes", train({"model.vocab=300"}), 2, {"model.vocab", "out of range", "514"}},
      {"batch over ranks", train({"--ranks", "3"}), 2, {"e.yaml:2:13", "16", "3 ranks", "multiple"}},
      {"batch over data", train({"batch_size=1000"}), 2, {"batch_size", "batch of 1000", "lower it"}},
      {"batch of 1", {"train", "e.yaml", "batch_size=1", "--out", "fresh3"}, 2, {"batch_size", "at least 2"}},
      {"mini-batch of 1", train({"batch_size=1", "loss.name=mbcl"}), 2, {"batch_size", "at least 2"}},
      {"image size", train({"model.image_size=32"}), 2, {"model.image_size", "pairs.h5", "prepare"}},
      {"no GPU", train({"device=cuda"}), 2, {"device", "device=cpu"}, {"CUDA_VISIBLE_DEVICES="}},
      {"freeze nothing", train({"freeze=[visul*]"}), 2, {"freeze", "visul*", "--dry-run"}},
      {"freeze all", train({"freeze=['*']"}), 2, {"freeze", "every parameter"}},
      {"memory",
       {"train", "e.yaml", "model.vision_width=65536", "--out", "fresh4"},
       6,
       {"out of memory", "smaller"},
       {},
       {"sh", "-c", "ulimit -v 8000000; exec \"$@\"", "sh"}},
      {"init from nothing", {"train", "e.yaml", "init_from=nope", "--out", "fresh1"}, 3, {"nope", "init_from"}},
      {"init of another shape",
       {"train", "e.yaml", "init_from=good", "model.vision_width=64", "--out", "fresh2"},
       3,
       {"init_from good", "[32]", "[64]", "same shape"}},
      {"no tokenizer", train({"data.tokenizer=nope.txt"}), 3, {"nope.txt"}},
      {"no merges file", train({"data.tokenizer=pairs.h5"}), 3, {"pairs.h5"}},
  });
  // Nothing was begun, so that the corrected command is not refused.
  EXPECT_EQ(run({"train", "e.yaml", "--out", "fresh1"}).code, 0);
}

TEST_F(BadInput, PreparedData) {
  const std::string whole = read_text(dir() / "pairs.h5");
  const auto file = [&](const std::string& name, const std::string& bytes) {
    write_text(dir() / name, bytes);
    return train({"data.file=" + name});
  };
  const std::string other_type = as_i32(whole);
  // A byte in the middle of the pixels, which fill most of the file.
  std::string flipped = whole;
  flipped[flipped.size() / 2] ^= 1;
  fs::copy_file(dir() / "good/ckpt/step_00000004/rank_00000.h5", dir() / "state.h5");
  expect_told({
      {"no file", train({"data.file=nope.h5"}), 3, {"nope.h5: no such file", "trireme data"}},
      {"cut", file("cut.h5", whole.substr(0, whole.size() / 2)), 3, {"cut.h5", "trireme data"}},
      {"cut to nothing", file("nothing.h5", ""), 3, {"nothing.h5", "trireme data"}},
      {"other format", file("text.h5", "filepath,title\n"), 3, {"text.h5", "trireme data"}},
      {"other arrays", train({"data.file=state.h5"}), 3, {"state.h5", "trireme data"}},
      {"other type",
       file("type.h5", other_type),
       3,
       {"type.h5", "array `caption", "is i32", "expected i64", "trireme data"}},
      {"damaged", file("flip.h5", flipped), 3, {"flip.h5", "images", "trireme data"}},
      {"unprepared set",
       train({"data.file=emoji"}),
       3,
       {"emoji_16.h5", "trireme data emoji --size 16"},
       {"XDG_CACHE_HOME=" + (dir() / "cache").string()}},
  });
}

TEST_F(BadInput, Tars) {
  draw_pictures(dir() / "many", 1, 40);
  const Outcome made = run({"data", "tar", "--from", "many", "--out", "shards"});
  EXPECT_EQ(made.code, 0) << made;
  const std::string whole = read_text(dir() / "shards/00000.tar");
  write_text(dir() / "cut.tar", whole.substr(0, 700));
  write_text(dir() / "zip.tar", "PK" + std::string(2000, 'x'));
  write_text(dir() / "gz.tar", "\x1f\x8b" + std::string(2000, 'x'));
  fs::create_directories(dir() / "half");
  write_text(dir() / "half/0.tar", whole.substr(0, whole.size() / 2));
  write_text(dir() / "eval.csv", "path,title\n1.png,one\n");
  const auto on = [](const std::string& file, Words more = {}) {
    Words words{"train", "e.yaml", "data.file=" + file, "--out", "fresh-tars"};
    words.insert(words.end(), more.begin(), more.end());
    return words;
  };
  const Words cache{"XDG_CACHE_HOME=" + (dir() / "cache").string()};
  expect_told({
      {"missing shard", on("shards/{00000..00001}.tar"), 3, {"shards/00001.tar", "no such tar file", "list"}, cache},
      {"missing shard on two ranks", on("gone.tar", {"--ranks", "2"}), 3, {"gone.tar", "no such tar file"}, cache},
      {"open brace", on("shards/{00000..1.tar"), 3, {"opening brace", "{00000..00041}"}, cache},
      {"no tar", on("zip.tar"), 3, {"zip.tar", "is no tar file"}, cache},
      {"gzip", on("gz.tar"), 3, {"gz.tar", "compressed", "gunzip"}, cache},
      {"nothing left", on("cut.tar"), 3, {"cut.tar", "no usable sample", "cut short"}, cache},
      {"too many broken", on("half/", {"data.broken_share=0"}), 3, {"half/0.tar", "cut short", "broken_share"}, cache},
      {"no numbers", on("shards/", {"data.index_key=key"}), 3, {"no number `key`"}, cache},
      {"table without columns", on("shards/", {"data.eval_file=eval.csv"}), 3, {"eval.csv:1", "filepath"}, cache},
      {"weights", on("x", {"data.files=[shards/,many/]", "data.weights=[1]"}), 2, {"data.weights", "as long"}, cache},
      {"nothing to train on", on("shards/", {"data.held_out=1"}), 3, {"no pairs to train on", "data.held_out"}, cache},
      {"tars over tars",
       {"data", "tar", "--from", "many", "--out", "shards"},
       3,
       {"shards", "tars already", "--force"}},
      {"tar without --out", {"data", "tar", "--from", "many"}, 2, {"--out"}},
      {"scenes as zip", {"data", "scenes", "--format", "zip"}, 2, {"--format", "h5 or tar"}},
  });
}

TEST_F(BadInput, Pictures) {
  draw_pictures(dir() / "silent", 1, 3);
  for (int i = 1; i <= 3; ++i) fs::remove(dir() / "silent" / (std::to_string(i) + ".txt"));
  fs::create_directories(dir() / "empty");
  draw_pictures(dir() / "broken", 1, 2);
  for (int i = 1; i <= 2; ++i) write_text(dir() / "broken" / (std::to_string(i) + ".png"), png(i).substr(0, 100));
  write_text(dir() / "table.csv", "file,caption\n1.png,one\n");
  const auto prepare = [](const std::string& from) {
    return Words{"data", "folder", "--from", from, "--size", "16", "--out", "made.h5"};
  };
  expect_told({
      {"no folder", prepare("nope"), 3, {"nope", "check --from"}},
      {"empty folder", prepare("empty"), 3, {"empty", "no PNG or JPEG pictures", ".txt caption"}},
      {"no captions", prepare("silent"), 3, {"silent", "1.png: no caption"}},
      {"all corrupt", prepare("broken"), 3, {"broken", "1.png"}},
      {"table", prepare("table.csv"), 3, {"table.csv:1", "filepath", "title"}},
      {"output", {"data", "folder", "--from", "pictures", "--out", "e.yaml/made.h5"}, 3, {"e.yaml", "--out"}},
  });
  EXPECT_FALSE(fs::exists(dir() / "made.h5"));

  // One corrupt picture among good ones is skipped, counted and named.
  draw_pictures(dir() / "mixed", 1, 4);
  write_text(dir() / "mixed/3.png", png(3).substr(0, 200));
  const Outcome o = run(prepare("mixed"));
  EXPECT_EQ(o.code, 0) << o;
  EXPECT_TRUE(o.errors().empty()) << o;
  EXPECT_NE(o.out.find("3 images"), std::string::npos) << o;
  EXPECT_NE(o.out.find("1 skipped"), std::string::npos) << o;
  EXPECT_NE(o.out.find("mixed/3.png"), std::string::npos) << o;
}

TEST_F(BadInput, Resume) {
  write_text(dir() / "file", "not a folder");
  expect_told({
      {"seed", train({"seed=7"}), 2, {"good", "seed", "--fresh"}},
      {"lr", train({"optimizer.lr=0.5"}), 2, {"good", "optimizer.lr", "--fresh"}},
      {"batch and steps", train({"batch_size=8", "steps=7"}), 2, {"good", "batch_size", "steps", "--fresh"}},
      {"another seed on two ranks", train({"seed=7", "--ranks", "2"}), 2, {"good", "seed", "--fresh"}},
      {"the folder is a file", {"train", "e.yaml", "--out", "file"}, 3, {"file", "--out"}},
  });

  // Damage to the newest checkpoint; each in a copy of the run, restored after it.
  const fs::path ckpt = dir() / "good/ckpt/step_00000004";
  const std::string state = read_text(ckpt / "rank_00000.h5"), manifest = read_text(ckpt / "manifest.json");
  const auto with = [&](const std::string& name, const std::string& file, const std::string& bytes, const Words& said) {
    write_text(ckpt / file, bytes);
    expect_told({name, train({}), 3, said});
  };
  std::string flipped = state;
  flipped[flipped.size() / 2] ^= 0x10;
  with("a byte flipped", "rank_00000.h5", flipped, {"step_00000004/rank_00000.h5", "checksum", "step_00000004 away"});
  with("cut", "rank_00000.h5", state.substr(0, 1000),
       {"step_00000004/rank_00000.h5", "1000 bytes", "step_00000004 away"});
  fs::remove(ckpt / "rank_00000.h5");
  expect_told({"a file missing", train({}), 3, {"step_00000004/rank_00000.h5", "cannot open", "step_00000004 away"}});
  write_text(ckpt / "rank_00000.h5", state);
  with("manifest cut", "manifest.json", manifest.substr(0, manifest.size() / 2),
       {"step_00000004/manifest.json", "step_00000004 away"});
  std::string edited = manifest;
  edited.replace(edited.find("\"f32\""), 5, "\"f64\"");
  with("manifest edited", "manifest.json", edited, {"step_00000004/manifest.json", "step_00000004 away"});
  write_text(ckpt / "manifest.json", manifest);

  // A line in the middle of the log is an error, a torn last line the mark of a crash.
  const std::string log = read_text(dir() / "good/metrics.jsonl");
  write_text(dir() / "good/metrics.jsonl", "step 1\n" + log);
  expect_told({"foreign log", train({}), 3, {"good/metrics.jsonl:1", "remove the line"}});
  write_text(dir() / "good/metrics.jsonl", log);
  fs::copy(dir() / "good", dir() / "torn", fs::copy_options::recursive);
  write_text(dir() / "torn/metrics.jsonl", log.substr(0, log.size() - 20));
  const Outcome o = run({"train", "e.yaml", "--out", "torn"});
  EXPECT_EQ(o.code, 0) << o;
  EXPECT_NE(o.out.find("resumed at step 4 of 6"), std::string::npos) << o;
  EXPECT_EQ(logged(dir() / "torn").size(), 6u);
}

TEST_F(BadInput, NonFiniteLoss) {
  const Words words{"train", "e.yaml", "optimizer.lr=1e30", "optimizer.warmup=3", "checkpoint.every=1", "--out", "nan"};
  const Outcome o = run(words);
  EXPECT_EQ(o.code, 5) << o;
  ASSERT_EQ(o.errors().size(), 1u) << o;
  for (const char* part : {"step ", "not finite", "optimizer.lr", "optimizer.clip_norm", "checkpoint"})
    EXPECT_NE(o.errors()[0].find(part), std::string::npos) << part << "\n" << o;
  ASSERT_FALSE(checkpoint_steps(dir() / "nan").empty());
  EXPECT_EQ(checkpoint_steps(dir() / "nan").back(), last_step(dir() / "nan"));
  const auto before = listing(dir() / "nan/ckpt");
  EXPECT_EQ(run(words).code, 5) << "the same again from the last good checkpoint";
  EXPECT_EQ(listing(dir() / "nan/ckpt"), before);
}

// Steps are counted, not log lines.
TEST_F(BadInput, NonFiniteStepsBetweenLogLines) {
  write_text(dir() / "faulty.yaml",
             "recipe: faulty\nsteps: 40\nbatch_size: 48\nthreads: 1\nlog_every: 20\ncheckpoint: {every: 0}\n"
             "fault: {kind: nan, at: 6, rank: 1}\n");
  const char* faulty = std::getenv("TRIREME_FAULTY");
  const auto train = [&](const Words& more) {
    Words words{"train", "faulty.yaml", "--ranks", "2", "--fresh", "--out", "faulty"};
    words.insert(words.end(), more.begin(), more.end());
    Program::Options options{dir()};
    options.program = faulty ? faulty : fs::path(program_path()).parent_path() / "trireme_faulty";
    return run_program(words, options);
  };
  const auto expect_end = [](const Outcome& o, const std::string& said) {
    EXPECT_EQ(o.code, 5) << o;
    ASSERT_EQ(o.errors().size(), 1u) << o;
    EXPECT_NE(o.errors()[0].find(said), std::string::npos) << o;
  };
  expect_end(train({}), "step 7: ");
  expect_end(train({"fault.steps=11", "nonfinite=skip"}), "for 11 steps in a row");
  const Outcome skipped = train({"fault.steps=10", "nonfinite=skip"});
  EXPECT_EQ(skipped.code, 0) << skipped;
  EXPECT_NE((skipped.out + skipped.err).find("step 7: loss or gradient not finite, skipped"), std::string::npos)
      << skipped;
}

TEST_F(BadInput, Launch) {
  // Rank 1 with other words than rank 0: `mpirun -n 1 trireme A : -n 1 trireme B`.
  const auto unlike = [](const Words& first) {
    Words launcher{"mpirun", "--oversubscribe", "--bind-to", "none", "-n", "1", program_path()};
    launcher.insert(launcher.end(), first.begin(), first.end());
    launcher.insert(launcher.end(), {":", "-n", "1"});
    return launcher;
  };
  const fs::path no_mpirun = dir() / "bin";
  fs::create_directories(no_mpirun);
  expect_told({
      {"another config",
       train({"loss.rho=2"}),
       2,
       {"rank 1", "another configuration", "same file"},
       {},
       unlike(train({}))},
      {"another file",
       {"train", "none/such.yaml"},
       2,
       {"none/such.yaml: no such file", "check the path"},
       {},
       unlike(train({}))},
      {"ranks under mpirun", train({"--ranks", "3"}), 2, {"--ranks 3", "2 ranks", "leave --ranks out"}, {}, two_ranks},
      {"ranks of eval under mpirun", {"eval", "x", "--ranks", "3"}, 2, {"--ranks 3", "2 ranks"}, {}, two_ranks},
      {"ranks of sample under mpirun", {"sample", "x", "--ranks", "3"}, 2, {"--ranks 3", "2 ranks"}, {}, two_ranks},
      {"ranks of sweep under mpirun", {"sweep", "x", "--ranks", "3"}, 2, {"--ranks 3", "2 ranks"}, {}, two_ranks},
      {"wrong config under mpirun", train({"batchsize=3"}), 2, {"batchsize", "did you mean"}, {}, two_ranks},
      {"batch under mpirun", train({"batch_size=15"}), 2, {"15", "2 ranks", "multiple"}, {}, two_ranks},
      {"data under mpirun", train({"data.file=nope.h5"}), 3, {"nope.h5", "trireme data"}, {}, two_ranks},
      {"unknown flag under mpirun", train({"--bogus"}), 2, {"--bogus", "trireme --help"}, {}, two_ranks},
      {"no mpirun",
       train({"--ranks", "2"}),
       4,
       {"mpirun", "not on PATH", "install openmpi-bin"},
       {"PATH=" + no_mpirun.string()}},
      {"data on two ranks", train({"data.file=nope.h5", "--ranks", "2"}), 3, {"nope.h5", "trireme data"}},
  });
}

// File systems of their own; only where mounting is allowed.
class Mounted : public BadInput {
 protected:
  bool mount_at(const fs::path& at, const char* source, const char* type, unsigned long flags, const char* options) {
    fs::create_directories(at);
    if (mount(source, at.c_str(), type, flags, options) != 0) return false;
    mounted_.push_back(at);
    return true;
  }
  void TearDown() override {
    for (const auto& at : mounted_) umount2(at.c_str(), MNT_DETACH);
  }
  std::vector<fs::path> mounted_;
};

TEST_F(Mounted, FullDiskAtStart) {
  if (!mount_at(dir() / "tiny", "none", "tmpfs", 0, "size=64k"))
    GTEST_SKIP() << "mounting a tmpfs is not allowed here: " << std::strerror(errno);
  write_text(dir() / "tiny/ballast", std::string(1 << 16, 'x'));
  expect_told({"full at start", {"train", "e.yaml", "--out", "tiny/run"}, 3, {"tiny/run", "No space left", "free"}});
}

TEST_F(Mounted, FullDiskAtALaterCheckpoint) {
  if (!mount_at(dir() / "small", "none", "tmpfs", 0, "size=3m"))
    GTEST_SKIP() << "mounting a tmpfs is not allowed here: " << std::strerror(errno);
  for (const Words& ranks : {Words{}, Words{"--ranks", "2"}}) {
    fs::remove_all(dir() / "small/run");
    Words words{"train", "e.yaml", "steps=12", "checkpoint.keep=9", "--out", "small/run"};
    words.insert(words.end(), ranks.begin(), ranks.end());
    const Outcome o = run(words);
    EXPECT_EQ(o.code, 3) << o;
    ASSERT_EQ(o.errors().size(), 1u) << o;
    for (const char* part : {"small/run/", "No space left", "free some space and start the same command again"})
      EXPECT_NE(o.errors()[0].find(part), std::string::npos) << part << "\n" << o;
    const auto steps = checkpoint_steps(dir() / "small/run");
    EXPECT_FALSE(steps.empty()) << "earlier checkpoints are lost";
    // With room again the same command goes on from there.
    ASSERT_EQ(mount("none", (dir() / "small").c_str(), nullptr, MS_REMOUNT, "size=32m"), 0);
    const Outcome again = run(words);
    EXPECT_EQ(again.code, 0) << again;
    EXPECT_NE(again.out.find("resumed at step " + std::to_string(steps.back()) + " of 12"), std::string::npos) << again;
    fs::remove_all(dir() / "small/run");
    ASSERT_EQ(mount("none", (dir() / "small").c_str(), nullptr, MS_REMOUNT, "size=3m"), 0);
  }
}

TEST_F(Mounted, ReadOnlyRunFolder) {
  fs::copy(dir() / "good", dir() / "locked", fs::copy_options::recursive);
  if (!mount_at(dir() / "locked", (dir() / "locked").c_str(), nullptr, MS_BIND, nullptr) ||
      mount(nullptr, (dir() / "locked").c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY, nullptr) != 0)
    GTEST_SKIP() << "bind mounts are not allowed here: " << std::strerror(errno);
  const auto before = listing(dir() / "locked");
  expect_told({
      {"read-only run", {"train", "e.yaml", "--out", "locked"}, 3, {"locked/", "Read-only file system", "--out"}},
      {"read-only parent",
       {"train", "e.yaml", "--out", "locked/new"},
       3,
       {"locked/new", "Read-only file system", "--out"}},
      {"read-only, fresh", {"train", "e.yaml", "--fresh", "--out", "locked"}, 3, {"locked", "--out"}},
      {"read-only, two ranks",
       {"train", "e.yaml", "--ranks", "2", "--out", "locked"},
       3,
       {"locked/", "Read-only file system", "--out"}},
  });
  EXPECT_EQ(listing(dir() / "locked"), before);
}

}  // namespace
}  // namespace trireme::test
