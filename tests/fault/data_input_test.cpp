// links: comm
// `trireme data folder` on what users really have: one odd entry costs itself and nothing else, and nothing is left out
// without a word. And training that is resumed on data prepared again, moved or replaced.
#include "tests/fault/experiment.h"

#include <sys/stat.h>

namespace trireme::test {
namespace {

class DataInput : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const auto why = missing_for_pairs(); !why.empty()) GTEST_SKIP() << why;
  }
  Outcome run(const Words& words, const Words& environment = {}) {
    Words all = environment;
    all.push_back("XDG_CACHE_HOME=" + (dir() / "cache").string());
    return run_program(words, {dir(), all});
  }
  Outcome prepare(const std::string& from, const Words& more = {}, const Words& environment = {}) {
    Words words{"data", "folder", "--from", from, "--size", "16"};
    words.insert(words.end(), more.begin(), more.end());
    return run(words, environment);
  }
  void picture(const fs::path& name, int number) {
    fs::create_directories((dir() / name).parent_path());
    write_text(dir() / name, png(number));
  }
  void pair(const fs::path& name, int number, const std::string& caption) {
    picture(name, number);
    write_text((dir() / name).replace_extension(".txt"), caption);
  }
  fs::path dir() const { return folder_.path; }

 private:
  TempFolder folder_;
};

void expect_says(const Outcome& o, const Words& parts) {
  for (const auto& part : parts) EXPECT_NE((o.out + o.err).find(part), std::string::npos) << part << "\n" << o;
}

// The line of `text` that holds `part`.
std::string line_with(const std::string& text, const std::string& part) {
  for (const auto& line : lines_of(text))
    if (line.find(part) != line.npos) return line;
  return {};
}

TEST_F(DataInput, OneOddEntryCostsItself) {
  const auto odd = [&](const std::string& name, const std::function<void(const fs::path&)>& add, const Words& said) {
    SCOPED_TRACE(name);
    pair(fs::path(name) / "a.png", 1, "one");
    add(dir() / name);
    const Outcome o = prepare(name, {"--out", name + ".h5"});
    EXPECT_EQ(o.code, 0) << o;
    EXPECT_TRUE(o.errors().empty()) << o;
    expect_says(o, {"folder: 1 images", "0 with the same pixels", "1 skipped"});
    expect_says(o, said);
  };
  const auto fill = [](const fs::path& file, const std::string& caption) {
    write_text(file, png(2));
    write_text(fs::path(file).replace_extension(".txt"), caption);
  };
  odd("loop", [](const fs::path& d) { fs::create_symlink("b.png", d / "b.png"); },
      {"loop/b.png: ", "Too many levels of symbolic links"});
  odd("dangling", [](const fs::path& d) { fs::create_symlink("gone", d / "b.png"), write_text(d / "b.txt", "b"); },
      {"dangling/b.png: no such file"});
  odd("out", [](const fs::path& d) { fs::create_symlink("../loop/a.png", d / "b.png"); },
      {"out/b.png", "leads out of"});
  odd("caption-folder",
      [&](const fs::path& d) { fill(d / "b.png", "x"), fs::remove(d / "b.txt"), fs::create_directory(d / "b.txt"); },
      {"caption-folder/b.txt: not a plain file"});
  odd("caption-loop",
      [&](const fs::path& d) {
        fill(d / "b.png", "x"), fs::remove(d / "b.txt"), fs::create_symlink("b.txt", d / "b.txt");
      },
      {"caption-loop/b.txt: ", "Too many levels of symbolic links"});
  odd("caption-pipe",
      [&](const fs::path& d) { fill(d / "b.png", "x"), fs::remove(d / "b.txt"), mkfifo((d / "b.txt").c_str(), 0600); },
      {"caption-pipe/b.txt: not a plain file"});
  odd("long", [&](const fs::path& d) { fill(d / "b.png", std::string(100000, 'x')); },
      {"long/b.txt: file of 100000 bytes is above the limit"});
  odd("binary", [&](const fs::path& d) { fill(d / "b.png", std::string("a\0b\0", 4)); },
      {"binary/b.txt: ", "neither UTF-8 nor UTF-16"});
  odd("picture-pipe", [](const fs::path& d) { mkfifo((d / "b.png").c_str(), 0600), write_text(d / "b.txt", "b"); },
      {"picture-pipe/b.png: not a plain file"});
  odd("other-form", [](const fs::path& d) { write_text(d / "b.gif", "GIF8"), write_text(d / "b.txt", "b"); },
      {"other-form/b.gif: ", "convert it"});
  odd("link", [](const fs::path& d) { fs::create_directory_symlink("../loop", d / "sub"); },
      {"link/sub: ", "linked folder"});
  odd("circle", [](const fs::path& d) { fs::create_directory_symlink(".", d / "sub"); },
      {"circle/sub: ", "linked folder"});
  odd("picture-folder", [](const fs::path& d) { fs::create_directory(d / "b.png"), write_text(d / "b.txt", "b"); },
      {"picture-folder/b.png: a folder"});
  if (getuid() == 0) return;  // root may read everything
  odd("locked", [](const fs::path& d) { fs::create_directory(d / "sub"), fs::permissions(d / "sub", fs::perms::none); },
      {"locked/sub: ", "Permission denied"});
}

