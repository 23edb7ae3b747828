// Tars read in place: the walker on what other programs write and on broken files, samples grouped as Python's
// `webdataset` groups them, an index that stays the same, and test sets in CLIP_benchmark's layout.
#include "data/image_text/tars.h"

#include "comm/error.h"
#include "data/file.h"
#include "data/image_text/broken_samples.h"
#include "data/image_text/caption_text.h"
#include "data/image_text/eval_set.h"
#include "data/image_text/prepared.h"
#include "data/image_text/tar_write.h"
#include "data/rng.h"
#include "tests/fault/experiment.h"
#include "tests/needs.h"
#include "tests/unit/reference_files.h"

#include <atomic>
#include <set>
#include <thread>

#include <sys/resource.h>

namespace trireme::test {
namespace {

using test::reference_file;
using Bytes = std::vector<std::uint8_t>;

template <class F>
std::string error_of(const F& f) {
  try {
    f();
  } catch (const DataError& e) {
    EXPECT_EQ(std::string(e.what()).find('\n'), std::string::npos);
    return e.what();
  }
  return "nothing thrown";
}

#define EXPECT_SAYS(expression, part)                               \
  do {                                                              \
    const std::string said = error_of([&] { (void)(expression); }); \
    EXPECT_NE(said.find(part), std::string::npos) << said;          \
  } while (false)

std::vector<TarMember> members_of(const std::string& path) {
  const TarFile file(path);
  TarWalk walk(file);
  std::vector<TarMember> all;
  while (auto m = walk.next()) all.push_back(*m);
  return all;
}

class TarsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const char* old = std::getenv("XDG_CACHE_HOME");
    old_ = old ? old : "";
    setenv("XDG_CACHE_HOME", path("cache").c_str(), 1);
  }
  void TearDown() override { old_.empty() ? unsetenv("XDG_CACHE_HOME") : setenv("XDG_CACHE_HOME", old_.c_str(), 1); }
  std::string path(const std::string& name) const { return (folder_.path / name).string(); }

  // Samples first, first + 1, ...: picture, caption, and a number that counts from the far end.
  std::string shard(const std::string& name, int first, int count, const std::function<void(TarWriter&)>& more = {}) {
    fs::create_directories(fs::path(path(name)).parent_path());
    TarWriter tar(path(name));
    for (int i = first; i < first + count; ++i) {
      char key[16];
      std::snprintf(key, sizeof key, "%06d", i);
      tar.add(std::string(key) + ".png", png(i, 8));
      tar.add(std::string(key) + ".txt", "picture  number " + std::to_string(i / 2) + "\n");
      tar.add(std::string(key) + ".json", "{\"key\": " + std::to_string(99 - i) + "}");
      tar.add(std::string(key) + ".cls", std::to_string(i % 3));
    }
    if (more) more(tar);
    tar.close();
    return path(name);
  }

 private:
  TempFolder folder_;
  std::string old_;
};

TEST_F(TarsTest, SamplesAreGroupedAsWebdatasetDoes) {
  const auto expected = nlohmann::json::parse(read_text(reference_file("webdataset/samples.json")));
  for (const std::string name : {"ustar", "gnu", "pax"}) {
    SCOPED_TRACE(name);
    const TarFile file(reference_file("webdataset/" + name + ".tar"));
    TarSamples samples(file);
    std::size_t i = 0;
    for (; auto s = samples.next(); ++i) {
      ASSERT_LT(i, expected[name].size());
      const auto& sample = expected[name][i];
      EXPECT_EQ(s->key, sample[0]);
      ASSERT_EQ(s->parts.size(), sample[1].size()) << s->key;
      for (const auto& part : s->parts) {
        ASSERT_TRUE(sample[1].contains(part.extension)) << s->key << " " << part.extension;
        Bytes bytes(std::size_t(part.member.size));
        file.read(part.member.offset, bytes);
        EXPECT_EQ(part.member.size, sample[1][part.extension][0]);
        EXPECT_EQ(test::crc32(bytes.data(), bytes.size()), sample[1][part.extension][1]) << part.member.name;
      }
    }
    EXPECT_EQ(i, expected[name].size());
  }
}

