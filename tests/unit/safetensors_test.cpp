// The format's rules, the four historic bugs of C and C++ readers, mutated files, and upstream's verdicts.
#include "framework/formats/safetensors.h"

#include "comm/error.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <random>
#include <set>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <sys/stat.h>
#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;
using Shape = std::vector<std::int64_t>;

class SafetensorsTest : public testing::Test {
 protected:
  SafetensorsTest() {
    std::string pattern = fs::temp_directory_path() / "safetensors-XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  ~SafetensorsTest() override { fs::remove_all(folder_); }

  std::string path(const std::string& name = "x.safetensors") const { return folder_ / name; }
  std::string put(std::string_view bytes) const {
    std::ofstream(path(), std::ios::binary) << bytes;
    return path();
  }
  std::string bytes() const {
    std::ifstream in(path(), std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
  }
  // "" if the file is accepted, else the message, which must name the file.
  std::string refusal(std::string_view file) const {
    put(file);
    try {
      Safetensors(path()).names();
      return "";
    } catch (const DataError& e) {
      EXPECT_NE(std::string(e.what()).find(path()), std::string::npos) << e.what();
      EXPECT_LT(std::string_view(e.what()).size(), 600u);
      return e.what();
    }
  }

  fs::path folder_;
};

std::string little_endian(std::uint64_t n) {
  std::string s;
  for (int i = 0; i < 8; ++i) s += char(n >> (8 * i));
  return s;
}
std::string unhex(const std::string& hex) {
  std::string s;
  for (std::size_t i = 0; i < hex.size(); i += 2) s += char(std::stoi(hex.substr(i, 2), nullptr, 16));
  return s;
}
std::string file_of(const std::string& header, std::size_t data_bytes) {
  return little_endian(header.size()) + header + std::string(data_bytes, '\0');
}
// A file with one tensor of these fields.
std::string one(const std::string& dtype, const std::string& shape, const std::string& offsets,
                std::size_t data_bytes) {
  return file_of(R"({"t":{"dtype":")" + dtype + R"(","shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}",
                 data_bytes);
}
std::string entry(const std::string& name, int elements, int begin, int end) {
  return "\"" + name + R"(":{"dtype":"F32","shape":[)" + std::to_string(elements) + R"(],"data_offsets":[)" +
         std::to_string(begin) + "," + std::to_string(end) + "]}";
}

// For comparisons in which NaN equals itself.
std::string_view bytes_of(const at::Tensor& t) { return {static_cast<const char*>(t.const_data_ptr()), t.nbytes()}; }

void expect_same(const at::Tensor& a, const at::Tensor& b) {
  EXPECT_EQ(a.scalar_type(), b.scalar_type());
  EXPECT_EQ(a.sizes(), b.sizes());
  EXPECT_TRUE(at::equal(a, b));
}

std::vector<NamedTensor> every_dtype() {
  const auto values = at::tensor({1.0, 0.0, -3.0}, at::kDouble);
  std::vector<NamedTensor> all;
  for (const auto type :
       {at::kDouble, at::kFloat, at::kHalf, at::kBFloat16, at::kLong, at::kInt, at::kShort, at::kChar, at::kBool})
    all.push_back({c10::toString(type), values.to(type)});
  all.push_back({"Byte", at::arange(256, at::kByte)});
  all.push_back({"scalar", at::scalar_tensor(2.5)});
  all.push_back({"empty", at::empty({0, 4})});
  all.push_back({"empty too", at::empty({2, 0}, at::kLong)});
  return all;
}

TEST_F(SafetensorsTest, RoundTripOfEveryDtypeAndShape) {
  const auto all = every_dtype();
  const std::map<std::string, std::string> metadata = {{"format", "pt"}, {"note", "é\n\"quoted\""}, {"", ""}};
  write_safetensors(path(), all, metadata);
  const Safetensors file(path());
  EXPECT_EQ(file.metadata(), metadata);
  EXPECT_EQ(file.names().size(), all.size());
  for (const auto& [name, tensor] : all) {
    EXPECT_TRUE(file.has(name));
    expect_same(file.tensor(name), tensor);
  }
  EXPECT_FALSE(file.has("absent"));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1) << "the temporary file is still there";
}

TEST_F(SafetensorsTest, StridedAndSharedTensorsAreWrittenAsTheyLook) {
  const auto base = at::arange(12, at::kFloat).view({3, 4});
  const std::vector<NamedTensor> views = {
      {"t", base.t()}, {"column", base.select(1, 2)}, {"expanded", base.select(0, 1).expand({2, 4})}, {"base", base}};
  write_safetensors(path(), views);
  const Safetensors file(path());
  for (const auto& [name, tensor] : views) expect_same(file.tensor(name), tensor);
}

// serialize() of the Python package 0.8.0 for the same tensors.
TEST_F(SafetensorsTest, BytesAreThoseOfUpstreamsWriter) {
  const std::string expected =
      unhex("a802000000000000") +
      std::string(R"({"__metadata__":{"format":"pt"},")"
                  R"(count":{"dtype":"I64","shape":[],"data_offsets":[0,8]},")"
                  R"(wide":{"dtype":"F64","shape":[1],"data_offsets":[8,16]},")"
                  R"(été":{"dtype":"F32","shape":[2,2],"data_offsets":[16,32]},")"
                  R"(i32":{"dtype":"I32","shape":[1],"data_offsets":[32,36]},")"
                  R"(brain":{"dtype":"BF16","shape":[1],"data_offsets":[36,38]},")"
                  R"(half":{"dtype":"F16","shape":[3],"data_offsets":[38,44]},")"
                  R"(i16":{"dtype":"I16","shape":[1],"data_offsets":[44,46]},")"
                  R"(i8":{"dtype":"I8","shape":[1],"data_offsets":[46,47]},")"
                  R"(tab\there\u0001":{"dtype":"U8","shape":[1],"data_offsets":[47,48]},")"
                  R"(u8":{"dtype":"U8","shape":[0,4],"data_offsets":[48,48]},")"
                  R"(flags":{"dtype":"BOOL","shape":[3],"data_offsets":[48,51]}}  )") +
      unhex(
          "0700000000000000000000000000e03f0000803f000000400000404000008040fbffffff803f003c004000c2fbfffbff01"
          "0001");
  const auto one = [](auto v, at::ScalarType t) { return at::full({1}, v, at::TensorOptions(t)); };
  const std::vector<NamedTensor> tensors = {{"half", at::tensor({1.0, 2.0, -3.0}).to(at::kHalf)},
                                            {"count", at::scalar_tensor(7, at::kLong)},
                                            {"été", at::arange(1, 5, at::kFloat).view({2, 2})},
                                            {"flags", at::tensor({1, 0, 1}).to(at::kBool)},
                                            {"wide", one(0.5, at::kDouble)},
                                            {"brain", one(1, at::kBFloat16)},
                                            {"i32", one(-5, at::kInt)},
                                            {"i16", one(-5, at::kShort)},
                                            {"i8", one(-5, at::kChar)},
                                            {"u8", at::empty({0, 4}, at::kByte)},
                                            {"tab\there\x01", one(255, at::kByte)}};
  write_safetensors(path(), tensors, {{"format", "pt"}});
  EXPECT_EQ(bytes(), expected);
}