TEST_F(DataInput, OddRowsOfATable) {
  for (const char* name : {"a", "b", "c", "d", "e"}) picture("t/" + std::string(name) + ".png", name[0]);
  write_text(dir() / "t/t.csv",
             "filepath,title\na.png,a cat, asleep on a mat\nb.png,a dog\nc.png\n\"d.png\" x,a bird\n\ne.png,\"a fish, "
             "\"\"red\"\"\" \n../out.png,x\n,y\nnone.png,z\nb.png,a\0b\n");
  std::string table = read_text(dir() / "t/t.csv");
  table += std::string("a.png,a\0b\n", 10);
  write_text(dir() / "t/t.csv", table);
  const Outcome o = prepare("t/t.csv", {"--out", "t.h5"});
  EXPECT_EQ(o.code, 0) << o;
  expect_says(o, {"2 images", "t/t.csv:2: ", "3 fields", "t/t.csv:4: ", "1 field", "t/t.csv:5: ", "closing quote",
                  "t/t.csv:8: ", "leads out of", "t/t.csv:9: ", "none.png"});
  const std::string file = read_text(dir() / "t.h5");
  EXPECT_EQ(file.find("a cat"), file.npos) << "half a caption";
  EXPECT_NE(file.find("a dog"), file.npos);
  EXPECT_NE(file.find("a fish, \"red\""), file.npos);
}

TEST_F(DataInput, ACachedFileBelongsToOneFolder) {
  pair("A/pics/a.png", 1, "one");
  for (int i = 2; i <= 4; ++i) pair("B/pics/" + std::to_string(i) + ".png", i, "picture " + std::to_string(i));
  pair("C/my pics.v2/a.png", 9, "nine");
  fs::create_directory_symlink("B", dir() / "link");
  const auto place = [&](const Outcome& o) {
    EXPECT_EQ(o.code, 0) << o;
    const std::string line = line_with(o.out, ".h5");
    const auto begin = line.find('/'), end = line.find(".h5");
    return begin < end ? line.substr(begin, end - begin) : line;
  };
  const Outcome a = prepare("A/pics"), b = prepare("B/pics"), c = prepare("C/my pics.v2");
  expect_says(a, {" 1 images", "folder-pics-"});
  expect_says(b, {" 3 images", "folder-pics-"});
  expect_says(c, {" 1 images", "folder-my pics.v2-"});
  EXPECT_NE(place(a), place(b));
  for (const std::string& typed : {std::string("B/pics/"), std::string("./B//pics/."), std::string("A/../B/pics"),
                                   std::string("link/pics/"), (dir() / "B/pics").string()}) {
    SCOPED_TRACE(typed);
    const Outcome again = prepare(typed);
    expect_says(again, {"already prepared: 3 images"});
    EXPECT_EQ(place(again), place(b));
  }
  expect_says(prepare("./C/my pics.v2/"), {"already prepared: 1 images"});

  // A file that was named is not handed out for another folder either.
  ASSERT_EQ(prepare("A/pics", {"--out", "d.h5"}).code, 0);
  const std::string before = read_text(dir() / "d.h5");
  const Outcome other = prepare("B/pics", {"--out", "d.h5"});
  EXPECT_EQ(other.code, 3) << other;
  expect_says(other, {"d.h5: holds ", "A/pics", "B/pics", "--force"});
  EXPECT_EQ(read_text(dir() / "d.h5"), before);
  expect_says(prepare("./A/pics/", {"--out", "./d.h5"}), {"already prepared: 1 images"});
  const Outcome to_folder = prepare("A/pics", {"--out", "A/"});
  EXPECT_EQ(to_folder.code, 2) << to_folder;
  expect_says(to_folder, {"--out", "A/", "folder"});
}