TEST_F(TarsTest, EveryBrokenTarIsAnErrorOrLess) {
  const std::string whole = read_text(reference_file("webdataset/pax.tar"));
  const auto members = members_of(reference_file("webdataset/pax.tar"));
  const auto walk = [&](const std::string& bytes) {
    write_text(path("x.tar"), bytes);
    std::size_t n = 0;
    try {
      const TarFile file(path("x.tar"));
      TarSamples samples(file);
      while (const auto s = samples.next()) {
        n += s->parts.size();
        for (const auto& part : s->parts) {
          EXPECT_GE(part.member.offset, 512);
          EXPECT_LE(part.member.offset + part.member.size, std::int64_t(bytes.size()));
        }
      }
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find("x.tar"), std::string::npos);
      return std::pair(n, std::string(e.what()));
    }
    return std::pair(n, std::string());
  };
  // Cut anywhere: what is named before the cut is there, and a member that is not whole is an error.
  for (std::size_t cut = 0; cut < whole.size(); cut += 509) {
    const auto [n, error] = walk(whole.substr(0, cut));
    for (const auto& m : members)
      if (std::int64_t(cut) > m.offset && std::int64_t(cut) < m.offset + m.size) {
        EXPECT_NE(error, "") << cut;
      }
  }
  Rng rng(1, "fuzz");
  for (int round = 0; round < 1000; ++round) {
    std::string bytes = whole.substr(0, 512 * (1 + rng.below(24)));
    for (auto changes = 1 + rng.below(4); changes > 0; --changes) {
      const auto at = rng.below(bytes.size());
      bytes[at] = char(rng.u32());
      // Half of them with a checksum that holds: then it is the fields themselves that must be refused.
      const std::size_t head = at / 512 * 512;
      if (rng.below(2) == 0) continue;
      unsigned sum = 0;
      for (std::size_t i = 0; i < 512; ++i)
        sum += i >= 148 && i < 156 ? ' ' : static_cast<unsigned char>(bytes[head + i]);
      std::snprintf(bytes.data() + head + 148, 8, "%06o", sum);
    }
    walk(bytes);
  }
}

// The first header of a tar with one field set anew.
std::string patched(std::string tar, std::size_t at, std::string_view value) {
  tar.replace(at, value.size(), value);
  unsigned sum = 0;
  for (std::size_t i = 0; i < 512; ++i) sum += i >= 148 && i < 156 ? ' ' : static_cast<unsigned char>(tar[i]);
  char text[8];
  std::snprintf(text, sizeof text, "%06o", sum);
  tar.replace(148, 7, text, 7);
  tar[155] = ' ';
  return tar;
}

TEST_F(TarsTest, SaysWhatIsWrong) {
  const std::string good = read_text(shard("good.tar", 0, 2));
  const auto says = [&](const std::string& bytes, const char* part) {
    write_text(path("x.tar"), bytes);
    EXPECT_SAYS(members_of(path("x.tar")), part);
    EXPECT_SAYS(members_of(path("x.tar")), "x.tar");
  };
  EXPECT_EQ(members_of(path("good.tar")).size(), 8u);
  says("PK\3\4 and more" + std::string(600, 'x'), "is no tar file");
  says("\x1f\x8b" + std::string(600, 'x'), "gunzip");
  says("short", "too short");
  says(patched(good, 156, "S"), "sparse");
  says(patched(good, 124, std::string("\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", 12)), "says no size");
  says(patched(good, 124, "77777777777"), "cut short");
  says(patched(patched(good, 124, "00000000020"), 156, "x"), "broken pax header");
  says(good.substr(0, 700), "cut short");
  EXPECT_SAYS(TarFile(path("missing.tar")), "no such tar file");
  EXPECT_SAYS(TarFile(path("")), "not a plain file");
  mkfifo(path("pipe.tar").c_str(), 0600);
  EXPECT_SAYS(TarFile(path("pipe.tar")), "not a plain file");
  // Beyond 8 GiB sizes are binary; here only the number is read.
  write_text(path("x.tar"), patched(good, 124, std::string("\x80\0\0\0\0\0\0\0\0\0\0\1", 12)));
  EXPECT_EQ(members_of(path("x.tar")).at(0).size, 1);
}