TEST_F(SafetensorsTest, WriterRefusesWhatNoReaderCouldRead) {
  const auto t = at::zeros({2});
  const auto refused = [&](std::vector<NamedTensor> tensors, std::map<std::string, std::string> metadata = {}) {
    try {
      write_safetensors(path(), tensors, metadata);
      return std::string("written");
    } catch (const DataError& e) {
      return std::string(e.what());
    }
  };
  EXPECT_NE(refused({{"a", t}, {"b", t}, {"a", t}}).find("\"a\" is there twice"), std::string::npos);
  EXPECT_NE(refused({{"__metadata__", t}}).find("__metadata__"), std::string::npos);
  EXPECT_NE(refused({{"\xff", t}}).find("UTF-8"), std::string::npos);
  EXPECT_NE(refused({{"a", t}}, {{"k", "\xed\xa0\x80"}}).find("UTF-8"), std::string::npos);
  EXPECT_NE(refused({{"a", t.to(at::kComplexDouble)}}).find("ComplexDouble"), std::string::npos);
  EXPECT_NE(refused({{"a", t.to_sparse()}}).find("dense"), std::string::npos);
  EXPECT_NE(refused({{"a", at::Tensor()}}).find("undefined"), std::string::npos);
  EXPECT_TRUE(fs::is_empty(folder_));
  EXPECT_THROW(write_safetensors(path("no/such/folder"), std::vector<NamedTensor>{{"a", t}}), DataError);
}

