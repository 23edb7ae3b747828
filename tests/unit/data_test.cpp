#include "trainers/commands/data.h"

#include "comm/error.h"
#include "data/image_text/emoji.h"
#include "data/image_text/folder.h"
#include "data/image_text/prepared.h"
#include "data/image_text/walk.h"
#include "tests/needs.h"
#include "tests/unit/reference_files.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace {

using namespace trireme;
namespace fs = std::filesystem;

class DataTest : public ::testing::Test {
 protected:
  void SetUp() override {
    folder = fs::temp_directory_path() / ("trireme_data_" + std::to_string(getpid()));
    fs::remove_all(folder);
    fs::create_directories(folder);
  }
  void TearDown() override { fs::remove_all(folder); }

  std::string path(const std::string& name) const { return (folder / name).string(); }
  void write(const std::string& name, std::string_view text) const {
    fs::create_directories((folder / name).parent_path());
    std::ofstream(folder / name, std::ios::binary) << text;
  }
  void write_png(const std::string& name, int shade) const {
    const std::vector<int> samples(8 * 8 * 3, shade);
    const auto bytes = trireme::test::write_png({2, 8}, 8, 8, samples);
    write(name, {reinterpret_cast<const char*>(bytes.data()), bytes.size()});
  }
  // n pictures of one grey each, captions "c0", "c1", ... of `per` pictures.
  PrepareSpec spec(int n, int per = 1) const {
    PrepareSpec s;
    s.name = "made";
    s.source = "test";
    s.out = path("made_8.h5");
    s.size = 8;
    for (int i = 0; i < n; ++i) {
      const std::string item = std::to_string(i), caption = std::to_string(i / per);
      s.items.push_back({"item" + item, "c" + caption, i % 2 ? "odd" : "even"});
    }
    s.decode = [](std::size_t i) { return Image{4, 4, std::vector<std::uint8_t>(48, std::uint8_t(i))}; };
    return s;
  }
  fs::path folder;
};

std::string message(const std::function<void()>& f) {
  try {
    f();
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), ExitCode::data) << e.what();
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    return e.what();
  }
  return "no error";
}

#define EXPECT_SAYS(code, part) \
  EXPECT_NE(message([&] { code; }).find(part), std::string::npos) << message([&] { code; })

DataOptions options(const std::string& name, const std::string& from = "", int size = 8) {
  DataOptions o;
  o.name = name;
  o.from = from;
  o.size = size;
  return o;
}

TEST_F(DataTest, RoundTrip) {
  const PrepareReport r = prepare_images(spec(200, 2));
  EXPECT_EQ(r.images, 200);
  EXPECT_EQ(r.captions, 100);
  EXPECT_EQ(r.classes, 2);
  for (std::int64_t cache : {std::int64_t(0), std::int64_t(1) << 30}) {
    const ImageTextData data(path("made_8.h5"), cache);
    EXPECT_EQ(data.size(), 200);
    EXPECT_EQ(data.image_size(), 8);
    EXPECT_EQ(data.name(), "made");
    EXPECT_EQ(data.classes(), (std::vector<std::string>{"even", "odd"}));
    const std::vector<std::int64_t> ids = {199, 0, 7, 7};
    const at::Tensor images = data.images(ids);
    ASSERT_EQ(images.sizes(), (std::vector<std::int64_t>{4, 3, 8, 8}));
    const auto* p = static_cast<const std::uint8_t*>(images.const_data_ptr());
    for (std::size_t i = 0; i < ids.size(); ++i)
      for (int k = 0; k < 192; ++k) ASSERT_EQ(p[i * 192 + k], ids[i]);
    for (std::int64_t i : ids) {
      EXPECT_EQ(data.caption(i), "c" + std::to_string(i / 2));
      EXPECT_EQ(data.caption_id(i) == data.caption_id(i ^ 1), true);
      EXPECT_EQ(data.class_id(i), i % 2);
    }
    EXPECT_SAYS(data.images(std::vector<std::int64_t>{200}), "no row 200");
  }
}