TEST_F(DataInput, EncodingsAreSaid) {
  pair("in/a.png", 1, "caf\xc3\xa9");
  pair("in/b.png", 2, "caf\xe9 noir");
  pair("in/c.png", 3, std::string("\xff\xfet\0h\0\xe9\0", 8));
  pair("in/d.png", 4, std::string("\xfe\xff\0l\0a\0i\0t", 10));
  pair("in/e.png", 5, std::string(1500, 'w'));
  pair("in/z\xe9/f.png", 6, "six");  // a class, and in its place a name of other bytes
  write_text(dir() / "in/alone.txt", "no picture");
  const Outcome o = prepare("in", {"--out", "in.h5"});
  EXPECT_EQ(o.code, 0) << o;
  expect_says(o, {"6 images", "2 classes"});
  expect_says(prepare("in", {"--out", "in.h5"}), {"already prepared: 6 images"});
  ASSERT_EQ(prepare("in/z\xe9", {"--out", "f.h5"}).code, 0);
  expect_says(prepare("in/z\xe9", {"--out", "f.h5"}), {"already prepared: 1 images"});
  EXPECT_NE(line_with(o.out, "Latin-1").find("1 caption"), std::string::npos) << o;
  EXPECT_NE(line_with(o.out, "Latin-1").find("b.txt"), std::string::npos) << o;
  EXPECT_NE(line_with(o.out, "UTF-16").find("2 captions"), std::string::npos) << o;
  EXPECT_NE(line_with(o.out, "1000 characters").find("e.txt"), std::string::npos) << o;
  EXPECT_NE(line_with(o.out, "alone.txt").find("1 other file"), std::string::npos) << o;
  const std::string file = read_text(dir() / "in.h5");
  EXPECT_NE(file.find("caf\xc3\xa9"
                      "caf\xc3\xa9 noirth\xc3\xa9lait"),
            file.npos);

  // One odd row does not change how the others of a table are read.
  write_text(dir() / "in/t.csv", "filepath,title\na.png,caf\xc3\xa9\nb.png,caf\xe9 noir\n");
  const Outcome t = prepare("in/t.csv", {"--out", "t.h5"});
  EXPECT_EQ(t.code, 0) << t;
  EXPECT_NE(read_text(dir() / "t.h5")
                .find("caf\xc3\xa9"
                      "caf\xc3\xa9 noir"),
            std::string::npos);
  EXPECT_NE(line_with(t.out, "Latin-1").find("t.csv:3"), std::string::npos) << t;
  std::string wide("\xff\xfe", 2);
  for (const char c : std::string("filepath\ttitle\na.png\twide\n")) wide += {c, '\0'};
  write_text(dir() / "in/wide.csv", wide);
  const Outcome w = prepare("in/wide.csv", {"--out", "w.h5"});
  EXPECT_EQ(w.code, 0) << w;
  expect_says(w, {"1 images", "UTF-16"});
}

// Resuming asks for what is trained on: pixels, captions and split, wherever they lie and however they came there.
TEST_F(DataInput, ResumeKnowsTheContent) {
  prepare_pairs(dir());
  write_text(dir() / "e.yaml", experiment(6, 32, 8, "checkpoint: {every: 2, keep: 9}\n"));
  const auto train = [&](const Words& more = {}) {
    Words words{"train", "e.yaml", "--out", "run"};
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  };
  ASSERT_EQ(train().code, 0);
  const auto finished = final_state(dir() / "run");
  const auto resumes = [&](const std::string& what, const Words& more = {}) {
    SCOPED_TRACE(what);
    fs::remove_all(dir() / "run/ckpt/step_00000006");
    const Outcome o = train(more);
    EXPECT_EQ(o.code, 0) << o;
    expect_says(o, {"resumed at step 4 of 6"});
    EXPECT_EQ(final_state(dir() / "run"), finished);
  };
  const auto refused = [&](const std::string& what, const Words& more = {}) {
    SCOPED_TRACE(what);
    fs::remove_all(dir() / "run/ckpt/step_00000006");
    const Outcome o = train(more);
    EXPECT_EQ(o.code, 3) << o;
    expect_says(o, {"is not the data this run was started with", "--fresh"});
  };
  const auto again = [&](const std::string& from, const std::string& to = "pairs.h5") {
    ASSERT_EQ(prepare(from, {"--out", to, "--force"}).code, 0);
  };
  resumes("untouched");
  again("./pictures/");
  resumes("prepared again, another spelling");
  fs::rename(dir() / "pictures", dir() / "elsewhere");
  again("elsewhere", "moved.h5");
  fs::remove(dir() / "pairs.h5");
  resumes("moved, as a file of another name", {"data.file=./moved.h5"});
  resumes("moved, by its full path", {"data.file=" + (dir() / "moved.h5").string()});
  fs::rename(dir() / "elsewhere", dir() / "pictures");

  write_text(dir() / "pictures/class 1/40.png", png(140));
  again("pictures");
  refused("a replaced picture");
  refused("a replaced picture, elsewhere", {"data.file=./pairs.h5"});
  write_text(dir() / "pictures/class 1/40.png", png(40));
  const std::string caption = read_text(dir() / "pictures/class 1/40.txt");
  write_text(dir() / "pictures/class 1/40.txt", "Picture" + caption.substr(7));
  again("pictures");
  refused("a replaced caption");
  write_text(dir() / "pictures/class 1/40.txt", caption);
  fs::rename(dir() / "pictures/class 0/1.png", dir() / "pictures/class 0/z.png");
  fs::rename(dir() / "pictures/class 0/1.txt", dir() / "pictures/class 0/z.txt");
  again("pictures");
  refused("another order");
  fs::rename(dir() / "pictures/class 0/z.png", dir() / "pictures/class 0/1.png");
  fs::rename(dir() / "pictures/class 0/z.txt", dir() / "pictures/class 0/1.txt");
  fs::remove(dir() / "pictures/class 2/61.png");
  again("pictures");
  refused("a picture less");
  write_text(dir() / "pictures/class 2/61.png", png(61));
  again("pictures");
  resumes("put back");
}

