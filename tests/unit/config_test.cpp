#include "framework/config/config.h"

#include "comm/error.h"
#include "comm/nearest.h"
#include "comm/registry.h"
#include "framework/recipe.h"
#include "framework/train_config.h"
#include "trainers/sample/config.h"
#include "trainers/sweep/config.h"

#include <bit>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>
#include <sstream>

#include <gtest/gtest.h>

namespace trireme {
namespace {

struct Model {
  std::int64_t width = 192;
  double dropout = 0.1;
  std::string activation = "gelu";
  void fields(Fields& f) {
    f("width", width, "hidden size", {.min = 1, .max = 65536});
    f("dropout", dropout, "share of zeroed activations", {.min = 0, .max = 1});
    f.choice("activation", activation, {"gelu", "quick_gelu", "relu"}, "nonlinearity");
    f.require(width % 8 == 0, "width", "not a multiple of 8 heads", "use 192 or 256");
  }
};

struct Optimizer {
  double lr = 1e-3, weight_decay = 0.1;
  std::vector<double> betas = {0.9, 0.98};
  void fields(Fields& f) {
    f("lr", lr, "peak learning rate", {.min = 0});
    f("weight_decay", weight_decay, "decoupled decay");
    f("betas", betas, "of the moments");
  }
};

struct Output {
  std::string dir = "";
  void fields(Fields& f) { f("dir", dir, "folder"); }
};

struct Settings {
  std::string recipe = "fastclip", note = "";
  std::int64_t steps = 100, seed = 0, log_every = 10;
  bool amp = false;
  std::vector<std::string> tags;
  std::vector<std::int64_t> sizes = {1, 2};
  Model model;
  Optimizer optimizer;
  Output output;
  void fields(Fields& f) {
    f("recipe", recipe, "which recipe");
    f("note", note, "free text");
    f("steps", steps, "optimizer steps", {.min = 1});
    f("seed", seed, "of all randomness");
    f.resume_may_change(true);
    f("log_every", log_every, "steps between metric lines", {.min = 1});
    f.group("output", output, "where files go");
    f.resume_may_change(false);
    f("amp", amp, "mixed | precision");
    f("tags", tags, "labels");
    f("sizes", sizes, "a list of sizes");
    f.group("model", model, "the tower");
    f.group("optimizer", optimizer, "the optimizer");
  }
};

const auto kFresh = [](Fields& f) {
  Settings run;
  run.fields(f);
};

Settings resolve(const Config& c) {
  Settings run;
  c.read([&](Fields& f) { run.fields(f); });
  return run;
}
Settings resolve(std::string_view yaml, const std::vector<std::string>& overrides = {}) {
  return resolve(Config::parse(yaml, "t.yaml", overrides));
}
// The message, or "" when the config is accepted. Anything but exit code 2 fails the test.
std::string error_of(const std::function<void()>& run) {
  try {
    run();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::usage) << e.what();
    EXPECT_EQ(std::string_view(e.what()).find('\n'), std::string_view::npos);
    return e.what();
  }
  return "";
}
std::string refused(std::string_view yaml, const std::vector<std::string>& overrides = {}) {
  return error_of([&] { resolve(yaml, overrides); });
}

class Folder {
 public:
  Folder() {
    std::string name = (std::filesystem::temp_directory_path() / "config_test.XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~Folder() { std::filesystem::remove_all(path_); }
  std::string write(const std::string& name, std::string_view text) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    std::ofstream(path_ / name, std::ios::binary) << text;
    return (path_ / name).string();
  }
  std::string operator/(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

TEST(Config, ReadsEveryType) {
  const Settings r = resolve(
      "recipe: dlrm\nnote: 'it''s: fine'\nsteps: 7\nseed: -9223372036854775808\namp: true\ntags: [a, \"b, "
      "c\", 3]\n"
      "sizes:\n  - 4\n  - -5\nmodel: {width: 64, dropout: 1e-3, activation: relu}\n"
      "optimizer:\n  lr: .5\n  betas: [1, 2.5e-1]\n");
  EXPECT_EQ(r.recipe, "dlrm");
  EXPECT_EQ(r.note, "it's: fine");
  EXPECT_EQ(r.steps, 7);
  EXPECT_EQ(r.seed, std::numeric_limits<std::int64_t>::min());
  EXPECT_TRUE(r.amp);
  EXPECT_EQ(r.tags, (std::vector<std::string>{"a", "b, c", "3"}));
  EXPECT_EQ(r.sizes, (std::vector<std::int64_t>{4, -5}));
  EXPECT_EQ(r.model.width, 64);
  EXPECT_EQ(r.model.dropout, 1e-3);
  EXPECT_EQ(r.optimizer.lr, 0.5);
  EXPECT_EQ(r.optimizer.betas, (std::vector<double>{1, 0.25}));
  EXPECT_EQ(r.optimizer.weight_decay, 0.1);  // the default
}

TEST(Config, BlockTextsAnchorsAndByteOrderMark) {
  const Settings r = resolve("\xef\xbb\xbf---\nnote: |\n  two\n  lines\nsizes: &s [3, 4]\ntags: *s\n");
  EXPECT_EQ(r.note, "two\nlines\n");
  EXPECT_EQ(r.tags, (std::vector<std::string>{"3", "4"}));
}

TEST(Config, WindowsLineEndings) {
  const Settings r = resolve("steps: 3\r\nmodel:\r\n  width: 8\r\nnote: a\r\n");
  EXPECT_EQ(r.model.width, 8);
  EXPECT_EQ(r.note, "a");
  EXPECT_EQ(refused("steps: 3\r\nmodel:\r\n  widht: 8\r\n"),
            "t.yaml:3:3: model.widht: unknown key; did you mean width?");
}

TEST(Config, StringAtAndPlace) {
  const Config c = Config::parse("recipe: dlrm\noutput:\n  dir: runs/x\ntags: [a]\n", "t.yaml", {"seed=3"});
  EXPECT_EQ(c.string_at("recipe"), "dlrm");
  EXPECT_EQ(c.place("output.dir"), "t.yaml:3:8: output.dir");
  EXPECT_EQ(c.place("seed"), "command line (seed=3): seed");
  EXPECT_EQ(c.place("model.width"), "t.yaml: model.width");
  EXPECT_EQ(error_of([&] { c.string_at("precision"); }), "t.yaml: precision: this key is missing; add precision: NAME");
  EXPECT_EQ(error_of([&] { c.string_at("tags"); }), "t.yaml:4:7: tags: is not a text; write tags: NAME");
}

struct Mistake {
  const char* yaml;
  const char* message;  // complete: place, key path, what, cure
};
const Mistake kMistakes[] = {
    // Unknown keys.
    {"optimizer:\n  lr: 1\n  weight_decy: 0.1\n",
     "t.yaml:3:3: optimizer.weight_decy: unknown key; did you mean weight_decay?"},
    {"Steps: 3\n", "t.yaml:1:1: Steps: unknown key; did you mean steps?"},
    {"log-every: 3\n", "t.yaml:1:1: log-every: unknown key; did you mean log_every?"},
    {"width: 64\n", "t.yaml:1:1: width: unknown key; did you mean model.width?"},
    {"model.width: 64\n", "t.yaml:1:1: model.width: unknown key; did you mean model.width, nested as a mapping?"},
    {"model:\n  elephant: 64\n", "t.yaml:2:3: model.elephant: unknown key; known keys: width, dropout, activation"},
    {"model: {width: 8, 3: 4}\n", "t.yaml:1:19: model.3: unknown key; known keys: width, dropout, activation"},
    // Types.
    {"steps: ten\n",
     "t.yaml:1:8: steps: 'ten' is not an integer; write an integer, 1 or more (digits only: no exponent, "
     "point or "
     "underscore)"},
    {"steps: 1e3\n",
     "t.yaml:1:8: steps: '1e3' is not an integer; write an integer, 1 or more (digits only: no exponent, "
     "point or "
     "underscore)"},
    {"seed: 1_000\n",
     "t.yaml:1:7: seed: '1_000' is not an integer; write an integer (digits only: no exponent, point or "
     "underscore)"},
    {"seed: 2.0\n",
     "t.yaml:1:7: seed: '2.0' is not an integer; write an integer (digits only: no exponent, point or "
     "underscore)"},
    {"seed: 010\n", "t.yaml:1:7: seed: '010' starts with a zero, which some tools read as octal; remove the zero"},
    {"seed: '3'\n", "t.yaml:1:7: seed: '3' in quotes is a text, not an integer; remove the quotes"},
    {"seed: 9223372036854775808\n", "t.yaml:1:7: seed: '9223372036854775808' does not fit 64 bits; write an integer"},
    {"optimizer:\n  lr: zero\n",
     "t.yaml:2:7: optimizer.lr: 'zero' is not a number; write a number, 0.0 or more, such as 0.1 or 1e-3"},
    {"optimizer: {lr: .inf}\n", "t.yaml:1:17: optimizer.lr: '.inf' is not finite; write a number, 0.0 or more"},
    {"optimizer: {weight_decay: nan}\n", "t.yaml:1:27: optimizer.weight_decay: 'nan' is not finite; write a number"},
    {"optimizer: {weight_decay: 1e999}\n",
     "t.yaml:1:27: optimizer.weight_decay: '1e999' does not fit a 64-bit float; write a number"},
    {"optimizer: {lr: \"0.1\"}\n",
     "t.yaml:1:17: optimizer.lr: '0.1' in quotes is a text, not a number; remove the quotes"},
    {"amp: yes\n", "t.yaml:1:6: amp: 'yes' is not true or false; write true or false"},
    {"amp: 'true'\n", "t.yaml:1:6: amp: 'true' is not true or false; write true or false, without quotes"},
    {"tags: a\n", "t.yaml:1:7: tags: 'a' is not a list; write tags: [a]"},
    {"tags:\n  a: 1\n", "t.yaml:2:3: tags: is a mapping; write tags: [a, b]"},
    {"sizes: [1, 2,\n  x]\n",
     "t.yaml:2:3: sizes[2]: 'x' is not an integer; write an integer (digits only: no exponent, point or "
     "underscore)"},
    {"optimizer:\n  betas: [0.9, [1]]\n", "t.yaml:2:16: optimizer.betas[1]: is a list; write a number"},
    {"note: [a]\n", "t.yaml:1:7: note: is a list; write a text ('' for an empty one)"},
    {"steps:\n", "t.yaml:1:1: steps: has no value; write an integer, 1 or more, or remove the key to get the default"},
    {"note: ~\n",
     "t.yaml:1:7: note: has no value; write a text ('' for an empty one), or remove the key to get the "
     "default"},
    {"model:\nsteps: 3\n", "t.yaml:1:1: model: has no keys; indent its keys below it, or remove the line"},
    {"model: 3\n", "t.yaml:1:8: model: '3' is not a mapping; indent its keys below it"},
    {"model: [1]\n", "t.yaml:1:8: model: a list is not a mapping; indent its keys below it"},
    // Ranges, choices, requirements.
    {"steps: 0\n", "t.yaml:1:8: steps: '0' is out of range; allowed: an integer, 1 or more"},
    {"model:\n  width: 70000\n", "t.yaml:2:10: model.width: '70000' is out of range; allowed: an integer, 1 to 65536"},
    {"model: {dropout: 1.5}\n", "t.yaml:1:18: model.dropout: '1.5' is out of range; allowed: a number, 0.0 to 1.0"},
    {"model: {activation: quickgelu}\n",
     "t.yaml:1:21: model.activation: 'quickgelu' is not a choice; did you mean quick_gelu? allowed: gelu, "
     "quick_gelu, relu"},
    {"model: {activation: swish}\n",
     "t.yaml:1:21: model.activation: 'swish' is not a choice; allowed: gelu, quick_gelu, relu"},
    {"model: {width: 63}\n", "t.yaml:1:16: model.width: not a multiple of 8 heads; use 192 or 256"},
    // Structure.
    {"steps: 3\nseed: 1\nsteps: 4\n", "t.yaml:3:1: steps: key given twice; the first is on line 1; keep one of them"},
    {"model:\n  width: 8\n  'width': 16\n",
     "t.yaml:3:3: model.width: key given twice; the first is on line 2; keep one of them"},
    {"", "t.yaml: the file is empty; write at least one key: value"},
    {"# nothing\n\n", "t.yaml: the file is empty; write at least one key: value"},
    {"---\n", "t.yaml: the file is empty; write at least one key: value"},
    {"steps:3\n",
     "t.yaml:1:1: the file is not a mapping of keys to values; write key: value, with a space after the "
     "colon"},
    {"- steps\n",
     "t.yaml:1:1: the file is not a mapping of keys to values; write key: value, with a space after the "
     "colon"},
    {"steps: 3\n---\nseed: 4\n",
     "t.yaml:2:1: a second document starts here; a config is one document: remove the --- or ... line"},
    {"? [a, b]\n: 3\n",
     "t.yaml:1:3: a list or mapping as a key; close every [ and {, or quote the text: keys are plain text"},
    {"'': 4\n", "t.yaml:1:1: an empty key; write key: value"},
    {"steps: 3\n: 4\n", "t.yaml:2:1: a key is missing before the colon; write key: value"},
    {"model: &m {width: 8}\n*m : 3\n", "t.yaml:2:1: an alias as a key; write the key as text"},
    {"steps: !!int 3\n", "t.yaml:1:8: steps: the tag 'tag:yaml.org,2002:int' is not used in configs; remove the tag"},
    {"model:\n  <<: {width: 8}\n",
     "t.yaml:2:3: model: merge keys (<<) are not supported; use extends: FILE, or an alias as a value"},
    {"tags: &x\n  - *x\n",
     "t.yaml:2:5: tags: the alias stands inside the node it refers to (a cycle); remove the alias"},
    {"note: \"a\\0b\"\n", "t.yaml:1:7: note: a text with a NUL character; remove the \\0 escape"},
    // Syntax.
    {"model:\n\twidth: 3\n", "t.yaml:2:1: a tab in the indentation; indent with spaces"},
    {"model:\n  width: 8\n\tdropout: 0\n", "t.yaml:3:1: model.width: a tab in the indentation; indent with spaces"},
    {"steps: 3\ntags: [a,\n  b\n", "t.yaml:2:7: tags: the list opened here has no closing ]; close it"},
    {"model: {width: 8\n", "t.yaml:1:8: model: the mapping opened here has no closing }; close it"},
    {"note: *.png\n", "t.yaml:1:7: note: an alias (*name) without its anchor (&name); quote a text that starts with *"},
    {"note: @home\n", "t.yaml:1:7: note: a character that cannot start a value; quote the text"},
    {"note: a: b\n",
     "t.yaml:1:8: a colon where no key can stand; check the indentation, a missing space after an "
     "earlier "
     "colon, or quote a text that holds ': '"},
    {"steps: 3\n\xff\xfe\n", "t.yaml:2:1: a byte that is not UTF-8; save the file as UTF-8"},
    {"steps: 3\nnote: a\x04\n", "t.yaml:2:8: a control character; a config is text: is this another kind of file?"},
};

TEST(Config, EveryPlantedMistakeNamesPlaceKeyAndCure) {
  for (const Mistake& m : kMistakes) EXPECT_EQ(refused(m.yaml), m.message) << m.yaml;
}

TEST(Config, Overrides) {
  const Settings r =
      resolve("model: {width: 8}\nsteps: 3\n", {"model.width=16", "optimizer.lr=1e-5", "tags=[a,b]", "note='a,b'",
                                                "steps=4", "steps=5", "model={dropout: 0.5}", "recipe=a=b"});
  EXPECT_EQ(r.model.width, 16);
  EXPECT_EQ(r.model.dropout, 0.5);
  EXPECT_EQ(r.optimizer.lr, 1e-5);
  EXPECT_EQ(r.tags, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(r.note, "a,b");
  EXPECT_EQ(r.steps, 5);
  EXPECT_EQ(r.recipe, "a=b");
}

TEST(Config, WrongOverridesNameThemselves) {
  const auto with = [](const std::string& o) { return refused("steps: 3\nmodel: {width: 8}\n", {o}); };
  EXPECT_EQ(with("optimizer.lr=1,2"),
            "command line (optimizer.lr=1,2): optimizer.lr: a comma list is a sweep: use trireme submit; a list is "
            "written [a,b], a text with a comma '\"a,b\"'");
  EXPECT_EQ(with("steps"), "command line (steps): not an override; write key=value, such as lr=1e-3");
  EXPECT_EQ(with("a..b=1"), "command line (a..b=1): 'a..b' is not a key; write it as group.key=value");
  EXPECT_EQ(with("=1"), "command line (=1): '' is not a key; write it as group.key=value");
  EXPECT_EQ(with("steps ="), "command line (steps =): 'steps ' is not a key; write it as group.key=value");
  EXPECT_EQ(with("stepz=1"), "command line (stepz=1): stepz: unknown key; did you mean steps?");
  EXPECT_EQ(with("steps=0"), "command line (steps=0): steps: '0' is out of range; allowed: an integer, 1 or more");
  EXPECT_EQ(with("steps="),
            "command line (steps=): steps: has no value; write an integer, 1 or more, or remove the key to get the "
            "default");
  EXPECT_EQ(with("model=3"),
            "command line (model=3): model: one value cannot replace the mapping of t.yaml:2:8; set its keys: "
            "model.KEY");
  EXPECT_EQ(with("steps.a=3"),
            "command line (steps.a=3): steps: a mapping cannot replace the value of t.yaml:1:8; set one value");
  EXPECT_EQ(with("tags=[a"),
            "command line (tags=[a): a list or mapping as a key; close every [ and {, or quote the text: "
            "keys are plain text");
  EXPECT_EQ(with("extends=b.yaml"),
            "command line (extends=b.yaml): extends: only a file can extend another; write extends: in a file of "
            "your own");
  EXPECT_EQ(with("model={width: 8, width: 9}"),
            "command line (model={width: 8, width: 9}): width: key given twice; keep one of them");
  std::string deep = "a";
  for (int i = 0; i < 10000; ++i) deep += ".a";
  EXPECT_NE(with(deep + "=1").find("nested too deeply"), std::string::npos);
}

TEST(Config, ExtendsMergesMappingsAndReplacesLists) {
  const Folder dir;
  dir.write("base/common.yaml", "steps: 9\nsizes: [1, 2, 3]\nmodel:\n  width: 64\n  dropout: 0.5\n");
  dir.write("base/fast.yaml", "steps: 8\noptimizer: {lr: 2.5}\n");
  const std::string file =
      dir.write("run.yaml", "model:\n  width: 128\nextends: [base/common.yaml, ./base/fast.yaml]\nsizes: [7]\n");
  const Config c = Config::load(file, {"model.activation=relu"});
  const Settings r = resolve(c);
  EXPECT_EQ(r.steps, 8);
  EXPECT_EQ(r.sizes, (std::vector<std::int64_t>{7}));
  EXPECT_EQ(r.model.width, 128);
  EXPECT_EQ(r.model.dropout, 0.5);
  EXPECT_EQ(r.optimizer.lr, 2.5);
  EXPECT_EQ(r.model.activation, "relu");
  EXPECT_EQ(c.place("model.dropout"), dir / "base/common.yaml:5:12: model.dropout");
  // A diamond is no circle; the error of an extended file names that file.
  dir.write("l.yaml", "extends: base/common.yaml\n");
  dir.write("r.yaml", "extends: base/common.yaml\nstepz: 3\n");
  const std::string both = dir.write("both.yaml", "extends: [l.yaml, r.yaml]\n");
  EXPECT_EQ(error_of([&] { resolve(Config::load(both)); }),
            (dir / "r.yaml:2:1: stepz: unknown key; did you mean steps?"));
}

TEST(Config, WrongFilesAndExtends) {
  const Folder dir;
  const auto load = [&](const std::string& name) { return error_of([&] { resolve(Config::load(dir / name)); }); };
  dir.write("quickstart.yaml", "steps: 3\n");
  EXPECT_EQ(load("quikstart.yaml"), (dir / "quikstart.yaml: no such file; did you mean ") + (dir / "quickstart.yaml?"));
  EXPECT_EQ(load(""), (dir / ": is a directory; name a YAML file in it"));
  EXPECT_EQ(load("no/such"), (dir / "no/such: no such file; check the path"));
  dir.write("a.yaml", "extends: b.yaml\n");
  dir.write("b.yaml", "steps: 2\nextends: ./c.yaml\n");
  dir.write("c.yaml", "extends: [a.yaml]\n");
  EXPECT_EQ(load("a.yaml"), (dir / "c.yaml:1:11: extends: '") + (dir / "a.yaml': extends itself in a circle; remove ") +
                                "one of the extends");
  dir.write("self.yaml",
            "extends: ../" + std::filesystem::path(dir / "").parent_path().filename().string() + "/self.yaml\n");
  EXPECT_NE(load("self.yaml").find("circle"), std::string::npos);
  dir.write("gone.yaml", "steps: 3\nextends: quikstart.yaml\n");
  EXPECT_EQ(load("gone.yaml"), (dir / "gone.yaml:2:10: extends: '") +
                                   (dir / "quikstart.yaml': no such file; did you ") + "mean " +
                                   (dir / "quickstart.yaml?"));
  dir.write("list.yaml", "extends: {a: b}\n");
  EXPECT_NE(load("list.yaml").find("list.yaml:1:10: extends: not a file name"), std::string::npos);
  dir.write("device.yaml", "extends: /dev/zero\n");
  EXPECT_NE(load("device.yaml").find("is not a regular file"), std::string::npos);
  // Twice the same base on 40 levels would be 2^40 files.
  for (int i = 0; i < 40; ++i) {
    const std::string next = "n" + std::to_string(i + 1) + ".yaml";
    dir.write("n" + std::to_string(i) + ".yaml", "extends: [" + next + ", " + next + "]\n");
  }
  dir.write("n40.yaml", "steps: 3\n");
  EXPECT_NE(load("n0.yaml").find("more than 64 files"), std::string::npos);
  dir.write("big.yaml", "note: " + std::string(2 << 20, 'x') + "\n");
  EXPECT_EQ(load("big.yaml"),
            (dir / "big.yaml: is larger than 1 MiB; a config is a short text: is this another kind of file?"));
}

TEST(Config, BombsAndDepthEndQuickly) {
  const auto start = std::chrono::steady_clock::now();
  std::string bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n";
  for (int i = 1; i <= 50; ++i) {
    const std::string alias = "*a" + std::to_string(i - 1);
    bomb += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [" + alias;
    for (int k = 1; k < 10; ++k) bomb += ", " + alias;
    bomb += "]\n";
  }
  EXPECT_NE(refused(bomb).find("more than 100000 values, aliases expanded"), std::string::npos) << refused(bomb);
  std::string text_bomb = "a: &a " + std::string(1 << 19, 'x') + "\nb: [*a";
  for (int k = 0; k < 1000; ++k) text_bomb += ", *a";
  EXPECT_NE(refused(text_bomb + "]\n").find("more than 16 MiB of text"), std::string::npos);

  // Nor does depth add up through aliases, each of which is shallow.
  std::string chain = "a0: &a0 [x]\n";
  for (int i = 1; i < 100; ++i)
    chain += "a" + std::to_string(i) + ": &a" + std::to_string(i) + " [*a" + std::to_string(i - 1) + "]\n";
  EXPECT_NE(refused(chain).find("nested deeper than 64"), std::string::npos) << refused(chain);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

TEST(Config, DepthIsLimited) {
  const auto nested = [](int lists, bool closed) {
    return refused("tags: " + std::string(lists, '[') + "1" + std::string(closed ? lists : 0, ']') + "\n");
  };
  // The mapping of the file is the first level.
  EXPECT_EQ(nested(63, true), "t.yaml:1:8: tags[0]: is a list; write a text");
  for (const int lists : {64, 400, 5000, 100'000})
    EXPECT_EQ(nested(lists, true), "t.yaml:1:70: tags: nested deeper than 64 levels; flatten the config") << lists;
  for (const int lists : {64, 400, 100'000}) EXPECT_NE(nested(lists, false), "");
  for (const char* open : {"{a: ", "- ", "? ", "- - ? [", "&a [", "!x [", "'", "*"}) {
    std::string text = "tags: ";
    while (text.size() < 100'000) text += open;
    EXPECT_NE(refused(text), "") << open;
    EXPECT_NE(refused("tags:\n  " + text.substr(6)), "") << open;
  }
}

TEST(Config, PrintShowsWhereValuesComeFrom) {
  const Config c = Config::parse("steps: 7\nmodel:\n  width: 64\ntags: [a, '1']\n", "q.yaml", {"optimizer.lr=3e-5"});
  EXPECT_EQ(c.print(kFresh, true),
            "recipe: fastclip      # default\n"
            "note: ''              # default\n"
            "steps: 7              # q.yaml:1\n"
            "seed: 0               # default\n"
            "log_every: 10         # default\n"
            "output:\n"
            "  dir: ''             # default\n"
            "amp: false            # default\n"
            "tags: [a, '1']        # q.yaml:4\n"
            "sizes: [1, 2]         # default\n"
            "model:\n"
            "  width: 64           # q.yaml:3\n"
            "  dropout: 0.1        # default\n"
            "  activation: gelu    # default\n"
            "optimizer:\n"
            "  lr: 3.0e-5          # command line\n"
            "  weight_decay: 0.1   # default\n"
            "  betas: [0.9, 0.98]  # default\n");
}

TEST(Config, PrintingLeavesTheVariablesAlone) {
  Settings run;
  const auto visit = [&](Fields& f) { run.fields(f); };
  const Config c = Config::parse("steps: 7\nmodel: {width: 64}\n", "q.yaml");
  const Config d = Config::parse("seed: 1\n", "q.yaml");
  EXPECT_EQ(differing_keys(c, d, visit), (std::vector<std::string>{"steps", "seed", "model.width"}));
  EXPECT_EQ(c.print(visit, false), c.print(kFresh, false));
  EXPECT_EQ(config_hash(c, visit), config_hash(c, kFresh));
  EXPECT_EQ(run.steps, 100);
  EXPECT_EQ(run.model.width, 192);
}

// Random values of every type, texts of hard characters among them.
Settings random_run(std::mt19937_64& rng) {
  const auto text = [&] {
    static const std::vector<std::string> parts = {"a",
                                                   "B",
                                                   "7",
                                                   " ",
                                                   "  ",
                                                   "'",
                                                   "\"",
                                                   "\\",
                                                   "\n",
                                                   "\t",
                                                   ":",
                                                   ": ",
                                                   " #",
                                                   "#",
                                                   ",",
                                                   "[",
                                                   "]",
                                                   "{",
                                                   "}",
                                                   "&",
                                                   "*",
                                                   "!",
                                                   "|",
                                                   ">",
                                                   "%",
                                                   "@",
                                                   "`",
                                                   "-",
                                                   "- ",
                                                   "?",
                                                   "~",
                                                   "null",
                                                   "true",
                                                   "no",
                                                   "1e3",
                                                   ".inf",
                                                   "0x1f",
                                                   "<<",
                                                   "=",
                                                   "\xc3\xa9",
                                                   "\xe2\x82\xac",
                                                   "\xf0\x9f\x9a\xa3",
                                                   "\x1b",
                                                   "\x7f",
                                                   "\r",
                                                   "\xc2\x85",
                                                   "\xe2\x80\xa8",
                                                   "\xef\xbb\xbf",
                                                   "---",
                                                   "...",
                                                   "2024-01-01",
                                                   "12:30",
                                                   "/",
                                                   "./",
                                                   "\x01"};
    std::string s;
    for (auto n = rng() % 5; n > 0; --n) s += parts[rng() % parts.size()];
    return s;
  };
  const auto number = [&] {
    for (;;) {
      const double v =
          rng() % 2 ? std::bit_cast<double>(rng()) : std::ldexp(double(rng() % 1000), int(rng() % 60) - 30);
      if (std::isfinite(v)) return v;
    }
  };
  Settings r;
  r.recipe = text();
  r.note = text();
  r.output.dir = text();
  r.steps = 1 + std::int64_t(rng() >> 1) / 2;
  r.seed = std::bit_cast<std::int64_t>(rng());
  r.amp = rng() % 2;
  for (auto n = rng() % 4; n > 0; --n) r.tags.push_back(text());
  r.sizes.clear();
  for (auto n = rng() % 4; n > 0; --n) r.sizes.push_back(std::bit_cast<std::int64_t>(rng()));
  r.model.width = 8 * (1 + rng() % 1000);
  r.model.dropout = double(rng() % 1001) / 1000;
  r.optimizer.lr = std::abs(number());
  r.optimizer.weight_decay = number();
  r.optimizer.betas = {number(), number(), -0.0, 5e-324};
  return r;
}

TEST(Config, PrintThenParseIsTheIdentity) {
  std::mt19937_64 rng(1);
  for (int i = 0; i < 300; ++i) {
    Settings r = random_run(rng);
    const auto visit = [&](Fields& f) { r.fields(f); };
    const std::string yaml = Config::parse("{}", "t.yaml").print(visit, false);
    const Config again = Config::parse(yaml, "t.yaml");
    const Settings s = resolve(again);
    ASSERT_EQ(again.print(kFresh, false), yaml);
    ASSERT_EQ(Config::parse(again.print(kFresh, true), "t.yaml").print(kFresh, false), yaml);
    ASSERT_EQ(s.note, r.note);
    ASSERT_EQ(s.tags, r.tags);
    ASSERT_EQ(s.sizes, r.sizes);
    ASSERT_EQ(s.seed, r.seed);
    ASSERT_EQ(s.output.dir, r.output.dir);
    for (std::size_t k = 0; k < r.optimizer.betas.size(); ++k)
      ASSERT_EQ(std::bit_cast<std::uint64_t>(s.optimizer.betas[k]), std::bit_cast<std::uint64_t>(r.optimizer.betas[k]));
  }
}

TEST(Config, HashChangesExactlyWithValues) {
  const auto hash = [](std::string_view yaml, const std::vector<std::string>& o = {}) {
    return config_hash(Config::parse(yaml, "t.yaml", o), kFresh);
  };
  const std::uint64_t base = hash("{}");
  // The same values, written otherwise.
  for (const char* same : {"steps: 100\n", "optimizer: {lr: 0.001}\n", "optimizer: {lr: 1e-3}\n", "note: ''\n",
                           "sizes:\n- 1\n- 2\n", "log_every: 3\n", "output: {dir: elsewhere}\n"})
    EXPECT_EQ(hash(same), base) << same;
  std::set<std::uint64_t> seen = {base};
  const std::vector<std::string> changes = {"steps=101",
                                            "seed=1",
                                            "seed=-1",
                                            "amp=true",
                                            "note=a",
                                            "note=b",
                                            "recipe=a",
                                            "tags=[a]",
                                            "tags=[a,b]",
                                            "tags=['a, b']",
                                            "tags=[b,a]",
                                            "sizes=[]",
                                            "sizes=[12]",
                                            "model.width=8",
                                            "model.dropout=0.2",
                                            "model.activation=relu",
                                            "optimizer.lr=0.0010000000000000002",
                                            "optimizer.weight_decay=0",
                                            "optimizer.weight_decay=-0.0",
                                            "optimizer.betas=[0.98,0.9]"};
  for (const auto& c : changes) EXPECT_TRUE(seen.insert(hash("{}", {c})).second) << c;
  std::mt19937_64 rng(2);
  for (int i = 0; i < 100; ++i) {
    Settings a = random_run(rng), b = random_run(rng);
    b.log_every = a.log_every + 1;
    const Config empty = Config::parse("{}", "t.yaml");
    EXPECT_NE(config_hash(empty, [&](Fields& f) { a.fields(f); }), config_hash(empty, [&](Fields& f) { b.fields(f); }));
  }
}

TEST(Config, DifferingKeysLeavesOutWhatMayChangeOnResume) {
  const Config a = Config::parse("steps: 3\nlog_every: 1\nmodel: {width: 8}\n", "a.yaml");
  const Config b =
      Config::parse("steps: 3\noutput: {dir: x}\nlog_every: 2\noptimizer: {lr: 0.001}\nseed: 4\n", "b.yaml");
  EXPECT_EQ(differing_keys(a, b, kFresh), (std::vector<std::string>{"seed", "model.width"}));
  EXPECT_EQ(differing_keys(a, a, kFresh), std::vector<std::string>{});
  EXPECT_EQ(differing_keys(a, Config::parse(a.print(kFresh, true), "a.yaml"), kFresh), std::vector<std::string>{});
}

TEST(Config, RequirementsWaitForUnknownKeys) {
  EXPECT_EQ(refused("model: {width: 63}\nstepz: 1\n"), "t.yaml:2:1: stepz: unknown key; did you mean steps?");
  // A default has no line.
  const Config empty = Config::parse("{}", "t.yaml");
  EXPECT_EQ(error_of([&] { empty.read([](Fields& f) { f.require(false, "data.path", "is needed", "set it"); }); }),
            "t.yaml: data.path: is needed; set it");
}

TEST(Config, SchemaMistakesAreBugs) {
  const Config empty = Config::parse("{}", "t.yaml");
  const auto code = [&](const std::function<void(Fields&)>& visit) {
    try {
      empty.read(visit);
    } catch (const Error& e) {
      return e.code();
    }
    return ExitCode::ok;
  };
  std::int64_t i = 0;
  double inf = INFINITY;
  std::string word = "x";
  EXPECT_EQ(code([&](Fields& f) { f("i", i, ""), f("i", i, ""); }), ExitCode::bug);
  EXPECT_EQ(code([&](Fields& f) { f("i", i, "", {.min = 1}); }), ExitCode::bug);
  EXPECT_EQ(code([&](Fields& f) { f("d", inf, ""); }), ExitCode::bug);
  EXPECT_EQ(code([&](Fields& f) { f.choice("w", word, {"a", "b"}, ""); }), ExitCode::bug);
  EXPECT_EQ(code([&](Fields& f) { f("i", i, ""); }), ExitCode::ok);
}

TEST(Config, DocumentIsATableOfEveryKey) {
  const std::string text = document(kFresh);
  for (const char* row : {"| `steps` | `100` | an integer, 1 or more | optimizer steps |\n",
                          "| `log_every` | `10` | an integer, 1 or more | steps between metric lines (may "
                          "change on resume) |\n",
                          "| `output.dir` | `''` | a text | folder (may change on resume) |\n",
                          "| `model` |  | a group of keys | the tower |\n",
                          "| `model.activation` | `gelu` | gelu, quick_gelu, relu | nonlinearity |\n",
                          "| `amp` | `false` | true or false | mixed \\| precision |\n"})
    EXPECT_NE(text.find(row), std::string::npos) << row << text;
}

// The tables of docs/config.md are what this makes; with TRIREME_WRITE_DOCS=1 it writes them.
TEST(Config, TheDocsAreTheSchemaOfEveryRecipe) {
#ifdef __SANITIZE_THREAD__
  GTEST_SKIP() << "recipes are not built for ThreadSanitizer";
#else
  const std::string path = std::string(std::getenv("TRIREME_SOURCE")) + "/docs/config.md", mark = "## Every recipe\n";
  std::stringstream file;
  file << std::ifstream(path).rdbuf();
  const auto begin = file.str().find(mark);
  ASSERT_NE(begin, std::string::npos);
  TrainConfig common;
  std::string wanted = file.str().substr(0, begin) + mark + "\n" + document([&](Fields& f) { common.fields(f); });
  for (const auto& name : Recipes::names()) {
    const auto recipe = Recipes::create(name);
    wanted += "\n## " + name + "\n\n" + document([&](Fields& f) { recipe->fields(f); });
  }
  wanted += "\n## lora_sweep\n\nOf `trireme sweep`; tasks bear names of your own.\n\n" + sweep::document_keys();
  wanted += "\n## sample\n\nOf `trireme sample`; arms bear names of your own.\n\n" + sample::document_keys();
  if (std::getenv("TRIREME_WRITE_DOCS")) std::ofstream(path) << wanted;
  std::istringstream is(file.str()), should(wanted);
  for (std::string a, b; is || should;) {
    a.clear(), b.clear();
    std::getline(is, a), std::getline(should, b);
    ASSERT_EQ(a, b) << "write the tables anew: TRIREME_WRITE_DOCS=1 with this test";
  }
#endif
}

TEST(Config, Nearest) {
  const std::vector<std::string> words = {"weight_decay", "learning_rate", "lr", "steps"};
  EXPECT_EQ(nearest("weight_decy", words), "weight_decay");
  EXPECT_EQ(nearest("wieght-decay", words), "weight_decay");
  EXPECT_EQ(nearest("rl", words), "lr");
  EXPECT_EQ(nearest("Steps", words), "steps");
  EXPECT_EQ(nearest("temperature", words), "");
  EXPECT_EQ(nearest("x", words), "");
  EXPECT_EQ(nearest("", words), "");
  EXPECT_EQ(nearest(std::string(1 << 20, 'x'), words), "");
}

// Whatever bytes come: a usage error of one line, or a config that prints and loads again.
TEST(Config, RandomMutationsNeverCrash) {
  const std::string valid =
      "# a run\nrecipe: fastclip\nnote: \"q \\\"x\\\" \\u00e9\"\nsteps: 7\namp: true\ntags: [a, 'b c', "
      "\"d\"]\n"
      "sizes: &s\n  - 4\n  - -5\nmodel: {width: 64, dropout: 1e-3, activation: relu}\noptimizer:\n  lr: .5\n"
      "  betas: [1, 2.5e-1]\noutput:\n  dir: >-\n    folded\n    text\nseed: 12 # end\n";
  resolve(valid);
  std::mt19937_64 rng(3);
  static constexpr std::string_view kBytes = "\n\t :-#[]{}&*!|>'\"%@`,?<~\\019eax.\r\x04\xc3\xe2\xff";
  int accepted = 0;
  for (int i = 0; i < 1000; ++i) {
    std::string text = valid;
    for (auto n = 1 + rng() % 6; n > 0; --n) {
      const auto at = rng() % text.size();
      const char byte = rng() % 4 ? kBytes[rng() % kBytes.size()] : static_cast<char>(rng());
      switch (rng() % 4) {
        case 0:
          text[at] = byte;
          break;
        case 1:
          text.insert(at, 1, byte);
          break;
        case 2:
          text.erase(at, 1 + rng() % 3);
          break;
        default:
          text.insert(at, text.substr(rng() % text.size(), rng() % 30));
          break;
      }
    }
    const std::string message = error_of([&] {
      const Config c = Config::parse(text, "t.yaml");
      resolve(c);
      const std::string printed = c.print(kFresh, true);
      EXPECT_EQ(Config::parse(printed, "t.yaml").print(kFresh, false), c.print(kFresh, false)) << text;
      ++accepted;
    });
    EXPECT_TRUE(message.empty() || message.starts_with("t.yaml")) << message;
  }
  EXPECT_GT(accepted, 20);
  EXPECT_LT(accepted, 900);
}

struct Shape {
  virtual ~Shape() = default;
  virtual int corners() const = 0;
};
struct Square : Shape {
  int corners() const override { return 4; }
};
struct Star : Shape {
  explicit Star(int n) : n(n) {}
  int corners() const override { return 2 * n; }
  int n;
};
const Factories<Shape>::Entry square("square", [] { return std::make_unique<Square>(); });
const Factories<Shape>::Entry pentagram("pentagram", [] { return std::make_unique<Star>(5); });
const Factories<Shape, int>::Entry star("star", [](int n) { return std::make_unique<Star>(n); });

TEST(Registry, CreatesByNameAndHelpsWithUnknownNames) {
  EXPECT_EQ(Factories<Shape>::names(), (std::vector<std::string>{"pentagram", "square"}));
  EXPECT_EQ(Factories<Shape>::create("pentagram")->corners(), 10);
  EXPECT_EQ((Factories<Shape, int>::create("star", 7)->corners()), 14);
  EXPECT_EQ(error_of([] { Factories<Shape>::create("sqaure", "a.yaml:1:3: shape"); }),
            "a.yaml:1:3: shape: unknown name 'sqaure'; did you mean square? known: pentagram, square");
  EXPECT_EQ(error_of([] { Factories<Shape>::create("x"); }), "unknown name 'x'; known: pentagram, square");
  EXPECT_THROW(Factories<Shape>::add("square", [] { return std::make_unique<Square>(); }), Error);
}

}  // namespace
}  // namespace trireme
