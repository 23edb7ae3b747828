// Batches of image-text pairs: equal whatever reads and finishes them; broken pictures.
#include "data/image_text/image_text.h"

#include "data/loader.h"
#include "tests/needs.h"

#include <atomic>
#include <optional>
#include <set>
#include <thread>

#include <ATen/ATen.h>

namespace {

using namespace trireme;

// Pictures of many sizes, made by a formula; every third id is held out. Large ones may be had at half their size.
class Made : public Pairs {
 public:
  explicit Made(std::int64_t n, std::set<std::int64_t> broken = {}) : n_(n), broken_(std::move(broken)) {}
  std::int64_t size() const override { return n_; }
  const std::string& path() const override { return path_; }
  const std::string& identity() const override { return path_; }
  std::string caption(std::int64_t id) const override { return "picture " + std::to_string(id) + ", made"; }
  std::int64_t caption_id(std::int64_t id) const override { return id; }
  std::int64_t class_id(std::int64_t) const override { return -1; }
  const std::vector<std::string>& classes() const override { return classes_; }
  Picture picture(std::int64_t id, const Shrink& shrink) const override {
    if (broken_.contains(id)) {
      if (id % 2) std::this_thread::sleep_for(std::chrono::milliseconds(3));  // what fails last is not told last
      throw BrokenPicture("made.tar", "member " + std::to_string(id) + " is cut short", "mend it");
    }
    const int width = 20 + int(id * 7 % 90), height = 20 + int(id * 13 % 70);
    const int d = shrink && shrink(width, height) <= 0.5 ? 2 : 1;
    if (d == 2) ++halved;
    Picture p{width, height, {(width + d - 1) / d, (height + d - 1) / d, {}}};
    for (int y = 0; y < p.pixels.height; ++y)
      for (int x = 0; x < p.pixels.width; ++x)
        for (int c = 0; c < 3; ++c) p.pixels.rgb.push_back(std::uint8_t(d * (x * 5 + y * 3) + id * 17 + c * 40));
    return p;
  }
  std::vector<std::int64_t> train_ids(std::int64_t) const override { return split(false); }
  std::vector<std::int64_t> held_out_ids(std::int64_t) const override { return split(true); }
  mutable std::atomic<int> halved{0};