TEST_F(DataInput, FeaturesOfAReferenceBelongToTheirData) {
  prepare_pairs(dir());
  write_text(dir() / "e.yaml", experiment(2, 32, 8));
  ASSERT_EQ(run({"train", "e.yaml", "--out", "run"}).code, 0);
  const auto cache = [&](const Words& more) {
    Words words{"data", "cache-reference"};
    words.insert(words.end(), more.begin(), more.end());
    return run(words);
  };
  const auto refused = [&](const Words& more, int code, const Words& said) {
    const auto before = listing(dir());
    const Outcome o = cache(more);
    EXPECT_EQ(o.code, code) << o;
    EXPECT_EQ(o.errors().size(), 1u) << o;
    expect_says(o, said);
    EXPECT_EQ(listing(dir()), before) << "left something behind, or changed it";
  };
  const Outcome first = cache({"run", "pairs.h5"});
  EXPECT_EQ(first.code, 0) << first;
  expect_says(first, {"features of 90 pairs, 32 wide in f16", "reference.features=pairs.reference.h5"});
  // By an experiment and by a run the same data; and the same bytes when made again.
  const auto features = listing(dir())["pairs.reference.h5"];
  for (const std::string data : {"pairs.h5", "e.yaml", "run"}) expect_says(cache({"run", data}), {"already cached"});
  EXPECT_EQ(cache({"run", "e.yaml", "--force", "--batch", "7", "--threads", "1"}).code, 0);
  EXPECT_EQ(listing(dir())["pairs.reference.h5"].first, features.first);
  refused({"run", "pairs.h5", "--type", "f32"}, 3, {"in another type", "--force"});
  refused({"run", "pairs.h5", "--type", "f64"}, 2, {"write f16 or f32"});
  refused({"run"}, 2, {"needs MODEL and DATA"});
  refused({"run", "nothing.h5"}, 3, {"nothing.h5"});
  refused({"pictures", "pairs.h5"}, 3, {"neither a run folder"});
  refused({"run", "pairs.h5", "--out", "run/config.resolved.yaml/x"}, 3, {"cannot create the folder"});
  EXPECT_EQ(run({"data", "folder", "run", "--from", "pictures"}).code, 2) << "a word that only cache-reference takes";
  // Another picture, and the features are of other data.
  write_text(dir() / "pictures/class 1/40.png", png(140));
  ASSERT_EQ(prepare("pictures", {"--out", "pairs.h5", "--force"}).code, 0);
  refused({"run", "pairs.h5"}, 3, {"holds features of other data", "90 samples", "make it anew"});
}

TEST_F(DataInput, FileSystemsWithoutLocks) {
  draw_pictures(dir() / "s", 1, 3);
  for (const char* number : {"37", "38", "95", "524"}) {  // ENOLCK, ENOSYS, EOPNOTSUPP, and what some NFS servers say
    const Outcome o = prepare("s", {"--out", std::string("n") + number + ".h5"},
                              {"LD_PRELOAD=" TRIREME_NO_LOCKS, std::string("FLOCK_ERRNO=") + number});
    EXPECT_EQ(o.code, 0) << number << "\n" << o;
    expect_says(o, {"3 images"});
    expect_says(prepare("s", {"--out", std::string("n") + number + ".h5"},
                        {"LD_PRELOAD=" TRIREME_NO_LOCKS, std::string("FLOCK_ERRNO=") + number}),
                {"already prepared: 3 images"});
  }
}

