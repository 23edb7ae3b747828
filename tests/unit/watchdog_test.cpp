// links: comm
// The flight recorder, the watchdogs of ranks that are threads, their side channel and their words.
#include "comm/watchdog/watchdog.h"

#include "comm/error.h"
#include "comm/local/loopback.h"
#include "comm/watchdog/apart.h"
#include "comm/watchdog/hang_report.h"
#include "comm/watchdog/side_channel.h"
#include "tests/forwarding.h"

#include <atomic>
#include <cerrno>
#include <condition_variable>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <random>

#include <gtest/gtest.h>

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

namespace trireme {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

TEST(CommLog, KnowsWhatIsOpenWithoutWaiting) {
  std::atomic<bool> looked = false;
  run_loopback(2, [&](Communicator& comm) {
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
      looked = true;
      looked.notify_one();
    } else {
      looked.wait(false);
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

// Calls as a device has them: wait() orders streams and returns, and the call is under way until `arrived`.
class OnAStream final : public test::Forwarding {
 public:
  explicit OnAStream(Communicator& inner) : Forwarding(inner) {}
  std::atomic<bool> arrived{false};
  Work all_reduce(Buffer, Op) override { return Work(newest_ = std::make_shared<Enqueued>(arrived)); }

 private:
  struct Enqueued final : Work::State {
    explicit Enqueued(std::atomic<bool>& a) : arrived(a) {}
    std::atomic<bool>& arrived;
    bool done() override { return arrived; }
    bool settled() override { return arrived; }
    void wait() override {}
    bool wait_host(std::chrono::milliseconds) override { return arrived; }
    std::shared_ptr<State> then(std::function<Work()>) override { return nullptr; }
  };
  std::shared_ptr<Work::State> newest_;
};

// Else no call of a GPU that hangs is open for a watchdog, and the job stands for ever.
TEST(CommLog, ACallThatOnlyAStreamWaitsForIsOpen) {
  run_loopback(1, [](Communicator& alone) {
    OnAStream device(alone);
    Traced traced(device);
    const CommLog& log = *traced.recorder()->logs().front();
    float v = 1;
    traced.all_reduce({&v, 1, DType::f32}, Op::sum).wait();
    EXPECT_EQ(log.oldest_open().sequence, 1u);
    EXPECT_FALSE(traced.recent().back().complete);
    device.arrived = true;
    EXPECT_EQ(log.oldest_open().sequence, 0u);
    EXPECT_TRUE(traced.recent().back().complete);
  });
}

// An entry that takes another's place would look like a different call on the ranks that have not replayed yet.
TEST(CommLog, AReplayOfWhatWasCountedHasAnEntryOfItsOwn) {
  CommLog log("parts", 0, 2);
  CommCall call;
  call.name = "all_reduce";
  for (int i = 0; i < 2; ++i) log.posted(log.begin(call), nullptr);
  log.replayed({}, nullptr);
  EXPECT_EQ(log.stats().calls, 2u);
  EXPECT_EQ(log.entered(), 3u);
  ASSERT_EQ(log.recent().size(), 3u);
  EXPECT_STREQ(log.recent()[1].name, "all_reduce");
  EXPECT_STREQ(log.recent()[2].name, "replayed step");
  log.replayed({4, 0, 0}, nullptr);
  EXPECT_EQ(log.stats().calls, 6u);
  EXPECT_EQ(log.entered(), 7u);
}

TEST(CommLog, ASignIsHeardBetweenCalls) {
  run_loopback(1, [](Communicator& alone) {
    Traced job(alone);
    const auto part = job.split(0, 0);
    const auto before = last_sign(*job.recorder());
    std::this_thread::sleep_for(milliseconds(2));
    signs_of (*part)();
    EXPECT_GT(last_sign(*job.recorder()), before);
    signs_of(alone)();  // nobody listens
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

// What a communicator counted stays counted when it is gone, with what it was split from and in the rank's total.
TEST(CommLog, WhatHasEndedStillCounts) {
  run_loopback(2, [](Communicator& comm) {
    Traced job(comm, {}, "job");
    const auto duplicate = [](Communicator& inner) { return inner.split(0, inner.rank()); };
    auto grad = job.derive("grad", duplicate, {}), other = job.derive("grad", duplicate, {});
    std::vector<double> v(100);
    const auto reduce = [&](Communicator& c) { c.all_reduce({v.data(), v.size(), DType::f64}, Op::sum).wait(); };
    auto part = grad->split(0, comm.rank());
    auto inner = part->split(0, comm.rank());
    reduce(*part);
    reduce(*inner);
    EXPECT_EQ(grad->stats().bytes, 1600u);
    std::uint64_t blocked = grad->stats().blocked_ns;
    part.reset();
    EXPECT_EQ(grad->stats().bytes, 1600u);
    EXPECT_EQ(grad->stats().calls, 4u) << "two splits and two reductions";
    reduce(*inner);  // outlives what it was split from
    inner.reset();
    EXPECT_EQ(grad->stats().bytes, 2400u);
    EXPECT_GT(grad->stats().blocked_ns, blocked);
    EXPECT_EQ(other->stats().bytes, 0u) << "another communicator of the same name";
    blocked = job.recorder()->blocked_ns();
    grad.reset();
    other.reset();
    EXPECT_GE(job.recorder()->blocked_ns(), blocked);
    EXPECT_EQ(job.stats().bytes, 0u) << "what was derived counts for itself";
  });
}

// One line and one end a rank, in ranks that are threads.
struct Ended {
  std::mutex mutex;
  std::condition_variable all;
  std::vector<std::string> lines;
  int ends = 0;
  Watchdog::Options options(Communicator& comm, Watchdog::Options o) {
    o.print = [this](std::string_view line) {
      std::lock_guard lock(mutex);
      lines.emplace_back(line);
    };
    o.end = [this, &comm] {
      std::lock_guard lock(mutex);
      if (++ends < comm.size()) return;
      comm.abort(4, "ended by the watchdogs");
      all.notify_all();
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
                       if (comm.rank() == culprit) {
                         std::unique_lock lock(ended.mutex);
                         ended.all.wait(lock, [&] { return ended.ends == comm.size(); });
                         throw CommError("", "was hung");
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

// Two ranks wait for longer than the limit for one that makes calls by itself, and for no longer once it makes none.
// The limit is far from what a loaded machine takes for stopped.
TEST(Watchdog, WaitsForARankThatWorksApart) {
  Ended ended;
  std::atomic<bool> at_work = false;
  EXPECT_THROW(run_loopback(3,
                            [&](Communicator& comm) {
                              Traced job(comm, {}, "job");
                              const auto alone = job.split(comm.rank(), 0);
                              Watchdog watchdog(
                                  job, ended.options(comm, {.warn = 0, .first = 60, .later = 5, .apart = true}));
                              watchdog.finished(1);
                              watchdog.phase("drawing");
                              if (comm.rank() == 2) {
                                for (int i = 0; i < 30; ++i) {
                                  std::this_thread::sleep_for(milliseconds(200));
                                  alone->barrier().wait();
                                }
                                std::unique_lock lock(ended.mutex);
                                at_work = ended.ends == 0;
                                ended.all.wait(lock, [&] { return ended.ends == comm.size(); });
                                throw CommError("", "was hung");
                              }
                              job.barrier().wait();
                            }),
               Error);
  EXPECT_TRUE(at_work) << "it was given up while it worked";
  ASSERT_EQ(ended.lines.size(), 1u) << ended.lines.back();
  for (const char* word : {"of \"job\" (barrier) is not complete", "rank 2 did not enter it, ranks 0,1 wait",
                           "rank 2: in drawing after step 1, last collective 30 of \"job/1.2\" (barrier)"})
    EXPECT_NE(ended.lines[0].find(word), std::string::npos) << word << "\n" << ended.lines[0];
}

// What begins anew has the time of a first step.
TEST(Watchdog, WhatBeginsAnewMayTakeLonger) {
  Ended ended;
  run_loopback(2, [&](Communicator& comm) {
    Traced job(comm, {}, "job");
    Watchdog watchdog(job, ended.options(comm, {.warn = 0, .first = 60, .later = 0.5}));
    job.barrier().wait();
    watchdog.finished(1);
    watchdog.begins("reading the model");
    if (comm.rank() == 1) std::this_thread::sleep_for(milliseconds(1500));
    job.barrier().wait();
  });
  EXPECT_EQ(ended.ends, 0) << ended.lines[0];
}

TEST(Watchdog, QuietInAHealthyJob) {
  Ended ended;
  run_loopback(3, [&](Communicator& comm) {
    Traced job(comm, {}, "job");
    Watchdog watchdog(job, ended.options(comm, {.warn = 1, .first = 2, .later = 2}));
    double v = 0;
    const auto end = Clock::now() + std::chrono::seconds(3);
    for (bool over = false; !over;) {  // ended by what all ranks agreed on, never by one rank's clock
      if (comm.rank() == 1) std::this_thread::sleep_for(milliseconds(20));
      watchdog.phase("the step");
      for (int i = 0; i < 20; ++i) job.all_reduce({&v, 1, DType::f64}, Op::max);
      double stop = Clock::now() > end ? 1 : 0;
      job.all_reduce({&stop, 1, DType::f64}, Op::max).wait();
      over = stop > 0;
    }
    job.barrier().wait();
  });
  EXPECT_TRUE(ended.lines.empty()) << ended.lines[0];
  EXPECT_EQ(ended.ends, 0);
}

TEST(SideChannel, AnswersItsOwnAndDropsStrangers) {
  std::atomic<int> answered = 0;  // ranks: one that has its answer may still owe the rest of another's
  run_loopback(3, [&](Communicator& comm) {
    SideChannel channel(comm);
    int asked = 0;
    std::string big(100000, char('a' + comm.rank()));
    channel.on_question = [&](int, char q) {
      ++asked;
      return q == 'b' ? big : "rank " + std::to_string(comm.rank());
    };
    const int next = (comm.rank() + 1) % 3;
    channel.ask(next, 'b');
    bool waits = true;
    for (const auto end = Clock::now() + std::chrono::seconds(10); answered < 3 && Clock::now() < end;) {
      channel.pump(milliseconds(5));
      if (waits && channel.answer(next) != SideChannel::Answer::pending) waits = false, ++answered;
    }
    ASSERT_EQ(channel.answer(next), SideChannel::Answer::reply);
    EXPECT_EQ(channel.reply(next), std::string(100000, char('a' + next)));
    channel.hang_up(next);
    EXPECT_EQ(channel.answer(next), SideChannel::Answer::reply);
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
      std::string nonsense(wire_magic);
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

// Keeps what the world broadcasts: the job's key.
struct Overheard final : test::Forwarding {
  std::string key;
  explicit Overheard(Communicator& inner) : Forwarding(inner) {}
  Work broadcast(Buffer b, int root) override {
    inner_.broadcast(b, root).wait();
    key.assign(static_cast<const char*>(b.data), b.bytes());
    return {};
  }
};

sockaddr_in local(std::uint16_t port) {
  sockaddr_in a{};
  a.sin_family = AF_INET;
  a.sin_port = htons(port);
  a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return a;
}

TEST(SideChannel, SipHashIsTheReference) {
  std::string key, text;
  for (char i = 0; i < 16; ++i) key += i;
  const std::map<std::size_t, std::uint64_t> known{{0, 0x726fdb47dd0e0e31},  {1, 0x74f839c593dc67fd},
                                                   {7, 0xab0200f58b01d137},  {8, 0x93f5f5799a932462},
                                                   {15, 0xa129ca6149be45e5}, {63, 0x958a324ceb064572}};
  for (char i = 0; i < 64; ++i, text += i - 1) {
    if (known.contains(text.size())) {
      EXPECT_EQ(siphash(key, text), known.at(text.size())) << text.size();
    }
  }
}

// Somebody who holds the port of a rank that has ended.
struct PortHolder {
  int listener = -1, fd = -1;
  std::string heard;
  explicit PortHolder(std::uint16_t port) {
    listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const int yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    const sockaddr_in a = local(port);
    EXPECT_EQ(bind(listener, reinterpret_cast<const sockaddr*>(&a), sizeof a), 0) << strerror(errno);
    EXPECT_EQ(listen(listener, 5), 0);
  }
  ~PortHolder() {
    for (const int f : {fd, listener})
      if (f >= 0) close(f);
  }
  // What `asker` sends within a while.
  void hear(SideChannel& asker, std::size_t enough) {
    for (const auto end = Clock::now() + std::chrono::seconds(5); heard.size() < enough && Clock::now() < end;) {
      asker.pump(milliseconds(5));
      if (fd < 0) fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
      char text[256];
      const ssize_t got = fd < 0 ? -1 : recv(fd, text, sizeof text, MSG_DONTWAIT);
      if (got > 0) heard.append(text, std::size_t(got));
      if (got == 0) return;
    }
  }
  void say(const std::string& s) { EXPECT_EQ(send(fd, s.data(), s.size(), MSG_NOSIGNAL), ssize_t(s.size())); }
};

// Rank 1 ends, and `f(channel of rank 0, who holds rank 1's port, key)` runs on rank 0.
void with_port_of_the_dead(const std::function<void(SideChannel&, PortHolder&, const std::string&)>& f) {
  run_loopback(2, [&](Communicator& world) {
    Overheard comm(world);
    auto channel = std::make_unique<SideChannel>(comm);
    EXPECT_EQ(comm.key.size(), 16u);
    std::uint16_t ports[2], mine = channel->port();
    world.all_gather({&mine, 2, DType::u8}, {ports, 4, DType::u8}).wait();
    if (world.rank() == 1) channel.reset();
    world.barrier().wait();
    if (world.rank() == 1) return;
    PortHolder holder(ports[1]);
    fcntl(holder.listener, F_SETFL, O_NONBLOCK);
    f(*channel, holder, comm.key);
  });
}

TEST(SideChannel, WhoOnlyAcceptsNeverSeesTheKey) {
  with_port_of_the_dead([](SideChannel& channel, PortHolder& holder, const std::string& key) {
    channel.ask(1, 'L');
    holder.hear(channel, 28);
    EXPECT_GE(holder.heard.size(), 28u) << "it was not asked: this shows nothing";
    EXPECT_EQ(holder.heard.find(key), std::string::npos) << "the job's key, in clear";
    EXPECT_EQ(channel.answer(1), SideChannel::Answer::pending);
  });
}

// Who holds the port and answers, with the right key and with others: only the first is asked and heard.
TEST(SideChannel, AWrongAnswerIsNotAsked) {
  for (const std::string wrong : {"", "key", "direction"})
    with_port_of_the_dead([&](SideChannel& channel, PortHolder& holder, std::string key) {
      channel.ask(1, 'L');
      holder.hear(channel, Handshake::hello_bytes);
      Handshake h;
      ASSERT_TRUE(h.read_hello(holder.heard));
      EXPECT_EQ(h.from(), 0u);
      EXPECT_EQ(h.to(), 1u);
      if (wrong == "key") key[5] = char(key[5] ^ 1);
      std::string answer = h.challenge(key);
      // What only the asker could have made does not serve either.
      if (wrong == "direction")
        answer.replace(answer.size() - proof_bytes, proof_bytes, h.question(key, 0), 0, proof_bytes);
      holder.say(answer);
      holder.heard.clear();
      holder.hear(channel, Handshake::question_bytes);
      if (wrong.empty()) {
        EXPECT_EQ(h.read_question(key, holder.heard), 'L');
        EXPECT_EQ(channel.answer(1), SideChannel::Answer::pending);
        holder.say(std::string(wire_magic) + std::string("\1\0\0\0\2\0\0\0ok", 10));
      } else {
        EXPECT_EQ(holder.heard, "") << wrong;
      }
      for (int i = 0; i < 200 && channel.answer(1) == SideChannel::Answer::pending; ++i) channel.pump(milliseconds(5));
      EXPECT_EQ(channel.answer(1), wrong.empty() ? SideChannel::Answer::reply : SideChannel::Answer::gone) << wrong;
      if (wrong.empty()) {
        EXPECT_EQ(channel.reply(1), "ok");
      }
    });
}

// Who asks a living rank, with the right key and with others, and with what was right on another connection.
TEST(SideChannel, AWrongQuestionIsNotAnswered) {
  with_port_of_the_dead([](SideChannel& channel, PortHolder&, const std::string& key) {
    int asked = 0;
    channel.on_question = [&](int from, char what) {
      ++asked;
      EXPECT_EQ(from, 1);
      EXPECT_EQ(what, 'L');
      return "yes";
    };
    std::string last_question;
    for (const std::string wrong : {"", "key", "what", "replay", "rank", "to"}) {
      const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
      const sockaddr_in a = local(channel.port());
      ASSERT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&a), sizeof a), 0);
      // What is answered, or nothing: the connection is closed.
      const auto exchange = [&](const std::string& say) {
        EXPECT_EQ(send(fd, say.data(), say.size(), MSG_NOSIGNAL), ssize_t(say.size()));
        char text[256];
        ssize_t got = -1;
        for (const auto end = Clock::now() + std::chrono::seconds(10); Clock::now() < end;) {
          channel.pump(milliseconds(2));
          got = recv(fd, text, sizeof text, MSG_DONTWAIT);
          if (got >= 0 || errno != EAGAIN) return std::string(text, std::size_t(std::max<ssize_t>(got, 0)));
        }
        ADD_FAILURE() << wrong << ": neither answered nor closed";
        return std::string();
      };
      Handshake h;
      const std::string hello = h.hello(wrong == "rank" ? 2 : 1, wrong == "to" ? 1 : 0), answer = exchange(hello);
      const int before = asked;
      if (wrong == "rank" || wrong == "to") {
        EXPECT_EQ(answer, "") << wrong;
      } else {
        EXPECT_TRUE(h.read_challenge(key, answer)) << wrong;
        std::string question = h.question(wrong == "key" ? std::string(16, 'k') : key, 'L');
        if (wrong == "what") question.back() = 'C';
        if (wrong == "replay") question = last_question;
        if (wrong.empty()) last_question = question;  // right on its connection
        const std::string reply = exchange(question);
        EXPECT_EQ(reply.ends_with("yes"), wrong.empty()) << wrong;
        EXPECT_EQ(reply.empty(), !wrong.empty()) << wrong;
      }
      EXPECT_EQ(asked - before, wrong.empty() ? 1 : 0) << wrong;
      close(fd);
    }
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

// A rank tells of all its communicators, however many it has: one that is left out would count as entered.
TEST(HangReport, EveryCommunicatorIsTold) {
  FlightRecorder recorder;
  std::vector<std::shared_ptr<CommLog>> logs;
  for (int i = 0; i < 300; ++i) {
    recorder.add(logs.emplace_back(std::make_shared<CommLog>("job/" + std::to_string(i), 0, 2)));
    for (int call = 0; call <= i; ++call) logs[std::size_t(i)]->posted(logs[std::size_t(i)]->begin({}), nullptr);
  }
  RankState state;
  state.logs = log_states(recorder, 16, [](std::int64_t) { return 1.0; });
  const std::string bytes = encode(state);
  EXPECT_LT(bytes.size(), std::size_t(1 << 20)) << "the most that is sent";
  const auto back = decode(bytes);
  ASSERT_TRUE(back);
  ASSERT_EQ(back->logs.size(), 300u);
  for (std::size_t i = 0; i < 300; ++i) EXPECT_EQ(back->logs[i].entered, i + 1);
}

TEST(HangReport, ARankThatDoesNotKnowACommunicatorHasNotEnteredIt) {
  RankState other = sample();
  other.logs.clear();
  const std::string text = describe_hang({{sample(), ""}, {other, ""}});
  EXPECT_EQ(text.find("all its ranks entered it"), text.npos) << text;
  EXPECT_NE(text.find("not know that communicator, rank 0 waits"), text.npos) << text;
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

// A rank: where it waits, or nowhere, and for how long it has been quiet.
RankView working(double quiet, std::vector<LogState> logs = {}) {
  RankView v;
  v.state = RankState{"", 0, 0, 0, std::move(logs)};
  v.quiet = quiet, v.allowed = 600;
  return v;
}
LogState log_of(const std::string& name, int size, std::uint64_t entered, double waits_for) {
  LogState log{name, 0, size, entered, 0, {}};
  if (waits_for > 0) log.calls.push_back({entered, "barrier", "u8", "", 0, 0, false, waits_for});
  return log;
}

TEST(WorkApart, ARankHangsThatIsQuietAndWaitedFor) {
  const auto waits = [](double seconds) { return log_of("job", 3, 5, seconds); };
  const auto absent = log_of("job", 3, 4, 0);
  using Alive = std::vector<bool>;
  EXPECT_EQ(ranks_alive({working(700, {waits(700)}), working(1, {absent}), working(9, {absent})}), Alive({1, 1, 1}));
  const std::vector<RankView> hung{working(700, {waits(700)}), working(1, {absent}), working(601, {absent})};
  EXPECT_EQ(ranks_alive(hung), Alive({0, 1, 0}));
  const std::string text = describe_hang(hung, ranks_alive(hung));
  EXPECT_NE(text.find("rank 2 did not enter it, rank 0 waits, rank 1 is at work; rank 2: "), text.npos) << text;
  EXPECT_TRUE(WorkApart::judge(hung, 0, 700, {60, 600}).hangs);
  EXPECT_FALSE(WorkApart::judge(hung, 0, 500, {60, 600}).hangs) << "nobody has waited for so long";
  EXPECT_TRUE(WorkApart::judge(hung, 0, 500, {60, 600}).late);
  auto second = hung;
  second[0].state->oldest = 500;
  EXPECT_FALSE(WorkApart::judge(second, 1, 500, {60, 600}).late) << "a lower rank says it";
  // One that may take longer, as at the start of a task.
  std::vector<RankView> starting = hung;
  starting[2].allowed = 1800;
  EXPECT_EQ(ranks_alive(starting), Alive({1, 1, 1}));
  starting[2].allowed = 0;
  EXPECT_EQ(ranks_alive(starting), Alive({1, 1, 1}));
  // One that waits for another, which is at work or not.
  const auto part = [](double waits_for) { return log_of("part", 2, 9, waits_for); };
  const auto chain = [&](double quiet) {
    return std::vector<RankView>{working(700, {waits(700)}), working(650, {absent, part(650)}),
                                 working(quiet, {absent, log_of("part", 2, 8, 0)})};
  };
  EXPECT_EQ(ranks_alive(chain(3)), Alive({1, 1, 1}));
  EXPECT_EQ(ranks_alive(chain(700)), Alive({0, 0, 0}));
  // All have come: the last just now, or long ago.
  EXPECT_EQ(ranks_alive({working(700, {waits(700)}), working(0, {waits(0.1)}), working(800, {waits(800)})}),
            Alive({1, 1, 1}));
  EXPECT_EQ(ranks_alive({working(700, {waits(700)}), working(650, {waits(650)}), working(800, {waits(800)})}),
            Alive({0, 0, 0}));
}

// A rank posts a round of the job and goes on with its task: it waits for whom its task waits for, even while others
// take long to come to the round.
TEST(WorkApart, WhatWasPostedForLaterIsNoExcuse) {
  const auto round = log_of("job", 3, 5, 1500);
  auto waits = log_of("part", 2, 9, 690);
  waits.waiting = 9;
  std::vector<RankView> ranks{working(1700, {log_of("job", 3, 4, 0)}), working(700, {round, log_of("part", 2, 8, 0)}),
                              working(690, {round, waits})};
  ranks[0].allowed = 1800;
  EXPECT_EQ(ranks_alive(ranks), std::vector<bool>({1, 0, 0}));
  EXPECT_TRUE(WorkApart::judge(ranks, 2, 1500, {0, 600}).hangs);
  const std::string text = describe_hang(ranks, ranks_alive(ranks));
  EXPECT_NE(text.find("of \"part\" (barrier) is not complete after 690 s: rank 1 did not enter it, rank 2 waits"),
            text.npos)
      << text;
  // Its device waits in what was just posted.
  ranks[1].quiet = 1450;
  ranks[2] = working(1, {round, log_of("part", 2, 8, 0)});
  EXPECT_EQ(ranks_alive(ranks), std::vector<bool>({1, 1, 1}));
}

// A rank that nobody waits for may be as quiet as it likes.
TEST(WorkApart, OnlyOneThatIsWaitedForHangs) {
  std::vector<RankView> ranks{working(650, {log_of("part", 2, 9, 650)}), working(3, {log_of("part", 2, 8, 0)}),
                              working(700)};
  EXPECT_EQ(ranks_alive(ranks), std::vector<bool>({1, 1, 0}));
  EXPECT_FALSE(WorkApart::judge(ranks, 0, 650, {60, 600}).hangs);
  ranks[1].quiet = 601;
  EXPECT_TRUE(WorkApart::judge(ranks, 0, 650, {60, 600}).hangs);
}

// A warning before the limit does not say that such a rank hangs.
TEST(WorkApart, ALateRankIsSaidToBeAtWork) {
  const std::vector<RankView> ranks{working(70, {log_of("job", 2, 5, 70)}), working(70, {log_of("job", 2, 4, 0)})};
  EXPECT_TRUE(WorkApart::judge(ranks, 0, 70, {60, 600}).late);
  const std::string text = describe_hang(ranks, ranks_alive(ranks));
  EXPECT_NE(text.find("rank 1 did not enter it, rank 0 waits, rank 1 is at work; rank 1: "), text.npos) << text;
}

// What does not answer is taken to be as it was, or to be quiet for as long as this rank waits.
TEST(WorkApart, ASilentRankIsGivenUpAtTheLimit) {
  WorkApart apart;
  const WorkApart::Limits limits{0, 600};
  EXPECT_FALSE(WorkApart::worth_asking(299, limits));
  EXPECT_TRUE(WorkApart::worth_asking(301, limits));
  const auto ask = [&](double now, double waited, std::optional<double> quiet) {
    std::vector<RankView> ranks{working(0, {log_of("job", 2, 5, waited)}), working(0, {log_of("job", 2, 4, 0)})};
    ranks[0].state->quiet = waited, ranks[0].state->allowed = ranks[1].state->allowed = 600;
    ranks[1].state->quiet = quiet.value_or(0);
    if (!quiet) ranks[1].state.reset(), ranks[1].silent = "stopped";
    apart.remember(ranks, now, waited, limits);
    return WorkApart::judge(ranks, 0, waited, limits);
  };
  EXPECT_FALSE(ask(1000, 301, std::nullopt).hangs);
  EXPECT_FALSE(ask(1250, 551, 20).hangs) << "it answers again";
  EXPECT_FALSE(ask(1829, 1130, std::nullopt).hangs);
  EXPECT_TRUE(ask(1831, 1132, std::nullopt).hangs) << "600 s after its last sign";
  WorkApart other;
  apart = other;
  const auto again = ask(1000, 301, std::nullopt).ask_again;
  EXPECT_GT(again, 10);
  EXPECT_LE(again, 60);
  EXPECT_TRUE(ask(1300, 601, std::nullopt).hangs) << "never heard of";
  apart = other;
  EXPECT_FALSE(ask(1400, 700, 20).hangs);
  apart.stood_still(3600);
  EXPECT_FALSE(ask(5010, 710, std::nullopt).hangs) << "the whole job was stopped, and its host is not back yet";
  EXPECT_TRUE(ask(5600, 1300, std::nullopt).hangs);
  std::vector<RankView> unasked{working(0, {log_of("job", 2, 5, 900)}), {{}, "not asked", 0, 0, false}};
  unasked[0].state->quiet = 900, unasked[0].state->allowed = 600;
  apart.remember(unasked, 9000, 900, limits);
  EXPECT_FALSE(WorkApart::judge(unasked, 0, 900, limits).hangs) << "nothing is known of it";
}

TEST(HangReport, RankLists) {
  EXPECT_EQ(rank_list({3}), "3");
  EXPECT_EQ(rank_list({0, 1, 2, 5, 7, 8}), "0-2,5,7,8");
}

}  // namespace
}  // namespace trireme
