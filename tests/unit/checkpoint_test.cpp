#include "framework/io/checkpoint.h"

#include "comm/crc32c.h"
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "data/hdf5.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/io/file_io.h"
#include "framework/io/folder_lock.h"
#include "framework/io/manifest.h"
#include "tests/fault/memory_io.h"

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include <sys/wait.h>
#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

// State as a recipe has it: replicated weights, rows of a table, something a rank keeps to itself.
struct State {
  std::vector<double> weight = std::vector<double>(6);
  std::vector<float> rows;
  std::int64_t first = 0, total = 10, cursor = 0;
  std::string note;
  double residual = -1;

  State(int rank, int ranks) {
    first = total * rank / ranks;
    rows.resize(std::size_t(total * (rank + 1) / ranks - first));
  }
  void fill(int rank, double seed) {
    for (std::size_t i = 0; i < weight.size(); ++i) weight[i] = seed + double(i) / 3;
    for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = float(seed + double(first) + double(i));
    cursor = std::int64_t(seed) * 1000;
    note = "note " + std::to_string(seed);
    residual = seed + rank;
  }
  void state(Archive& ar) {
    const std::int64_t shape[] = {2, 3}, n = std::int64_t(rows.size());
    ar.array("weight", DType::f64, shape, weight.data());
    {
      Archive::Group g(ar, "table");
      ar.array("u", DType::f32, {&n, 1}, rows.data(), {Sharing::rows, first, total});
    }
    ar.value("cursor", cursor);
    ar.text("note", note);
    if (ar.has("residual")) ar.array("residual", DType::f64, {}, &residual, {Sharing::per_rank});
  }
  std::function<void(Archive&)> visit() {
    return [this](Archive& ar) { state(ar); };
  }
};

void save(Checkpoints& c, Communicator& comm, std::int64_t step, bool best = false) {
  State s(comm.rank(), comm.size());
  s.fill(comm.rank(), double(step));
  c.save(step, Snapshot::take(s.visit(), comm.rank()), R"({"buckets":[1,2]})", best);
  c.finish();
}

void expect_state(const State& s, int rank, int ranks, double seed, bool same_world) {
  State want(rank, ranks);
  want.fill(rank, seed);
  EXPECT_EQ(s.weight, want.weight);
  EXPECT_EQ(s.rows, want.rows);
  EXPECT_EQ(s.cursor, want.cursor);
  EXPECT_EQ(s.note, want.note);
  EXPECT_EQ(s.residual, same_world ? want.residual : -1);
}

template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no error";
}

std::vector<std::string> listed(FileIo& io, const std::string& folder) {
  std::vector<std::string> names;
  io.list(folder, names);
  return names;
}

TEST(Checkpoint, EveryWorldSizeLoadsEveryOther) {
  for (int p : {1, 2, 4})
    for (int q : {1, 2, 3, 4}) {
      MemoryIo io;
      run_loopback(p, [&](Communicator& comm) {
        Checkpoints c("run/ckpt", 3, comm, io);
        EXPECT_FALSE(c.latest());
        save(c, comm, 7);
      });
      run_loopback(q, [&](Communicator& comm) {
        Checkpoints c("run/ckpt", 3, comm, io);
        ASSERT_EQ(c.latest(), 7);
        State s(comm.rank(), q);
        c.load(7).restore(s.visit());
        expect_state(s, comm.rank(), q, 7, p == q);
      });
    }
}

TEST(Checkpoint, FilesAndManifestAreAsDocumented) {
  std::string name = (fs::temp_directory_path() / "trireme-ckpt-XXXXXX").string();
  const fs::path dir = mkdtemp(name.data());
  run_loopback(2, [&](Communicator& comm) {
    Checkpoints c((dir / "ckpt").string(), 3, comm);
    save(c, comm, 120);
  });
  std::set<std::string> names;
  for (const auto& e : fs::directory_iterator(dir / "ckpt/step_00000120")) names.insert(e.path().filename());
  EXPECT_EQ(names, (std::set<std::string>{"manifest.json", "rank_00000.h5", "rank_00001.h5"}));
  EXPECT_EQ(std::distance(fs::directory_iterator(dir / "ckpt"), {}), 1);
  std::ifstream in(dir / "ckpt/step_00000120/manifest.json");
  const std::string text{std::istreambuf_iterator<char>(in), {}};
  const auto m = Manifest::parse(text, "manifest.json");
  EXPECT_EQ(m.step, 120);
  EXPECT_EQ(m.world_size, 2);
  EXPECT_EQ(m.extra, R"({"buckets":[1,2]})");
  for (const auto& f : m.files) EXPECT_EQ(fs::file_size(dir / "ckpt/step_00000120" / f.name), f.size);
  int rows = 0, per_rank = 0, replicated = 0;
  for (const auto& t : m.tensors) {
    rows += t.sharing.kind == Sharing::rows;
    per_rank += t.sharing.kind == Sharing::per_rank;
    replicated += t.sharing.kind == Sharing::replicated;
  }
  EXPECT_EQ(rows, 2);
  EXPECT_EQ(per_rank, 2);
  EXPECT_EQ(replicated, 3);
  EXPECT_EQ(Manifest::parse(m.print(), "again").print(), m.print());
  fs::remove_all(dir);
}