// A rename that fails at the end must leave neither the temporary file nor a changed target.
TEST_F(SafetensorsTest, AFailedWriteLeavesNothing) {
  fs::create_directory(path());
  EXPECT_THROW(write_safetensors(path(), every_dtype()), DataError);
  EXPECT_TRUE(fs::is_directory(path()));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_), {}), 1);
}

TEST_F(SafetensorsTest, AMissingTensorNamesFileAndTensor) {
  write_safetensors(path(), every_dtype());
  try {
    Safetensors(path()).tensor("layer.0\nweight");
    FAIL();
  } catch (const DataError& e) {
    EXPECT_EQ(std::string(e.what()), path() + ": has no tensor \"layer.0\\nweight\"");
  }
}

// Historic bug 1 (safetensors-cpp): a shape whose product wraps to 4.
TEST_F(SafetensorsTest, ShapeOverflowIsRefused) {
  for (const char* shape : {"[4611686018427387905]", "[4294967296,4294967296]", "[2,9223372036854775809]",
                            "[18446744073709551615,2,0]", "[4611686018427387904,4,1]"})
    EXPECT_NE(refusal(one("F32", shape, "[0,4]", 4)).find("overflows"), std::string::npos) << shape;
  EXPECT_NE(refusal(one("F64", "[2305843009213693952]", "[0,0]", 0)).find("overflows"), std::string::npos);
}

// Historic bug 2 (mlx 3364): data_offsets believed without a look.
TEST_F(SafetensorsTest, OffsetsBeyondTheFileOrThatDisagreeWithTheShapeAreRefused) {
  for (const auto& offsets : {"[0,8]", "[4,8]", "[1048576,1048580]", "[18446744073709551612,18446744073709551615]",
                              "[0,3]", "[0,5]", "[0,0]", "[0,18446744073709551615]"})
    EXPECT_NE(refusal(one("F32", "[1]", offsets, 4)), "") << offsets;
  EXPECT_NE(refusal(one("F32", "[1000000]", "[0,4000000]", 4)).find("cut short"), std::string::npos);
}

// Historic bug 3 (audio.cpp 138): a negative or decreasing offset underflows the size.
TEST_F(SafetensorsTest, NegativeAndDecreasingOffsetsAreRefused) {
  EXPECT_NE(refusal(one("F32", "[1]", "[-4,0]", 4)).find("whole number"), std::string::npos);
  EXPECT_NE(refusal(one("F32", "[1]", "[0,-4]", 4)).find("whole number"), std::string::npos);
  EXPECT_NE(refusal(one("F32", "[-1]", "[0,4]", 4)).find("whole number"), std::string::npos);
  EXPECT_NE(refusal(one("F32", "[1]", "[4,0]", 4)).find("backwards"), std::string::npos);
  EXPECT_NE(refusal(one("U8", "[18446744073709551612]", "[4,0]", 4)).find("backwards"), std::string::npos);
}

