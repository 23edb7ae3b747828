// The frozen reference of DRRho-CLIP: the file of its features, the model itself, and what is refused.
#include "recipes/clip/reference.h"

#include "comm/error.h"
#include "comm/local/loopback.h"
#include "comm/local/self.h"
#include "data/image_text/reference_features.h"
#include "data/loader.h"
#include "framework/experiment.h"
#include "framework/io/checkpoint.h"
#include "framework/micro_batch.h"
#include "framework/models/clip_model.h"
#include "framework/session.h"
#include "tests/gpu/blots.h"
#include "tests/needs.h"
#include "tests/unit/said.h"
#include "trainers/commands/data.h"

#include <cstring>
#include <mutex>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

namespace trireme::test {
namespace {

using fastclip::Reference;
using fastclip::ReferenceConfig;

double furthest(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

at::Tensor unit_rows(std::int64_t n, std::int64_t d) {
  Rng rng(3, "reference", std::uint64_t(d));
  at::Tensor t = at::empty({n, d}, at::kDouble);
  for (std::int64_t i = 0; i < t.numel(); ++i) t.mutable_data_ptr<double>()[i] = rng.normal();
  return (t / t.norm(2, {1}, true)).to(at::kFloat);
}

// A number of pairs that nobody looks at.
struct NoPairs : Pairs {
  std::int64_t n;
  std::string name = "PAIRS", known = "0123";
  explicit NoPairs(std::int64_t size) : n(size) {}
  std::int64_t size() const override { return n; }
  const std::string& path() const override { return name; }
  const std::string& identity() const override { return known; }
  std::string caption(std::int64_t) const override { return {}; }
  std::int64_t caption_id(std::int64_t) const override { return 0; }
  std::int64_t class_id(std::int64_t) const override { return -1; }
  const std::vector<std::string>& classes() const override {
    static const std::vector<std::string> none;
    return none;
  }
  Picture picture(std::int64_t, const Shrink&) const override { return {}; }
  std::vector<std::int64_t> train_ids(std::int64_t) const override { return {}; }
  std::vector<std::int64_t> held_out_ids(std::int64_t) const override { return {}; }
};

class FeatureFile : public testing::Test {
 protected:
  static constexpr std::int64_t n = 50, d = 12;
  std::string write(at::ScalarType type, std::span<const std::int64_t> ids) {
    const std::string path = (folder_.path / "features.h5").string();
    ReferenceFeaturesWriter out(path, n, d, type, pairs_.known, "MODEL", "beef");
    for (std::size_t i = 0; i < ids.size(); i += 7) {
      const auto part = ids.subspan(i, std::min<std::size_t>(7, ids.size() - i));
      const at::Tensor rows = at::tensor(at::ArrayRef<std::int64_t>(part.data(), part.size()), at::kLong);
      out.write(part, {image_.index_select(0, rows), text_.index_select(0, rows)});
    }
    out.close();
    return path;
  }
  TempFolder folder_;
  NoPairs pairs_{n};
  const at::Tensor image_ = unit_rows(n, d), text_ = unit_rows(n, d).flip({0});
};

TEST_F(FeatureFile, GivesRowsBackByTheirNumber) {
  const std::vector<std::int64_t> all = permutation(n, Rng(1, "all")), some{0, 2, 3, 4, 9, 30, 31, 49};
  const std::vector<std::int64_t> asked{31, 9, 9, 0, 49};
  const at::Tensor rows = at::tensor(asked, at::kLong);
  for (const auto* ids : {&all, &some}) {
    std::vector<std::int64_t> sorted = *ids;
    std::sort(sorted.begin(), sorted.end());
    {
      const ReferenceFeatures f(write(at::kFloat, sorted), pairs_);
      EXPECT_EQ(f.width(), d);
      EXPECT_EQ(f.model() + f.weights(), "MODELbeef");
      EXPECT_TRUE(at::equal(f.rows(asked).image, image_.index_select(0, rows)));
      EXPECT_TRUE(at::equal(f.rows(asked).text, text_.index_select(0, rows)));
      if (ids == &some) {
        EXPECT_SAYS(said([&] { f.rows(std::vector<std::int64_t>{3, 5}); }), "image row 5 is not of unit");
      }
      EXPECT_SAYS(said([&] { f.rows(std::vector<std::int64_t>{50}); }), "no sample 50");
    }
    // f16: half a unit in the last of its 11 bits, or half of its least number.
    const ReferenceFeatures half(write(at::kHalf, sorted), pairs_);
    const at::Tensor got = half.rows(asked).image.to(at::kDouble), exact = image_.index_select(0, rows).to(at::kDouble);
    EXPECT_EQ(half.type(), at::kHalf);
    EXPECT_LE(((got - exact).abs() - exact.abs() * std::ldexp(1, -11)).max().item<double>(), std::ldexp(1, -25));
  }
}

TEST_F(FeatureFile, RefusesWhatDoesNotFit) {
  std::vector<std::int64_t> ids(n);
  std::iota(ids.begin(), ids.end(), 0);
  const std::string path = write(at::kFloat, ids), cure = "make it anew: trireme data cache-reference";
  const auto open = [&](const std::string& file) { return said([&] { ReferenceFeatures f(file, pairs_); }); };
  EXPECT_EQ(open(path), "nothing");
  const std::string whole = read_text(path);
  pairs_.known = "4567";
  EXPECT_SAYS(open(path), "holds features of other data");
  EXPECT_SAYS(open(path), cure);
  pairs_.known = "0123", pairs_.n = 51;
  EXPECT_SAYS(open(path), "50 samples, PAIRS has 51");
  pairs_.n = n;
  EXPECT_SAYS(open((folder_.path / "none.h5").string()), "no such file");
  // Cut anywhere, or with any byte of its headers changed: an error, or what was written.
  const std::string other = (folder_.path / "other.h5").string();
  for (std::size_t length = 0; length < whole.size(); length += 97) {
    write_text(other, whole.substr(0, length));
    EXPECT_SAYS(open(other), cure);
  }
  for (std::size_t at = 0; at < whole.size(); at += 13) {
    std::string changed = whole;
    changed[at] = char(changed[at] ^ 0x41);
    write_text(other, changed);
    said([&] { ReferenceFeatures(other, pairs_).rows(ids); });
  }
  // Rows that are damaged on the disk.
  std::string changed = whole;
  const std::string row(reinterpret_cast<const char*>(image_.const_data_ptr<float>() + 5 * d), d * 4);
  const auto at = changed.find(row);
  ASSERT_NE(at, changed.npos) << "the rows lie in the file as they are";
  changed[at + 3] = 0x7f;
  write_text(other, changed);
  EXPECT_SAYS(said([&] { ReferenceFeatures(other, pairs_).rows(ids); }), "image row 5 is not of unit length");
  // A file of ours that holds something else, and arrays that are not in one piece.
  for (const bool chunked : {false, true}) {
    Hdf5File file = Hdf5File::create(other);
    const std::int64_t shape[] = {n, d};
    for (const char* name : {"image", "text"})
      if (chunked) file.create_array(name, DType::f32, shape);
    for (const char* name : {"identity", "model", "weights"}) file.write_text(name, "0123");
    file.close();
    EXPECT_SAYS(open(other), chunked ? "not in one piece" : "has no image");
  }
}

// A run of fastclip on pictures drawn here, in folder_/run, and what it trained with.
class ReferenceModel : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    if (!missing_libraries({"PCRE2"}).empty()) return;
    folder_ = new TempFolder;
    prepare_blots(path("blots.h5"));
    run_loopback(1, [](Communicator& world) {
      Experiment e(Config::parse(
          "recipe: fastclip\nbatch_size: 16\nsteps: 2\nthreads: 1\ndevice: cpu\nloss: {name: mbcl}\n" + small_clip,
          "run.yaml", {"data.file=" + path("blots.h5"), "data.crop_scale=1"}));
      Session session(world, e.train, *e.recipe);
      Loader loader(e.recipe->train_data(), e.recipe->train_ids(), 16, 0, 1, 1, {.prefetch = false});
      for (std::int64_t s = 0; s < 2; ++s) session.context().now.step = s, session.step(loader.next());
      fs::create_directories(path("run/ckpt"));
      Checkpoints checkpoints(path("run/ckpt"), 1, world);
      checkpoints.save(2, Snapshot::take([&](Archive& ar) { session.state(ar); }, 0), "{}");
      checkpoints.finish();
    });
  }
  void SetUp() override { TRIREME_NEEDS("PCRE2"); }
  static void TearDownTestSuite() { delete std::exchange(folder_, nullptr); }