// `trireme eval` on a run and its export: the training's own numbers, the same on any number of ranks and from either
// form; and one line with the cure for what is wrong with a model or a test set.
class Evaluation : public DataInput {
 protected:
  void SetUp() override {
    DataInput::SetUp();
    if (IsSkipped()) return;
    prepare_pairs(dir());
    write_text(dir() / "e.yaml", experiment(6, 16, 8));
    const Outcome trained = run({"train", "e.yaml", "--out", "run"}),
                  exported = run({"export", "run", "--out", "model"});
    ASSERT_EQ(trained.code, 0) << trained;
    ASSERT_EQ(exported.code, 0) << exported;
    done_ = line_with(trained.out, "done:");
    said_ = trained.out + trained.err;
    // A test set in CLIP_benchmark's layout: three classes, 1.tar is cut later.
    fs::create_directories(dir() / "set/test");
    for (int i = 0; i < 24; ++i) {
      write_text(dir() / ("s" + std::to_string(i) + ".png"), png(1 + i));
      write_text(dir() / ("s" + std::to_string(i) + ".cls"), std::to_string(i % 3));
      write_text(dir() / ("s" + std::to_string(i) + ".txt"), "sample " + std::to_string(i));
    }
    for (const char* shard : {"0", "1"}) {
      std::string files;
      for (int i = *shard == '0' ? 0 : 12, end = i + 12; i < end; ++i)
        for (const char* part : {".png", ".cls", ".txt"}) files += " s" + std::to_string(i) + part;
      const std::string tar =
          "tar -C '" + dir().string() + "' -cf '" + dir().string() + "/set/test/" + shard + ".tar'" + files;
      ASSERT_EQ(std::system(tar.c_str()), 0);
    }
    write_text(dir() / "set/test/nshards.txt", "2\n");
    write_text(dir() / "set/classnames.txt", "one\ntwo\nthree\n");
    write_text(dir() / "set/zeroshot_classification_templates.txt", "a {c}\nthe {c}.\n");
  }
  nlohmann::json metrics(const Words& words) {
    Words all{"eval"};
    all.insert(all.end(), words.begin(), words.end());
    all.push_back("--json");
    const Outcome o = run(all);
    EXPECT_EQ(o.code, 0) << o;
    EXPECT_EQ(lines_of(o.out).size(), 1u) << o;
    return nlohmann::json::parse(o.out, nullptr, false);
  }
  // Exit code and one line that holds the parts.
  void refused(const Words& words, int code, const Words& parts) {
    Words all{"eval"};
    all.insert(all.end(), words.begin(), words.end());
    const Outcome o = run(all);
    EXPECT_EQ(o.code, code) << o;
    EXPECT_EQ(o.errors().size(), 1u) << o;
    expect_says(o, parts);
  }
  void draw_wide_pictures() {
    fs::create_directories(dir() / "wide");
    for (int i = 0; i < 90; ++i) {
      write_text(dir() / "wide" / (std::to_string(i) + ".png"), png(1 + i, 16 + i % 20, 16 + i % 3));
      write_text(dir() / "wide" / (std::to_string(i) + ".txt"), "picture number " + std::to_string(i));
    }
    const std::string here = "'" + dir().string();
    ASSERT_EQ(std::system(("tar --sort=name -C " + here + "/wide' -cf " + here + "/wide.tar' .").c_str()), 0);
  }
  void expect_as_trained(const nlohmann::json& found, const std::string& done) {
    std::vector<std::string> keys{"image_to_text_r1", "image_to_text_r10", "chance_r10"};
    if (found.contains("zero_shot_top1")) keys.push_back("zero_shot_top1");
    for (const std::string& key : keys) {
      const auto at = done.find(" " + key + "=");
      ASSERT_NE(at, done.npos) << done;
      EXPECT_NEAR(found[key].get<double>(), std::stod(done.substr(at + key.size() + 2)), 1e-6) << key;
    }
  }
  std::string done_, said_;  // the training's last line, and all of them
};

