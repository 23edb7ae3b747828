#include "data/hdf5.h"

#include "comm/error.h"

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <cstring>
#include <fstream>
#include <numeric>
#include <thread>

#include <gtest/gtest.h>

#include <hdf5.h>
#include <sys/resource.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

class Hdf5 : public testing::Test {
 protected:
  Hdf5() {
    std::string name = (fs::temp_directory_path() / "trireme-hdf5-XXXXXX").string();
    dir = mkdtemp(name.data());
  }
  ~Hdf5() override { fs::remove_all(dir); }
  std::string path(const char* name) const { return (dir / name).string(); }
  fs::path dir;
};

std::string bytes_of(const std::string& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void write_bytes(const std::string& file, const std::string& bytes) { std::ofstream(file, std::ios::binary) << bytes; }

template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const DataError& e) {
    return e.what();
  }
  return "no error";
}

TEST_F(Hdf5, EveryDtypeComesBackBitForBit) {
  const std::vector<DType> dtypes = {DType::f64, DType::f32, DType::f16, DType::bf16,
                                     DType::i64, DType::i32, DType::u8};
  const std::vector<std::int64_t> shape = {5, 3};
  std::vector<unsigned char> bytes(15 * 8);
  for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i * 37 + 11);
  {
    auto f = Hdf5File::create(path("a.h5"));
    for (DType t : dtypes) {
      const std::string name = "group/t" + std::to_string(int(t));
      f.create_array(name, t, shape);
      f.write_rows(name, 0, 5, bytes.data());
    }
    f.close();
  }
  auto f = Hdf5File::open(path("a.h5"));
  EXPECT_EQ(f.names().size(), dtypes.size());
  for (DType t : dtypes) {
    const std::string name = "group/t" + std::to_string(int(t));
    EXPECT_EQ(f.array(name).dtype, t);
    EXPECT_EQ(f.array(name).shape, shape);
    std::vector<unsigned char> back(15 * size_of(t));
    f.read_rows(name, 0, 5, back.data());
    EXPECT_TRUE(std::equal(back.begin(), back.end(), bytes.begin())) << name;
  }
}

TEST_F(Hdf5, RowsAreGatheredInTheCallersOrderWithRepeats) {
  std::vector<std::int32_t> all(1000 * 4);
  std::iota(all.begin(), all.end(), 0);
  {
    auto f = Hdf5File::create(path("a.h5"));
    f.create_array("x", DType::i32, std::vector<std::int64_t>{1000, 4}, 7);
    f.write_rows("x", 0, 501, all.data());
    f.write_rows("x", 501, 499, all.data() + 501 * 4);
    f.close();
  }
  auto f = Hdf5File::open(path("a.h5"));
  const std::vector<std::int64_t> rows = {999, 3, 4, 5, 3, 0, 500, 501, 999, 6};
  std::vector<std::int32_t> out(rows.size() * 4, -1);
  f.read_rows("x", rows, out.data());
  for (std::size_t i = 0; i < rows.size(); ++i)
    for (int j = 0; j < 4; ++j) EXPECT_EQ(out[i * 4 + j], rows[i] * 4 + j);
  EXPECT_THROW(f.read_rows("x", std::vector<std::int64_t>{1000}, out.data()), DataError);
  EXPECT_THROW(f.read_rows("x", std::vector<std::int64_t>{-1}, out.data()), DataError);
  EXPECT_THROW(f.read_rows("x", 999, 2, out.data()), DataError);
}

TEST_F(Hdf5, EmptyArraysScalarsAndTexts) {
  const std::string text("line\n\0utf-8 \xc3\xa9", 14);
  double scalar = 2.5, back = 0;
  {
    auto f = Hdf5File::create(path("a.h5"));
    f.create_array("empty", DType::f32, std::vector<std::int64_t>{0, 7});
    f.write_rows("empty", 0, 0, nullptr);
    f.create_array("flat", DType::f32, std::vector<std::int64_t>{3, 0});
    f.write_rows("flat", 0, 3, nullptr);
    f.create_array("scalar", DType::f64, {});
    f.write_rows("scalar", 0, 1, &scalar);
    f.write_text("text", text);
    f.write_text("nothing", "");
    f.close();
  }
  auto f = Hdf5File::open(path("a.h5"));
  EXPECT_EQ(f.names(), (std::vector<std::string>{"empty", "flat", "nothing", "scalar", "text"}));
  EXPECT_EQ(f.array("empty").shape, (std::vector<std::int64_t>{0, 7}));
  EXPECT_TRUE(f.array("scalar").shape.empty());
  f.read_rows("scalar", 0, 1, &back);
  f.read_rows("flat", 0, 3, nullptr);
  EXPECT_EQ(back, scalar);
  EXPECT_EQ(f.read_text("text"), text);
  EXPECT_EQ(f.read_text("nothing"), "");
}

