// Samples with tables: the Criteo parser and its preparation, CSV, the generator, and the metrics of clicks.
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "data/tables/criteo.h"
#include "data/tables/criteo_like.h"
#include "data/tables/csv.h"
#include "data/tables/npz.h"
#include "framework/models/binary.h"
#include "tests/unit/reference_files.h"
#include "tests/unit/said.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <numeric>
#include <set>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;
using test::said;

struct Folder {
  fs::path path = fs::path(::testing::TempDir()) / ("tables_test_" + std::to_string(getpid()));
  Folder() { fs::remove_all(path), fs::create_directories(path); }
  ~Folder() { fs::remove_all(path); }
  std::string operator()(const std::string& name) const { return (path / name).string(); }
  std::string write(const std::string& name, const std::string& text) const {
    std::ofstream(path / name) << text;
    return (*this)(name);
  }
};

// A line with these first columns; the others are blank.
std::string line(const std::string& label, const std::vector<std::string>& integers,
                 const std::vector<std::string>& words) {
  std::string s = label;
  for (std::size_t k = 0; k < 13; ++k) s += "\t" + (k < integers.size() ? integers[k] : "");
  for (std::size_t k = 0; k < 26; ++k) s += "\t" + (k < words.size() ? words[k] : "");
  return s + "\n";
}

TEST(Criteo, ParsesALineByHand) {
  CriteoBlock b;
  parse_criteo(line("1", {"0", "7", "-2", "", "100000"}, {"68fd1e64", "80E26C9B", "", "f", "ffffffff", "00000010"}), 0,
               b);
  ASSERT_EQ(b.label, std::vector<std::uint8_t>{1});
  EXPECT_EQ(b.dense[0], 0);
  EXPECT_FLOAT_EQ(b.dense[1], std::log(8.0f));
  EXPECT_EQ(b.dense[2], 0) << "negative";
  EXPECT_EQ(b.dense[3], 0) << "blank";
  EXPECT_FLOAT_EQ(b.dense[4], std::log(100001.0f));
  EXPECT_EQ(b.words[0], 0x68fd1e64u);
  EXPECT_EQ(b.words[1], 0x80e26c9bu) << "capitals";
  EXPECT_EQ(b.words[2], 0u);
  EXPECT_EQ(b.words[3], 15u);
  EXPECT_EQ(b.words[4], 0xffffffffu);
  EXPECT_EQ(b.words[5], 16u);
  parse_criteo(line("0", {}, {"68fd1e64", "ffffffff"}), 1000003, b);
  EXPECT_EQ(b.words[0], 0x68fd1e64u % 1000003);
  EXPECT_EQ(b.words[1], 0xffffffffu % 1000003);
}

// Every byte in every place of an eight-digit word is read as the C library reads it, or refused.
TEST(Criteo, WordsAreHexadecimalOrRefused) {
  CriteoBlock b;
  for (int place = 0; place < 8; ++place)
    for (int c = 0; c < 256; ++c) {
      if (c == '\n' || c == '\t' || (c == '\r' && place == 7)) continue;
      std::string word = "12ab34cd";
      word[std::size_t(place)] = char(c);
      parse_criteo(line("0", {}, {word}), 0, b);
      const bool good = std::isxdigit(c) != 0;
      ASSERT_EQ(b.label.size(), good ? 1u : 0u) << place << " " << c;
      if (good) {
        ASSERT_EQ(b.words[0], std::uint32_t(std::stoul(word, nullptr, 16)));
      }
    }
}

TEST(Criteo, MalformedLinesAreLeftOutAndNamed) {
  CriteoBlock b;
  const std::string good = line("1", {"5"}, {"a"}), cut = good.substr(0, good.size() - 4) + "\n";
  parse_criteo(good + cut + "\n" + line("2", {}, {}) + line("0", {"x"}, {}) + line("0", {}, {"123456789"}) +
                   good.substr(0, good.size() - 1) + "\t\n" + good.substr(0, good.size() - 1) + "\r\n" +
                   good.substr(0, good.size() - 1),
               0, b);
  EXPECT_EQ(b.lines, 9);
  EXPECT_EQ(b.label.size(), 3u);
  ASSERT_EQ(b.bad.size(), 6u);
  EXPECT_EQ(b.bad[0].line, 1);
  EXPECT_EQ(b.bad[0].why, "has too few columns");
  EXPECT_EQ(b.bad[1].why, "is empty");
  EXPECT_SAYS(b.bad[2].why, "label");
  EXPECT_SAYS(b.bad[3].why, "digits");
  EXPECT_SAYS(b.bad[4].why, "more than 8");
  EXPECT_EQ(b.bad[5].why, "has too many columns");
}

