// FastCLIP trained from tars, tables and folders: equal losses on any number of ranks and wherever the pairs lie, and
// several sources with weights.
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "data/image_text/folder.h"
#include "data/image_text/open_pairs.h"
#include "data/image_text/tar_write.h"
#include "data/loader.h"
#include "framework/base/apart.h"
#include "framework/experiment.h"
#include "framework/session.h"
#include "tests/fault/experiment.h"
#include "tests/gpu/blots.h"
#include "tests/needs.h"

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <thread>

namespace trireme::test {
namespace {

class TarTraining : public ::testing::Test {
 protected:
  void SetUp() override {
    TRIREME_NEEDS("PCRE2", "PNG");
    setenv("XDG_CACHE_HOME", path("cache").c_str(), 1);
    TarWriter even(path("even.tar")), odd(path("odd.tar"));
    fs::create_directory(path("folder"));
    std::string table = "filepath,title\n";
    for (int i = 0; i < 60; ++i) {
      char key[8];
      std::snprintf(key, sizeof key, "%03d", i);
      const std::string picture = png(i + 1, 40), caption = "a picture in shade " + std::to_string(i);
      TarWriter& tar = i % 2 == 0 ? even : odd;
      tar.add(std::string(key) + ".png", picture);
      tar.add(std::string(key) + ".txt", caption);
      write_text(path("folder/" + std::string(key) + ".png"), picture);
      write_text(path("folder/" + std::string(key) + ".txt"), caption);
      table += std::string(key) + ".png," + caption + "\n";
    }
    even.close(), odd.close();
    write_text(path("folder/table.csv"), table);
    fs::create_directory(path("one"));
    TarWriter one(path("one/all.tar"));
    for (const auto& entry : std::set<fs::path>(fs::directory_iterator(path("folder")), {}))
      if (entry.extension() != ".csv") one.add(entry.filename().string(), read_text(entry));
    one.close();
    write_text(path("run.yaml"),
               "recipe: fastclip\nbatch_size: 16\nsteps: 200\nlog_every: 1\nthreads: 1\nprefetch: false\ndevice: cpu\n"
               "optimizer: {lr: 1.0e-3}\ndata: {held_out: 0.2, crop_scale: 0.5, flip: 0.5}\n" +
                   small_clip);
  }
  std::string path(const std::string& name) const { return (folder_.path / name).string(); }

  std::vector<double> losses(int ranks, const std::string& data, const std::vector<std::string>& more = {}) {
    std::vector<std::string> keys{"data.file=" + data};
    keys.insert(keys.end(), more.begin(), more.end());
    std::vector<double> all;
    run_loopback(ranks, [&](Communicator& world) {
      Experiment e(Config::load(path("run.yaml"), keys));
      Session session(world, e.train, *e.recipe);
      Loader loader(e.recipe->train_data(), e.recipe->train_ids(), e.train.batch_size, world.rank(), world.size(),
                    std::uint64_t(e.train.seed), {.prefetch = false});
      for (std::int64_t s = 0; s < 8; ++s) {
        session.context().now.step = s;
        const Batch batch = loader.next();
        session.context().now.epoch = batch.epoch;
        session.step(batch);
        if (world.rank() == 0) all.push_back(session.loss());
      }
      const auto metrics = e.recipe->evaluate(session.context());
      if (world.rank() == 0) all.push_back(metrics.at("image_to_text_r1"));
    });
    return all;
  }