TEST(Checkpoint, KeepsTheNewestAndTheBest) {
  MemoryIo io;
  run_loopback(2, [&](Communicator& comm) {
    Checkpoints c("ckpt", 2, comm, io);
    for (int step = 1; step <= 6; ++step) save(c, comm, step, step == 1 || step == 2);
  });
  EXPECT_EQ(listed(io, "ckpt"), (std::vector<std::string>{"step_00000002", "step_00000005", "step_00000006"}));
  // A new process still knows which is the best.
  run_loopback(2, [&](Communicator& comm) {
    Checkpoints c("ckpt", 1, comm, io);
    EXPECT_EQ(c.latest(), 6);
    save(c, comm, 7);
  });
  EXPECT_EQ(listed(io, "ckpt"), (std::vector<std::string>{"step_00000002", "step_00000007"}));
}

// Whoever reads a run that is writing may have listed the only one just before it went for a newer one.
TEST(Checkpoint, TheNewestIsFoundWhileTheListedOneGoes) {
  MemoryIo io;
  run_loopback(1, [&](Communicator& comm) {
    Checkpoints writer("ckpt", 1, comm, io);
    save(writer, comm, 1);
    FaultyIo reading(io, -1, FaultyIo::io_error);
    reading.before = [&](long call) {
      if (call == 1) save(writer, comm, 2);  // after the list
    };
    EXPECT_EQ(Checkpoints("ckpt", 1, comm, reading).newest(), 2);
  });
}

// So may who looks for the best have, of several: whenever a better one takes its place, one of both is found.
TEST(Checkpoint, TheBestIsFoundWhileABetterOneComes) {
  bool over = false;
  for (long when = 0; !over; ++when) {
    MemoryIo io;
    run_loopback(1, [&](Communicator& comm) {
      Checkpoints writer("ckpt", 1, comm, io);
      save(writer, comm, 1, true);
      save(writer, comm, 2);
      FaultyIo reading(io, -1, FaultyIo::io_error);
      reading.before = [&](long call) {
        if (call == when) save(writer, comm, 3, true);
      };
      const auto found = Checkpoints("ckpt", 1, comm, reading).best();
      over = reading.calls() <= when;
      EXPECT_TRUE(found == 1 || found == 3) << "before call " << when << ": " << found.value_or(-1);
    });
  }
}

TEST(Checkpoint, RandomHistoriesAlwaysEndWithTheNewestOneLoadable) {
  std::mt19937_64 random(1);
  for (int history = 0; history < 100; ++history) {
    MemoryIo io;
    const int keep = 1 + int(random() % 3);
    std::vector<std::int64_t> saved;
    std::int64_t best = -1, step = 0;
    run_loopback(1, [&](Communicator& comm) {
      for (int i = 0; i < 8; ++i) {
        Checkpoints c("ckpt", keep, comm, io);
        if (random() % 4 == 0) io.mkdir("ckpt/step_00000099.tmp-1-2");
        ASSERT_EQ(c.latest(), saved.empty() ? std::nullopt : std::optional(saved.back()));
        if (random() % 5) step += 1 + std::int64_t(random() % 3);
        if (step == 0) continue;
        const bool mark = random() % 3 == 0;
        save(c, comm, step, mark);
        if (saved.empty() || saved.back() != step) saved.push_back(step);
        if (mark)
          best = step;
        else if (best == step)
          best = -1;  // the replaced checkpoint was the best; any older one may be gone
        State s(0, 1);
        c.load(step).restore(s.visit());
        const auto names = listed(io, "ckpt");
        const auto n = std::min<std::size_t>(saved.size(), std::size_t(keep));
        EXPECT_GE(names.size(), n);
        EXPECT_LE(names.size(), n + 1);
        if (best >= 0) {
          EXPECT_NO_THROW(c.load(best));
        }
      }
    });
  }
}