TEST_F(DataTest, CaptionsAreHeldOutAsAWhole) {
  const PrepareReport r = prepare_images(spec(250, 2));
  const ImageTextData data(path("made_8.h5"));
  const auto train = data.train_ids(), held = data.held_out_ids();
  EXPECT_EQ(std::int64_t(train.size() + held.size()), data.size());
  EXPECT_EQ(std::int64_t(held.size()), r.held_out_images);
  std::set<std::string> captions;
  for (auto i : held) captions.insert(data.caption(i));
  EXPECT_EQ(std::int64_t(captions.size()), r.held_out_captions);
  EXPECT_GT(captions.size(), 4u);
  EXPECT_LT(captions.size(), 30u);
  for (auto i : train) EXPECT_FALSE(captions.contains(data.caption(i)));
  for (const auto& c : captions) EXPECT_TRUE(caption_held_out(c));
}

TEST_F(DataTest, SplitIsTenPercentAndKeepsLargeMotifs) {
  int held = 0;
  for (int i = 0; i < 10000; ++i) held += caption_held_out("caption " + std::to_string(i));
  EXPECT_NEAR(held, 1000, 100);
  PrepareSpec s = spec(200);  // one caption that the hash would hold out, on 40 % of the images
  std::string motif = "m";
  while (!caption_held_out(motif)) motif += "m";
  for (int i = 0; i < 80; ++i) s.items[i].caption = motif;
  prepare_images(s);
  const ImageTextData data(s.out);
  for (auto i : data.held_out_ids()) EXPECT_NE(data.caption(i), motif);
  auto count = [&](const std::vector<std::int64_t>& ids) {
    return std::count_if(ids.begin(), ids.end(), [&](auto i) { return data.caption(i) == motif; });
  };
  EXPECT_EQ(count(data.train_ids()), 80);
  EXPECT_EQ(count(data.train_ids(5)), 5);
  const auto few = data.train_ids(5);
  EXPECT_TRUE(std::is_sorted(few.begin(), few.end()));
}

TEST_F(DataTest, DuplicatesAndBadItemsAreCounted) {
  PrepareSpec s = spec(20);
  s.decode = [](std::size_t i) {
    if (i == 3) throw DataError("item3", "corrupt PNG", "remove it");
    return Image{4, 4, std::vector<std::uint8_t>(48, std::uint8_t(i / 2))};
  };
  const PrepareReport r = prepare_images(s);
  EXPECT_EQ(r.images, 10);
  EXPECT_EQ(r.duplicates, 9);
  ASSERT_EQ(r.skipped.size(), 1u);
  EXPECT_NE(r.skipped[0].find("item3"), std::string::npos);
  const ImageTextData data(s.out);
  EXPECT_EQ(data.caption(0), "c0");  // the first of two equal pictures stays
  EXPECT_EQ(data.caption(1), "c2");
  const auto meta = nlohmann::json::parse(data.meta());
  EXPECT_EQ(meta["skipped"], 1);
  EXPECT_EQ(meta["duplicates"], 9);
}

TEST_F(DataTest, ThreadsDoNotChangeTheFile) {
  PrepareSpec s = spec(600, 3);
  std::string first;
  for (int threads : {1, 4}) {
    s.threads = threads;
    prepare_images(s);
    std::ifstream in(s.out, std::ios::binary);
    const std::string bytes((std::istreambuf_iterator<char>(in)), {});
    if (first.empty()) first = bytes;
    EXPECT_EQ(bytes == first, true);
  }
}