 private:
  TempFolder folder_;
};

TEST_F(TarTraining, LossesAreEqualWhereverThePairsLie) {
  const auto tar = losses(1, path("one/all.tar"));
  EXPECT_EQ(tar.size(), 9u);
  EXPECT_NE(tar[0], tar[7]);
  EXPECT_EQ(losses(1, path("one")), tar) << "their folder";
  EXPECT_EQ(losses(1, path("folder")), tar) << "the same pictures, unpacked";
  EXPECT_EQ(losses(1, path("folder/table.csv")), tar) << "a table of them";
  for (const int ranks : {2, 4}) {
    const auto other = losses(ranks, path("one/all.tar"), {"threads=1"});
    for (std::size_t i = 0; i < tar.size(); ++i) EXPECT_NEAR(other[i], tar[i], 1e-5 * std::abs(tar[i])) << ranks;
  }
  const std::string both = path("even.tar") + "::" + path("odd.tar");
  const auto sources = losses(1, "none", {"data.files=[" + path("even.tar") + ", " + path("odd.tar") + "]"});
  EXPECT_EQ(losses(1, both), sources) << "two sources are one list";
  EXPECT_NE(sources, tar);
}

// The texts of a checkpoint.
struct Texts : Archive {
  bool loading() const override { return false; }
  void array(std::string_view, DType, std::span<const std::int64_t>, void*, Sharing) override {}
  void text(std::string_view name, std::string& value, bool) override { all[std::string(name)] = value; }
  bool has(std::string_view) const override { return true; }
  std::map<std::string, std::string> all;
};

TEST_F(TarTraining, PreparedSourcesAreKnownAmongOthers) {
  for (const int size : {16, 32}) {
    PrepareSpec spec = folder_data(path("folder"));
    spec.size = size, spec.out = path("p" + std::to_string(size) + ".h5");
    prepare_images(spec);
  }
  const std::string small = path("p16.h5"), whole = path("p32.h5"), tars = path("one");
  EXPECT_THROW(losses(1, small), UsageError);
  for (const std::string& other : {small, whole, tars})
    EXPECT_THROW(losses(1, "none", {"data.files=[" + other + "," + small + "]"}), UsageError) << other;
  const auto mode = [&](const std::string& files, const std::string& eval_file) {
    Texts texts;
    run_loopback(1, [&](Communicator& world) {
      Experiment e(
          Config::load(path("run.yaml"), {"data.files=[" + files + "]", "data.eval_file='" + eval_file + "'"}));
      Session session(world, e.train, *e.recipe);
      e.recipe->state(texts);
    });
    return nlohmann::json::parse(texts.all.at("open_clip_config"))["preprocess_cfg"]["resize_mode"];
  };
  EXPECT_EQ(mode(whole, ""), "longest");
  EXPECT_EQ(mode(whole + "," + whole, ""), "longest");
  EXPECT_EQ(mode(whole, tars), "longest") << "pictures as training saw them";
  EXPECT_EQ(mode(tars, whole), "shortest");
}

// A rank that reads for long does not leave the others in one collective: a watchdog would end them.
TEST(Apart, RanksMeetWhileOneWorks) {
  std::atomic<int> meetings{0};
  const auto begin = std::chrono::steady_clock::now();
  run_loopback(3, [&](Communicator& world) {
    const std::function<void()> work = [&] {
      for (int met = 0; world.rank() == 0 && met < 2; met = meetings) meetings.wait(met);
      if (world.rank() == 1) throw DataError("x.tar", "is broken");
    };
    const auto mine = attempt_apart(world, world.rank() == 2 ? nullptr : work, [&] {
      if (world.rank() == 2) ++meetings, meetings.notify_all();
    });
    EXPECT_EQ(mine.has_value(), world.rank() == 1);
    EXPECT_EQ(mine.value_or(Failure{}).code, world.rank() == 1 ? ExitCode::data : ExitCode::bug);
  });
  EXPECT_GE(meetings, 3);  // two while it works, and the last
  EXPECT_GE(std::chrono::steady_clock::now() - begin, std::chrono::seconds(meetings - 1)) << "more often than needed";
}

TEST_F(TarTraining, SourcesHaveWeightsAndStableNumbers) {
  PairsSpec spec;
  spec.files = {path("even.tar"), path("folder/table.csv")};
  spec.weights = {3, 1};
  spec.held_out = 0.2;
  const auto pairs = open_pairs(spec);
  EXPECT_EQ(pairs->size(), 90);
  const auto ids = pairs->train_ids();
  EXPECT_TRUE(std::is_sorted(ids.begin(), ids.end()));
  std::map<std::int64_t, int> count;
  for (const auto id : ids) ++count[id];
  for (const auto& [id, n] : count) EXPECT_EQ(n, id < 30 ? 3 : 1) << id;
  std::map<std::string, std::int64_t> number;
  const auto held_out = pairs->held_out_ids();
  EXPECT_EQ(count.size() + held_out.size(), 90u);
  for (const auto id : held_out) {
    EXPECT_FALSE(count.contains(id));
    EXPECT_EQ(number.emplace(pairs->caption(id), pairs->caption_id(id)).first->second, pairs->caption_id(id));
  }
  for (std::int64_t id = 0; id < 30; ++id) {
    EXPECT_EQ(pairs->caption(id), pairs->caption(30 + 2 * id));
    EXPECT_EQ(pairs->picture(id).pixels.rgb, pairs->picture(30 + 2 * id).pixels.rgb);
  }
  // Parts go by caption, whatever the source, and leave what is held out alone.
  std::vector<std::int64_t> halves;
  for (const Part& half : {Part{0, 0.5}, Part{0.5, 1}}) {
    spec.part = half, spec.eval_part = half;
    const auto part = train_ids_of(*pairs, spec, 0), measured = held_out_ids_of(*pairs, spec);
    EXPECT_GT(part.size(), ids.size() / 5);
    EXPECT_EQ(std::set(part.begin(), part.end()), std::set(measured.begin(), measured.end()));
    EXPECT_EQ(std::set(measured.begin(), measured.end()).size(), measured.size()) << "each once";
    std::set<std::string> captions;
    for (const auto id : part) captions.insert(pairs->caption(id));
    for (const auto& [id, n] : count)
      EXPECT_EQ(std::count(part.begin(), part.end(), id), captions.contains(pairs->caption(id)) ? n : 0) << id;
    halves.insert(halves.end(), part.begin(), part.end());
  }
  std::sort(halves.begin(), halves.end());
  EXPECT_EQ(halves, ids);
  spec.part = {}, spec.eval_part = {};
  EXPECT_EQ(held_out_ids_of(*pairs, spec), held_out);
  spec.eval_file = path("odd.tar");
  const auto tested = open_pairs(spec);
  EXPECT_EQ(tested->size(), 120);
  EXPECT_EQ(tested->train_ids().size(), 30u * 3 + 60) << "nothing of them is held out";
  EXPECT_EQ(tested->held_out_ids().size(), 30u);
  EXPECT_EQ(tested->held_out_ids().front(), 90);
  EXPECT_NE(tested->identity(), pairs->identity());
  spec.weights = {1};
  EXPECT_THROW(open_pairs(spec), UsageError);
  spec.weights = {}, spec.files = {path("nowhere/x.tar")};
  EXPECT_THROW(open_pairs(spec), DataError);
  // On ranks: one epoch has every id as often as its weight says.
  const std::string files = "data.files=[" + path("even.tar") + ", " + path("odd.tar") + "]";
  const auto one = losses(1, "none", {files, "data.weights=[2,1]", "data.eval_file=" + path("one")});
  const auto two = losses(2, "none", {files, "data.weights=[2,1]", "data.eval_file=" + path("one")});
  for (std::size_t i = 0; i < one.size(); ++i) EXPECT_NEAR(one[i], two[i], 1e-5 * std::abs(one[i]));
  EXPECT_THROW(losses(1, "none", {files, "data.weights=[2]"}), UsageError);
  EXPECT_THROW(losses(1, "none", {files, "data.weights=[2,0]"}), UsageError);
  EXPECT_THROW(losses(2, path("one"), {"data.held_out=1"}), DataError);
  EXPECT_THROW(losses(2, path("one"), {"data.part=[0, 1.0e-6]"}), DataError);
  EXPECT_THROW(losses(1, path("one"), {"data.part=[0.5, 0.4]"}), UsageError);
  EXPECT_THROW(losses(1, path("one"), {"data.eval_part=[0.9, 1]"}), UsageError) << "which is trained on";
  EXPECT_THROW(losses(2, path("gone.tar")), DataError) << "and nobody waits";
}

}  // namespace
}  // namespace trireme::test