TEST_F(Hdf5, TheSameContentGivesTheSameBytes) {
  const auto write = [&](const char* name) {
    auto f = Hdf5File::create(path(name));
    const std::vector<float> x(100, 1.5f);
    f.create_array("a/b/x", DType::f32, std::vector<std::int64_t>{100});
    f.write_rows("a/b/x", 0, 100, x.data());
    f.write_text("t", "hello");
    f.close();
  };
  write("a.h5");
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));  // object times have seconds
  write("b.h5");
  EXPECT_TRUE(bytes_of(path("a.h5")) == bytes_of(path("b.h5")));
}

TEST_F(Hdf5, AnImageEqualsTheFile) {
  const std::vector<float> x(10, 1.5f);
  const auto fill = [&](Hdf5File& f) {
    f.create_array("x", DType::f32, std::vector<std::int64_t>{10});
    f.write_rows("x", 0, 10, x.data());
  };
  auto memory = Hdf5File::create_in_memory("rank_00000.h5");
  fill(memory);
  const auto image = memory.image();
  memory.close();
  write_bytes(path("a.h5"), std::string(reinterpret_cast<const char*>(image.data()), image.size()));
  for (int from_disk = 0; from_disk < 2; ++from_disk) {
    auto f = from_disk ? Hdf5File::open(path("a.h5")) : Hdf5File::open_image("rank_00000.h5", image);
    std::vector<float> back(10);
    f.read_rows("x", 0, 10, back.data());
    EXPECT_EQ(back, x);
  }
}

// An image is read where it is; what is not one piece of it has to be copied out.
TEST_F(Hdf5, ArraysInOnePieceLieInTheirImage) {
  std::vector<float> x(3000);
  std::iota(x.begin(), x.end(), 1.f);
  auto memory = Hdf5File::create_in_memory("rank_00000.h5");
  const std::vector<std::int64_t> shape = {1000, 3}, none = {0, 3};
  memory.create_array("chunked", DType::f32, shape);
  memory.create_plain_array("plain", DType::f32, shape);
  memory.create_plain_array("empty", DType::f32, none);
  memory.create_plain_array("scalar", DType::f32, std::vector<std::int64_t>{});
  for (const char* name : {"chunked", "plain"}) memory.write_rows(name, 0, 1000, x.data());
  memory.write_rows("scalar", 0, 1, x.data());
  const auto image = memory.image();
  const auto file = Hdf5File::open_image("rank_00000.h5", image);
  const std::byte* there = file.in_image("plain", 12000);
  ASSERT_TRUE(there && there >= image.data() && there + 12000 <= image.data() + image.size());
  EXPECT_EQ(std::memcmp(there, x.data(), 12000), 0);
  EXPECT_FALSE(file.in_image("chunked", 12000));
  EXPECT_FALSE(file.in_image("empty", 0));
  EXPECT_FALSE(file.in_image("plain", image.size()));
  for (const char* name : {"chunked", "plain"}) {
    std::vector<float> back(3000);
    file.read_rows(name, 0, 1000, back.data());
    EXPECT_EQ(back, x) << name;
  }
  float scalar = 0;
  file.read_rows("scalar", 0, 1, &scalar);
  EXPECT_EQ(scalar, 1.f);
}

TEST_F(Hdf5, MissingForeignAndTruncatedFilesAreNamed) {
  EXPECT_NE(error_of([&] { Hdf5File::open(path("none.h5")); }).find("No such file"), std::string::npos);
  write_bytes(path("foreign.h5"), std::string(5000, 'x'));
  const auto foreign = error_of([&] { Hdf5File::open(path("foreign.h5")); });
  EXPECT_NE(foreign.find("foreign.h5: cannot open: not an HDF5 file"), std::string::npos) << foreign;
  write_bytes(path("empty.h5"), "");
  EXPECT_NE(error_of([&] { Hdf5File::open(path("empty.h5")); }), "no error");
  EXPECT_NE(error_of([&] { Hdf5File::create(path("no/such/dir.h5")); }).find("No such file"), std::string::npos);
}

// Damage anywhere is either refused or harmless: no crash, and no wrong value passes for a right one.
TEST_F(Hdf5, DamageNeverPassesUnseen) {
  std::vector<float> x(4096);
  std::iota(x.begin(), x.end(), 1.f);
  {
    auto f = Hdf5File::create(path("a.h5"));
    f.create_array("x", DType::f32, std::vector<std::int64_t>{4096}, 512);
    f.write_rows("x", 0, 4096, x.data());
    f.close();
  }
  const std::string good = bytes_of(path("a.h5"));
  const auto read = [&] {
    auto f = Hdf5File::open(path("b.h5"));
    if (f.array("x").dtype != DType::f32 || f.array("x").shape != std::vector<std::int64_t>{4096})
      throw DataError("x", "other shape");
    std::vector<float> back(4096);
    f.read_rows("x", 0, 4096, back.data());
    EXPECT_EQ(back, x);
  };
  int refused = 0, tried = 0;
  for (std::size_t at = 0; at < good.size(); at += 61, ++tried) {
    std::string bad = good;
    bad[at] = char(bad[at] ^ 0x10);
    write_bytes(path("b.h5"), bad);
    refused += error_of(read) != "no error";
  }
  EXPECT_GT(refused, tried * 8 / 10);
  for (std::size_t size = 0; size < good.size(); size += 997) {
    write_bytes(path("b.h5"), good.substr(0, size));
    EXPECT_NE(error_of(read), "no error") << size;
  }
  std::string bad = good;
  const auto at = bad.find(std::string(reinterpret_cast<const char*>(&x[700]), 8));
  ASSERT_NE(at, bad.npos);
  bad[at] = char(bad[at] ^ 1);
  write_bytes(path("b.h5"), bad);
  const auto message = error_of(read);
  EXPECT_NE(message.find("b.h5: x: cannot read"), std::string::npos) << message;
  EXPECT_NE(message.find("letcher32"), std::string::npos) << message;
}

