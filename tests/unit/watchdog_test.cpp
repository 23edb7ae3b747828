// links: comm
// The flight recorder, the watchdogs of ranks that are threads, their side channel and their words.
#include "comm/watchdog/watchdog.h"

#include "comm/error.h"
#include "comm/watchdog/hang_report.h"
#include "comm/local/loopback.h"
#include "comm/watchdog/side_channel.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <random>

#include <gtest/gtest.h>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace trireme {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

TEST(CommLog, KnowsWhatIsOpenWithoutWaiting) {
  run_loopback(2, [](Communicator& comm) {
    Traced traced(comm);
    double v = 1;
    if (comm.rank() == 0) {
      const CallSite outer("outer");
      Work work;
      {
        const CallSite here("bucket", 3);
        work = traced.all_reduce({&v, 1, DType::f64}, Op::sum);
      }
      EXPECT_STREQ(CallSite::here().what, "outer");
      const CommLog& log = *traced.recorder()->logs().front();
      EXPECT_EQ(log.oldest_open().sequence, 1u);
      EXPECT_STREQ(log.oldest_open().site.what, "bucket");
      EXPECT_EQ(log.oldest_open().site.index, 3);
      EXPECT_EQ(log.oldest_open().count, 1u);
      EXPECT_EQ(log.waiting(), 0u);
      comm.barrier();  // behind it in the queue
    } else {
      std::this_thread::sleep_for(milliseconds(50));
      traced.all_reduce({&v, 1, DType::f64}, Op::sum).wait();
      comm.barrier();
    }
    // Dropped, never waited for: seen to be complete all the same.
    const auto end = Clock::now() + std::chrono::seconds(10);
    while (traced.recorder()->logs().front()->oldest_open().sequence != 0 && Clock::now() < end)
      std::this_thread::sleep_for(milliseconds(1));
    EXPECT_EQ(traced.recorder()->logs().front()->oldest_open().sequence, 0u);
    EXPECT_TRUE(traced.recent().back().complete);
    EXPECT_THROW(traced.broadcast({&v, 1, DType::f64}, 7), CommError);
    EXPECT_EQ(traced.stats().calls, 1u) << "a refused call does not count";
    EXPECT_EQ(traced.recorder()->logs().front()->oldest_open().sequence, 0u);
    comm.barrier().wait();
  });
}

TEST(CommLog, GroupsAreNamed) {
  run_loopback(3, [](Communicator& comm) {
    Traced job(comm, {}, "job");
    auto grad = job.derive("grad", [](Communicator& inner) { return inner.split(0, inner.rank()); }, {});
    auto part = grad->split(comm.rank() % 2, 0);
    std::vector<std::string> names;
    for (const auto& log : job.recorder()->logs()) names.push_back(log->name);
    EXPECT_EQ(names, (std::vector<std::string>{"job", "grad", "grad/1." + std::to_string(comm.rank() % 2)}));
    part.reset();
    EXPECT_EQ(job.recorder()->logs().size(), 2u);
  });
}

// One line and one end a rank, in ranks that are threads.
struct Ended {
  std::mutex mutex;
  std::vector<std::string> lines;
  int ends = 0;
  Watchdog::Options options(Communicator& comm, Watchdog::Options o) {
    o.print = [this](std::string_view line) {
      std::lock_guard lock(mutex);
      lines.emplace_back(line);
    };
    o.end = [this, &comm] {
      std::lock_guard lock(mutex);
      if (++ends == comm.size()) comm.abort(4, "ended by the watchdogs");
    };
    return o;
  }
};

TEST(Watchdog, NamesTheRankThatDidNotEnter) {
  const auto folder = std::filesystem::temp_directory_path() / ("watchdog" + std::to_string(getpid()));
  std::filesystem::create_directory(folder);
  for (const int culprit : {0, 2}) {
    Ended ended;
    const auto begin = Clock::now();
    EXPECT_THROW(
        run_loopback(4,
                     [&](Communicator& comm) {
                       Traced job(comm, {}, "job");
                       Watchdog watchdog(
                           job, ended.options(comm, {.warn = 0, .first = 60, .later = 1, .folder = folder.string()}));
                       float v[6] = {};
                       const CallSite here("reducer: bucket", 1);
                       job.all_reduce({v, 6, DType::f32}, Op::sum).wait();
                       watchdog.finished(7);
                       watchdog.phase("the loader");
                       if (comm.rank() == culprit)
                         while (true) {
                           std::lock_guard lock(ended.mutex);
                           if (ended.ends == comm.size()) throw CommError("", "was hung");
                         }
                       watchdog.phase("the step");
                       job.all_reduce({v, 6, DType::f32}, Op::sum).wait();
                     }),
        Error);
    EXPECT_LT(Clock::now() - begin, std::chrono::seconds(6));
    ASSERT_EQ(ended.lines.size(), 1u) << ended.lines.back();
    const std::string& line = ended.lines[0];
    const std::string others = culprit == 0 ? "ranks 1-3 wait" : "ranks 0,1,3 wait",
                      who = "rank " + std::to_string(culprit);
    for (const std::string& word :
         {std::string("trireme: error: collective "),
          std::string(" of \"job\" (all_reduce of 6 f32, 24 bytes, at reducer: bucket 1)"),
          who + " did not enter it, " + others, who + ": in the loader after step 7, last collective "})
      EXPECT_NE(line.find(word), std::string::npos) << word << "\n" << line;
    for (int r = 0; r < 4; ++r) {
      const auto file = folder / ("hang.rank" + std::to_string(r) + ".json");
      EXPECT_TRUE(std::filesystem::exists(file)) << file;
      std::filesystem::remove(file);
    }
  }
  std::filesystem::remove_all(folder);
}