TEST(Checkpoint, SavingAStepAgainReplacesIt) {
  MemoryIo io;
  run_loopback(2, [&](Communicator& comm) {
    Checkpoints c("ckpt", 2, comm, io);
    save(c, comm, 3);
    State s(comm.rank(), 2);
    s.fill(comm.rank(), 50);
    c.save(3, Snapshot::take(s.visit(), comm.rank()), "{}");
    c.finish();
    State back(comm.rank(), 2);
    c.load(3).restore(back.visit());
    expect_state(back, comm.rank(), 2, 50, true);
  });
  EXPECT_EQ(listed(io, "ckpt"), std::vector<std::string>{"step_00000003"});
  // A crash between the two renames: the displaced one comes back.
  io.rename("ckpt/step_00000003", "ckpt/step_00000003.old-1-1");
  run_loopback(1, [&](Communicator& comm) { EXPECT_EQ(Checkpoints("ckpt", 2, comm, io).latest(), 3); });
}

TEST(Checkpoint, RemovingAnyNameMakesLoadingFail) {
  MemoryIo io;
  run_loopback(1, [&](Communicator& comm) {
    Checkpoints c("ckpt", 2, comm, io);
    save(c, comm, 3);
    const auto whole = c.load(3);
    for (const auto& [name, entry] : whole.entries) {
      if (entry.sharing.kind == Sharing::per_rank) continue;  // asked for with has()
      auto cut = whole;
      cut.entries.erase(name);
      State s(0, 1);
      EXPECT_NE(error_of([&] { cut.restore(s.visit()); }).find(name + ": not in the checkpoint"), std::string::npos);
    }
    State s(0, 1);
    s.total = 11;
    EXPECT_NE(error_of([&] { whole.restore(s.visit()); }).find("table/u: the checkpoint has 10 rows"),
              std::string::npos);
    State t(0, 1);
    t.rows.resize(11);
    EXPECT_THROW(whole.restore(t.visit()), DataError);
    auto other = whole;
    other.entries["weight"].dtype = DType::f32;
    EXPECT_NE(error_of([&] { other.restore(s.visit()); }).find("weight: the checkpoint holds f32 [2, 3]"),
              std::string::npos);
  });
}

TEST(Checkpoint, OneNameTwiceIsABug) {
  double x = 0;
  EXPECT_THROW(Snapshot::take(
                   [&](Archive& ar) {
                     ar.value("x", x);
                     ar.value("x", x);
                   },
                   1),
               Error);
}

TEST(Checkpoint, AnErrorOnOneRankReachesAll) {
  MemoryIo good;
  FaultyIo bad(good, 0, FaultyIo::no_space, true);
  std::mutex mutex;
  std::vector<std::string> errors;
  run_loopback(3, [&](Communicator& comm) {
    FileIo* io = &good;
    if (comm.rank() == 1) io = &bad;
    Checkpoints c("ckpt", 2, comm, *io);
    const auto message = error_of([&] { save(c, comm, 5); });
    {
      std::lock_guard lock(mutex);
      errors.push_back(message);
    }
    comm.barrier().wait();  // the group is still usable
    EXPECT_FALSE(c.latest());
  });
  EXPECT_EQ(std::set(errors.begin(), errors.end()).size(), 1u);
  EXPECT_NE(errors[0].find("rank_00001.h5: cannot create: No space left"), std::string::npos) << errors[0];
  EXPECT_TRUE(listed(good, "ckpt").empty());
}

TEST(Checkpoint, DamageIsRefusedByName) {
  MemoryIo io;
  run_loopback(2, [&](Communicator& comm) {
    Checkpoints c("ckpt", 2, comm, io);
    save(c, comm, 5);
  });
  std::mt19937_64 random(2);
  const std::string names[] = {"manifest.json", "rank_00000.h5", "rank_00001.h5"};
  const auto load_error = [&](int ranks) {
    return error_of(
        [&] { run_loopback(ranks, [&](Communicator& comm) { Checkpoints("ckpt", 2, comm, io).load(5); }); });
  };
  ASSERT_EQ(load_error(2), "no error");
  for (int trial = 0; trial < 300; ++trial) {
    const auto& name = names[trial % 3];
    auto& content = *io.content("ckpt/step_00000005/" + name);
    const std::string kept = content;
    if (trial < 240)
      content[random() % content.size()] ^= char(1 << (random() % 8));
    else
      content.resize(random() % content.size());
    const auto message = load_error(1 + trial / 3 % 2);
    EXPECT_NE(message.find(name), std::string::npos) << trial << ": " << message;
    content = kept;
  }
  io.unlink("ckpt/step_00000005/rank_00001.h5");
  EXPECT_NE(load_error(2).find("rank_00001.h5: cannot open: No such file"), std::string::npos);
  io.unlink("ckpt/step_00000005/manifest.json");
  run_loopback(1, [&](Communicator& comm) { EXPECT_FALSE(Checkpoints("ckpt", 2, comm, io).latest()); });
}