TEST_F(TarsTest, ListsOfShards) {
  const auto list = [](const std::string& text) { return list_tars(text); };
  EXPECT_EQ(list("a/{00008..00011}.tar"),
            (std::vector<std::string>{"a/00008.tar", "a/00009.tar", "a/00010.tar", "a/00011.tar"}));
  EXPECT_EQ(list("{a,b{1..2}}.tar::c.tar"), (std::vector<std::string>{"a.tar", "b1.tar", "b2.tar", "c.tar"}));
  EXPECT_EQ(list("{3..1}.tar"), (std::vector<std::string>{"3.tar", "2.tar", "1.tar"}));
  EXPECT_SAYS(list("{1..2.tar"), "opening brace");
  EXPECT_SAYS(list("1}.tar"), "closing brace");
  EXPECT_SAYS(list("{0..99999999}.tar"), "a million");
  EXPECT_SAYS(list("{0..999}{0..999}{0..999}.tar"), "a million");
  std::string many;
  for (int i = 0; i < 1000; ++i) many += "{a,b}";
  EXPECT_SAYS(list(many), "too many braces");
  shard("shards/b.tar", 0, 1), shard("shards/a.tar", 1, 1);
  EXPECT_EQ(list(path("shards")), (std::vector<std::string>{path("shards/a.tar"), path("shards/b.tar")}));
  fs::create_directory(path("none"));
  EXPECT_SAYS(list(path("none")), "without .tar files");
  EXPECT_SAYS(Tars(path("shards") + "/{a..c}.tar"), "no such tar file");
  EXPECT_SAYS(Tars(path("shards") + "/{a,b,c}.tar"), "c.tar");
}

TEST_F(TarsTest, PairsAreThoseOfTheShards) {
  TRIREME_NEEDS("PNG");
  shard("s/0.tar", 0, 100), shard("s/1.tar", 100, 140);
  const Tars pairs(path("s/{0..1}.tar"));
  ASSERT_EQ(pairs.size(), 240);
  EXPECT_FALSE(pairs.index().from_cache());
  std::set<std::int64_t> all;
  for (const auto id : pairs.train_ids()) {
    EXPECT_FALSE(caption_held_out(pairs.caption(id)));
    all.insert(id);
  }
  for (const auto id : pairs.held_out_ids()) {
    EXPECT_TRUE(caption_held_out(pairs.caption(id)));
    all.insert(id);
  }
  EXPECT_EQ(all.size(), 240u);
  EXPECT_FALSE(pairs.held_out_ids().empty());
  EXPECT_EQ(pairs.train_ids(1).size() * 2, pairs.train_ids().size());
  for (std::int64_t id = 0; id < 240; ++id) {
    EXPECT_EQ(pairs.caption(id), "picture number " + std::to_string(id / 2));
    EXPECT_EQ(pairs.caption_id(id), id / 2 * 2);
    EXPECT_EQ(pairs.class_id(id), id % 3);
    const Picture p = pairs.picture(id);
    const std::string file = png(int(id), 8);
    ASSERT_EQ(p.pixels.rgb, decode_image(Bytes(file.begin(), file.end()), "x").rgb) << id;
  }
  EXPECT_EQ(pairs.classes(), (std::vector<std::string>{"0", "1", "2"}));
  EXPECT_SAYS(pairs.caption(240), "has no sample 240");
  EXPECT_SAYS(pairs.caption(-1), "has no sample -1");
}