TEST(Watchdog, QuietInAHealthyJob) {
  Ended ended;
  run_loopback(3, [&](Communicator& comm) {
    Traced job(comm, {}, "job");
    Watchdog watchdog(job, ended.options(comm, {.warn = 1, .first = 2, .later = 2}));
    double v = 0;
    for (const auto end = Clock::now() + std::chrono::seconds(3); Clock::now() < end;) {
      if (comm.rank() == 1) std::this_thread::sleep_for(milliseconds(20));
      watchdog.phase("the step");
      for (int i = 0; i < 20; ++i) job.all_reduce({&v, 1, DType::f64}, Op::max);
      double stop = Clock::now() > end ? 1 : 0;
      job.all_reduce({&stop, 1, DType::f64}, Op::max).wait();
      if (stop > 0) break;
    }
    job.barrier().wait();
  });
  EXPECT_TRUE(ended.lines.empty()) << ended.lines[0];
  EXPECT_EQ(ended.ends, 0);
}

TEST(SideChannel, AnswersItsOwnAndDropsStrangers) {
  run_loopback(3, [](Communicator& comm) {
    SideChannel channel(comm);
    int asked = 0;
    std::string big(100000, char('a' + comm.rank()));
    channel.on_question = [&](int, char q) {
      ++asked;
      return q == 'b' ? big : "rank " + std::to_string(comm.rank());
    };
    const int next = (comm.rank() + 1) % 3;
    channel.ask(next, 'b');
    const auto end = Clock::now() + std::chrono::seconds(10);
    while ((channel.answer(next) == SideChannel::Answer::pending || asked < 1) && Clock::now() < end)
      channel.pump(milliseconds(5));
    ASSERT_EQ(channel.answer(next), SideChannel::Answer::reply);
    EXPECT_EQ(channel.reply(next), std::string(100000, char('a' + next)));
    comm.barrier().wait();
    // A process without the key, with every length of nonsense.
    std::mt19937 random(comm.rank() + 1);
    for (int i = 0; i < 50; ++i) {
      const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      sockaddr_in to{};
      to.sin_family = AF_INET;
      to.sin_port = htons(channel.port());
      to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      ASSERT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof to), 0);
      std::string nonsense("trw1");
      for (std::size_t n = random() % 200; n > 0; --n) nonsense += char(random());
      EXPECT_EQ(send(fd, nonsense.data(), nonsense.size(), MSG_NOSIGNAL), ssize_t(nonsense.size()));
      channel.pump(milliseconds(1));
      channel.pump(milliseconds(1));
      char answer[8];
      EXPECT_LE(recv(fd, answer, sizeof answer, MSG_DONTWAIT), 0) << "a stranger was answered";
      close(fd);
    }
    EXPECT_EQ(asked, 1);
    comm.barrier().wait();
  });
}

RankState sample() {
  RankState s{"the step", 12, 3.5, 601, {}};
  s.logs.push_back({"grad",
                    1,
                    2,
                    57,
                    57,
                    {{56, "all_reduce", "f32", "reducer: bucket 2", 100, 400, true, 602},
                     {57, "all_reduce", "f32", "", 8, 32, false, 601}}});
  s.logs.push_back({"control", 1, 2, 9, 0, {}});
  return s;
}

TEST(HangReport, StatesSurviveTheWireAndNonsenseDoesNot) {
  const std::string bytes = encode(sample());
  const auto back = decode(bytes);
  ASSERT_TRUE(back);
  EXPECT_EQ(encode(*back), bytes);
  EXPECT_EQ(back->logs[0].calls[0].site, "reducer: bucket 2");
  for (std::size_t n = 0; n < bytes.size(); ++n) EXPECT_FALSE(decode(std::string_view(bytes).substr(0, n))) << n;
  EXPECT_FALSE(decode(bytes + "x"));
  std::mt19937 random(3);
  for (int i = 0; i < 20000; ++i) {
    std::string bad = bytes;
    for (int k = 0; k < 4; ++k) bad[random() % bad.size()] = char(random());
    if (const auto state = decode(bad)) describe_hang({RankView{state, ""}, RankView{{}, "gone"}});
  }
}

TEST(HangReport, NamesCallsThatDiffer) {
  RankState a = sample(), b = sample();
  b.logs[0].calls[1].operation = "broadcast";
  b.logs[0].calls[1].site = "recipe";
  EXPECT_EQ(describe_hang({{a, ""}, {b, ""}}),
            "collective 57 of \"grad\": rank 0 and rank 1 make different calls: all_reduce of 8 f32, 32 bytes and "
            "broadcast of 8 f32, 32 bytes at recipe");
}

// What a then() posts has another number on each rank: no reason to speak of different calls.
TEST(HangReport, DoesNotCompareWhatContinuationsPosted) {
  RankState a = sample(), b = sample();
  b.logs[0].calls[1].operation = "all_gather";
  b.logs[0].calls[1].continued = true;
  const std::string text = describe_hang({{a, ""}, {b, ""}});
  EXPECT_EQ(text.find("different calls"), std::string::npos) << text;
}

TEST(HangReport, AllEnteredPointsAtTheNetwork) {
  EXPECT_NE(
      describe_hang({{sample(), ""}, {sample(), ""}}).find("all its ranks entered it, so the network or MPI is stuck"),
      std::string::npos);
}

TEST(HangReport, RankLists) {
  EXPECT_EQ(rank_list({3}), "3");
  EXPECT_EQ(rank_list({0, 1, 2, 5, 7, 8}), "0-2,5,7,8");
}

}  // namespace
}  // namespace trireme
