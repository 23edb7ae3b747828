#include "data/loader.h"

#include "comm/error.h"

#include <atomic>
#include <chrono>
#include <cstring>
#include <map>
#include <numeric>
#include <thread>

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <gtest/gtest.h>

namespace {

using namespace trireme;

// Column "x" is the id, "epoch" the epoch it was read in.
class Numbers : public Dataset {
 public:
  explicit Numbers(std::int64_t n, std::int64_t bad = -1) : n_(n), bad_(bad) {}
  std::int64_t size() const override { return n_; }
  Batch read(std::span<const std::int64_t> ids, std::int64_t epoch) const override {
    ++reads;
    Batch b;
    b.ids.assign(ids.begin(), ids.end());
    at::Tensor x = at::empty({std::int64_t(ids.size())}, at::kLong);
    auto* p = static_cast<std::int64_t*>(x.mutable_data_ptr());
    for (std::size_t i = 0; i < ids.size(); ++i) {
      if (ids[i] == bad_) throw DataError("numbers.h5", "row " + std::to_string(bad_) + " is corrupt", "prepare again");
      p[i] = ids[i] + 1000 * epoch;
    }
    b.columns["x"] = x;
    return b;
  }
  mutable std::atomic<int> reads{0};

 private:
  std::int64_t n_, bad_;
};

// Holds what is saved, by name.
class MemoryArchive : public Archive {
 public:
  bool loading() const override { return load; }
  void array(std::string_view name, DType dtype, std::span<const std::int64_t> shape, void* data, Sharing) override {
    std::size_t bytes = size_of(dtype);
    for (auto s : shape) bytes *= std::size_t(s);
    auto& stored = values[full(name)];
    if (load)
      std::memcpy(data, stored.data(), bytes);
    else
      stored.assign(static_cast<char*>(data), static_cast<char*>(data) + bytes);
  }
  void text(std::string_view, std::string&, bool) override {}
  bool has(std::string_view name) const override { return values.contains(full(name)); }
  bool load = false;
  std::map<std::string, std::vector<char>> values;
};

std::vector<std::int64_t> iota(std::int64_t n, std::int64_t first = 0) {
  std::vector<std::int64_t> v(n);
  std::iota(v.begin(), v.end(), first);
  return v;
}

std::vector<std::int64_t> values(const Batch& b) {
  const at::Tensor& x = b.columns.at("x");
  const auto* p = static_cast<const std::int64_t*>(x.const_data_ptr());
  return {p, p + x.numel()};
}

TEST(Loader, RanksShareOneGlobalBatch) {
  const Numbers data(103);
  for (bool prefetch : {false, true}) {
    Loader whole(data, iota(103), 12, 0, 1, 7, {.prefetch = prefetch});
    EXPECT_EQ(whole.steps_per_epoch(), 8);
    std::vector<Batch> reference;
    for (int i = 0; i < 20; ++i) reference.push_back(whole.next());
    for (int size : {2, 4}) {
      std::vector<std::unique_ptr<Loader>> ranks;
      for (int r = 0; r < size; ++r)
        ranks.push_back(std::make_unique<Loader>(data, iota(103), 12, r, size, 7, LoaderOptions{.prefetch = prefetch}));
      for (const Batch& expected : reference) {
        std::vector<std::int64_t> joined, ids;
        for (auto& loader : ranks) {
          const Batch b = loader->next();
          EXPECT_EQ(b.global_ids, expected.global_ids);
          EXPECT_EQ(b.epoch, expected.epoch);
          EXPECT_EQ(b.index, expected.index);
          EXPECT_EQ(b.ids.size(), 12u / size);
          ids.insert(ids.end(), b.ids.begin(), b.ids.end());
          const auto v = values(b);
          joined.insert(joined.end(), v.begin(), v.end());
        }
        EXPECT_EQ(ids, expected.global_ids);
        EXPECT_EQ(joined, values(expected));
      }
    }
  }
}

TEST(Loader, EachSampleOnceAnEpochInANewOrder) {
  const Numbers data(200);
  Loader loader(data, iota(60, 100), 6, 0, 1, 3);
  std::vector<std::int64_t> first, second;
  for (int epoch = 0; epoch < 2; ++epoch) {
    auto& seen = epoch ? second : first;
    for (int i = 0; i < 10; ++i) {
      EXPECT_EQ(loader.epoch(), epoch);
      EXPECT_EQ(loader.batch_in_epoch(), i);
      const Batch b = loader.next();
      EXPECT_EQ(b.epoch, epoch);
      seen.insert(seen.end(), b.global_ids.begin(), b.global_ids.end());
      for (std::size_t k = 0; k < b.ids.size(); ++k) EXPECT_EQ(values(b)[k], b.ids[k] + 1000 * epoch);
    }
  }
  EXPECT_NE(first, second);
  EXPECT_NE(first, iota(60, 100));
  std::sort(first.begin(), first.end());
  std::sort(second.begin(), second.end());
  EXPECT_EQ(first, iota(60, 100));
  EXPECT_EQ(second, iota(60, 100));
}

TEST(Loader, DroppedRestDiffersByEpoch) {
  const Numbers data(10);
  Loader loader(data, iota(10), 7, 0, 1, 1);
  std::set<std::int64_t> seen;
  for (int i = 0; i < 12; ++i)
    for (auto id : loader.next().global_ids) seen.insert(id);
  EXPECT_EQ(seen.size(), 10u);  // every sample gets its turn
}

TEST(Loader, ResumesMidEpochOnAnyWorldSize) {
  const Numbers data(50);
  Loader straight(data, iota(50), 8, 0, 1, 11);
  std::vector<std::vector<std::int64_t>> expected;
  for (int i = 0; i < 20; ++i) expected.push_back(straight.next().global_ids);
  for (int stop : {0, 1, 5, 6, 7, 13})  // 6 batches an epoch: also at its end
    for (bool prefetch : {false, true})
      for (int size : {1, 2}) {
        MemoryArchive archive;
        {
          Loader before(data, iota(50), 8, 0, 1, 11, {.prefetch = prefetch});
          for (int i = 0; i < stop; ++i) before.next();
          if (prefetch) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // let it read ahead
          before.state(archive);
        }
        archive.load = true;
        Loader after(data, iota(50), 8, size - 1, size, 11, {.prefetch = prefetch});
        after.next();  // loading replaces a position already under way
        after.state(archive);
        for (int i = stop; i < 20; ++i) EXPECT_EQ(after.next().global_ids, expected[i]) << stop << " " << prefetch;
      }
}

TEST(Loader, OrderDependsOnSeedAlone) {
  const Numbers data(40);
  Loader a(data, iota(40), 10, 0, 2, 1), b(data, iota(40), 10, 0, 2, 1), c(data, iota(40), 10, 0, 2, 2);
  const auto ids = a.next().global_ids;
  EXPECT_EQ(ids, b.next().global_ids);
  EXPECT_NE(ids, c.next().global_ids);
  Loader plain(data, iota(40), 10, 0, 1, 5, {.shuffle = false});
  EXPECT_EQ(plain.next().global_ids, iota(10));
  EXPECT_EQ(plain.next().global_ids, iota(10, 10));
}

TEST(Loader, ReadErrorsSurfaceInNext) {
  const Numbers data(20, 13);
  for (bool prefetch : {false, true}) {
    Loader loader(data, iota(20), 2, 0, 1, 0, {.prefetch = prefetch, .shuffle = false});
    for (int i = 0; i < 6; ++i) EXPECT_EQ(loader.next().ids[0], 2 * i);
    for (int again = 0; again < 2; ++again) {
      try {
        loader.next();
        FAIL() << "no error";
      } catch (const DataError& e) {
        EXPECT_NE(std::string(e.what()).find("row 13"), std::string::npos);
      }
      EXPECT_EQ(loader.batch_in_epoch(), 6);
    }
  }
}

// Or two teams of threads would share the cores.
TEST(Loader, ReadsWithOneThreadBesideTraining) {
  class Asks : public Numbers {
   public:
    Asks() : Numbers(20) {}
    Batch read(std::span<const std::int64_t> ids, std::int64_t epoch) const override {
      threads = at::get_num_threads();
      return Numbers::read(ids, epoch);
    }
    mutable std::atomic<int> threads{0};
  } data;
  const int before = at::get_num_threads();
  at::set_num_threads(3);
  Loader(data, iota(20), 2, 0, 1, 0, {.prefetch = true}).next();
  EXPECT_EQ(data.threads, 1);
  EXPECT_EQ(at::get_num_threads(), 3) << "the reading thread's number is its own";
  at::set_num_threads(before);
}

TEST(Loader, ReadsAheadNoFurtherThanPromised) {
  const Numbers data(1000);
  Loader loader(data, iota(1000), 10, 0, 1, 0);
  loader.next();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (data.reads < 16 && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_GE(data.reads, 16);
  EXPECT_LE(data.reads, 17);  // one taken, sixteen ready
}

// 40 MiB a sample that nobody touches.
struct Large : Dataset {
  mutable std::atomic<int> reads{0};
  std::int64_t size() const override { return 100; }
  Batch read(std::span<const std::int64_t> ids, std::int64_t) const override {
    ++reads;
    Batch b;
    b.ids.assign(ids.begin(), ids.end());
    b.columns["x"] = at::empty({40 << 20}, at::kByte);
    return b;
  }
};

TEST(Loader, LargeBatchesAreNotHoarded) {
  const Large data;
  Loader loader(data, iota(100), 1, 0, 1, 0);
  for (int i = 0; i < 3; ++i) loader.next();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_LE(data.reads, 5);  // three taken, two ready
}

TEST(Loader, Mistakes) {
  const Numbers data(10);
  EXPECT_THROW(Loader(data, iota(10), 11, 0, 1, 0), UsageError);
  EXPECT_THROW(Loader(data, {}, 1, 0, 1, 0), UsageError);
  EXPECT_THROW(Loader(data, iota(11), 2, 0, 1, 0), DataError);
  EXPECT_THROW(Loader(data, iota(10), 5, 0, 2, 0), UsageError);
  EXPECT_THROW(Loader(data, iota(10), 0, 0, 1, 0), UsageError);
  EXPECT_THROW(Loader(data, iota(10), 4, 2, 2, 0), UsageError);
  MemoryArchive archive;
  Loader small(data, iota(10), 2, 0, 1, 0);
  for (int i = 0; i < 4; ++i) small.next();
  small.state(archive);
  archive.load = true;
  Loader large(data, iota(10), 5, 0, 1, 0);  // two batches an epoch: position 4 does not exist
  EXPECT_THROW(large.state(archive), DataError);
}

// What is peeked at is next, and a saved cursor does not count it as consumed.
TEST(Loader, PeekIsWhatComesNext) {
  const Numbers data(20);
  for (const bool prefetch : {false, true}) {
    Loader loader(data, iota(20), 4, 0, 1, 7, {.prefetch = prefetch});
    Loader same(data, iota(20), 4, 0, 1, 7, {.prefetch = false});
    for (int k = 0; k < 7; ++k) {
      const std::vector<std::int64_t> seen = loader.peek().ids, again = loader.peek().ids;
      EXPECT_EQ(seen, again);
      EXPECT_EQ(loader.batch_in_epoch(), same.batch_in_epoch());
      MemoryArchive saved;
      loader.state(saved);
      EXPECT_EQ(loader.next().ids, seen);
      EXPECT_EQ(seen, same.next().ids);
      saved.load = true;
      if (k == 2) {
        loader.peek();
        loader.state(saved);
        EXPECT_EQ(loader.next().ids, seen) << "a loaded cursor forgets what was peeked at";
      }
    }
  }
}

}  // namespace