std::string unsealed(const std::string& text) { return text.substr(0, text.rfind(",\n \"manifest_crc32c\"")); }

// With its checksum made right again, as a hostile file's would be.
std::string sealed(const std::string& body) {
  char seal[64];
  std::snprintf(seal, sizeof seal, ",\n \"manifest_crc32c\": \"%08x\"\n}\n", crc32c(body.data(), body.size()));
  return body + seal;
}

std::string printed(const nlohmann::json& manifest) {
  auto json = manifest;
  json.erase("manifest_crc32c");
  const std::string text = json.dump();
  return sealed(text.substr(0, text.size() - 1));
}

TEST(Checkpoint, HostileManifestsAreRefused) {
  Manifest good;
  good.files.push_back({"rank_00000.h5", 100, 1});
  good.tensors.push_back({"x", DType::f32, {2, 3}, {}, false, 0, 5});
  const std::string text = good.print();
  ASSERT_NO_THROW(Manifest::parse(text, "m"));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string body = unsealed(text);
    const auto at = body.find(from);
    EXPECT_NE(at, body.npos) << from;
    body.replace(at, from.size(), to);
    return sealed(body);
  };
  const std::pair<const char*, std::string> changes[] = {
      {"\"format_version\": 1", "\"format_version\": 2"},
      {"\"world_size\": 1", "\"world_size\": 0"},
      {"\"world_size\": 1", "\"world_size\": 4000000"},
      {"\"world_size\": 1", "\"world_size\": -1"},
      {"\"step\": 0", "\"step\": 99999999999999999999"},
      {"\"step\": 0", "\"step\": 1.5"},
      {"\"step\": 0", "\"step\": 0, \"step\": 1"},
      {"rank_00000.h5", "../../x"},
      {"\"f32\"", "\"f33\""},
      {"[2,3]", "[-2,3]"},
      {"[2,3]", "[4294967296,4294967296]"},
      {"[2,3]", "\"2\""},
      {"\"rank\":0", "\"rank\":1"},
      {"\"replicated\"", "\"everywhere\""},
      {"\"replicated\"", "\"rows\",\"first_row\":9,\"total_rows\":10"},
      {"\"replicated\"", "\"replicated\",\"holders\":[0]"},
      {"\"replicated\"", "\"per_rank\",\"holders\":[]"},
      {"\"replicated\"", "\"per_rank\",\"holders\":[1]"},
      {"\"replicated\"", "\"per_rank\",\"holders\":[0,0]"},
      {"\"replicated\"", "\"per_rank\",\"holders\":[0,1]"},  // of one rank
      {"\"replicated\"", "\"per_rank\",\"holders\":[0,4294967297]"},
      {"\"replicated\"", "\"per_rank\",\"holders\":0"},
      {"\"size\":100", "\"size\":1e3"},
      {"\"extra\": {}", "\"extra\": " + std::string(100000, '[') + std::string(100000, ']')},
      {"\"extra\": {}", "\"extra\": 3"},
      {"\"best\": false", "\"best\": 0"},
      {"\"name\":\"x\"", "\"name\":\"a//x\""},
      {"\"name\":\"x\"", "\"name\":\"a/../x\""},
      {"\"name\":\"x\"", "\"name\":\"x\\u0000y\""},
      {"[2,3]", "[2,300]"},                 // more than its file holds
      {"[2,3]", "[0,1125899906842624,4]"},  // nothing, but rows of 2^54 bytes
  };
  for (const auto& [from, to] : changes) EXPECT_THROW(Manifest::parse(with(from, to), "m"), DataError) << to;
  EXPECT_THROW(Manifest::parse("", "m"), DataError);
  EXPECT_THROW(Manifest::parse("{}", "m"), DataError);
}