  static std::string path(const std::string& name) { return (folder_->path / name).string(); }
  static std::string cached(const std::string& type) {
    DataOptions o;
    o.name = "cache-reference", o.model = path("run"), o.data = path("blots.h5");
    o.type = type, o.out = path(type + ".h5"), o.threads = 2, o.device = "cpu", o.batch = 37;
    EXPECT_EQ(cache_reference(o), 0);
    return o.out;
  }
  static ReferenceConfig config(const std::string& key, const std::string& value) {
    ReferenceConfig c;
    (key == "model" ? c.model : c.features) = value;
    return c;
  }

  // What a run without crops on the same pairs hands to its reference.
  struct Run {
    explicit Run(Communicator& world, const std::string& precision = "f32")
        : train(train_config(precision)),
          context(world, train),
          pairs(path("blots.h5")),
          model(load_clip(path("run"), at::kCPU, at::kFloat)),
          dataset(pairs, model.tokenizer(), pixels(model, context)),
          preprocess(model.preprocess()) {}
    static TrainConfig train_config(const std::string& precision) {
      TrainConfig c;
      c.device = "cpu", c.precision = precision, c.batch_size = 24;
      return c;
    }
    static ImageTextOptions pixels(const ClipModel& m, Context& c) {
      ImageTextOptions o;
      o.size = 32, o.context = 12, o.type = c.param_type();
      for (std::size_t i = 0; i < 3; ++i)
        o.statistics.mean[i] = m.preprocess().mean[i], o.statistics.std_dev[i] = m.preprocess().std[i];
      return o;
    }
    fastclip::ReferenceInput input() const { return {pairs, dataset, model.tokenizer(), preprocess, tokens}; }
    const TrainConfig train;
    Context context;
    ImageTextData pairs;
    ClipModel model;
    ImageTextDataset dataset;
    Preprocess preprocess;
    std::int64_t tokens = 12;
  };