// Identity is the content of what is trained on: the same from memory, from the file's record, and read through.
TEST_F(DataTest, IdentityIsContent) {
  const auto identity = [&](const PrepareSpec& s, std::int64_t cache = 1 << 30) {
    prepare_images(s);
    return ImageTextData(s.out, cache).identity();
  };
  const PrepareSpec original = spec(200, 2);
  const std::string id = identity(original);
  EXPECT_EQ(id.size(), 32u);
  EXPECT_EQ(ImageTextData(original.out, 0).identity(), id) << "by the hash on record";
  PrepareSpec s = original;
  s.source = "elsewhere", s.name = "other", s.threads = 4, s.out = path("moved.h5"), s.skipped = {"x"};
  for (auto& item : s.items) item.category = "all", item.name += "x";
  EXPECT_EQ(identity(s), id);

  const auto differs = [&](const char* what, const std::function<void(PrepareSpec&)>& change) {
    PrepareSpec other = original;
    change(other);
    for (const std::int64_t cache : {0, 1 << 30}) EXPECT_NE(identity(other, cache), id) << what;
  };
  differs("one pixel", [](PrepareSpec& o) {
    o.decode = [f = o.decode](std::size_t i) {
      Image image = f(i);
      if (i == 199) image.rgb[47] ^= 1;
      return image;
    };
  });
  differs("one letter", [](PrepareSpec& o) { o.items[199].caption[0] = 'd'; });
  differs("the order", [](PrepareSpec& o) { o.decode = [f = o.decode](std::size_t i) { return f(i ^ 1); }; });
  differs("one less", [](PrepareSpec& o) { o.items.pop_back(); });
  differs("captions cut elsewhere", [](PrepareSpec& o) { o.items[0].caption = "c0c", o.items[1].caption = "0"; });

  // A file of an older version has no hash on record.
  prepare_images(original);
  std::ifstream in(original.out, std::ios::binary);
  std::string bytes((std::istreambuf_iterator<char>(in)), {});
  ASSERT_NE(bytes.find("pixels_hash"), bytes.npos);
  EXPECT_NE(nlohmann::json::parse(ImageTextData(original.out).meta())["pixels_hash"], "");
  Hdf5File old = Hdf5File::create(path("old.h5")), now = Hdf5File::open(original.out);
  for (const auto& name : now.names()) {
    const auto array = now.array(name);
    if (name == "meta") continue;
    std::int64_t size = 1;
    for (auto x : array.shape) size *= x;
    std::vector<std::byte> data(std::size_t(size) * size_of(array.dtype));
    now.read_rows(name, 0, array.shape[0], data.data());
    old.create_array(name, array.dtype, array.shape);
    old.write_rows(name, 0, array.shape[0], data.data());
  }
  old.write_text("meta", R"({"format_version":1,"name":"made"})");
  old.close();
  for (const std::int64_t cache : {0, 1 << 30}) EXPECT_EQ(ImageTextData(path("old.h5"), cache).identity(), id);
}

TEST_F(DataTest, FailureLeavesTheOldFile) {
  prepare_images(spec(10));
  const auto before = fs::file_size(path("made_8.h5"));
  PrepareSpec s = spec(50);
  s.decode = [](std::size_t) -> Image { throw DataError("x", "corrupt"); };
  EXPECT_SAYS(prepare_images(s), "no usable image");
  s.decode = [](std::size_t i) -> Image {
    if (i == 30) throw std::runtime_error("a bug");  // not a data error: the whole preparation ends
    return Image{1, 1, {1, 2, 3}};
  };
  EXPECT_THROW(prepare_images(s), std::runtime_error);
  EXPECT_EQ(fs::file_size(path("made_8.h5")), before);
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 1);  // nothing temporary stays
  s.out = path("made_8.h5/x.h5");
  EXPECT_SAYS(prepare_images(s), "cannot create the folder");
}