// A table of wide rows on 2 ranks, and what `change` makes of its manifest; the error of loading it on 1 rank.
std::string error_of_wide_table(const std::function<void(nlohmann::json&)>& change) {
  MemoryIo io;
  const std::vector<std::int64_t> shape = {1, 4096};
  std::vector<float> row(4096, 1);
  run_loopback(2, [&](Communicator& comm) {
    auto mine = row;
    Checkpoints c("ckpt", 1, comm, io);
    c.save(1,
           Snapshot::take(
               [&](Archive& ar) {
                 ar.array("u", DType::f32, shape, mine.data(), {Sharing::rows, comm.rank(), 2});
               },
               comm.rank()),
           "{}");
    c.finish();
  });
  std::string& text = *io.content("ckpt/step_00000001/manifest.json");
  auto manifest = nlohmann::json::parse(text);
  change(manifest);
  text = printed(manifest);
  return error_of([&] { run_loopback(1, [&](Communicator& comm) { Checkpoints("ckpt", 1, comm, io).load(1); }); });
}

// first_row * row_bytes + bytes is 2^64: taken modulo that, the copy would start before the buffer.
TEST(Checkpoint, RowsThatWrapAroundAreRefused) {
  const auto expect = [](const char* what, const std::function<void(nlohmann::json&)>& change) {
    EXPECT_NE(error_of_wide_table(change).find(what), std::string::npos) << error_of_wide_table(change);
  };
  expect("no error", [](auto&) {});
  const std::int64_t last = (std::int64_t{1} << 50) - 1;
  expect("'total_rows' is too large", [&](auto& m) {
    for (auto& t : m["tensors"]) t["total_rows"] = last + 1;
    m["tensors"][1]["first_row"] = last;
  });
  // The whole would be 64 GiB, of which 32 KiB are there.
  expect("rows are missing", [](auto& m) {
    for (auto& t : m["tensors"]) t["total_rows"] = 1 << 22;
    m["tensors"][1]["first_row"] = (1 << 22) - 1;
  });
  expect("rows are missing or held twice", [](auto& m) { m["tensors"][1]["first_row"] = 0; });
  expect("rows are missing", [](auto& m) {
    for (auto& t : m["tensors"]) t["total_rows"] = 3;
  });
  expect("not the dtype and shape of the manifest", [](auto& m) { m["tensors"][1]["shape"] = {1, 2048}; });
  expect("not the dtype and shape of the manifest", [](auto& m) { m["tensors"][1]["dtype"] = "i32"; });
  expect("the ranks' parts do not fit together", [](auto& m) { m["tensors"][1]["total_rows"] = 3; });
}

// One value somewhere in the manifest is replaced, removed or doubled.
void mutate(nlohmann::json& j, std::mt19937_64& random) {
  nlohmann::json* at = &j;
  nlohmann::json* parent = nullptr;
  while (at->is_structured() && !at->empty() && (!parent || random() % 8)) {
    parent = at;
    at = &*std::next(at->begin(), std::ptrdiff_t(random() % at->size()));
  }
  const std::vector<nlohmann::json> values = {0,
                                              1,
                                              2,
                                              3,
                                              7,
                                              -1,
                                              1.5,
                                              true,
                                              nullptr,
                                              "",
                                              "x",
                                              "rows",
                                              "per_rank",
                                              "replicated",
                                              "f64",
                                              "u8",
                                              "table/u",
                                              "weight",
                                              std::int64_t{1} << 31,
                                              (std::int64_t{1} << 50) - 1,
                                              std::int64_t{1} << 50,
                                              std::int64_t{1} << 62,
                                              std::uint64_t(-1),
                                              nlohmann::json::array(),
                                              nlohmann::json::object(),
                                              {0, 1},
                                              {2, 3}};
  const auto kind = random() % 8;
  if (kind == 0 && parent && parent->is_array()) {
    parent->erase(parent->begin() + std::ptrdiff_t(random() % parent->size()));
  } else if (kind == 1 && parent && parent->is_array()) {
    parent->push_back(nlohmann::json(*at));
  } else if (kind <= 4 && at->is_number_integer()) {
    *at = at->get<std::int64_t>() + std::int64_t(random() % 5) - 2;
  } else {
    *at = values[random() % values.size()];
  }
}

// A row range of some tensor is moved to the far end of a huge whole.
void move_rows(nlohmann::json& manifest, std::mt19937_64& random) {
  auto& tensors = manifest["tensors"];
  const auto& name = tensors[random() % tensors.size()]["name"].get_ref<const std::string&>();
  const std::int64_t total = std::int64_t{1} << (2 + random() % 49);
  for (auto& t : tensors)
    if (t["name"] == name && t["sharing"] == "rows") {
      t["total_rows"] = total;
      if (random() % 2) t["first_row"] = total - t["shape"][0].get<std::int64_t>();
    }
}