TEST(Criteo, SevenDaysAndIdsByFirstAppearance) {
  const Folder folder;
  std::string text;
  for (int i = 0; i < 17; ++i)
    text += line(i % 3 ? "0" : "1", {std::to_string(i)}, {i % 2 ? "ff" : "aa", std::to_string(i)});
  CriteoSpec spec;
  spec.files = {folder.write("train.txt", text)};
  spec.out = folder("criteo.h5");
  for (const int threads : {1, 3}) {
    spec.threads = threads;
    const CriteoReport r = prepare_criteo(spec);
    EXPECT_EQ(r.lines, 17);
    // 17 = 7 x 2 + 3: days of 3, 3, 3, 2, 2, 2, 2.
    EXPECT_EQ(r.info.train.end, 15);
    EXPECT_EQ(r.info.test.begin, 15);
    EXPECT_EQ(r.info.test.end, 16);
    EXPECT_EQ(r.info.validation.end, 17);
    const TableFile file(spec.out);
    EXPECT_EQ(file.tables()[0].rows, 2);
    EXPECT_EQ(file.tables()[1].rows, 17);
    EXPECT_EQ(file.tables()[2].rows, 1);
    const std::vector<std::int64_t> ids{3, 0, 16};
    const Batch b = file.read(ids, 0);
    EXPECT_FLOAT_EQ(b.columns.at("dense")[0][0].item<float>(), std::log1p(3.0f));
    EXPECT_EQ(b.columns.at("ids")[0][0].item<int>(), 1);
    EXPECT_EQ(b.columns.at("ids")[1][0].item<int>(), 0);
    EXPECT_EQ(b.columns.at("ids")[2][1].item<int>(), 16);
    EXPECT_EQ(b.columns.at("label")[0].item<float>(), 1);
    const Hdf5File raw = Hdf5File::open(spec.out);
    std::int64_t words[2], counts[2];
    raw.read_rows("values/C1", 0, 2, words), raw.read_rows("counts/C1", 0, 2, counts);
    EXPECT_EQ(words[0], 0xaa);
    EXPECT_EQ(words[1], 0xff);
    EXPECT_EQ(counts[0], 9);
    EXPECT_EQ(counts[1], 8);
  }
  spec.files = {folder.write("day_0", text), folder.write("day_1", text)};
  const CriteoReport two = prepare_criteo(spec);
  EXPECT_EQ(two.info.train.end, 17);
  EXPECT_EQ(two.info.test.end, 26);
  EXPECT_EQ(two.info.validation.end, 34);
  spec.drop_negatives = 0.5;
  const CriteoReport fewer = prepare_criteo(spec);
  EXPECT_GT(fewer.dropped, 2);
  EXPECT_EQ(fewer.info.samples + fewer.dropped, 34);
  spec.files = {folder.write("bad.txt", text + std::string("1\t2\t3\n"))};
  EXPECT_SAYS(said([&] { prepare_criteo(spec); }), "1 of 18 lines are malformed");  // more than 0.001 of them
  spec.broken_share = 0.06;
  EXPECT_EQ(prepare_criteo(spec).bad_lines, 1);
  spec.broken_share = 0;
  EXPECT_SAYS(said([&] { prepare_criteo(spec); }), "bad.txt:18");
  EXPECT_SAYS(said([&] { spec.files = {folder("none.txt")}, prepare_criteo(spec); }), "cannot be read");
}

