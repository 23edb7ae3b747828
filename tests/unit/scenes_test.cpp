// Procedural scenes: the sentence tells the truth, the picture shows it, and neither depends on how many are made.
#include "comm/error.h"
#include "data/image_text/eval_set.h"
#include "data/image_text/folder.h"
#include "data/image_text/picture_table.h"
#include "data/image_text/sources.h"
#include "data/image_text/table.h"
#include "data/scenes/write.h"
#include "tests/fault/experiment.h"
#include "tests/needs.h"

#include <cmath>
#include <set>

namespace trireme::test {
namespace {

Rgb pixel(const Image& image, double x, double y) {
  const auto* p = image.rgb.data() + 3 * (std::size_t(y) * std::size_t(image.width) + std::size_t(x));
  return {p[0], p[1], p[2]};
}

void expect_color(Rgb seen, int color, int within) {
  const Rgb c = scene_color(color);
  EXPECT_NEAR(seen.r, c.r, within);
  EXPECT_NEAR(seen.g, c.g, within);
  EXPECT_NEAR(seen.b, c.b, within);
}

TEST(Scenes, TheSentenceTellsAllThatIsThere) {
  std::set<std::string> sentences;
  int several = 0;
  for (std::uint64_t i = 0; i < 20000; ++i) {
    const Scene scene = scene_at(7, i);
    const std::string sentence = describe(scene);
    const auto read = parse_scene(sentence);
    ASSERT_TRUE(read) << sentence;
    EXPECT_EQ(read->ground, scene.ground);
    ASSERT_EQ(read->objects.size(), scene.objects.size()) << sentence;
    std::set<int> cells;
    for (std::size_t k = 0; k < scene.objects.size(); ++k) {
      const SceneObject &a = read->objects[k], &b = scene.objects[k];
      EXPECT_TRUE(a.shape == b.shape && a.color == b.color && a.size == b.size && a.texture == b.texture &&
                  a.cell == b.cell)
          << sentence;
      EXPECT_NE(b.color, scene.ground);
      EXPECT_TRUE(cells.insert(b.cell).second) << sentence;
      EXPECT_LE(b.size, scene.objects[0].size) << "the first is the largest";
    }
    EXPECT_EQ(scene_class(*read), scene_class(scene));
    if (scene.objects.size() > 1) ++several, sentences.insert(sentence);
  }
  EXPECT_GT(double(sentences.size()), 0.999 * several);
  // Sentences of two objects alone: ground, two objects in two of nine places.
  const auto n = [](const std::vector<std::string_view>& words) { return double(words.size()); };
  const double one =
      (n(SceneWords::colors()) - 1) * n(SceneWords::shapes()) * n(SceneWords::sizes()) * n(SceneWords::textures());
  EXPECT_GT(n(SceneWords::colors()) * one * one * 36, 1e9);
  for (const char* other :
       {"", "a cat", "a large red circle at the left", "a red circle at the left on a blue background",
        "a large red circle at the left on a blue background ",
        "a large red circle at the left,  on a blue background"})
    EXPECT_FALSE(parse_scene(other)) << other;
  EXPECT_EQ(describe(scene_at(1, 0)), "a large green dotted triangle at the left on a pink background")
      << "data sets that are made again must stay the same";
}

TEST(Scenes, ThePictureShowsWhatTheSentenceTells) {
  struct Size {
    int width, height;
  };
  for (const Size s : {Size{64, 64}, Size{256, 256}, Size{200, 120}, Size{96, 224}})
    for (std::uint64_t i = 0; i < 150; ++i) {
      const Scene scene = scene_at(3, i);
      SCOPED_TRACE(describe(scene));
      const Image image = render(scene, s.width, s.height);
      ASSERT_EQ(image.rgb.size(), std::size_t(3 * s.width * s.height));
      std::set<int> cells;
      for (const auto& o : scene.objects) {
        const ScenePoint p = center_of(o, s.width, s.height);
        EXPECT_EQ(int(p.x * 3 / s.width) + 3 * int(p.y * 3 / s.height), o.cell);
        expect_color(pixel(image, p.x, p.y), o.color, 2);
        cells.insert(o.cell);
      }
      for (int cell = 0; cell < 9; ++cell)
        if (!cells.contains(cell))
          expect_color(pixel(image, (cell % 3 + 0.5) * s.width / 3, (cell / 3 + 0.5) * s.height / 3), scene.ground, 40);
      const Image grainy = render(scene, s.width, s.height, 8);
      double square = 0, sum = 0;
      int count = 0;
      for (std::size_t k = 0; k < image.rgb.size(); ++k)
        if (image.rgb[k] > 40 && image.rgb[k] < 215) {
          const double d = double(grainy.rgb[k]) - image.rgb[k];
          square += d * d, sum += d, ++count;
        }
      if (count > 3000) {
        EXPECT_NEAR(std::sqrt(square / count), 8, 1);
        EXPECT_NEAR(sum / count, 0, 1);
      }
    }
}

TEST(Scenes, ShapesHaveTheirAreas) {
  const double pi = std::acos(-1.0);
  // In squares of the radius; of the heart: a square and two circles of 0.6 that overlap it, counted on a fine grid.
  double heart = 0;
  for (double x = -1.2; x < 1.2; x += 0.002)
    for (double y = -1.2; y < 1.2; y += 0.002) {
      const double py = y - 0.05;
      if (std::abs(x) + std::abs(py) < 0.6 * std::sqrt(2) || std::hypot(std::abs(x) - 0.42, py + 0.42) < 0.6)
        heart += 0.002 * 0.002;
    }
  const double areas[] = {pi * 0.95 * 0.95,
                          1.56 * 1.56,
                          3 * std::sqrt(3) / 4,
                          2,
                          2.5 * std::sin(2 * pi / 5),
                          1.5 * std::sqrt(3),
                          5 * 0.45 * std::sin(pi / 5),
                          2 * 1.9 * 0.64 - 0.64 * 0.64,
                          heart,
                          pi * 0.6};
  for (int shape = 0; shape < int(SceneWords::shapes().size()); ++shape)
    for (const float turn : {0.f, 0.1f}) {
      Scene scene;
      scene.ground = 10;  // black
      SceneObject o;
      o.shape = shape, o.color = 11, o.size = 2, o.cell = 4, o.turn = turn;
      scene.objects = {o};
      const int n = 240;
      const double radius = 0.43 * n / 3, low = scene_color(10).g, high = scene_color(11).g;
      double area = 0;
      const Image image = render(scene, n, n);
      for (std::size_t k = 1; k < image.rgb.size(); k += 3) area += (image.rgb[k] - low) / (high - low);
      EXPECT_NEAR(area / (radius * radius), areas[shape], 0.02 * areas[shape])
          << SceneWords::shapes()[std::size_t(shape)];
    }
}

TEST(Scenes, OneSizeIsTheOtherScaled) {
  for (std::uint64_t i = 0; i < 60; ++i) {
    const Scene scene = scene_at(5, i);
    const Image small = render(scene, 64, 64), large = render(scene, 256, 256);
    double off = 0;
    for (int y = 0; y < 64; ++y)
      for (int x = 0; x < 64; ++x)
        for (int c = 0; c < 3; ++c) {
          double mean = 0;
          for (int k = 0; k < 16; ++k) mean += large.rgb[std::size_t(3 * ((4 * y + k / 4) * 256 + 4 * x + k % 4) + c)];
          off += std::abs(mean / 16 - small.rgb[std::size_t(3 * (64 * y + x) + c)]);
        }
    EXPECT_LT(off / small.rgb.size(), 1.5) << describe(scene);
  }
}

TEST(Scenes, HeldOutSentencesAreInNoTrainingPair) {
  const auto held_out = held_out_scenes(1, 2000);
  std::set<std::string> sentences;
  for (const auto& scene : held_out) EXPECT_TRUE(sentences.insert(describe(scene)).second);
  for (std::uint64_t i = 0; i < 50000; ++i) EXPECT_FALSE(sentences.contains(describe(scene_at(1, i))));
  const auto fewer = held_out_scenes(1, 10);
  for (std::size_t k = 0; k < fewer.size(); ++k) EXPECT_EQ(describe(fewer[k]), describe(held_out[k]));
  EXPECT_NE(describe(scene_at(2, 0)), describe(scene_at(1, 0)));
}

class SceneFiles : public ::testing::Test {
 protected:
  void SetUp() override {
    TRIREME_NEEDS("JPEG", "PNG");
    setenv("XDG_CACHE_HOME", path("cache").c_str(), 1);
  }
  std::string path(const std::string& name) const { return (folder_.path / name).string(); }