// Manifests and files changed at random, their checksums right: whatever they say, the answer is a state or one line
// that blames the data. TRIREME_LONG=1: a hundred times as many.
TEST(Checkpoint, MutatedOnesLoadOrAreRefused) {
  MemoryIo io;
  run_loopback(2, [&](Communicator& comm) {
    Checkpoints c("ckpt", 2, comm, io);
    save(c, comm, 5);
  });
  std::string& text = *io.content("ckpt/step_00000005/manifest.json");
  const auto manifest = nlohmann::json::parse(text);
  std::mt19937_64 random(4);
  std::atomic<int> refused = 0, restored = 0;
  const int trials = std::getenv("TRIREME_LONG") ? 300000 : 3000;
  for (int trial = 0; trial < trials; ++trial) {
    auto changed = manifest;
    std::string* file = nullptr;
    std::string kept;
    if (trial % 3 == 2) {
      const std::size_t rank = random() % 2;
      file = io.content("ckpt/step_00000005/rank_0000" + std::to_string(rank) + ".h5");
      kept = *file;
      for (int n = 1 + int(random() % 3); n > 0; --n) (*file)[random() % file->size()] = char(random());
      char crc[16];
      std::snprintf(crc, sizeof crc, "%08x", crc32c(file->data(), file->size()));
      changed["files"][rank]["crc32c"] = crc;
    } else {
      if (random() % 4 == 0)
        move_rows(changed, random);
      else
        for (int n = 1 + int(random() % 3); n > 0; --n) mutate(changed, random);
    }
    text = changed.is_object() ? printed(changed) : sealed("{" + changed.dump());
    const int ranks = 1 + trial % 2;
    run_loopback(ranks, [&](Communicator& comm) {
      try {
        State s(comm.rank(), ranks);
        const auto snapshot = Checkpoints("ckpt", 2, comm, io).load(5);
        agree(comm, attempt([&] { snapshot.restore(s.visit()); }));
        ++restored;
      } catch (const Error& e) {
        ++refused;
        EXPECT_EQ(e.code(), ExitCode::data) << trial << ": " << e.what();
        EXPECT_LT(std::string_view(e.what()).size(), 2000u);
      }
    });
    if (file) *file = kept;
  }
  EXPECT_GT(refused, trials / 2);
  EXPECT_GT(restored, 0);
}

TEST(Checkpoint, AFolderOfAnotherNameIsNone) {
  MemoryIo io;
  run_loopback(1, [&](Communicator& comm) {
    Checkpoints c("ckpt", 2, comm, io);
    save(c, comm, 5);
    io.rename("ckpt/step_00000005", "ckpt/step_000000005");
    EXPECT_FALSE(c.latest()) << "it would be looked for under another name";
  });
}

// The manifest of the best one cannot be read when the next is saved: that is no reason to remove it.
TEST(Checkpoint, WhatCannotBeReadIsNotRemoved) {
  MemoryIo io;
  run_loopback(1, [&](Communicator& comm) {
    Checkpoints c("ckpt", 1, comm, io);
    save(c, comm, 1, true);
  });
  auto& manifest = *io.content("ckpt/step_00000001/manifest.json");
  const std::string kept = std::exchange(manifest, "");
  run_loopback(1, [&](Communicator& comm) {
    Checkpoints c("ckpt", 1, comm, io);
    save(c, comm, 2);
    save(c, comm, 3);
    ASSERT_EQ(listed(io, "ckpt"), (std::vector<std::string>{"step_00000001", "step_00000003"}));
    manifest = kept;
    save(c, comm, 4);
  });
  EXPECT_EQ(listed(io, "ckpt"), (std::vector<std::string>{"step_00000001", "step_00000004"}));
}

class FolderLockTest : public testing::Test {
 protected:
  FolderLockTest() {
    std::string name = (fs::temp_directory_path() / "trireme-lock-XXXXXX").string();
    dir = mkdtemp(name.data());
  }
  ~FolderLockTest() override { fs::remove_all(dir); }
  std::string words() const {
    std::ifstream in(fs::path(dir) / ".lock");
    return {std::istreambuf_iterator<char>(in), {}};
  }
  std::string dir;
};

constexpr std::chrono::milliseconds at_once{0};