TEST_F(Evaluation, SaysWhatTrainingSaidOfItsOwnData) {
  const auto own = metrics({"run"});
  expect_as_trained(own, done_);
  EXPECT_NE(done_.find("zero_shot_top1="), done_.npos) << done_;
  EXPECT_NE(said_.find("per class"), said_.npos) << "the table names all of its numbers";
  EXPECT_EQ(said_.find("mean_per_class"), said_.npos) << said_;
  const auto same = [&](nlohmann::json other) {
    for (const char* name : {"model", "data"}) other[name] = own[name];
    EXPECT_EQ(other, own);
  };
  same(metrics({"run", "--data", "pairs.h5"}));
  same(metrics({"model", "--data", "pairs.h5"}));
  same(metrics({"run", "--ranks", "2"}));
  same(metrics({"run", "--ranks", "4", "--threads", "1"}));
  EXPECT_EQ(metrics({"run", "--split", "all"})["images"], 90);
  EXPECT_TRUE(metrics({"run", "--protocol", "open_clip"}).contains("image_to_text_mean_rank"));
  const Outcome table = run({"eval", "run"});
  EXPECT_EQ(table.code, 0) << table;
  expect_says(table, {"image to text", "zero-shot", "by chance"});

  fs::create_directories(dir() / "set/train");
  for (const char* file : {"nshards.txt", "0.tar", "1.tar"})
    fs::copy_file(dir() / "set/test" / file, dir() / "set/train" /
                                                 (*file == '0'   ? "1.tar"
                                                  : *file == '1' ? "0.tar"
                                                                 : file));
  const auto set = metrics({"model", "--data", "set", "--linear-probe", "set/train"});
  EXPECT_EQ(set["classes"], 3);
  EXPECT_EQ(set["templates"], 2);
  for (const char* key : {"zero_shot_top1", "zero_shot_mean_per_class", "linear_probe_top1"})
    EXPECT_TRUE(set[key].is_number()) << key;
  EXPECT_FALSE(set.contains("zero_shot_top5")) << "of three classes";
}

// A run's own data is opened as training opened it: tars in the layout of a test set, several sources, an eval_file.
TEST_F(Evaluation, ARunsOwnDataIsWhatTrainingHeldOut) {
  ASSERT_EQ(run({"data", "tar", "--from", "pictures", "--out", "layout/test"}).code, 0);
  fs::rename(dir() / "layout/test/00000.tar", dir() / "layout/test/0.tar");
  write_text(dir() / "layout/test/nshards.txt", "1\n");
  write_text(dir() / "layout/dataset_type.txt", "retrieval\n");
  draw_pictures(dir() / "more", 100, 24);
  ASSERT_EQ(run({"data", "tar", "--from", "more", "--out", "more-tars"}).code, 0);
  const auto evaluated = [&](const std::string& name, const Words& more) {
    SCOPED_TRACE(name);
    Words words{"train", "e.yaml", "--out", name};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome o = run(words);
    EXPECT_EQ(o.code, 0) << o;
    const auto found = metrics({name});
    expect_as_trained(found, line_with(o.out, "done:"));
    return found["images"].get<int>();
  };
  EXPECT_LT(evaluated("layout-run", {"data.file=layout/test", "data.held_out=0.4"}), 60);
  EXPECT_EQ(metrics({"layout-run", "--split", "all"})["images"], 90);
  EXPECT_LT(evaluated("part-run", {"data.file=pairs.h5", "data.part=[0, 0.7]", "data.eval_part=[0.7, 1]"}), 60);
  EXPECT_EQ(evaluated("joined-run", {"data.files=[layout/test, pairs.h5]", "data.eval_file=more-tars/"}), 24);
  EXPECT_EQ(metrics({"model", "--data", "layout"})["images"], 90);

  // Classes are asked for in the data's own prompts.
  EXPECT_EQ(evaluated("classes-run", {"data.eval_file=set/test/"}), 24);
  EXPECT_EQ(metrics({"classes-run"})["templates"], 2);
  write_text(dir() / "set/zeroshot_classification_templates.txt", "a {c}\nthe thing\n");
  const Outcome o = run({"train", "e.yaml", "--out", "bad-run", "data.eval_file=set/test/"});
  EXPECT_EQ(o.code, 3) << o;
  expect_says(o, {"'the thing' has no place for the class", "write {c}"});
  refused({"layout-run", "--data", "layout", "--split", "held_out"}, 2, {"--split", "test set"});
}

TEST_F(Evaluation, AProbeIsNeverTestedOnWhatItLearnt) {
  fs::copy(dir() / "set", dir() / "copy", fs::copy_options::recursive);
  for (const std::string& other : {std::string("set"), std::string("./set/test"), std::string("copy"),
                                   std::string("set/test/{0,1}.tar"), (dir() / "set").string()})
    refused({"model", "--data", "set", "--linear-probe", other}, 2, {"--linear-probe", "is what it is tested on"});
  refused({"model", "--data", "set", "--linear-probe", "set/test/1.tar"}, 2, {"--linear-probe", "in part"});
  fs::rename(dir() / "set/test/nshards.txt", dir() / "n.txt");  // plain tars
  fs::remove(dir() / "copy/test/nshards.txt");
  const auto tested = metrics({"model", "--data", "set/test", "--split", "held_out"});
  for (const std::string& other :
       {std::string("set/test"), std::string("set/test/{0..1}.tar"), std::string("copy/test/")}) {
    const auto probed = metrics({"model", "--data", "set/test", "--linear-probe", other});
    EXPECT_EQ(probed["images"], tested["images"]) << other;
    EXPECT_TRUE(probed["linear_probe_top1"].is_number()) << other;
  }
  refused({"model", "--data", "set/test", "--linear-probe", "copy/test", "--split", "all"}, 2, {"--split all"});
}