// Each mistake in a file is one line that names the array.
TEST_F(DataTest, BrokenFiles) {
  struct Spoil {
    std::string array;
    DType dtype;
    std::vector<std::int64_t> shape;
    std::vector<std::int64_t> values;
    std::string says;
  };
  auto build = [&](const Spoil& spoil, const std::string& meta) {
    Hdf5File file = Hdf5File::create(path("b_8.h5"));
    const std::vector<Spoil> arrays = {
        {"images", DType::u8, {2, 3, 8, 8}, {}, ""},         {"caption_bytes", DType::u8, {4}, {97, 98, 99, 100}, ""},
        {"caption_offsets", DType::i64, {3}, {0, 2, 4}, ""}, {"caption_id", DType::i64, {2}, {0, 1}, ""},
        {"class_id", DType::i64, {2}, {0, 0}, ""},           {"held_out", DType::u8, {2}, {0, 1}, ""}};
    for (const auto& normal : arrays) {
      const Spoil& a = normal.array == spoil.array ? spoil : normal;
      if (a.shape.empty()) continue;  // leave it out
      file.create_array(a.array, a.dtype, a.shape);
      std::int64_t n = 1;
      for (auto x : a.shape) n *= x;
      if (n == 0) continue;
      std::vector<std::int64_t> wide(n);
      for (std::size_t i = 0; i < a.values.size(); ++i) wide[i] = a.values[i];
      const std::vector<std::uint8_t> narrow(wide.begin(), wide.end());
      const std::vector<float> real(wide.begin(), wide.end());
      file.write_rows(a.array, 0, a.shape[0],
                      a.dtype == DType::i64   ? static_cast<const void*>(wide.data())
                      : a.dtype == DType::f32 ? static_cast<const void*>(real.data())
                                              : narrow.data());
    }
    file.write_text("classes", R"(["a"])");
    if (!meta.empty()) file.write_text("meta", meta);
    file.close();
  };
  const std::string good = R"({"format_version":1,"name":"b"})";
  build({}, good);
  EXPECT_EQ(ImageTextData(path("b_8.h5")).caption(1), "cd");
  const std::vector<Spoil> spoils = {{"images", DType::u8, {}, {}, "no array `images`"},
                                     {"images", DType::f32, {2, 3, 8, 8}, {}, "`images` is f32"},
                                     {"images", DType::u8, {2, 3, 8, 4}, {}, "square"},
                                     {"images", DType::u8, {2, 1, 8, 8}, {}, "[2,1,8,8]"},
                                     {"caption_bytes", DType::u8, {0}, {}, "caption"},
                                     {"caption_offsets", DType::i64, {2}, {0, 4}, "`caption_offsets` is i64 [2]"},
                                     {"caption_offsets", DType::i64, {3}, {0, 9, 4}, "does not cut up"},
                                     {"caption_offsets", DType::i64, {3}, {0, 2, 5}, "does not cut up"},
                                     {"caption_id", DType::i64, {2}, {0, -1}, "row 1 has a bad caption_id"},
                                     {"class_id", DType::i64, {2}, {0, 1}, "row 1 has a bad class_id"},
                                     {"held_out", DType::i64, {2}, {0, 0}, "`held_out` is i64"},
                                     {"held_out", DType::u8, {2}, {0, 2}, "bad held_out"}};
  for (const auto& s : spoils) {
    build(s, good);
    EXPECT_SAYS(ImageTextData(path("b_8.h5")), s.says);
    EXPECT_SAYS(ImageTextData(path("b_8.h5")), "trireme data");
  }
  build({}, "");
  EXPECT_SAYS(ImageTextData(path("b_8.h5")), "`meta`");
  build({}, "{");
  EXPECT_SAYS(ImageTextData(path("b_8.h5")), "not JSON");
  build({}, R"({"format_version":2})");
  EXPECT_SAYS(ImageTextData(path("b_8.h5")), "format version");
  EXPECT_SAYS(ImageTextData(path("openclipart_64.h5")), "trireme data openclipart --size 64");
  build({}, good);
  fs::resize_file(path("b_8.h5"), fs::file_size(path("b_8.h5")) / 2);
  EXPECT_SAYS(ImageTextData(path("b_8.h5")), "b_8.h5");
  write("text.h5", "hello");
  EXPECT_SAYS(ImageTextData(path("text.h5")), "text.h5");
}