// Historic bug 4 (upstream, 2026): writing over a file that is mapped, even as the source of the write.
TEST_F(SafetensorsTest, WritingOverAMappedFileKeepsTheOpenTensors) {
  const auto values = at::arange(5000, at::kFloat);
  write_safetensors(path(), std::vector<NamedTensor>{{"w", values}});
  const auto mapped = Safetensors(path()).tensor("w");  // outlives its file object
  write_safetensors(path(), std::vector<NamedTensor>{{"w", mapped}, {"v", mapped + 1}});
  expect_same(mapped, values);
  expect_same(Safetensors(path()).tensor("w"), values);
  expect_same(Safetensors(path()).tensor("v"), values + 1);
  fs::remove(path());
  expect_same(mapped, values);
}

TEST_F(SafetensorsTest, WritingToATensorLeavesTheFile) {
  write_safetensors(path(), std::vector<NamedTensor>{{"w", at::ones({2000})}});
  const std::string before = bytes();
  Safetensors(path()).tensor("w").fill_(3);
  EXPECT_EQ(bytes(), before);
  expect_same(Safetensors(path()).tensor("w"), at::ones({2000}));
}

TEST_F(SafetensorsTest, LengthOfTheHeader) {
  const std::string good = one("F32", "[1]", "[0,4]", 4);
  EXPECT_EQ(refusal(good), "");
  EXPECT_NE(refusal(""), "");
  EXPECT_NE(refusal(good.substr(0, 7)).find("shorter than"), std::string::npos);
  for (const std::uint64_t n : {std::uint64_t(100'000'001), ~std::uint64_t(0), ~std::uint64_t(7)})
    EXPECT_NE(refusal(little_endian(n) + good.substr(8)).find("at most 100000000"), std::string::npos);
  EXPECT_NE(refusal(little_endian(good.size() - 7) + good.substr(8)).find("in a file of"), std::string::npos);
  EXPECT_NE(refusal(little_endian(0)).find("'{'"), std::string::npos);
  EXPECT_EQ(refusal(file_of("{}", 0)), "");
  for (std::size_t n = 0; n < good.size(); ++n) EXPECT_NE(refusal(good.substr(0, n)), "") << n;
}