TEST_F(Evaluation, BrokenPicturesAreCountedOverAllRanks) {
  draw_pictures(dir() / "odd", 1, 200);
  for (const char* number : {"10", "120", "190"})
    write_text(dir() / "odd" / (std::string(number) + ".png"), "no picture");
  for (const char* ranks : {"1", "2", "3"})
    refused({"model", "--data", "odd/", "--ranks", ranks}, 3, {"odd/: more than 2 of 200 pictures"});
  // A run says which share it bears.
  const Outcome o = run({"train", "e.yaml", "data.eval_file=odd/", "data.broken_share=0.05", "--out", "odd-run"});
  ASSERT_EQ(o.code, 0) << o;
  EXPECT_EQ(metrics({"odd-run", "--ranks", "2"})["images"], 200);
}

// Training sees the middle of such pictures, a prepared file holds them whole on white: a run knows which.
TEST_F(Evaluation, PicturesThatAreNoSquaresAreSeenAsInTraining) {
  draw_wide_pictures();
  const Outcome o =
      run({"train", "e.yaml", "steps=60", "data.file=wide.tar", "data.held_out=0.5", "--out", "wide-run"});
  ASSERT_EQ(o.code, 0) << o;
  expect_as_trained(metrics({"wide-run"}), line_with(o.out, "done:"));
  // Pairs without classes: no share of right ones.
  EXPECT_EQ((o.out + o.err + read_text(dir() / "wide-run/metrics.jsonl")).find("zero_shot"), std::string::npos) << o;
  ASSERT_EQ(run({"export", "wide-run", "--out", "wide-model"}).code, 0);
  EXPECT_NE(read_text(dir() / "wide-model/open_clip_config.json").find("shortest"), std::string::npos);
  EXPECT_NE(read_text(dir() / "model/open_clip_config.json").find("longest"), std::string::npos);
}

// A pretrained model's mean, deviation and resize hold in finetuning, in its evaluations and in what becomes of it.
TEST_F(Evaluation, FinetuningSeesPicturesAsThePretrainedModelDid) {
  draw_wide_pictures();
  const auto configured = [&](const std::string& folder) {
    return nlohmann::json::parse(read_text(dir() / folder / "open_clip_config.json"));
  };
  const auto tune = [&](const std::string& from, const std::string& out, const Words& more = {}) {
    Words words{"train", "e.yaml", "init_from=" + from, "steps=2", "data.file=wide.tar", "data.held_out=0.5",
                "--out", out};
    words.insert(words.end(), more.begin(), more.end());
    const Outcome o = run(words);
    EXPECT_EQ(o.code, 0) << o;
    return line_with(o.out, "done:");
  };
  const std::string plain = tune("model", "plain");
  nlohmann::json theirs = configured("model");
  theirs["preprocess_cfg"] = {{"size", 16},      {"mean", {0.5, 0.5, 0.5}}, {"std", {0.25, 0.5, 0.125}},
                              {"fill_color", 0}, {"resize_mode", "squash"}, {"interpolation", "bilinear"}};
  for (const std::string mode : {"longest", "squash"}) {
    SCOPED_TRACE(mode);
    theirs["preprocess_cfg"]["resize_mode"] = mode;
    write_text(dir() / "model/open_clip_config.json", theirs.dump());
    const std::string run_name = "tuned-" + mode, done = tune("model", run_name, {"data.crop_scale=1"});
    expect_as_trained(metrics({run_name}), done);
    EXPECT_NE(done.substr(0, done.find(" image")), plain.substr(0, plain.find(" image"))) << "the loss";
    ASSERT_EQ(run({"export", run_name, "--out", "out-" + mode}).code, 0);
    EXPECT_EQ(configured("out-" + mode)["preprocess_cfg"], theirs["preprocess_cfg"]);
  }
  // So it is with a run in the folder's place, and a run that goes on sees what it saw, whatever became of the folder.
  const std::string again = tune("tuned-squash", "again", {"data.tokenizer=model/merges.txt"});
  expect_as_trained(metrics({"again"}), again);
  theirs["preprocess_cfg"]["mean"] = {0.5, 0.5, 0.4};
  write_text(dir() / "model/open_clip_config.json", theirs.dump());
  expect_as_trained(metrics({"tuned-squash"}), tune("model", "tuned-squash", {"data.crop_scale=1"}));
}

