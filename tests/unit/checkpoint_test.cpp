#include "framework/io/checkpoint.h"

#include "comm/error.h"
#include "comm/local/loopback.h"
#include "framework/io/crc32c.h"
#include "framework/io/file_io.h"
#include "framework/io/manifest.h"
#include "tests/fault/memory_io.h"

#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>
#include <set>

#include <gtest/gtest.h>

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

// A damaged file whose checksum was made right again, as a hostile one would be.
TEST(Checkpoint, HostileManifestsAreRefused) {
  Manifest good;
  good.files.push_back({"rank_00000.h5", 100, 1});
  good.tensors.push_back({"x", DType::f32, {2, 3}, {}, false, 0, 5});
  const std::string text = good.print();
  ASSERT_NO_THROW(Manifest::parse(text, "m"));
  const auto with = [&](const std::string& from, const std::string& to) {
    std::string body = text.substr(0, text.rfind(",\n \"manifest_crc32c\""));
    const auto at = body.find(from);
    EXPECT_NE(at, body.npos) << from;
    body.replace(at, from.size(), to);
    char seal[64];
    std::snprintf(seal, sizeof seal, ",\n \"manifest_crc32c\": \"%08x\"\n}\n", crc32c(body.data(), body.size()));
    return body + seal;
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
  };
  for (const auto& [from, to] : changes) EXPECT_THROW(Manifest::parse(with(from, to), "m"), DataError) << to;
  EXPECT_THROW(Manifest::parse("", "m"), DataError);
  EXPECT_THROW(Manifest::parse("{}", "m"), DataError);
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