TEST_F(FolderLockTest, TheSecondIsRefusedByNameUntilTheFirstEnds) {
  char host[256] = "";
  gethostname(host, sizeof host - 1);
  const std::string me = "process " + std::to_string(getpid()) + " on " + host;
  {
    const FolderLock first(dir);
    EXPECT_EQ(first.warning(), "");
    EXPECT_TRUE(words().starts_with(me)) << words();
    try {
      FolderLock second(dir, at_once);
      ADD_FAILURE() << "two hold it";
    } catch (const UsageError& e) {
      const std::string what = e.what();
      EXPECT_NE(what.find(dir + ": is in use by " + me), std::string::npos) << what;
      EXPECT_EQ(what.find('\n'), std::string::npos);
    }
    EXPECT_TRUE(words().starts_with(me)) << "the refused one has left its words";
  }
  EXPECT_FALSE(fs::exists(dir + "/.lock"));
  FolderLock(dir, at_once);
}

TEST_F(FolderLockTest, AKilledHolderAndItsChildrenHoldNothing) {
  int ends[2], started[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(pipe2(started, O_CLOEXEC), 0);
  const pid_t holder = fork();
  if (holder == 0) {
    const FolderLock lock(dir);
    // A child that goes on without it, as one started by fork and exec.
    const pid_t child = fork();
    if (child == 0) execlp("sleep", "sleep", "60", nullptr), _exit(127);
    close(started[1]);
    char none;
    if (read(started[0], &none, 1) != 0) _exit(1);  // its end was closed when it began to be `sleep`
    if (write(ends[1], &child, sizeof child) != sizeof child) _exit(1);
    pause();
  }
  for (const int end : started) close(end);
  pid_t child = 0;
  ASSERT_EQ(read(ends[0], &child, sizeof child), ssize_t(sizeof child));
  EXPECT_THROW(FolderLock(dir, at_once), UsageError);
  kill(holder, SIGKILL);
  waitpid(holder, nullptr, 0);
  EXPECT_NO_THROW(FolderLock(dir, at_once)) << "its words alone hold nothing";
  EXPECT_EQ(kill(child, SIGKILL), 0) << "the child has ended, and this shows nothing";
  for (const int end : ends) close(end);
}

// A sound job is not waited for, however soon it may end.
TEST_F(FolderLockTest, AHolderThatIsWellIsNamedAtOnce) {
  const FolderLock first(dir);
  const auto begin = std::chrono::steady_clock::now();
  EXPECT_THROW(FolderLock(dir, std::chrono::seconds(20)), UsageError);
  EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(5));
}

// The ranks of a killed job take a moment to die.
TEST_F(FolderLockTest, WhatAKilledJobLeavesIsWaitedFor) {
  int ends[2], may_die[2];
  ASSERT_EQ(pipe(ends), 0);
  ASSERT_EQ(pipe(may_die), 0);
  const pid_t parent = fork();
  if (parent == 0) {
    if (fork() == 0) {
      const FolderLock lock(dir);
      char word;
      if (write(ends[1], "x", 1) != 1 || read(may_die[0], &word, 1) != 1) _exit(1);
      std::this_thread::sleep_for(std::chrono::milliseconds(600));
      _exit(0);
    }
    pause();
  }
  char ready;
  ASSERT_EQ(read(ends[0], &ready, 1), 1);
  kill(parent, SIGKILL);
  waitpid(parent, nullptr, 0);
  EXPECT_THROW(FolderLock(dir, at_once), UsageError);
  EXPECT_EQ(write(may_die[1], "x", 1), 1);
  EXPECT_NO_THROW(FolderLock(dir, std::chrono::seconds(20)));
  for (const int end : {ends[0], ends[1], may_die[0], may_die[1]}) close(end);
}

TEST_F(FolderLockTest, WithoutLocksTheJobGoesOn) {
  static int error = 0;
  const auto fails = [](int, int) {
    errno = error;
    return -1;
  };
  for (const int e : {ENOLCK, ENOSYS, EOPNOTSUPP, 524}) {
    error = e;
    const FolderLock first(dir, at_once, fails), second(dir, at_once, fails);
    EXPECT_NE(second.warning().find(dir + ": the file system cannot lock it"), std::string::npos) << second.warning();
    EXPECT_EQ(second.warning().find('\n'), std::string::npos);
  }
  static int calls = 0;  // interrupted once
  FolderLock(dir, at_once, [](int fd, int operation) {
    errno = EINTR;
    return calls++ == 0 ? -1 : flock(fd, operation);
  });
  EXPECT_EQ(calls, 2);
}