 private:
  std::vector<std::int64_t> split(bool held_out) const {
    std::vector<std::int64_t> ids;
    for (std::int64_t i = 0; i < n_; ++i)
      if ((i % 3 == 2) == held_out) ids.push_back(i);
    return ids;
  }
  std::int64_t n_;
  std::set<std::int64_t> broken_;
  std::string path_ = "made.tar";
  std::vector<std::string> classes_;
};

class ImageText : public testing::Test {
 protected:
  void SetUp() override {
    TRIREME_NEEDS("PCRE2");
    tokenizer = std::make_unique<Tokenizer>(
        Tokenizer::train(std::vector<std::string>{"picture 1, made", "picture 2, made"}, 530));
  }
  static ImageTextOptions options() {
    ImageTextOptions o;
    o.size = 24, o.context = 16, o.crop_scale = 0.6, o.flip = 0.5, o.keyword_dropout = 0.3, o.seed = 9;
    return o;
  }
  std::unique_ptr<Tokenizer> tokenizer;
};

const std::vector<std::int64_t> some_ids{0, 1, 3, 4, 6, 7, 9, 10, 12, 13, 15, 16, 18, 19, 21, 22, 24, 25, 27, 28, 30};

TEST_F(ImageText, ThreadsAndWhoFinishesChangeNothing) {
  const Made data(200);
  std::optional<Batch> first;
  at::Tensor finished, evaluated;
  for (const int threads : {1, 4, 7})
    for (const bool travel : {false, true}) {
      ImageTextOptions o = options();
      o.threads = threads, o.travel = travel;
      const ImageTextDataset set(data, *tokenizer, o);
      const Batch batch = set.read(some_ids, 3);
      EXPECT_EQ(batch.columns.contains("image"), !travel);
      for (const auto& [name, column] : batch.columns) EXPECT_EQ(column.size(0), std::int64_t(some_ids.size())) << name;
      const at::Tensor pixels = set.pixels_of(batch, at::kFloat), whole = set.pixels(some_ids, at::kFloat);
      if (!first) first = batch, finished = pixels, evaluated = whole;
      EXPECT_TRUE(at::equal(pixels, finished)) << threads << " " << travel;
      EXPECT_TRUE(at::equal(whole, evaluated)) << threads << " " << travel;
      EXPECT_TRUE(at::equal(batch.columns.at("ids"), first->columns.at("ids")));
      EXPECT_TRUE(at::equal(batch.columns.at("end"), first->columns.at("end")));
      // Some of the rows, as gradient accumulation takes them.
      Batch part = batch;
      for (auto& [name, column] : part.columns) column = column.narrow(0, 5, 8);
      EXPECT_TRUE(at::equal(set.pixels_of(part, at::kFloat), finished.narrow(0, 5, 8)));
      EXPECT_TRUE(at::equal(set.pixels_of(batch, at::kBFloat16), finished.to(at::kBFloat16)));
      const at::Tensor other = set.pixels_of(set.read(some_ids, 4), at::kFloat);
      EXPECT_FALSE(at::equal(other, finished)) << "another epoch, other crops";
    }
  EXPECT_GT(data.halved, 10) << "the way of scaled JPEGs was not tested";
}

TEST_F(ImageText, RanksSeeTheSameCrops) {
  const Made data(200);
  const ImageTextDataset set(data, *tokenizer, options());
  Loader whole(set, data.train_ids(0), 16, 0, 1, 5);
  for (int step = 0; step < 12; ++step) {  // into the second epoch
    const Batch all = whole.next();
    const at::Tensor pixels = set.pixels_of(all, at::kFloat);
    for (const int size : {2, 4}) {
      const std::int64_t b = 16 / size;
      for (int r = 0; r < size; ++r)
        EXPECT_TRUE(
            at::equal(set.pixels_of(set.read(std::span(all.global_ids).subspan(r * b, b), all.epoch), at::kFloat),
                      pixels.narrow(0, r * b, b)));
    }
  }
}

// What is larger than travels is resized where it was decoded: the same levels.
TEST_F(ImageText, LargePicturesTravelSmall) {
  const Made data(200);
  ImageTextOptions o = options();
  o.size = 8, o.dct_scaling = false, o.travel = true;
  const ImageTextDataset far(data, *tokenizer, o);
  o.travel = false;
  const ImageTextDataset near(data, *tokenizer, o);
  const Batch batch = far.read(some_ids, 1);
  EXPECT_LE(batch.columns.at("bytes").size(1), 6 * 8 * 8 + 15);
  EXPECT_TRUE(at::equal(far.pixels_of(batch, at::kFloat), near.pixels_of(near.read(some_ids, 1), at::kFloat)));
}

TEST_F(ImageText, BrokenPicturesGiveTheirRowToTheNext) {
  const Made sound(400), broken(400, {3, 4, 9, 398, 399});
  ImageTextOptions o = options();
  o.crop_scale = 1, o.flip = 0, o.keyword_dropout = 0, o.broken_share = 0.02;  // of 267
  const ImageTextDataset good(sound, *tokenizer, o);
  for (const int threads : {1, 4}) {
    o.threads = threads;
    const ImageTextDataset set(broken, *tokenizer, o);
    const std::vector<std::int64_t> asked{1, 3, 9, 399, 12}, given{1, 6, 10, 0, 12};  // 2, 5 and 11 are held out
    const Batch batch = set.read(asked, 0), expected = good.read(given, 0);
    EXPECT_TRUE(at::equal(batch.columns.at("image"), expected.columns.at("image")));
    EXPECT_TRUE(at::equal(batch.columns.at("ids"), expected.columns.at("ids")));
    EXPECT_EQ(batch.ids, asked) << "rows of tables stay";
    const auto lines = set.take_broken();
    ASSERT_EQ(lines.size(), 4u);  // 3, 4 (asked for in its place), 9, 399
    EXPECT_NE(lines[0].find("made.tar: member 3 is cut short"), std::string::npos) << lines[0];
    EXPECT_NE(lines[3].find("member 399"), std::string::npos) << lines[3];
    set.read(asked, 1);
    EXPECT_TRUE(set.take_broken().empty()) << "named once";
    // Evaluation replaces nothing by another picture.
    const at::Tensor grey = set.pixels(std::vector<std::int64_t>{398, 12}, at::kFloat);
    EXPECT_EQ(set.take_broken().size(), 1u);
    EXPECT_EQ((grey[0].amax({1, 2}) - grey[0].amin({1, 2})).max().item<float>(), 0);
    EXPECT_TRUE(at::equal(grey[1], good.pixels(std::vector<std::int64_t>{12}, at::kFloat)[0]));
  }
}

std::string error_of(const std::function<void()>& f) {
  try {
    f();
  } catch (const DataError& e) {
    return e.what();
  }
  return "no error";
}

TEST_F(ImageText, TooManyBrokenPicturesEndTraining) {
  const Made data(300, {7, 10, 12, 13, 30});
  for (const int threads : {1, 4, 7}) {
    ImageTextOptions o = options();
    o.threads = threads, o.broken_share = 0;
    const ImageTextDataset strict(data, *tokenizer, o);
    EXPECT_EQ(error_of([&] { strict.read(some_ids, 0); }), "made.tar: member 7 is cut short; mend it")
        << "the first in the order of rows, whatever the threads";
    o.broken_share = 0.01;
    const ImageTextDataset some(data, *tokenizer, o);
    const std::string why = error_of([&] { some.read(some_ids, 0); });
    EXPECT_NE(why.find("more than 2 of 200 training pictures are broken"), std::string::npos) << why;
    EXPECT_NE(why.find("data.broken_share"), std::string::npos) << why;
  }
  std::set<std::int64_t> all;
  for (std::int64_t i = 0; i < 300; ++i) all.insert(i);
  const Made nothing(300, all);
  ImageTextOptions o = options();
  EXPECT_NE(error_of([&] { ImageTextDataset(nothing, *tokenizer, o).read(some_ids, 0); }), "no error");
  // Nor does the search for another go round for ever, from whatever id.
  std::set<std::int64_t> training;
  for (const auto id : nothing.train_ids(0)) training.insert(id);
  const Made rest(300, training);
  o.broken_share = 1;
  for (const Made* made : {&nothing, &rest})
    for (const int threads : {1, 4})
      for (const std::int64_t id : {0, 2, 298, 299}) {
        if (made == &rest && id % 3 == 2) continue;  // sound
        o.threads = threads;
        const ImageTextDataset set(*made, *tokenizer, o);
        const std::string why = error_of([&] { set.read(std::vector<std::int64_t>{id, id}, 0); });
        EXPECT_NE(why.find("every training picture is broken (200)"), std::string::npos) << why;
      }
}

// The rule of BrokenSamples: one alone is never too many, unless the share is 0.
TEST_F(ImageText, OneBrokenPictureOfFewDoesNotEndTraining) {
  const Made one(30, {3, 29}), two(30, {3, 4});  // 20 to train on; 29 is held out
  const ImageTextOptions o = options();
  const std::vector<std::int64_t> ids{1, 3};
  const ImageTextDataset set(one, *tokenizer, o);
  EXPECT_NO_THROW(set.read(ids, 0));
  EXPECT_NO_THROW(set.pixels(std::vector<std::int64_t>{29}, at::kFloat)) << "evaluation has an allowance of its own";
  EXPECT_EQ(set.take_broken().size(), 2u);
  const std::string why = error_of([&] { ImageTextDataset(two, *tokenizer, o).read(ids, 0); });
  EXPECT_NE(why.find("more than 1 of 20 training pictures"), std::string::npos) << why;
}

TEST(Workers, DoEveryItemOnceAndTellTheFirstError) {
  for (const int threads : {1, 2, 5}) {
    Workers workers(threads);
    EXPECT_EQ(workers.threads(), threads);
    for (const std::int64_t n : {0, 1, 2, 1000}) {
      std::vector<std::atomic<int>> done(std::size_t(n) + 1);
      workers.each(n, [&](std::int64_t i) { ++done[std::size_t(i)]; });
      for (std::int64_t i = 0; i < n; ++i) EXPECT_EQ(done[std::size_t(i)], 1);
    }
    for (int again = 0; again < 20; ++again) {
      std::string told;
      try {
        workers.each(100, [&](std::int64_t i) {
          if (i % 10 != 7) return;
          if (i == 7) std::this_thread::sleep_for(std::chrono::microseconds(300));
          throw std::runtime_error(std::to_string(i));
        });
      } catch (const std::runtime_error& e) {
        told = e.what();
      }
      EXPECT_EQ(told, "7");
    }
    std::atomic<int> after{0};
    workers.each(10, [&](std::int64_t) { ++after; });
    EXPECT_EQ(after, 10);
  }
}

}  // namespace