 private:
  TempFolder folder_;
};

TEST_F(SceneFiles, TarsDependOnNeitherNumberNorThreads) {
  ScenesSpec scenes;
  scenes.pairs = 25, scenes.held_out = 12, scenes.size = 48;
  WriteTarsSpec spec;
  spec.shard = 10;
  const auto make = [&](const std::string& name, std::int64_t pairs, int threads) {
    scenes.pairs = pairs, spec.threads = threads, spec.out = path(name);
    scenes_to_tars(scenes, spec);
  };
  make("a", 25, 1), make("b", 38, 3);
  for (const char* file : {"00000.tar", "00001.tar", "test/0.tar", "test/1.tar", "classnames.txt"})
    EXPECT_EQ(read_text(path(std::string("a/") + file)), read_text(path(std::string("b/") + file))) << file;
  const Tars pairs(path("b"));
  ASSERT_EQ(pairs.size(), 38);
  for (std::int64_t i = 0; i < 38; ++i) {
    const Scene scene = scene_at(1, std::uint64_t(i));
    EXPECT_EQ(pairs.caption(i), describe(scene));
    EXPECT_EQ(pairs.classes().at(std::size_t(pairs.class_id(i))), scene_class(scene));
    const Picture p = pairs.picture(i);
    EXPECT_EQ(p.width, 48);
    const ScenePoint c = center_of(scene.objects[0], 48, 48);
    const Rgb seen = pixel(p.pixels, c.x, c.y), told = scene_color(scene.objects[0].color);
    EXPECT_NEAR(0.3 * seen.r + 0.59 * seen.g + 0.11 * seen.b, 0.3 * told.r + 0.59 * told.g + 0.11 * told.b, 60);
  }
  const EvalSet test = open_eval_set(path("b"));
  EXPECT_TRUE(test.retrieval);
  ASSERT_EQ(test.captions.size(), 12u);
  const auto held_out = held_out_scenes(1, 12);
  for (std::size_t i = 0; i < 12; ++i) EXPECT_EQ(test.captions[i], std::vector{describe(held_out[i])});
  spec.out = path("b");
  EXPECT_THROW(scenes_to_tars(scenes, spec), DataError) << "tars lie there";
  spec.force = true, scenes.pairs = 5;
  scenes_to_tars(scenes, spec);
  EXPECT_EQ(Tars(path("b")).size(), 5) << "no shard of the old set is left";

  // Without a test the old one goes; one that is in the way is told before anything is drawn.
  spec.out = path("c"), spec.force = false;
  fs::create_directories(path("c/test"));
  write_text(path("c/test/0.tar"), "old"), write_text(path("c/test/nshards.txt"), "1");
  EXPECT_THROW(scenes_to_tars(scenes, spec), DataError);
  EXPECT_FALSE(fs::exists(path("c/00000.tar")));
  EXPECT_TRUE(fs::exists(path("c/test/0.tar")));
  spec.force = true, scenes.held_out = 0;
  scenes_to_tars(scenes, spec);
  EXPECT_EQ(Tars(path("c")).size(), 5);
  EXPECT_FALSE(fs::exists(path("c/test/0.tar")));
  EXPECT_FALSE(is_eval_set(path("c")));
  scenes.held_out = 12;

  PrepareSpec prepared = scenes_data(scenes);
  prepared.out = path("scenes.h5"), prepared.size = 48;
  const auto report = prepare_images(prepared);
  EXPECT_EQ(report.images, 17);
  EXPECT_EQ(report.held_out_images, 12);
  const ImageTextData file(path("scenes.h5"));
  EXPECT_EQ(file.train_ids(), (std::vector<std::int64_t>{0, 1, 2, 3, 4}));
  EXPECT_EQ(file.caption(16), describe(held_out[11]));
}

// As training and `eval` ask for a class: in sentences like those trained on, wherever the scenes lie.
TEST_F(SceneFiles, PromptsAreSentencesInEveryForm) {
  std::set<std::string> grounds, cells;
  for (std::string prompt : scene_templates()) {
    prompt.replace(prompt.find("{c}"), 3, "purple star");
    const auto scene = parse_scene(prompt);
    ASSERT_TRUE(scene) << prompt;
    EXPECT_EQ(scene_class(*scene), "purple star");
    grounds.insert(prompt.substr(prompt.find(" on a"))), cells.insert(std::to_string(scene->objects[0].cell));
  }
  EXPECT_EQ(grounds.size(), SceneWords::colors().size());
  EXPECT_EQ(cells.size(), 9u);

  ScenesSpec scenes;
  scenes.pairs = 20, scenes.held_out = 5, scenes.size = 16;
  WriteTarsSpec spec;
  spec.out = path("tars"), spec.threads = 1;
  scenes_to_tars(scenes, spec);
  PrepareSpec drawn = scenes_data(scenes), converted = tars_data(path("tars"));
  drawn.out = path("drawn.h5"), converted.out = path("converted.h5");
  for (PrepareSpec* prepare : {&drawn, &converted}) prepare->size = 16, prepare_images(*prepare);
  EXPECT_EQ(Tars(path("tars/test/0.tar")).templates(), scene_templates());
  EXPECT_EQ(ImageTextData(path("drawn.h5")).templates(), scene_templates());
  EXPECT_EQ(ImageTextData(path("converted.h5")).templates(), scene_templates());

  // Of several sources those of the pictures that are held out.
  fs::create_directories(path("other"));
  fs::copy_file(path("tars/test/0.tar"), path("other/0.tar"));
  write_text(path("other/zeroshot_classification_templates.txt"), "one {c}\n\n");
  std::vector<PairsSource> sources(2);
  sources[0].pairs = std::make_unique<ImageTextData>(path("drawn.h5"));
  sources[1].pairs = std::make_unique<Tars>(path("other/0.tar"));
  sources[1].test = true;
  EXPECT_EQ(JoinedPairs(std::move(sources)).templates(), std::vector<std::string>{"one {c}"});
}

TEST_F(SceneFiles, OwnPicturesGoToTarsAndBack) {
  draw_pictures(path("own/a"), 1, 20), draw_pictures(path("own/b"), 21, 5);
  write_text(path("own/a/3.png"), "broken");
  write_text(path("own/a/lonely.png"), png(99));
  std::string table = "Image Path,caption\n";
  for (int i = 1; i <= 20; ++i)
    table += "a/" + std::to_string(i) + ".png,picture number " + std::to_string(i) + " in color " +
             std::to_string(i % 7) + "\n";
  write_text(path("own/table.csv"), table);
  WriteTarsSpec spec;
  spec.out = path("tars"), spec.shard = 10, spec.threads = 2;
  BrokenSamples left_out;
  const PrepareSpec folder = folder_data(path("own"));
  EXPECT_EQ(pictures_to_tars(folder, spec, left_out), 25);
  EXPECT_EQ(left_out.count(), 1) << "the one without a caption";
  const Tars tars(path("tars"));
  const PictureTable files(folder_data(path("own")), 0.1, 0.1),
      rows(table_data(path("own/table.csv"), "imagepath", "Caption"), 0, 0.1);
  ASSERT_EQ(tars.size(), 25);
  ASSERT_EQ(rows.size(), 20);
  EXPECT_NE(files.notes().back().find("lonely.png"), std::string::npos) << files.notes().back();
  EXPECT_EQ(files.held_out_ids(), tars.held_out_ids());
  for (std::int64_t i = 0; i < 25; ++i) {
    EXPECT_EQ(tars.caption(i), files.caption(i));
    if (tars.caption(i).find("number 3 ") == std::string::npos) {
      EXPECT_EQ(tars.picture(i).pixels.rgb, files.picture(i).pixels.rgb);
    } else {
      EXPECT_THROW(tars.picture(i), BrokenPicture);
      EXPECT_THROW(files.picture(i), BrokenPicture);
    }
  }
  EXPECT_EQ(rows.caption(4), "picture number 5 in color 5");
  EXPECT_THROW(table_data(path("own/table.csv")), DataError);
  EXPECT_THROW(PictureTable(folder_data(path("own")), 0.1, 0).size(), DataError) << "1 of 26 is broken";
  fs::remove(path("own/a/7.png"));
  EXPECT_THROW(rows.picture(6), BrokenPicture);

  std::string identity[2];
  for (const bool from_tars : {false, true}) {
    PrepareSpec prepare = from_tars ? tars_data(path("tars")) : folder;
    prepare.out = path("made.h5"), prepare.size = 16;
    if (!from_tars) prepare.decode = [&](std::size_t i) { return tars.picture(std::int64_t(i)).pixels; };
    EXPECT_EQ(prepare_images(prepare).images, 24);
    identity[from_tars] = ImageTextData(path("made.h5")).identity();
  }
  EXPECT_EQ(identity[0], identity[1]) << "the same prepared file from tars";
}

}  // namespace
}  // namespace trireme::test