TEST_F(FolderLockTest, AFolderThatWasMovedAwayIsNotTheLockedOne) {
  {
    FolderLock first(dir);
    fs::rename(dir, dir + ".old-1");
    first.moved_to(dir + ".old-1");
    fs::create_directory(dir);
    EXPECT_NO_THROW(FolderLock(dir, at_once));
  }
  EXPECT_TRUE(fs::is_empty(dir + ".old-1"));
  // Moved between opening and locking: the lock would be that of the other folder.
  static std::string name;
  name = dir;
  static int calls = 0;
  const FolderLock second(dir, at_once, [](int fd, int operation) {
    if (calls++ == 0) {
      fs::rename(name, name + ".old-2");
      fs::create_directory(name);
    }
    return flock(fd, operation);
  });
  EXPECT_EQ(calls, 2);
  EXPECT_THROW(FolderLock(dir, at_once), UsageError);
  fs::remove_all(dir + ".old-1");
  fs::remove_all(dir + ".old-2");
}

// Until 2026-11 arrays lay in chunks.
TEST(Checkpoint, FilesWithChunksAreReadAsBefore) {
  const std::vector<std::int64_t> shape = {1000, 3};
  std::vector<float> x(3000), back(3000);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = float(i);
  auto file = Hdf5File::create_in_memory("rank_00000.h5");
  file.create_array("x", DType::f32, shape);
  file.write_rows("x", 0, 1000, x.data());
  const auto image = file.image();
  Manifest m;
  m.step = 1;
  m.files.push_back({"rank_00000.h5", image.size(), crc32c(image.data(), image.size())});
  m.tensors.push_back({"x", DType::f32, shape, {}, false, 0, crc32c(x.data(), 12000)});
  MemoryIo io;
  make_folder(io, "ckpt/step_00000001");
  write_durably(io, "ckpt/step_00000001/rank_00000.h5", image);
  write_durably(io, "ckpt/step_00000001/manifest.json", m.print());
  run_loopback(1, [&](Communicator& comm) {
    Checkpoints("ckpt", 1, comm, io).load(1).restore([&](Archive& ar) {
      ar.array("x", DType::f32, shape, back.data());
    });
  });
  EXPECT_EQ(back, x);
}

// Tensors that are no piece of host memory go straight to and from a snapshot's.
TEST(Checkpoint, TensorsInAnyOrderOfMemoryComeBack) {
  const at::Tensor x = at::arange(60000, at::kFloat).view({200, 300});
  at::Tensor saved = x.t(), back = at::zeros({200, 300}).t();
  MemoryIo io;
  run_loopback(1, [&](Communicator& comm) {
    Checkpoints c("ckpt", 1, comm, io);
    c.save(1, Snapshot::take([&](Archive& ar) { archive(ar, "x", saved); }, 0), "{}");
    c.finish();
    c.load(1).restore([&](Archive& ar) { archive(ar, "x", back); });
  });
  EXPECT_TRUE(at::equal(back, saved));
  EXPECT_FALSE(back.is_contiguous());
}

TEST(Checkpoint, EmptyRanksAndZeroRowsAreLegal) {
  for (int q : {3, 1}) {
    MemoryIo io;
    const auto visit = [](Communicator& comm, std::vector<float>& rows) {
      // Rank 1 holds nothing.
      const std::int64_t n = comm.size() == 1 ? 4 : comm.rank() == 1 ? 0 : 2;
      const std::int64_t first = comm.size() == 1 || comm.rank() == 0 ? 0 : 2;
      rows.resize(std::size_t(n));
      return [&rows, n, first](Archive& ar) {
        ar.array("u", DType::f32, {&n, 1}, rows.data(), {Sharing::rows, first, 4});
      };
    };
    run_loopback(3, [&](Communicator& comm) {
      std::vector<float> rows;
      auto state = visit(comm, rows);
      for (std::size_t i = 0; i < rows.size(); ++i) rows[i] = float(comm.rank() * 10 + int(i));
      Checkpoints c("ckpt", 1, comm, io);
      c.save(1, Snapshot::take(state, comm.rank()), "{}");
      c.finish();
    });
    run_loopback(q, [&](Communicator& comm) {
      std::vector<float> rows;
      auto state = visit(comm, rows);
      Checkpoints("ckpt", 1, comm, io).load(1).restore(state);
      const std::vector<float> all = {0, 1, 20, 21};
      if (q == 1) {
        EXPECT_EQ(rows, all);
      }
      if (q == 3 && comm.rank() == 2) {
        EXPECT_EQ(rows, std::vector<float>(all.begin() + 2, all.end()));
      }
    });
  }
}

}  // namespace
}  // namespace trireme