TEST_F(DataTest, FolderOfPicturesAndCaptions) {
  TRIREME_NEEDS("PNG");
  write_png("in/cats/a.png", 10);
  write("in/cats/a.txt", "\xEF\xBB\xBF a\tblack   cat\n on a mat \n");
  write_png("in/b.PNG", 20);
  write("in/b.txt", "caf\xe9");  // Latin-1
  write_png("in/no_caption.png", 30);
  write("in/broken.png", "\x89PNG\r\n\x1a\nrubbish");
  write("in/broken.txt", "broken");
  PrepareSpec s = folder_data(path("in"));
  s.out = path("f_8.h5");
  s.size = 8;
  const PrepareReport r = prepare_images(s);
  EXPECT_EQ(r.images, 2);
  ASSERT_EQ(r.skipped.size(), 2u);
  EXPECT_NE(r.skipped[0].find("no_caption.png"), std::string::npos);
  EXPECT_NE(r.skipped[1].find("broken.png"), std::string::npos);
  const ImageTextData data(s.out);
  EXPECT_EQ(data.caption(0), "café");
  EXPECT_EQ(data.caption(1), "a black cat on a mat");
  EXPECT_EQ(data.classes(), (std::vector<std::string>{"", "cats"}));
}

TEST_F(DataTest, FilesVanishAndFoldersAreLocked) {
  TRIREME_NEEDS("PNG");
  for (const char* name : {"in/a.png", "in/b.png", "in/locked/c.png"}) {
    write_png(name, name[3]);
    write(fs::path(name).replace_extension(".txt").string(), name);
  }
  fs::permissions(path("in/locked"), fs::perms::none);
  const bool root = geteuid() == 0;  // who may read everything
  ASSERT_EQ(root ? seteuid(65534) : 0, 0);
  PrepareSpec s = folder_data(path("in"));
  ASSERT_EQ(root ? seteuid(0) : 0, 0);
  fs::permissions(path("in/locked"), fs::perms::owner_all);
  ASSERT_EQ(s.skipped.size(), 1u);
  EXPECT_NE(s.skipped[0].find("in/locked: cannot be read: Permission denied"), std::string::npos) << s.skipped[0];
  ASSERT_EQ(s.items.size(), 2u);
  fs::remove(path("in/a.png"));
  s.out = path("f_8.h5");
  s.size = 8;
  const PrepareReport r = prepare_images(s);
  EXPECT_EQ(r.images, 1);
  ASSERT_EQ(r.skipped.size(), 2u);
  EXPECT_NE(r.skipped[1].find("in/a.png: no such file"), std::string::npos) << r.skipped[1];
}

// The order of rows, and with it every run's, must not depend on how names are kept.
TEST_F(DataTest, FilesComeInTheOrderOfPaths) {
  std::vector<fs::path> sorted;
  for (const char* name : {"a.x/b", "a b", "a/b!/c", "a/b c", "A/z", "a/b/c/d", "a-/x", "\xe9/q", "z"}) {
    write(std::string("in/") + name, "x");
    sorted.push_back(path("in") + "/" + name);
  }
  std::sort(sorted.begin(), sorted.end());
  std::vector<std::string> skipped, names;
  for (const auto& p : sorted) names.push_back(p.string());
  EXPECT_EQ(files_below(path("in"), skipped), names);
  EXPECT_TRUE(skipped.empty());
}