TEST_F(Hdf5, AFullDiskIsReportedFromCloseOrBefore) {
  // A file size limit fails the write like a full disk does, without needing one.
  struct rlimit old;
  getrlimit(RLIMIT_FSIZE, &old);
  auto previous = std::signal(SIGXFSZ, SIG_IGN);
  struct rlimit small = {64 << 10, old.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::vector<float> x(1 << 20, 1.f);
  const auto message = error_of([&] {
    auto f = Hdf5File::create(path("a.h5"));
    f.create_array("x", DType::f32, std::vector<std::int64_t>{1 << 20});
    f.write_rows("x", 0, 1 << 20, x.data());
    f.close();
  });
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, previous);
  EXPECT_NE(message.find("a.h5"), std::string::npos) << message;
  EXPECT_NE(message.find("File too large"), std::string::npos) << message;
}

TEST_F(Hdf5, BadUseIsRefused) {
  auto f = Hdf5File::create(path("a.h5"));
  f.create_array("x", DType::f32, std::vector<std::int64_t>{4});
  EXPECT_THROW(f.create_array("x", DType::f32, std::vector<std::int64_t>{4}), DataError);
  EXPECT_THROW(f.create_array("x/y", DType::f32, std::vector<std::int64_t>{4}), DataError);
  EXPECT_THROW(f.create_array("", DType::f32, {}), DataError);
  EXPECT_THROW(f.create_array("a//b", DType::f32, {}), DataError);
  EXPECT_THROW(f.create_array("n", DType::f32, std::vector<std::int64_t>{-4}), DataError);
  EXPECT_THROW(f.array("y"), DataError);
  EXPECT_FALSE(f.has("y"));
  EXPECT_FALSE(f.has("x/y/z"));
  EXPECT_TRUE(f.has("x"));
  EXPECT_THROW(f.read_text("x"), DataError);
  f.close();
  EXPECT_THROW(f.array("x"), DataError);
}

// A file from elsewhere must not make another file's bytes look like its own.
TEST_F(Hdf5, WhatLiesInAnotherFileIsNotRead) {
  const std::vector<std::int64_t> shape = {4};
  for (const char* name : {"a.h5", "other.h5"}) {
    auto f = Hdf5File::create(path(name));
    f.create_array("x", DType::u8, shape);
    f.write_rows("x", 0, 4, "1234");
    f.close();
  }
  write_bytes(path("raw"), "5678");
  const hid_t file = H5Fopen(path("a.h5").c_str(), H5F_ACC_RDWR, H5P_DEFAULT);
  ASSERT_GE(H5Lcreate_soft("x", file, "soft", H5P_DEFAULT, H5P_DEFAULT), 0);
  ASSERT_GE(H5Lcreate_external(path("other.h5").c_str(), "x", file, "outside", H5P_DEFAULT, H5P_DEFAULT), 0);
  const hsize_t four = 4;
  const hid_t space = H5Screate_simple(1, &four, nullptr), list = H5Pcreate(H5P_DATASET_CREATE);
  ASSERT_GE(H5Pset_external(list, path("raw").c_str(), 0, 4), 0);
  const hid_t set = H5Dcreate2(file, "raw", H5T_STD_U8LE, space, H5P_DEFAULT, list, H5P_DEFAULT);
  ASSERT_GE(set, 0);
  H5Dclose(set), H5Pclose(list), H5Sclose(space), H5Fclose(file);
  const auto f = Hdf5File::open(path("a.h5"));
  EXPECT_TRUE(f.has("x"));
  for (const char* name : {"soft", "outside"}) {
    EXPECT_FALSE(f.has(name)) << name;
    EXPECT_THROW(f.array(name), DataError) << name;
  }
  EXPECT_NE(error_of([&] { f.array("raw"); }).find("its data lie in another file"), std::string::npos);
}

TEST_F(Hdf5, ThreadsShareTheLibrary) {
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&, t] {
      const auto file = path(("t" + std::to_string(t)).c_str());
      for (int round = 0; round < 5; ++round) {
        std::vector<std::int64_t> x(1000, t), back(1000);
        auto f = Hdf5File::create(file);
        f.create_array("x", DType::i64, std::vector<std::int64_t>{1000});
        f.write_rows("x", 0, 1000, x.data());
        f.close();
        Hdf5File::open(file).read_rows("x", 0, 1000, back.data());
        EXPECT_EQ(back, x);
      }
    });
  for (auto& t : threads) t.join();
}

}  // namespace
}  // namespace trireme