TEST_F(TarsTest, MoreShardsThanMayBeOpen) {
  TRIREME_NEEDS("PNG");
  for (int i = 0; i < 300; ++i) shard("many/" + std::to_string(1000 + i) + ".tar", i, 1);
  const Tars pairs(path("many"));
  ASSERT_EQ(pairs.size(), 300);
  // Several threads, each with an order of its own, through a ring of 256 files.
  std::atomic<int> wrong{0};
  {
    std::vector<std::jthread> pool;
    for (int t = 0; t < 4; ++t)
      pool.emplace_back([&, t] {
        for (const auto id : permutation(300, Rng(1, "order", std::uint64_t(t)))) {
          wrong += pairs.caption(id) != "picture number " + std::to_string(id / 2);
          wrong += pairs.picture(id).width != 8;
        }
      });
  }
  EXPECT_EQ(wrong, 0);
  const auto open = std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
  EXPECT_LT(open, 290);
}

TEST_F(TarsTest, TheIndexIsKeptAndKnowsItsFiles) {
  const std::string a = shard("a.tar", 0, 50), b = shard("b.tar", 50, 50);
  const std::string list = a + "::" + b;
  const Tars first(list);
  const auto same = [&](const Tars& other) {
    ASSERT_EQ(other.size(), first.size());
    EXPECT_EQ(std::memcmp(other.index().rows().data(), first.index().rows().data(), 32 * 100), 0);
    EXPECT_EQ(other.identity(), first.identity());
    EXPECT_EQ(other.held_out_ids(), first.held_out_ids());
  };
  EXPECT_FALSE(first.index().from_cache());
  const Tars again(list);
  EXPECT_TRUE(again.index().from_cache());
  same(again);
  const std::string folder = path("cache/trireme/data");
  const fs::path kept = fs::directory_iterator(folder)->path();
  const std::string bytes = read_text(kept);
  for (const std::size_t at : {std::size_t(3), std::size_t(20), std::size_t(64), bytes.size() - 40, bytes.size() - 1}) {
    std::string damaged = bytes;
    damaged[at] ^= 4;
    fs::remove(kept);  // `again` may still look at the old one
    write_text(kept, damaged);
    const Tars mended(list);
    EXPECT_FALSE(mended.index().from_cache()) << at;
    same(mended);
  }
  for (const std::size_t size : {std::size_t(0), std::size_t(63), bytes.size() / 2}) {
    fs::remove(kept);
    write_text(kept, bytes.substr(0, size));
    same(Tars(list));
  }
  // One thread or several, in a cache that cannot be written, at another place.
  for (const int threads : {1, 2, 5}) {
    fs::remove_all(folder);
    TarsOptions options;
    options.threads = threads;
    same(Tars(list, options));
  }
  fs::remove_all(path("cache"));
  write_text(path("cache"), "a file");
  same(Tars(list));
  fs::create_directory(path("moved"));
  for (const std::string name : {"a.tar", "b.tar"}) fs::copy(path(name), path("moved/" + name));
  same(Tars(path("moved")));
  EXPECT_NE(Tars(b + "::" + a).identity(), first.identity());
  shard("b.tar", 51, 50);
  EXPECT_NE(Tars(list).identity(), first.identity()) << "a shard was replaced";
  EXPECT_SAYS((fs::resize_file(b, 1024), first.picture(60)), "b.tar: has changed");
}

TEST_F(TarsTest, SamplesKeepTheirOwnNumbers) {
  const std::string a = shard("a.tar", 0, 30), b = shard("b.tar", 40, 20);
  TarsOptions options;
  options.index_key = "key";
  const Tars there(a + "::" + b, options), back(b + "::" + a, options);
  EXPECT_EQ(there.size(), 100);
  EXPECT_EQ(there.train_ids(), back.train_ids());
  EXPECT_EQ(there.held_out_ids(), back.held_out_ids());
  EXPECT_EQ(there.train_ids().size() + there.held_out_ids().size(), 50u);
  for (const auto id : there.train_ids()) {
    EXPECT_EQ(there.caption(id), back.caption(id));
    EXPECT_EQ(there.caption(id), "picture number " + std::to_string((99 - id) / 2));
  }
  EXPECT_SAYS(there.caption(65), "has no sample 65");
  EXPECT_SAYS(Tars(a + "::" + a, options), "two samples have the number");
  options.index_key = "nothing";
  EXPECT_SAYS(Tars(a, options), "no number `nothing`");
  const std::string far = shard("far.tar", 0, 2, [](TarWriter& tar) {
    tar.add("x.png", png(1)), tar.add("x.txt", "far"), tar.add("x.json", "{\"key\": \"4000000000\"}");
  });
  options.index_key = "key";
  EXPECT_SAYS(Tars(far, options), "its largest number is 4000000000");
}

