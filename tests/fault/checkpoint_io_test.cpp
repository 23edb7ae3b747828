// Every I/O call of a save and of a load is failed once, in several ways, and power is cut before every call.
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "framework/io/checkpoint.h"
#include "tests/fault/memory_io.h"

#include <chrono>
#include <csignal>
#include <filesystem>
#include <random>
#include <thread>

#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

namespace trireme {
namespace {

namespace fs = std::filesystem;

std::function<void(Archive&)> visit(std::vector<double>& x, double& own) {
  return [&](Archive& ar) {
    const std::int64_t n = std::int64_t(x.size());
    ar.array("x", DType::f64, {&n, 1}, x.data());
    ar.array("own", DType::f64, {}, &own, {Sharing::per_rank});
  };
}

void save(Checkpoints& c, Communicator& comm, std::int64_t step, std::size_t size = 100) {
  std::vector<double> x(size, double(step));
  double own = double(step + comm.rank());
  c.save(step, Snapshot::take(visit(x, own), comm.rank()), "{}");
  c.finish();
}

void expect_step(Checkpoints& c, Communicator& comm, std::int64_t step, std::size_t size = 100) {
  std::vector<double> x(size);
  double own = 0;
  c.load(step).restore(visit(x, own));
  EXPECT_EQ(x, std::vector<double>(size, double(step)));
  EXPECT_EQ(own, double(step + comm.rank()));
}

template <class F>
std::string error_of(F f) {
  try {
    f();
  } catch (const DataError& e) {
    return e.what();
  }
  return "";
}

std::vector<std::string> listed(FileIo& io, const std::string& folder) {
  std::vector<std::string> names;
  io.list(folder, names);
  return names;
}

constexpr FaultyIo::Kind kinds[] = {FaultyIo::no_space, FaultyIo::io_error, FaultyIo::short_write,
                                    FaultyIo::interrupted};

TEST(CheckpointIo, EveryFailedCallOfASaveLeavesAGoodCheckpoint) {
  constexpr int ranks = 2;
  long failures = 0;
  for (int victim = 0; victim < ranks; ++victim)
    for (auto kind : kinds)
      for (bool sticky : {false, true}) {
        if (sticky && (kind == FaultyIo::interrupted || kind == FaultyIo::short_write)) continue;
        bool fired = true;
        for (long n = 0; fired; ++n) {
          MemoryIo good;
          run_loopback(ranks, [&](Communicator& comm) {
            Checkpoints c("run/ckpt", 1, comm, good);
            save(c, comm, 1);
          });
          FaultyIo bad(good, n, kind, sticky);
          std::string errors[ranks];
          run_loopback(ranks, [&](Communicator& comm) {
            FileIo* io = &good;
            if (comm.rank() == victim) io = &bad;
            errors[comm.rank()] = error_of([&] {
              Checkpoints c("run/ckpt", 1, comm, *io);
              save(c, comm, 2);
            });
          });
          fired = bad.fired();
          const std::string where = "victim " + std::to_string(victim) + " call " + std::to_string(n) + " kind " +
                                    std::to_string(kind) + ": " + errors[0];
          EXPECT_EQ(errors[0], errors[1]) << where;
          if (!errors[0].empty()) {
            ++failures;
            EXPECT_EQ(errors[0].rfind("run", 0), 0u) << where;  // the path comes first
          }
          if (kind == FaultyIo::short_write || kind == FaultyIo::interrupted) {
            EXPECT_EQ(errors[0], "") << where;
          }
          run_loopback(ranks, [&](Communicator& comm) {
            Checkpoints c("run/ckpt", 1, comm, good);
            const auto step = c.latest();
            ASSERT_TRUE(step) << where;
            // If even undoing failed the new one may stand, whole; a single failure leaves only the old one.
            if (errors[0].empty() || !sticky) {
              EXPECT_EQ(*step, errors[0].empty() ? 2 : 1) << where;
            }
            expect_step(c, comm, *step);
            save(c, comm, 3);  // and life goes on
            expect_step(c, comm, 3);
          });
          EXPECT_EQ(listed(good, "run/ckpt"), std::vector<std::string>{"step_00000003"}) << where;
        }
      }
  EXPECT_GT(failures, 20);
}

TEST(CheckpointIo, EveryFailedCallOfALoadIsAnErrorOrHarmless) {
  MemoryIo good;
  run_loopback(2, [&](Communicator& comm) {
    Checkpoints c("run/ckpt", 1, comm, good);
    save(c, comm, 1);
  });
  for (auto kind : kinds) {
    bool fired = true;
    int harmless = 0;
    for (long n = 0; fired; ++n) {
      FaultyIo bad(good, n, kind);
      std::string errors[2];
      run_loopback(2, [&](Communicator& comm) {
        FileIo* io = &good;
        if (comm.rank() == 1) io = &bad;
        errors[comm.rank()] = error_of([&] {
          Checkpoints c("run/ckpt", 1, comm, *io);
          expect_step(c, comm, 1);
        });
      });
      fired = bad.fired();
      EXPECT_EQ(errors[0], errors[1]);
      if (kind == FaultyIo::io_error && fired) {
        if (errors[0].empty())
          ++harmless;
        else
          EXPECT_NE(errors[0].find("Input/output error"), std::string::npos) << n;
      }
      if (kind == FaultyIo::interrupted) {
        EXPECT_EQ(errors[0], "") << n;
      }
    }
    EXPECT_LE(harmless, 3);  // closing each of the three files after reading
  }
}

TEST(CheckpointIo, PowerCutBeforeEveryCallKeepsWhatWasCommitted) {
  constexpr int ranks = 2;
  MemoryIo disk;
  std::mutex mutex;
  std::atomic<std::int64_t> committed = 0;
  std::vector<std::pair<std::int64_t, std::shared_ptr<MemoryIo>>> cuts;
  FaultyIo watched(disk, -1, FaultyIo::io_error);
  watched.before = [&](long) {
    std::lock_guard lock(mutex);
    cuts.emplace_back(committed.load(), disk.copy());
  };
  run_loopback(ranks, [&](Communicator& comm) {
    Checkpoints c("run/ckpt", 1, comm, watched);
    for (int step : {1, 2, 2, 3}) {  // the second 2 replaces the first
      save(c, comm, step);
      comm.barrier().wait();
      committed = step;
    }
  });
  ASSERT_GT(cuts.size(), 50u);
  for (auto& [step, io] : cuts) {
    for (bool power : {false, true}) {  // a killed process keeps what was written; a power cut only what was synced
      auto after = io->copy();
      if (power) after->power_cut();
      run_loopback(ranks, [&](Communicator& comm) {
        Checkpoints c("run/ckpt", 1, comm, *after);
        const auto found = c.latest();
        EXPECT_GE(found.value_or(0), step);
        if (found) expect_step(c, comm, *found);
      });
      for (const auto& name : listed(*after, "run/ckpt")) EXPECT_EQ(name.find('.'), name.npos) << name;
    }
  }
}

TEST(CheckpointIo, KilledWhileWritingItResumesFromAWholeOne) {
  std::string name = (fs::temp_directory_path() / "trireme-kill-XXXXXX").string();
  const fs::path dir = mkdtemp(name.data());
  const std::string ckpt = (dir / "ckpt").string();
  constexpr std::size_t size = 50000;
  std::mt19937_64 random(3);
  std::int64_t last = 0;
  for (int kill_number = 0; kill_number < 20; ++kill_number) {
    int pipe_ends[2];
    ASSERT_EQ(pipe(pipe_ends), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      run_loopback(1, [&](Communicator& comm) {
        Checkpoints c(ckpt, 2, comm);
        for (std::int64_t step = c.latest().value_or(0) + 1;; ++step) {
          save(c, comm, step, size);
          if (write(pipe_ends[1], &step, sizeof step) != sizeof step) _exit(1);
        }
      });
      _exit(1);
    }
    close(pipe_ends[1]);
    // Mostly after the first save of this life, however slow the machine; sometimes at its very start.
    std::int64_t reported;
    if (kill_number % 4 != 0 && read(pipe_ends[0], &reported, sizeof reported) == sizeof reported) last = reported;
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    while (read(pipe_ends[0], &reported, sizeof reported) == sizeof reported) last = reported;
    close(pipe_ends[0]);
    run_loopback(1, [&](Communicator& comm) {
      Checkpoints c(ckpt, 2, comm);
      const auto step = c.latest();
      EXPECT_GE(step.value_or(0), last);
      if (step) expect_step(c, comm, *step, size);
    });
    for (const auto& e : fs::directory_iterator(dir / "ckpt"))
      EXPECT_EQ(e.path().filename().string().find('.'), std::string::npos) << e.path();
  }
  EXPECT_GT(last, 0);
  fs::remove_all(dir);
}

}  // namespace
}  // namespace trireme