TEST_F(Evaluation, SaysWhatIsWrongInOneLine) {
  refused({"model"}, 2, {"--data"});
  refused({"run", "--protocol", "best"}, 2, {"open_clip"});
  refused({"run", "--split", "none"}, 2, {"held_out"});
  refused({"model", "--data", "nothing.h5"}, 3, {"nothing.h5"});
  write_text(dir() / "two.txt", "a\nb\n");
  refused({"model", "--data", "set", "--classes", "two.txt"}, 3, {"two.txt", "2", "3", "one a line"});
  refused({"model", "--data", "pairs.h5", "--classes", "two.txt"}, 3, {"two.txt", "2", "3"});
  draw_wide_pictures();
  for (const char* option : {"--classes", "--templates"})
    refused({"model", "--data", "wide.tar", option, "two.txt"}, 2, {option, "wide.tar has no classes", "leave it out"});
  refused({"model", "--data", "set", "--templates", "two.txt"}, 3, {"two.txt", "{c}"});
  write_text(dir() / "set/classnames.txt", "one\ntwo\n");
  refused({"model", "--data", "set"}, 3, {"classnames.txt", "2"});
  write_text(dir() / "set/classnames.txt", "one\ntwo\nthree\n");

  const fs::path tar = dir() / "set/test/1.tar";
  fs::resize_file(tar, 3 * 512 + 100);
  refused({"model", "--data", "set"}, 3, {"1.tar", "cut short", "copy"});
  const std::string silent = "tar -C '" + dir().string() + "' -cf '" + dir().string() +
                             "/silent.tar' s0.png s0.txt s1.png s2.png s2.txt s3.png s3.txt";
  ASSERT_EQ(std::system(silent.c_str()), 0);
  const Outcome left_out = run({"eval", "model", "--data", "silent.tar", "--json"});
  EXPECT_EQ(left_out.code, 0) << left_out;
  EXPECT_NE(left_out.err.find("silent.tar: 1 of 4 samples is broken"), std::string::npos) << left_out;
  // The larger part of a good tar is left: training says so, evaluation refuses it.
  ASSERT_EQ(run({"data", "tar", "--from", "pictures", "--out", "cut"}).code, 0);
  fs::resize_file(dir() / "cut/00000.tar", fs::file_size(dir() / "cut/00000.tar") / 512 / 10 * 9 * 512 + 100);
  const Outcome trained = run({"train", "e.yaml", "data.file=cut/", "--out", "cut-run"});
  EXPECT_EQ(trained.code, 0) << trained;
  expect_says(trained, {"a tar is damaged", "cut/00000.tar: cut short"});
  EXPECT_EQ((trained.out + trained.err).find("broken"), std::string::npos) << trained;
  refused({"cut-run"}, 3, {"cut/00000.tar: cut short", "copy"});
  refused({"model", "--data", "cut/"}, 3, {"cut/00000.tar: cut short", "copy"});
  refused({"model", "--data", "pairs.h5", "--linear-probe", "cut/"}, 3, {"cut/00000.tar: cut short"});

  const auto damaged = [&](const fs::path& file, const std::string& from, const std::string& to, const Words& parts) {
    const std::string sound = read_text(dir() / file);
    const auto at = sound.find(from);
    ASSERT_NE(at, sound.npos) << file;
    std::string bytes = sound;
    bytes.replace(at, from.size(), to);
    write_text(dir() / file, bytes);
    refused({"model", "--data", "pairs.h5"}, 3, parts);
    write_text(dir() / file, sound);
  };
  damaged("model/open_clip_config.json", "\"embed_dim\"", "\"embed_dims\"", {"open_clip_config.json", "embed_dims"});
  damaged("model/open_clip_model.safetensors", "\"ln_final.weight\"", "\"ln_final.wright\"", {"ln_final.weight"});
}

// Their own code on the exported model: every digit where both see the same pixels, 3 samples where each decodes.
TEST_F(Evaluation, OpenClipAndClipBenchmarkSayTheSame) {
  const char* python = std::getenv("TRIREME_CLIP_PYTHON");
  if (!python || !*python)
    GTEST_SKIP() << "TRIREME_CLIP_PYTHON names no python with open_clip_torch, clip_benchmark, webdataset, h5py";
  const char* source = std::getenv("TRIREME_SOURCE");
  const std::string log = (dir() / "parity.txt").string();
  const std::string command = std::string("cd '") + dir().string() + "' && '" + python + "' '" +
                              fs::absolute(source ? source : ".").string() +
                              "/tests/peers/eval_parity.py' --trireme '" + program_path() +
                              "' --run run --data pairs.h5 --all --work work >'" + log + "' 2>&1";
  EXPECT_EQ(std::system(command.c_str()), 0) << read_text(log);
}

}  // namespace
}  // namespace trireme::test