TEST_F(TarsTest, BrokenSamplesAreCountedAndNamed) {
  const std::string odd = shard("odd.tar", 0, 90, [](TarWriter& tar) {
    tar.add("a.png", png(1)), tar.add("b.txt", "no picture"), tar.add("c.png", ""), tar.add("c.txt", "empty");
    tar.add("d.png", png(1)), tar.add("d.json", "{\"caption\": \"from   json\"}");
    tar.add("e.png", png(1)), tar.add("e.json", "{\"caption\": 3}");
    tar.add("f.png", png(1)), tar.add("f.txt", " \n"), tar.add("g.png", png(1)), tar.add("g.png", png(2));
    tar.add("h.png", png(1)), tar.add("h.txt", "h"), tar.add("h.cls", "many");
  });
  TarsOptions options;
  options.broken_share = 0.1;
  const Tars pairs(odd, options);
  EXPECT_EQ(pairs.size(), 91);
  EXPECT_EQ(pairs.caption(90), "from json");
  EXPECT_EQ(pairs.index().broken().count(), 7);
  for (const char* part : {"7 of 98", "`a` has no caption", "`b` has no picture", "`c` has a picture of 0",
                           "`e` has no", "`f` has no caption", "`g` has two members", "`h` has a .cls"})
    EXPECT_NE(pairs.notes().at(0).find(part), std::string::npos) << part << "\n" << pairs.notes()[0];
  EXPECT_EQ(Tars(odd, options).notes(), pairs.notes()) << "from the cache";
  options.broken_share = 0.05;
  EXPECT_SAYS(Tars(odd, options), "data.broken_share");
  // A shard that is cut short keeps what is whole; others are not touched.
  const std::string good = shard("good.tar", 0, 100), cut = shard("cut.tar", 100, 100);
  fs::resize_file(cut, fs::file_size(cut) / 2 / 512 * 512 + 100);
  const Tars rest(good + "::" + cut);
  EXPECT_GE(rest.size(), 148);
  EXPECT_LT(rest.size(), 152);
  EXPECT_EQ(rest.index().broken().count(), 0);
  for (const auto& note : {rest.notes(), Tars(good + "::" + cut).notes()})  // read, and from the cache
    for (const char* part : {"a tar is damaged", "cut.tar: cut short", "at byte", "copy the tar again"})
      EXPECT_NE(note.at(0).find(part), std::string::npos) << part << "\n" << note[0];
  options = {}, options.whole = true;
  EXPECT_SAYS(Tars(good + "::" + cut, options), "cut.tar: cut short");
  options.whole = false, options.broken_share = 0;
  EXPECT_SAYS(Tars(good + "::" + cut, options), "data.broken_share");
  EXPECT_EQ(rest.caption(140), "picture number 70");
  write_text(path("no.tar"), std::string(2000, 'x'));
  EXPECT_SAYS(Tars(good + "::" + path("no.tar")), "no.tar: is no tar file");
  write_text(path("empty.tar"), "");
  EXPECT_SAYS(Tars(path("empty.tar")), "holds no samples");
  BrokenSamples later;
  for (int i = 0; i < 25; ++i) later.add("x.tar: `" + std::to_string(i) + "`");
  EXPECT_EQ(later.first().size(), 10u);
  EXPECT_NO_THROW(later.check(0.01, 2500, "x"));
  EXPECT_SAYS(later.check(0.01, 2499, "x"), "25 of 2499");
}