  using Pair = std::pair<at::Tensor, at::Tensor>;
  // Of the first global batch, all ranks' rows.
  static Pair features(int ranks, const ReferenceConfig& c, const std::string& precision = "f32") {
    std::vector<at::Tensor> image(static_cast<std::size_t>(ranks)), text = image;
    run_loopback(ranks, [&](Communicator& world) {
      Run run(world, precision);
      const auto reference = Reference::open(c, run.input(), run.context);
      Loader loader(reference->train_data(), run.pairs.train_ids(), 24, world.rank(), world.size(), 1,
                    {.prefetch = world.size() == 2});
      const Batch batch = loader.next();
      const auto of = [&](const Batch& b) {
        return reference->features(b, run.dataset.pixels_of(b, run.context.param_type()), run.context);
      };
      const Pair all = of(batch);
      EXPECT_FALSE(all.first.requires_grad());
      EXPECT_LE(furthest(all.first.norm(2, {1}), at::ones({24 / ranks})), 1e-5);
      EXPECT_EQ(all.first.scalar_type(), run.context.param_type());
      const Pair part = of(micro_batch(batch, 1, 2));
      const std::int64_t half = 12 / ranks;
      EXPECT_LE(furthest(part.first, all.first.narrow(0, half, half)), 1e-6);
      EXPECT_LE(furthest(part.second, all.second.narrow(0, half, half)), 1e-6);
      at::autocast::set_autocast_enabled(at::kCPU, true);
      at::autocast::set_autocast_dtype(at::kCPU, at::kBFloat16);
      const Pair within = of(batch);
      EXPECT_TRUE(at::autocast::is_autocast_enabled(at::kCPU));
      at::autocast::set_autocast_enabled(at::kCPU, false);
      EXPECT_TRUE(at::equal(within.first, all.first) && at::equal(within.second, all.second)) << "under autocast";
      image[std::size_t(world.rank())] = all.first, text[std::size_t(world.rank())] = all.second;
    });
    return {at::cat(image), at::cat(text)};
  }

  static std::string refused(const ReferenceConfig& c, const std::function<void(Run&)>& change = {}) {
    return said([&] {
      run_loopback(2, [&](Communicator& world) {
        Run run(world);
        if (change) change(run);
        Reference::open(c, run.input(), run.context);
      });
    });
  }