TEST_F(DataTest, FolderRefusesEscapes) {
  write_png("secret.png", 1);
  write_png("in/a.png", 2);
  write("in/a.txt", "a");
  fs::create_symlink(path("in/a.png"), path("in/same.png"));  // inside: fine
  write("in/same.txt", "same");
  EXPECT_EQ(folder_data(path("in")).items.size(), 2u);
  const auto refused = [&](const std::string& file) {  // never read, and named
    const PrepareSpec s = folder_data(path("in"));
    EXPECT_EQ(s.items.size(), 2u);
    for (const auto& item : s.items) EXPECT_EQ(item.name.find("secret"), std::string::npos);
    ASSERT_EQ(s.skipped.size(), 1u);
    EXPECT_TRUE(s.skipped[0].starts_with(fs::canonical(path("in")).string() + "/" + file + ": ")) << s.skipped[0];
    EXPECT_NE(s.skipped[0].find("leads out of"), std::string::npos) << s.skipped[0];
  };
  fs::create_symlink(path("secret.png"), path("in/link.png"));
  write("in/link.txt", "secret");
  refused("link.txt");
  fs::remove(path("in/link.png"));
  fs::remove(path("in/link.txt"));
  fs::create_symlink(path("secret.png"), path("in/a2.txt"));
  write_png("in/a2.png", 3);
  refused("a2.txt");
  EXPECT_SAYS(folder_data(path("nowhere")), "no such folder");
  fs::create_directories(path("empty"));
  EXPECT_SAYS(folder_data(path("empty")), "no PNG or JPEG");
}

TEST_F(DataTest, Tables) {
  TRIREME_NEEDS("PNG");
  write_png("in/x/a.png", 10);
  write_png("in/b.png", 20);
  write("in/tab.csv", "title\tfilepath\r\na \"quoted\" cat\tx/a.png\r\n\"two\tparts\"\t" + path("in/b.png") + "\r\n");
  PrepareSpec s = folder_data(path("in/tab.csv"));
  ASSERT_EQ(s.items.size(), 2u);
  EXPECT_EQ(s.items[0].caption, "a \"quoted\" cat");
  EXPECT_EQ(s.items[0].category, "x");
  EXPECT_EQ(s.items[1].caption, "two parts");
  write("in/comma.csv", "filepath,width,title\nx/a.png,8,\"a cat, \"\"black\"\"\"\nb.png,8,\n");
  s = folder_data(path("in/comma.csv"));
  ASSERT_EQ(s.items.size(), 1u);
  EXPECT_EQ(s.items[0].caption, "a cat, \"black\"");
  ASSERT_EQ(s.skipped.size(), 1u);
  EXPECT_EQ(s.decode(0).width, 8);

  // What is wrong with the table, or with its only odd row, which is skipped.
  auto table = [&](const std::string& text) {
    write("in/bad.csv", text);
    PrepareSpec s;
    std::string said = message([&] { s = folder_data(path("in/bad.csv")); });
    if (said != "no error") return said;
    EXPECT_EQ(s.skipped.size(), 1u) << text;
    EXPECT_EQ(std::int64_t(s.items.size()), std::count(text.begin(), text.end(), '\n') - 2) << text;
    return s.skipped.empty() ? said : s.skipped[0];
  };
  write_png("secret.png", 1);
  EXPECT_NE(table("filepath,title\n../secret.png,x\n").find("bad.csv:2"), std::string::npos);
  EXPECT_NE(table("filepath,title\nb.png,x\nx/../../secret.png,x\n").find("leads out of"), std::string::npos);
  EXPECT_NE(table("filepath,title\n" + path("secret.png") + ",x\n").find("leads out of"), std::string::npos);
  EXPECT_NE(table("file,text\nb.png,x\n").find("`filepath`"), std::string::npos);
  EXPECT_NE(table("filepath,title\nb.png\n").find("bad.csv:2: has 1 field, the header 2"), std::string::npos);
  EXPECT_NE(table("filepath,title\nb.png,x\nb.png,x,y\n").find("bad.csv:3: has 3 fields"), std::string::npos);
  EXPECT_NE(table("filepath,title\nb.png,\"x\"y\nb.png,x\n").find("bad.csv:2: text after"), std::string::npos);
  EXPECT_NE(table("filepath,title\n,x\n").find("bad.csv:2: empty"), std::string::npos);
  EXPECT_NE(table("filepath,title,Title\nb.png,x,y\n").find("`title` twice"), std::string::npos);
  EXPECT_NE(table("filepath,title\nb.png,x\nb.png,\"open\n").find("bad.csv:3"), std::string::npos);
  EXPECT_NE(table("filepath,title\n").find("no rows"), std::string::npos);
  EXPECT_NE(table("").find("bad.csv"), std::string::npos);
}