std::ptrdiff_t open_tars_in(const std::string& folder) {
  std::ptrdiff_t n = 0;
  for (const auto& entry : fs::directory_iterator("/proc/self/fd")) {
    std::error_code error;
    n += fs::read_symlink(entry, error).string().starts_with(folder);
  }
  return n;
}

TEST_F(TarsTest, AnEmptyNameIsTold) {
  const std::string a = shard("a.tar", 0, 3);
  for (const std::string& list : {a + "::", "::" + a, a + "::::" + a}) EXPECT_SAYS(list_tars(list), a);
  EXPECT_SAYS(list_tars(a + "::"), "without a name");
  EXPECT_SAYS(list_tars("{," + a + "}"), "without a name");
  EXPECT_SAYS(list_tars(""), "data.file: ");
}

TEST_F(TarsTest, IndexingTellsHowFarItIs) {
  std::string list;
  for (int i = 0; i < 5; ++i) list += (i ? "::" : "") + shard("p" + std::to_string(i) + ".tar", 3 * i, 3);
  std::mutex mutex;
  std::multiset<std::size_t> told;
  TarsOptions options;
  options.progress = [&](std::size_t done, std::size_t shards) {
    const std::lock_guard lock(mutex);
    told.insert(done);
    EXPECT_EQ(shards, 5u);
  };
  const Tars first(list, options), cached(list, options);
  EXPECT_EQ(told.size(), 5u) << "and nothing from the cache";
  EXPECT_TRUE(told.contains(5));
}

TEST_F(TarsTest, AllSourcesShareTheOpenFiles) {
  std::vector<std::unique_ptr<Tars>> sources;
  const int each = 40, count = 4;
  for (int s = 0; s < count; ++s) {
    const std::string folder = "many" + std::to_string(s);
    for (int i = 0; i < each; ++i) shard(folder + "/" + std::to_string(100 + i) + ".tar", 2 * (each * s + i), 2);
    sources.push_back(std::make_unique<Tars>(path(folder)));
  }
  rlimit old{}, low{};
  getrlimit(RLIMIT_NOFILE, &old);
  low = old, low.rlim_cur = 64 + 60;  // 31 of them for tars
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  const std::string said = error_of([&] {
    for (int round = 0; round < 2; ++round)
      for (std::int64_t i = 0; i < 2 * each; ++i)
        for (int s = 0; s < count; ++s)
          EXPECT_EQ(sources[std::size_t(s)]->picture(i).pixels.rgb, sources[std::size_t(s)]->picture(i).pixels.rgb);
  });
  setrlimit(RLIMIT_NOFILE, &old);
  const auto open = open_tars_in(path("many"));
  std::vector<std::unique_ptr<TarFile>> held;
  setrlimit(RLIMIT_NOFILE, &low);
  const std::string few = error_of([&] {
    for (int i = 0; i < 200; ++i) held.push_back(std::make_unique<TarFile>(path("many0/100.tar")));
  });
  setrlimit(RLIMIT_NOFILE, &old);
  EXPECT_EQ(said, "nothing thrown");
  EXPECT_EQ(open, 31) << "as many as may be";
  EXPECT_NE(few.find("ulimit -n"), std::string::npos) << few;
}

TEST_F(TarsTest, WebP) {
  TRIREME_NEEDS("WebP");
  // 5 x 4 pixels of (50 x, 60 y, 30 x y), the first column half transparent: Pillow's lossless file.
  const std::string hex =
      "5249464632000000574542505650384c260000002f04c00010b93244f43f7611d1ff301064db0cecfe6877e8c88c878024f179f43ce2aa30"
      "243c";
  std::string file;
  for (std::size_t i = 0; i < hex.size(); i += 2) file += char(std::stoi(hex.substr(i, 2), nullptr, 16));
  TarWriter tar(path("w.tar"));
  tar.add("a.webp", file), tar.add("a.txt", "webp"), tar.add("b.webp", file.substr(0, 40)), tar.add("b.txt", "cut");
  tar.add("c.webp", file.substr(0, 14)), tar.add("c.txt", "short");
  tar.close();
  const Tars pairs(path("w.tar"));
  const Picture p = pairs.picture(0);
  ASSERT_EQ(p.width, 5);
  ASSERT_EQ(p.height, 4);
  for (int y = 0; y < 4; ++y)
    for (int x = 1; x < 5; ++x) {
      const auto* c = p.pixels.rgb.data() + 3 * (5 * y + x);
      EXPECT_TRUE(c[0] == x * 50 && c[1] == y * 60 && c[2] == x * y * 30 % 256) << x << " " << y;
    }
  EXPECT_EQ(p.pixels.rgb[0], 127) << "black, half transparent, over white";
  EXPECT_THROW(pairs.picture(1), BrokenPicture);
  EXPECT_THROW(pairs.picture(2), BrokenPicture);
  EXPECT_SAYS(pairs.picture(1), "`b.webp` in ");
}