  static inline TempFolder* folder_ = nullptr;
};

TEST_F(ReferenceModel, CachedIsOnlineOnAnyNumberOfRanks) {
  const std::string f32 = cached("f32"), f16 = cached("f16");
  const Pair online = features(1, config("model", path("run")));
  EXPECT_GT(furthest(online.first[0], online.first[1]), 1e-3) << "equal features show nothing";
  for (const int ranks : {1, 2, 4}) {
    SCOPED_TRACE(ranks);
    const Pair same = features(ranks, config("model", path("run"))), exact = features(ranks, config("features", f32)),
               rounded = features(ranks, config("features", f16));
    EXPECT_LE(furthest(same.first, online.first), 1e-6);
    EXPECT_LE(furthest(exact.first, online.first), 1e-6);
    EXPECT_LE(furthest(exact.second, online.second), 1e-6);
    EXPECT_LE(furthest(rounded.first, online.first), std::ldexp(1, -10));
    EXPECT_LE(furthest(rounded.second, online.second), std::ldexp(1, -10));
    EXPECT_GT(furthest(rounded.second, online.second), 0);
  }
  EXPECT_LE(furthest(features(1, config("model", path("run")), "f64").first, online.first), 1e-5);
  EXPECT_LE(furthest(features(1, config("features", f32), "f64").first, online.first), 1e-6);
}

TEST_F(ReferenceModel, RefusesAModelThatSeesAnotherPair) {
  const ReferenceConfig c = config("model", path("run"));
  EXPECT_EQ(refused(c), "nothing");
  const std::string cure = "trireme data cache-reference";
  const std::string size = refused(c, [](Run& r) { r.preprocess.size = 64; });
  EXPECT_SAYS(size, "sees pictures of 32 pixels, this run 64");
  EXPECT_SAYS(size, cure);
  EXPECT_SAYS(refused(c, [](Run& r) { r.preprocess.mean[1] = 0.5; }), "another mean or deviation");
  EXPECT_SAYS(refused(c, [](Run& r) { r.preprocess.std[1] = 0.5; }), "another mean or deviation");
  EXPECT_SAYS(refused(c, [](Run& r) { r.tokens = 13; }), "reads 12 tokens, this run 13");
  const std::string tokenizer = said([&] {
    run_loopback(1, [&](Communicator& world) {
      Run run(world);
      const Tokenizer other = Tokenizer::train(std::vector<std::string>{"other words", "than these"}, 520);
      Reference::open(c, {run.pairs, run.dataset, other, run.preprocess, 12}, run.context);
    });
  });
  EXPECT_SAYS(tokenizer, "has another tokenizer");
  EXPECT_SAYS(refused(config("model", path("none"))), "neither a run folder");
  EXPECT_SAYS(refused(config("features", path("none"))), "no such file");
  EXPECT_SAYS(refused(config("features", path("blots.h5"))), "is no file of features");
}

TEST_F(ReferenceModel, ARunGoesOnWithItsOwnReference) {
  run_loopback(1, [&](Communicator& world) {
    Run run(world);
    const auto online = Reference::open(config("model", path("run")), run.input(), run.context);
    const auto file = Reference::open(config("features", cached("f16")), run.input(), run.context);
    const auto state = [](const auto& r) { return [&r](Archive& ar) { Reference::state(ar, r.get()); }; };
    const Snapshot snapshot = Snapshot::take(state(online), 0);
    EXPECT_EQ(said([&] { snapshot.restore(state(online)); }), "nothing");
    EXPECT_SAYS(said([&] { snapshot.restore(state(file)); }), "is not the reference this run was started with");
  });
}

TEST(ReferenceKeys, BadCombinationsAreRefused) {
  const auto read = [](const std::string& yaml) {
    return said([&] {
      ReferenceConfig c;
      Config::parse(yaml, "a.yaml").read([&](Fields& f) { c.fields(f); });
    });
  };
  EXPECT_EQ(read("{}"), "nothing");
  EXPECT_EQ(read("model: a\nuse: [shift, distill, select]\n"), "nothing");
  EXPECT_SAYS(read("model: a\nfeatures: b\n"), "give one of them");
  EXPECT_SAYS(read("use: [distill]\n"), "give reference.model or reference.features");
  EXPECT_SAYS(read("features: b\nuse: []\n"), "use: [shift, distill]");
  EXPECT_SAYS(read("features: b\nuse: [shft]\n"), "use: [shift, distill]");
  EXPECT_SAYS(read("features: b\nuse: [shift, shift]\n"), "names shift more than once");
  for (const std::string bad : {"select: none", "select_fraction: 0", "select_chunks: 0", "distill_scale: -1"})
    EXPECT_NE(read(bad + "\n"), "nothing") << bad;
}

}  // namespace
}  // namespace trireme::test