// What facebookresearch/dlrm trains from: the same values as the lines, the same file.
TEST(Criteo, RecordsOfTheReference) {
  const Folder folder;
  std::string text, records;
  const auto add = [](std::string& to, const std::vector<std::int32_t>& values) {
    to.append(reinterpret_cast<const char*>(values.data()), 4 * values.size());
  };
  for (int i = 0; i < 300; ++i) {
    std::vector<std::int32_t> record{i % 3 == 0};
    std::vector<std::string> integers, words;
    for (int k = 0; k < 13; ++k) record.push_back(i * k * 97 - 3), integers.push_back(std::to_string(record.back()));
    for (int k = 0; k < 26; ++k) {
      char hex[16];
      record.push_back(i * 7 % (k + 2) + (k == 3 ? 0x7ffffff0 : 0));
      std::snprintf(hex, sizeof hex, "%x", unsigned(record.back()));
      words.emplace_back(hex);
    }
    text += line(std::to_string(record[0]), integers, words);
    add(records, record);
  }
  CriteoSpec spec;
  spec.max_ind_range = 11;
  const auto prepared = [&](const std::string& from, int threads) {
    spec.files = {from}, spec.threads = threads, spec.out = folder("out.h5");
    prepare_criteo(spec);
    const TableFile file(spec.out);
    std::vector<std::int64_t> ids(300);
    std::iota(ids.begin(), ids.end(), 0);
    return file.read(ids, 0).columns;
  };
  const auto lines = prepared(folder.write("train.txt", text), 1);
  for (const int threads : {1, 3}) {
    const auto same = prepared(folder.write("train.bin", records), threads);
    for (const auto& [name, column] : lines) EXPECT_TRUE(at::equal(column, same.at(name))) << name;
  }
  std::vector<std::int32_t> bad(40, 0);
  bad[0] = 2;
  add(records, bad);
  bad[0] = 0, bad[39] = -1;
  add(records, bad);
  spec.broken_share = 0;
  EXPECT_SAYS(said([&] { prepared(folder.write("bad.bin", records), 1); }), "bad.bin:301: has a label");
  spec.broken_share = 0.1;
  spec.files = {folder("bad.bin")};
  const CriteoReport r = prepare_criteo(spec);
  EXPECT_EQ(r.bad_lines, 2);
  EXPECT_SAYS(r.bad[1], "bad.bin:302: has a category below 0");
  EXPECT_SAYS(said([&] { prepared(folder.write("cut.bin", records + "1234"), 1); }), "no records of 160");
  spec.files = {folder("train.txt"), folder("train.bin")};
  EXPECT_SAYS(said([&] { prepare_criteo(spec); }), "do not go together");
}