TEST_F(SafetensorsTest, TextOfTheHeader) {
  const std::string t = entry("t", 1, 0, 4);
  EXPECT_EQ(refusal(file_of("{" + t + "}   \n", 4)), "");
  EXPECT_NE(refusal(file_of(" {" + t + "}", 4)).find("'{'"), std::string::npos);
  EXPECT_NE(refusal(file_of("\xef\xbb\xbf{" + t + "}", 4)).find("'{'"), std::string::npos);
  EXPECT_NE(refusal(file_of("{" + t + "}" + std::string(1, '\0'), 4)).find("zero byte"), std::string::npos);
  EXPECT_NE(refusal(file_of("{" + t + "}{}", 4)).find("not JSON"), std::string::npos);
  EXPECT_NE(refusal(file_of("{" + entry("\xff", 1, 0, 4) + "}", 4)).find("not JSON"), std::string::npos);
  EXPECT_NE(refusal(file_of("{" + entry("\\ud800", 1, 0, 4) + "}", 4)).find("not JSON"), std::string::npos);
  EXPECT_NE(refusal(file_of("{" + t + "," + t + "}", 4)).find("twice"), std::string::npos);
  EXPECT_NE(refusal(file_of("{" + entry("é", 1, 0, 4) + "," + entry("\\u00e9", 1, 0, 4) + "}", 4)).find("twice"),
            std::string::npos);
  EXPECT_NE(refusal(file_of("{\"" + std::string(100'000, 'x'), 0)).find("not JSON"), std::string::npos);
}

TEST_F(SafetensorsTest, DepthIsCapped) {
  const auto nested = [](int n) {
    return file_of(R"({"t":{"x":)" + std::string(n, '[') + std::string(n, ']') +
                       R"(,"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                   4);
  };
  EXPECT_EQ(refusal(nested(2)), "");  // unknown fields are skipped, as upstream does
  EXPECT_NE(refusal(nested(3)).find("nested deeper"), std::string::npos);
  EXPECT_NE(refusal(nested(1'000'000)).find("nested deeper"), std::string::npos);
}

TEST_F(SafetensorsTest, FieldsOfATensor) {
  for (const char* shape : {"[1.0]", "[1e0]", "[true]", "[null]", "[\"1\"]", "[[1]]", "1", "{}", "\"[1]\"",
                            "[18446744073709551617]", "[-0]"})
    EXPECT_NE(refusal(one("F32", shape, "[0,4]", 4)), "") << shape;
  for (const char* offsets : {"[]", "[0]", "[0,4,4]", "[0,4.0]", "[[0,4]]", "{}", "null", "[0,\"4\"]"})
    EXPECT_NE(refusal(one("F32", "[1]", offsets, 4)), "") << offsets;
  for (const char* dtype : {"f32", "", "F128", "F32 "}) EXPECT_NE(refusal(one(dtype, "[1]", "[0,4]", 4)), "") << dtype;
  EXPECT_NE(refusal(file_of(R"({"t":{"shape":[1],"data_offsets":[0,4]}})", 4)).find("has no dtype"), std::string::npos);
  EXPECT_NE(refusal(file_of(R"({"t":{"dtype":"F32","data_offsets":[0,4]}})", 4)).find("has no shape"),
            std::string::npos);
  EXPECT_NE(refusal(file_of(R"({"t":{"dtype":"F32","shape":[1]}})", 4)).find("has no data_offsets"), std::string::npos);
  EXPECT_NE(refusal(file_of(R"({"t":["F32",[1],[0,4]]})", 4)).find("not an object"), std::string::npos);
  EXPECT_NE(refusal(one("F4", "[3]", "[0,1]", 1)).find("whole bytes"), std::string::npos);
}

TEST_F(SafetensorsTest, Metadata) {
  const auto with = [](const std::string& m) {
    return file_of("{\"__metadata__\":" + m + "," + entry("t", 1, 0, 4) + "}", 4);
  };
  EXPECT_EQ(refusal(with(R"({"a":"b","c":""})")), "");
  EXPECT_EQ(Safetensors(path()).metadata(), (std::map<std::string, std::string>{{"a", "b"}, {"c", ""}}));
  EXPECT_EQ(Safetensors(path()).names(), std::vector<std::string>{"t"});
  for (const char* m :
       {R"({"a":1})", R"({"a":null})", R"({"a":{}})", R"({"a":["b"]})", "[]", "null", "\"a\"", R"({"a":"b","a":"b"})"})
    EXPECT_NE(refusal(with(m)), "") << m;
}

TEST_F(SafetensorsTest, TensorsLieBackToBack) {
  const auto two = [&](const std::string& a, const std::string& b, std::size_t data) {
    return refusal(file_of("{" + a + "," + b + "}", data));
  };
  EXPECT_EQ(two(entry("a", 1, 0, 4), entry("b", 1, 4, 8), 8), "");
  EXPECT_EQ(two(entry("a", 1, 4, 8), entry("b", 1, 0, 4), 8), "") << "the order in the header is free";
  EXPECT_NE(two(entry("a", 1, 0, 4), entry("b", 1, 0, 4), 4).find("overlap"), std::string::npos);
  EXPECT_NE(two(entry("a", 2, 0, 8), entry("b", 1, 4, 8), 8).find("overlap"), std::string::npos);
  EXPECT_NE(two(entry("a", 1, 0, 4), entry("b", 1, 8, 12), 12).find("hole"), std::string::npos);
  EXPECT_NE(two(entry("a", 1, 4, 8), entry("b", 1, 8, 12), 12).find("hole"), std::string::npos);
  EXPECT_NE(two(entry("a", 1, 0, 4), entry("b", 1, 4, 8), 9).find("9 bytes of data"), std::string::npos);
  // Without elements several may share a place; upstream accepts this too.
  EXPECT_EQ(two(entry("a", 0, 0, 0), entry("b", 0, 0, 0), 0), "");
  EXPECT_EQ(two(entry("a", 0, 4, 4), entry("b", 1, 0, 4), 4), "");
  EXPECT_NE(two(entry("a", 0, 2, 2), entry("b", 1, 0, 4), 4).find("hole"), std::string::npos);
}

TEST_F(SafetensorsTest, ValidFilesWhoseTensorsWeCannotHold) {
  const auto message = [&](const std::string& file) {
    EXPECT_EQ(refusal(file), "");
    try {
      Safetensors(path()).tensor("t");
      return std::string("read");
    } catch (const DataError& e) {
      return std::string(e.what());
    }
  };
  EXPECT_NE(message(one("F8_E4M3", "[4]", "[0,4]", 4)).find("F8_E4M3"), std::string::npos);
  EXPECT_NE(message(one("F32", "[0,9223372036854775808]", "[0,0]", 0)).find("beyond"), std::string::npos);
  EXPECT_NE(message(one("F32", "[0,4294967296,4294967296]", "[0,0]", 0)).find("beyond"), std::string::npos);
  std::string ones = "[1";
  for (int i = 0; i < 64; ++i) ones += ",1";
  EXPECT_NE(message(one("F32", ones + "]", "[0,4]", 4)).find("65 dimensions"), std::string::npos);
  std::string flags = one("BOOL", "[2]", "[0,2]", 2);
  EXPECT_EQ(message(flags), "read");
  flags.back() = 2;
  EXPECT_NE(message(flags).find("BOOL"), std::string::npos);
}

TEST_F(SafetensorsTest, UnalignedDataIsRead) {
  std::string header =
      R"({"b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"t":{"dtype":"F64","shape":[2],"data_offsets":[1,17]}})";
  std::string file = file_of(header, 1);
  const double values[] = {0.5, -2};
  file.append(reinterpret_cast<const char*>(values), sizeof values);
  put(file);
  expect_same(Safetensors(path()).tensor("t"), at::tensor({0.5, -2.0}, at::kDouble));
}

TEST_F(SafetensorsTest, WhatIsNotARegularFileIsRefused) {
  EXPECT_THROW(Safetensors{path("absent")}, DataError);
  EXPECT_THROW(Safetensors{folder_.string()}, DataError);
  EXPECT_THROW(Safetensors{"/dev/zero"}, DataError);
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  EXPECT_THROW(Safetensors{path("pipe")}, DataError);  // and does not wait for a writer
}

// Either a DataError or a file whose tensors add up to its size and survive another round trip.
TEST_F(SafetensorsTest, MutatedFilesAreRefusedOrValid) {
  write_safetensors(path(), every_dtype(), {{"format", "pt"}});
  const std::string valid = bytes();
  std::mt19937_64 random(1);
  const auto below = [&](std::size_t n) { return std::size_t(random() % n); };
  const std::array<std::string, 14> tokens = {"{",       "}",
                                              "[",       "]",
                                              ",",       ":",
                                              "\"",      "-1",
                                              "0",       "18446744073709551615",
                                              "\"F64\"", "null",
                                              "1e9",     std::string(1, '\0')};
  int accepted = 0, refused = 0;
  for (int i = 0; i < 2000; ++i) {
    std::string file = valid;
    const std::size_t reach =
        i % 4 ? std::size_t(8) + std::uint8_t(valid[0]) + 256 * std::uint8_t(valid[1]) : valid.size();
    for (std::size_t n = 1 + below(3); n > 0; --n) {
      const std::size_t at = below(std::min(reach, file.size()));
      switch (below(5)) {
        case 0:
          file[at] ^= char(1 << below(8));
          break;
        case 1:
          file[at] = char(below(256));
          break;
        case 2:
          file.replace(at, below(4), tokens[below(tokens.size())]);
          break;
        case 3:
          file.replace(at, 1, std::to_string(below(300)));
          break;
        default:
          file.resize(std::max<std::size_t>(1, at));
          break;
      }
    }
    // Mostly with the right length of the header, so that the parser gets further.
    if (i % 8 && file.size() > valid.size() - 40) {
      const std::size_t close = file.rfind("}}");
      if (close != file.npos && close > 8) file.replace(0, 8, little_endian((close + 2 - 8 + 7) / 8 * 8));
    }
    put(file);
    try {
      const Safetensors opened(path());
      std::size_t sum = 0, header = 0;
      for (int b = 7; b >= 0; --b) header = header << 8 | std::uint8_t(file[std::size_t(b)]);
      std::vector<NamedTensor> all;
      for (const auto& name : opened.names()) all.push_back({name, opened.tensor(name)});
      for (const auto& t : all) sum += t.tensor.nbytes();
      EXPECT_EQ(8 + header + sum, file.size());
      if (accepted++ % 16) continue;  // a synced write takes milliseconds
      write_safetensors(path("again"), all, opened.metadata());
      const Safetensors again(path("again"));
      EXPECT_EQ(again.names(), opened.names());
      for (const auto& t : all) EXPECT_EQ(bytes_of(again.tensor(t.name)), bytes_of(t.tensor));
    } catch (const DataError&) {
      ++refused;
    }
  }
  EXPECT_GT(accepted, 50);
  EXPECT_GT(refused, 500);
}

// Where we refuse what upstream's reader takes, the specification is on our side: the header begins with '{',
// keys are unique, entries and __metadata__ are objects, dtype is a text. The cap on depth is a limit of
// ours.
TEST_F(SafetensorsTest, VerdictsAreUpstreams) {
  const char* cases = std::getenv("TRIREME_SAFETENSORS_CASES");
  if (!cases) GTEST_SKIP() << "set TRIREME_SAFETENSORS_CASES to the output of tests/reference/safetensors_cases.py";
  const std::array<std::string, 5> stricter = {"does not begin with '{'", "is there twice", "is not an object",
                                               "dtype is not a text", "nested deeper than 4"};
  std::map<std::string, int> count;
  std::ifstream in(cases);
  int line_number = 0;
  for (std::string line; std::getline(in, line);) {
    ++line_number;
    const auto json = nlohmann::json::parse(line);
    const std::string message = refusal(unhex(json["file"]));
    if (json.contains("error")) {
      EXPECT_NE(message, "") << cases << ":" << line_number << ": accepted; upstream: " << json["error"];
      ++count["both refuse"];
      continue;
    }
    if (!message.empty()) {
      const auto why = std::find_if(stricter.begin(), stricter.end(),
                                    [&](const auto& s) { return message.find(s) != message.npos; });
      ASSERT_NE(why, stricter.end()) << cases << ":" << line_number << ": upstream accepts; " << message;
      ++count["only we refuse: " + *why];
      continue;
    }
    ++count["both accept"];
    const Safetensors file(path());
    EXPECT_EQ(file.names().size(), json["tensors"].size());
    for (const auto& t : json["tensors"]) {
      ASSERT_TRUE(file.has(t[0]));
      try {
        const auto ours = file.tensor(t[0]);
        EXPECT_EQ(ours.sizes(), t[2].get<Shape>());
        EXPECT_EQ(bytes_of(ours), unhex(t[3])) << line_number;
        ++count["tensors equal"];
      } catch (const DataError&) {
        ++count["tensors of a dtype or shape that torch lacks"];
      }
    }
  }
  EXPECT_GT(line_number, 0);
  for (const auto& [what, n] : count) std::printf("%7d %s\n", n, what.c_str());
}

}  // namespace
}  // namespace trireme