TEST_F(DataTest, AnnotationsOfEmoji) {
  bool whole = true;
  const auto a = read_annotations(R"(<ldml><annotations>
    <annotation cp="😀">face | grin | grinning face</annotation>
    <annotation cp="😀" type="tts">grinning face</annotation>
    <annotation cp="&amp;">ampersand &amp; and</annotation>
    <annotation cp="x)",
                                  &whole);
  EXPECT_FALSE(whole);
  ASSERT_EQ(a.size(), 2u);
  EXPECT_EQ(a.at("😀").name, "grinning face");
  EXPECT_EQ(a.at("😀").keywords, (std::vector<std::string>{"face", "grin", "grinning face"}));
  EXPECT_EQ(a.at("&").keywords[0], "ampersand & and");
  EXPECT_EQ(read_annotations(R"(<ldml><annotation cp="a">b</annotation></ldml>)", &whole).size(), 1u);
  EXPECT_TRUE(whole);
}

TEST_F(DataTest, Command) {
  TRIREME_NEEDS("PNG", "FreeType");
  write_png("in/a.png", 10);
  write("in/a.txt", "a");
  ASSERT_EQ(setenv("XDG_CACHE_HOME", path("cache").c_str(), 1), 0);
  EXPECT_EQ(prepared_path("emoji", 64), path("cache/trireme/data/emoji_64.h5"));
  DataOptions o = options("folder", path("in"));
  EXPECT_EQ(data_command(o), 0);
  const std::string made = fs::directory_iterator(path("cache/trireme/data"))->path().string();
  EXPECT_TRUE(fs::path(made).filename().string().starts_with("folder-in-")) << made;
  const auto time = fs::last_write_time(made);
  EXPECT_EQ(data_command(o), 0);
  EXPECT_EQ(fs::last_write_time(made), time);  // kept
  std::ofstream(made, std::ios::binary) << "damaged";
  EXPECT_EQ(data_command(o), 0);  // made anew: it is only a cache
  EXPECT_EQ(ImageTextData(made).size(), 1);
  write("mine.h5", "precious");
  o.out = path("mine.h5");
  EXPECT_THROW(data_command(o), DataError);  // the user's own file is not overwritten unasked
  o.force = true;
  EXPECT_EQ(data_command(o), 0);
  EXPECT_EQ(ImageTextData(o.out).size(), 1);
  // Sets of packages too: another place is another file.
  DataOptions clipart = options("openclipart", path("clips"));
  const auto draw = trireme::test::write_png({2, 8}, 8, 8, std::vector<int>(8 * 8 * 3, 7));
  write("clips/png/crow.png", {reinterpret_cast<const char*>(draw.data()), draw.size()});
  fs::create_directories(path("clips/svg"));
  EXPECT_EQ(data_command(clipart), 0);
  EXPECT_FALSE(fs::exists(path("cache/trireme/data/openclipart_8.h5")));
  clipart.out = path("mine.h5");
  EXPECT_SAYS(data_command(clipart), "mine.h5: holds folder of ");
  write_png(std::string(200, 'n') + "/a.png", 10);
  write(std::string(200, 'n') + "/a.txt", "a");
  EXPECT_EQ(data_command(options("folder", path(std::string(200, 'n')))), 0);
  EXPECT_THROW(data_command(options("nothing")), UsageError);
  EXPECT_THROW(data_command(options("folder")), UsageError);
  EXPECT_THROW(data_command(options("emoji", "", 1)), UsageError);
  EXPECT_SAYS(data_command(options("openclipart", path("in"))), "apt-get install openclipart-png");
  EXPECT_SAYS(data_command(options("emoji", path("none.ttf"))), "apt-get install fonts-noto-color-emoji");
}

}  // namespace