TEST(Criteo, NpzOfTheReference) {
  const Folder folder;
  const std::string from = test::reference_file("criteo.npz");
  const TableFileInfo info = prepare_criteo_npz(from, folder("npz.h5"));
  EXPECT_EQ(info.train.end, 18);
  EXPECT_EQ(info.test.end, 20);
  const TableFile file(folder("npz.h5"));
  const Batch b = file.read(std::vector<std::int64_t>{4, 20}, 0);
  for (int i = 0; i < 2; ++i) {
    const int n = i ? 20 : 4;
    EXPECT_EQ(b.columns.at("label")[i].item<float>(), n % 3 == 0);
    for (int k = 0; k < 13; ++k)
      EXPECT_FLOAT_EQ(b.columns.at("dense")[i][k].item<float>(), std::log1p(float((n * 13 + k) * 7 % 50)));
    for (int t = 0; t < 26; ++t) EXPECT_EQ(b.columns.at("ids")[i][t].item<int>(), (n * 26 + t) * 11 % (t + 2));
  }
  // Cut anywhere, or with any byte changed: an error, or arrays.
  std::ifstream in(from, std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  const auto read = [](const std::string& s) {
    read_npz({reinterpret_cast<const std::uint8_t*>(s.data()), s.size()}, "x.npz");
  };
  for (std::size_t n = 0; n < whole.size(); n += 3) EXPECT_NE(said([&] { read(whole.substr(0, n)); }), "nothing") << n;
  for (std::size_t at = 0; at < whole.size(); ++at) {
    std::string changed = whole;
    changed[at] = char(changed[at] ^ 0x55);
    said([&] { read(changed); });
  }
}

// A zip file with one member that is not packed, as np.savez writes it.
std::string stored_zip(const std::string& name, const std::string& data) {
  std::uint32_t crc = ~0u;
  for (const unsigned char c : data) {
    crc ^= c;
    for (int k = 0; k < 8; ++k) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
  }
  const auto little = [](std::uint64_t v, int bytes) {
    std::string s;
    for (int k = 0; k < bytes; ++k) s += char(v >> (8 * k));
    return s;
  };
  const std::string common = little(20, 2) + little(0, 8) + little(~crc, 4) + little(data.size(), 4) +
                             little(data.size(), 4) + little(name.size(), 2) + little(0, 2);
  const std::string member = "PK\3\4" + common + name + data;
  const std::string directory = "PK\1\2" + little(20, 2) + common + little(0, 10) + little(0, 4) + name;
  return member + directory + "PK\5\6" + little(0, 4) + little(1, 2) + little(1, 2) + little(directory.size(), 4) +
         little(member.size(), 4) + little(0, 2);
}

TEST(Criteo, AStoredMemberIsChecked) {
  std::string head = "{'descr': '<i4', 'fortran_order': False, 'shape': (3,), }";
  head += std::string(117 - head.size(), ' ') + "\n";
  const std::string npy = std::string("\x93NUMPY\1\0\x76\0", 10) + head + std::string("\5\0\0\0\6\0\0\0\7\0\0\0", 12);
  std::string zip = stored_zip("y.npy", npy);
  const auto read = [&] {
    return read_npz({reinterpret_cast<const std::uint8_t*>(zip.data()), zip.size()}, "x.npz").at("y").at(2);
  };
  EXPECT_EQ(read(), 7);
  zip[zip.find("\7\0\0\0", 140)] ^= 1;
  EXPECT_SAYS(said(read), "its member y.npy is damaged");
}

// Its identity holds checksums of all that is in it.
TEST(TableFile, ThreadsWriteTheSameFile) {
  const Folder folder;
  const CriteoLike data({"kaggle", 10000, 1.5, 60000, 1000, 0.25, 1});
  write_table_file(data, "criteo_like", folder("one.h5"));
  const TableFile one(folder("one.h5"));
  EXPECT_EQ(one.size(), 61000);
  const std::vector<std::int64_t> some{0, 16383, 16384, 60999};
  EXPECT_TRUE(at::equal(one.read(some, 0).columns.at("ids"), data.read(some, 0).columns.at("ids")));
  for (const int threads : {2, 3, 7}) {  // 7: more than there are blocks
    write_table_file(data, "criteo_like", folder("many.h5"), {}, threads);
    EXPECT_EQ(TableFile(folder("many.h5")).identity(), one.identity()) << threads;
  }
}

TEST(TableFile, DamagedFilesAreErrors) {
  const Folder folder;
  const CriteoLike data({"kaggle", 10000, 1.5, 50, 10, 0.25, 1});
  write_table_file(data, "criteo_like", folder("a.h5"));
  std::ifstream in(folder("a.h5"), std::ios::binary);
  const std::string whole((std::istreambuf_iterator<char>(in)), {});
  for (std::size_t length = 0; length < whole.size(); length += 487) {
    std::ofstream(folder("b.h5"), std::ios::binary) << whole.substr(0, length);
    EXPECT_NE(said([&] { TableFile file(folder("b.h5")); }), "nothing") << length;
  }
  for (std::size_t at = 0; at < whole.size(); at += 61) {
    std::string changed = whole;
    changed[at] = char(changed[at] ^ 0x21);
    std::ofstream(folder("b.h5"), std::ios::binary) << changed;
    said([&] { TableFile(folder("b.h5")).read(std::vector<std::int64_t>{0, 49}, 0); });
  }
  const TableFile file(folder("a.h5"));
  const std::vector<std::int64_t> ids{7, 59, 0};
  const Batch a = data.read(ids, 0), b = file.read(ids, 0);
  for (const auto& [name, column] : a.columns) EXPECT_TRUE(at::equal(column, b.columns.at(name))) << name;
  EXPECT_SAYS(said([&] { file.read(std::vector<std::int64_t>{60}, 0); }), "no sample 60");
}

TEST(Csv, BagsQuotesAndBlanks) {
  const Folder folder;
  CsvSpec spec;
  spec.from = folder.write(
      "own.csv", "clicked,price,tags,shop\n1,10,a|b|a,\"x, y\"\n0,20,,z\n0,,b,\"x, y\"\n1,40,c|a,\"q\"\"\"\n");
  spec.out = folder("own.h5"), spec.label = "clicked", spec.test = 0.25;
  const TableFileInfo info = prepare_csv(spec);
  EXPECT_EQ(info.dense, std::vector<std::string>{"price"});
  ASSERT_EQ(info.tables.size(), 2u);
  EXPECT_EQ(info.tables[0].rows, 3);
  EXPECT_EQ(info.tables[0].width, 3);
  EXPECT_EQ(info.tables[1].rows, 3);
  EXPECT_EQ(info.tables[1].width, 1);
  EXPECT_EQ(info.train.size(), 3);
  EXPECT_EQ(info.test.size(), 1);
  const Batch b = TableFile(spec.out).read(std::vector<std::int64_t>{0, 1, 2, 3}, 0);
  const at::Tensor ids = at::tensor({0, 1, 0, 0, -1, -1, -1, 1, 1, -1, -1, 0, 2, 0, -1, 2}, at::kInt).view({4, 4});
  EXPECT_TRUE(at::equal(b.columns.at("ids"), ids)) << b.columns.at("ids");
  const at::Tensor price = b.columns.at("dense").select(1, 0);  // mean 15, deviation 5 of the two that train
  EXPECT_TRUE(at::allclose(price, at::tensor({-1.0f, 1.0f, 0.0f, 5.0f}))) << price;
  spec.sparse = {"tags:mean", "price"}, spec.dense = {};
  EXPECT_EQ(prepare_csv(spec).tables[0].pooling, "mean");
  spec.sparse = {"nothing"};
  EXPECT_SAYS(said([&] { prepare_csv(spec); }), "no column nothing");
  spec.from = folder.write("bad.csv", "a,b\n1,2\n1\n");
  EXPECT_SAYS(said([&] { prepare_csv(spec); }), "bad.csv:3");
}

// What a spreadsheet writes: a byte order mark, line ends within quotes, blank lines; and names with a colon.
TEST(Csv, LinesAreThoseOfTheFile) {
  const Folder folder;
  const std::string text =
      "\xef\xbb\xbf"
      "clicked,price,a:b\n1,2,\"x\ny\"\n\n0,3,z\n1,";
  CsvSpec spec;
  spec.label = "clicked", spec.dense = {"price"}, spec.sparse = {"a:b"}, spec.test = 0.3;
  spec.from = folder.write("good.csv", text + "4,z\n"), spec.out = folder("good.h5");
  const TableFileInfo info = prepare_csv(spec);
  EXPECT_EQ(info.samples, 3);
  EXPECT_EQ(info.tables[0].name, "a:b");
  EXPECT_EQ(info.tables[0].rows, 2);
  spec.sparse = {"a:b:mean"};
  EXPECT_EQ(prepare_csv(spec).tables[0].pooling, "mean");
  spec.from = folder.write("bad.csv", text + "dear,z\n");
  EXPECT_SAYS(said([&] { prepare_csv(spec); }), "bad.csv:6");
  spec.from = folder.write("bad.csv", text + "4\n");
  EXPECT_SAYS(said([&] { prepare_csv(spec); }), "bad.csv:6");
  spec.from = folder.write("bad.csv", text + "4,z\nmaybe,4,z\n");
  EXPECT_SAYS(said([&] { prepare_csv(spec); }), "bad.csv:7");
}

TEST(Flights, LabelAndColumns) {
  const Folder folder;
  std::string text =
      "month,day,sched_dep_time,sched_arr_time,arr_delay,carrier,flight,tailnum,origin,dest,distance,hour\n";
  for (int i = 0; i < 20; ++i)
    text += "1," + std::to_string(i + 1) + ",515,819," + (i == 3 ? "NA" : std::to_string(i * 3)) +
            ",UA,1545,N1,EWR,IAH,1400,5\n";
  const TableFileInfo info = prepare_flights(folder.write("flights.csv", text), folder("flights.h5"));
  EXPECT_EQ(info.samples, 19);
  EXPECT_EQ(info.tables.size(), 9u);
  const TableFile file(folder("flights.h5"));
  std::vector<std::int64_t> ids(19);
  std::iota(ids.begin(), ids.end(), 0);
  EXPECT_EQ(file.read(ids, 0).columns.at("label").sum().item<float>(), 14);  // 18, 21, ... 57 minutes
}

TEST(Zipf, DrawsItsProbabilities) {
  for (const Zipf::Spec& spec :
       {Zipf::Spec{50, 1.1, 2}, {100000, 1.0, 1.5}, {3, 1, 0, {0.88, 0.12}}, {1, 1, 0}, {200000, 0.6, 0}}) {
    const Zipf zipf(spec);
    double total = 0;
    for (std::int64_t i = 0; i < spec.n; ++i) total += zipf.probability(i);
    EXPECT_NEAR(total, 1, 1e-6) << spec.n;
    constexpr int draws = 200000;
    std::vector<double> seen(std::size_t(spec.n), 0);
    Rng rng(3, "zipf");
    for (int k = 0; k < draws; ++k) ++seen[std::size_t(zipf.draw(rng))];
    double tail = 0, expected = 0;
    for (std::int64_t i = 0; i < spec.n; ++i) {
      const double p = zipf.probability(i), sigma = std::sqrt(p * (1 - p) / draws);
      if (i < 20) {
        EXPECT_NEAR(seen[std::size_t(i)] / draws, p, 5 * sigma + 1e-9) << i << " of " << spec.n;
      }
      if (i >= spec.n / 2) tail += seen[std::size_t(i)] / draws, expected += p;
    }
    EXPECT_NEAR(tail, expected, 5 * std::sqrt(expected / draws) + 1e-9) << spec.n;
  }
}

// Distinct ids of a batch, as counted in a real dump: 945 of 2,048 in table 1 of the Terabyte data, 7 of 128 in table 5
// of Kaggle, 18 in table 8 and 2 in table 5 of the Terabyte data.
TEST(CriteoLike, DistinctIdsAreThoseOfDumps) {
  const auto distinct = [](const std::string& shape, std::size_t table, int batch) {
    CriteoLikeSpec spec;
    spec.shape = shape;
    const CriteoLike data(spec);
    double sum = 0;
    for (std::uint64_t k = 0; k < 8; ++k) {
      std::set<std::int64_t> seen;
      Rng rng(k, "distinct");
      for (int i = 0; i < batch; ++i) seen.insert(data.ids_of(table).draw(rng));
      sum += double(seen.size()) / 8;
    }
    return sum;
  };
  EXPECT_NEAR(distinct("terabyte", 1, 2048), 945, 0.1 * 945);
  EXPECT_NEAR(distinct("terabyte", 8, 2048), 18, 0.2 * 18);
  EXPECT_NEAR(distinct("terabyte", 5, 2048), 2, 0.01);
  EXPECT_NEAR(distinct("kaggle", 5, 128), 7, 0.2 * 7);
}

TEST(CriteoLike, ASampleIsAFunctionOfItsNumber) {
  const CriteoLike data({"terabyte", 100, 1.5, 4000, 1000, 0.25, 7}), same({"terabyte", 100, 1.5, 4000, 1000, 0.25, 7});
  std::vector<std::int64_t> all(4000);
  std::iota(all.begin(), all.end(), 0);
  const Batch whole = data.read(all, 0), some = same.read(std::vector<std::int64_t>{17, 3999, 0}, 5);
  for (const auto& [name, column] : whole.columns)
    EXPECT_TRUE(at::equal(some.columns.at(name), column.index_select(0, at::tensor({17, 3999, 0}, at::kLong)))) << name;
  EXPECT_NEAR(whole.columns.at("label").mean().item<double>(), 0.25, 0.03);
  std::int64_t column = 0;
  for (const auto& t : data.tables()) {
    EXPECT_LT(whole.columns.at("ids").select(1, column).max().item<int>(), t.rows);
    EXPECT_GE(whole.columns.at("ids").select(1, column++).min().item<int>(), 0);
  }
  for (std::size_t a = 0; a < data.tables().size(); ++a)  // the order by size survives scaling
    for (std::size_t b = 0; b < data.tables().size(); ++b)
      if (shape_named("terabyte")->tables[a].rows < shape_named("terabyte")->tables[b].rows) {
        EXPECT_LE(data.tables()[a].rows, data.tables()[b].rows);
      }
}

TEST(CriteoLike, BagsOfSeveralIds) {
  const CriteoLike data({"mlperf_v2", 1e6, 1.5, 100, 10, 0.25, 7});
  EXPECT_EQ(data.width(), 214);
  const at::Tensor ids = data.read(std::vector<std::int64_t>{0, 99}, 0).columns.at("ids");
  EXPECT_EQ(ids.size(1), 214);
  EXPECT_GE(ids.min().item<int>(), 0);
}

TEST(Binary, AucIsTheShareOfPairs) {
  Rng rng(5, "auc");
  std::vector<double> scores, truth;
  std::vector<float> labels;
  for (int i = 0; i < 300; ++i) {
    scores.push_back(double(rng.below(40)) / 7 - 2);  // many ties
    labels.push_back(rng.uniform() < 0.3 ? 1.0f : 0.0f);
    truth.push_back(rng.normal());
  }
  double pairs = 0, won = 0, expected = 0, weight = 0;
  const auto p = [&](std::size_t i) { return 1 / (1 + std::exp(-truth[i])); };
  for (std::size_t a = 0; a < 300; ++a)
    for (std::size_t b = 0; b < 300; ++b) {
      if (labels[a] == 1 && labels[b] == 0)
        ++pairs, won += scores[a] > scores[b] ? 1 : scores[a] == scores[b] ? 0.5 : 0;
      const double w = p(a) * (1 - p(b));
      weight += w, expected += w * (truth[a] > truth[b] ? 1 : truth[a] == truth[b] ? 0.5 : 0);
    }
  EXPECT_NEAR(auc(scores, labels), won / pairs, 1e-12);
  EXPECT_TRUE(std::isnan(auc(std::vector<double>{1, 2}, std::vector<float>{1, 1})));
  EXPECT_TRUE(std::isnan(auc(std::vector<double>{1, std::nan(""), 2}, std::vector<float>{1, 0, 0})));
  for (const int ranks : {1, 3}) {  // the last rank has none
    std::map<std::string, double> metrics;
    std::mutex mutex;
    run_loopback(ranks, [&](Communicator& world) {
      Judged mine;
      for (std::size_t i = std::size_t(world.rank()); i < 300 && (world.rank() < 2);
           i += std::size_t(std::min(ranks, 2)))
        mine.logits.push_back(scores[i]), mine.labels.push_back(labels[i]), mine.truth.push_back(truth[i]);
      const auto m = binary_metrics(mine, world);
      const std::lock_guard lock(mutex);
      if (!metrics.empty()) {
        EXPECT_EQ(metrics, m);
      }
      metrics = m;
    });
    EXPECT_NEAR(metrics.at("auc"), won / pairs, 1e-12);
    EXPECT_NEAR(metrics.at("bayes_auc"), expected / weight, 1e-12);
    double bce = 0, hits = 0, ones = 0, sum = 0;
    for (std::size_t i = 0; i < 300; ++i) {
      const double q = 1 / (1 + std::exp(-scores[i]));
      bce -= std::log(labels[i] == 1 ? q : 1 - q), hits += (q > 0.5) == (labels[i] == 1);
      ones += labels[i], sum += q;
    }
    EXPECT_NEAR(metrics.at("bce"), bce / 300, 1e-12);
    EXPECT_NEAR(metrics.at("accuracy"), hits / 300, 1e-12);
    EXPECT_NEAR(metrics.at("calibration"), sum / ones, 1e-12);
    EXPECT_NEAR(metrics.at("positive_rate"), ones / 300, 1e-12);
  }
}

}  // namespace
}  // namespace trireme