TEST_F(TarsTest, TestSetsOfClipBenchmark) {
  const auto text = [&](const std::string& name, const std::string& words) {
    fs::create_directories(fs::path(path(name)).parent_path());
    write_text(path(name), words);
  };
  shard("set/test/0.tar", 0, 7), shard("set/test/1.tar", 7, 5);
  text("set/test/nshards.txt", "2\n");
  text("set/classnames.txt", "a cat\n dog \nthe  bird\n\n");
  text("set/zeroshot_classification_templates.txt", "a photo of a {c}.\na {c}\n");
  const EvalSet set = open_eval_set(path("set"));
  EXPECT_FALSE(set.retrieval);
  EXPECT_EQ(set.name, "set");
  EXPECT_EQ(set.pairs->size(), 12);
  EXPECT_EQ(set.classes, (std::vector<std::string>{"a cat", "dog", "the  bird"}));
  EXPECT_EQ(set.templates, (std::vector<std::string>{"a photo of a {c}.", "a {c}"}));
  for (std::int64_t i = 0; i < 12; ++i) EXPECT_EQ(set.pairs->class_id(i), i % 3);
  EXPECT_EQ(open_eval_set(path("set/test")).folder, set.folder);
  EXPECT_TRUE(is_eval_set(path("set")));
  EXPECT_FALSE(is_eval_set(path("")));

  fs::create_directories(path("coco/test"));
  TarWriter tar(path("coco/test/0.tar"));
  tar.add("1.png", png(1)), tar.add("1.txt", "one caption\n another  \r\n\nthird"), tar.add("2.png", png(2));
  tar.add("2.txt", "alone");
  tar.close();
  text("coco/test/nshards.txt", "1"), text("coco/dataset_type.txt", "Retrieval\n");
  const EvalSet coco = open_eval_set(path("coco"));
  EXPECT_TRUE(coco.retrieval);
  EXPECT_EQ(coco.captions, (std::vector<std::vector<std::string>>{{"one caption", " another  ", "third"}, {"alone"}}));

  fs::create_directories(path("json/test"));
  TarWriter json(path("json/test/0.tar"));
  json.add("1.png", png(1)), json.add("1.json", "{\"caption\": \"of a  json\", \"key\": 7}");
  json.add("2.png", png(2)), json.add("2.txt", "a line\nanother"), json.add("2.json", "{\"caption\": \"x\"}");
  json.close();
  text("json/test/nshards.txt", "1"), text("json/dataset_type.txt", "retrieval");
  EXPECT_EQ(open_eval_set(path("json")).captions,
            (std::vector<std::vector<std::string>>{{"of a json"}, {"a line", "another"}}));

  text("set/classnames.txt", "a cat\n");
  EXPECT_SAYS(open_eval_set(path("set")), "classnames.txt");
  text("set/test/nshards.txt", "-3");
  EXPECT_SAYS(open_eval_set(path("set")), "nshards.txt");
  text("set/test/nshards.txt", "3");
  EXPECT_SAYS(open_eval_set(path("set")), "2.tar");
  EXPECT_SAYS(open_eval_set(path("nowhere")), "nshards.txt");
}

}  // namespace
}  // namespace trireme::test
