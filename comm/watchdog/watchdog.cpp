#include "comm/watchdog/watchdog.h"

#include "comm/error.h"
#include "comm/watchdog/apart.h"
#include "comm/watchdog/side_channel.h"

#include <algorithm>
#include <csignal>
#include <deque>
#include <fstream>

#include <pthread.h>
#include <sys/prctl.h>
#include <unistd.h>

namespace trireme {
namespace {

using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;
using Answer = SideChannel::Answer;

constexpr milliseconds look_every{200};  // between looks at the open calls
constexpr milliseconds busy_tick{20};    // while an inquiry runs
constexpr milliseconds reply_patience{1500};
constexpr milliseconds lower_patience{300};  // then a rank asks the others, although a lower one may still answer
constexpr milliseconds grace{300};           // in which a rank that has printed still answers
constexpr milliseconds follow_patience{6000};
constexpr milliseconds file_patience{1000};
constexpr milliseconds probe_pause{3000};
constexpr std::size_t most_questions = 64;  // under way at once
constexpr std::size_t calls_told = 16;      // of each communicator
// A look that comes this much late: the process was stopped, or the machine was.
constexpr double gap_seconds = 2;

// Questions. look: tell your state. join: a hang was seen, are you there? collect: as look, and wait for my
// end.
constexpr char look = 'L', join = 'J', collect = 'C';

}  // namespace

class Watchdog::Thread {
 public:
  Thread(Traced& world, Options options, const Seen& seen)
      : rank_(world.rank()),
        size_(world.size()),
        options_(std::move(options)),
        seen_(seen),
        recorder_(world.recorder()),
        channel_(world),
        parent_(getppid()) {
    if (!options_.print) options_.print = print_line;
    if (!options_.end) options_.end = [] { _exit(static_cast<int>(ExitCode::communication)); };
    // A stopped process cannot look. Being continued does no harm to one whose parent merely lost a thread.
    if (options_.follow_parent) prctl(PR_SET_PDEATHSIG, SIGCONT);
    channel_.on_question = [this](int, char question) {
      if (question != look) joined_ = true;
      return question == join ? std::string("here") : encode(state());
    };
    channel_.on_end = [this](int) { leader_ended_ = true; };
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);  // signals are for the training thread
    thread_ = std::thread([this] { run(); });
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
  }
  ~Thread() {
    quit_ = true;
    channel_.wake();
    thread_.join();
  }

 private:
  struct Open {
    const CommLog* log = nullptr;
    CommCall call;
    double age = 0;
  };
  // Everybody is asked, lower ranks first: one of them may be the one to speak.
  struct Inquiry {
    char question = look;
    Clock::time_point begin, round_begin;
    int next_lower = 0, next_higher = 0;
    bool others = false;     // higher ranks are being asked
    bool about_gap = false;  // only: is the job still there?
    bool apart = false;      // are they at work?
  };

  RankState state() const {
    RankState s;
    s.phase = seen_.phase.load();
    s.step = seen_.step.load();
    s.phase_age = since(seen_.since_ns.load());
    s.oldest = oldest_open().age;
    s.logs = log_states(*recorder_, calls_told, [this](std::int64_t begin_ns) { return since(begin_ns); });
    s.quiet = since(std::max(seen_.since_ns.load(), last_sign(*recorder_)));
    s.allowed = limit();
    return s;
  }

  // Time in which this process did not run does not count.
  double since(std::int64_t begin_ns) const {
    double seconds = static_cast<double>(steady_now_ns() - begin_ns) * 1e-9;
    for (const auto& [when, length] : gaps_)
      if (when > begin_ns) seconds -= length;
    return seconds;
  }

  Open oldest_open() const {
    Open oldest;
    for (const auto& log : recorder_->logs()) {
      const CommCall call = log->oldest_open();
      if (call.sequence == 0) continue;
      if (const double seconds = since(call.begin_ns); seconds >= oldest.age) oldest = {log.get(), call, seconds};
    }
    return oldest;
  }

  WorkApart::Limits limits() const { return {options_.warn, limit()}; }
  double limit() const { return seen_.one_step.load() ? options_.later : options_.first; }

  void run() {
    auto last_look = Clock::now();
    while (!quit_) {
      channel_.pump(inquiry_ || joined_ ? busy_tick : look_every);
      const auto now = Clock::now();
      if (now - last_look >= look_every) {
        note_gap(std::chrono::duration<double>(now - last_look).count());
        last_look = now;
        check_parent();
        if (suspect_ && !inquiry_ && now > probe_again_) probe(gap_);
        if (!joined_) look_at_calls();
      }
      if (joined_ && !hang_) begin_hang();
      if (inquiry_) advance(*inquiry_);
      if (hang_) end_if_due();
    }
  }

  void note_gap(double since_last_look) {
    if (since_last_look < gap_seconds) return;
    gaps_.emplace_back(steady_now_ns(), since_last_look);
    if (gaps_.size() > 1024) gaps_.pop_front();
    apart_.stood_still(since_last_look);
    judge_in(std::min(since_last_look, WorkApart::pause(limits())));
    if (inquiry_ && inquiry_->apart) inquiry_.reset();
    // The others may have given this rank up.
    if (!inquiry_ && !hang_) probe(since_last_look);
  }

  void probe(double gap) {
    start(look);
    inquiry_->about_gap = true;
    gap_ = gap;
  }

  void check_parent() {
    if (options_.follow_parent && getppid() != parent_) finish();
  }

  void look_at_calls() {
    const Open open = oldest_open();
    const double most = limit();
    if (options_.apart) return look_at_others(open);
    if (most > 0 && open.age > most) {
      joined_ = true;
      return;
    }
    if (options_.warn <= 0 || open.age < options_.warn || inquiry_) return;
    if (first_warning(open)) start(look);
  }

  bool first_warning(const Open& open) {
    const std::pair call(open.log, open.call.sequence);
    return std::exchange(warned_, call) != call;
  }

  // Of ranks that work apart a wait alone says nothing.
  void look_at_others(const Open& open) {
    if (inquiry_ || !WorkApart::worth_asking(open.age, limits()) || Clock::now() < judge_again_) return;
    start(look);
    inquiry_->apart = true;
  }

  void judge() {
    const Open open = oldest_open();
    const auto all = views();
    const auto verdict = WorkApart::judge(all, rank_, open.age, limits());
    inquiry_.reset();
    judge_in(verdict.ask_again);
    joined_ |= verdict.hangs;
    if (joined_ || !verdict.late || !first_warning(open)) return;
    options_.print("trireme: warning: " + describe_hang(all, ranks_alive(all)));
  }

  void judge_in(double seconds) { judge_again_ = Clock::now() + milliseconds(static_cast<int>(1000 * seconds)); }

  void start(char question) {
    for (int r = 0; r < size_; ++r) channel_.forget(r);
    inquiry_.emplace();
    inquiry_->question = question;
    inquiry_->begin = Clock::now();
    inquiry_->next_higher = rank_ + 1;
  }

  // A file system that hangs must not take the watchdog along.
  void write_record() {
    if (!options_.folder.empty()) {
      std::thread([record = flight_record(rank_, state(), *recorder_), done = written_,
                   file = options_.folder + "/hang.rank" + std::to_string(rank_) + ".json"] {
        std::ofstream(file) << record;
        done->store(true);
      }).detach();
    } else {
      written_->store(true);
    }
  }

  void begin_hang() {
    hang_ = true;
    hang_begin_ = Clock::now();
    write_record();
    // Continued after the others have given it up, a process may still be asked by the last of them: its word would be
    // late.
    late_ = !gaps_.empty() && steady_now_ns() - gaps_.back().first < 1'000'000'000;
    if (late_)
      inquiry_.reset();
    else
      start(join);
  }

  bool answered(int rank) const { return channel_.answer(rank) == Answer::reply; }
  // Will that lower rank speak instead of this one?
  bool speaks(int rank, char question) const {
    if (!answered(rank)) return false;
    if (question == join) return true;
    const auto theirs = decode(channel_.reply(rank));
    // Of several that judge, the lowest whose own wait is long enough.
    if (options_.apart) return theirs && theirs->allowed > 0 && theirs->oldest > theirs->allowed;
    return theirs && theirs->oldest >= options_.warn - 1;
  }

  void advance(Inquiry& q) {
    const auto now = Clock::now();
    // Nobody ends by this word: of many ranks, connections would outnumber what a process may open.
    for (int r = 0; q.question == look && r < size_; ++r) channel_.hang_up(r);
    while (q.next_lower < rank_ && channel_.pending() < most_questions) channel_.ask(q.next_lower++, q.question);
    bool settled = q.next_lower == rank_;
    for (int r = 0; r < q.next_lower; ++r) {
      if (!q.about_gap && speaks(r, q.question)) return follow(q);
      settled &= channel_.answer(r) != Answer::pending;
    }
    if (!q.others && (settled || now - q.begin > lower_patience)) {
      q.others = true;
      q.round_begin = q.begin;
    }
    if (!q.others) return;
    while (q.next_higher < size_ && channel_.pending() < most_questions)
      channel_.ask(q.next_higher++, q.question == join ? collect : q.question);
    bool all = q.next_higher == size_ && q.next_lower == rank_;
    for (int r = 0; r < size_; ++r) all &= r == rank_ || channel_.answer(r) != Answer::pending;
    if (!all && now - q.round_begin > reply_patience) {
      for (int r = 0; r < size_; ++r) channel_.give_up(r);
      all = q.next_higher == size_ && q.next_lower == rank_;
      q.round_begin = now;  // for those who found no place among the questions yet
    }
    if (all) conclude(q);
  }

  // A lower rank speaks.
  void follow(const Inquiry& q) {
    if (q.apart) judge_in(std::min(limit() / 2, WorkApart::ask_every));
    inquiry_.reset();
    for (int r = 0; r < size_; ++r) channel_.forget(r);
  }

  std::vector<RankView> views() {
    std::vector<RankView> all(static_cast<std::size_t>(size_));
    for (int r = 0; r < size_; ++r) {
      RankView& v = all[static_cast<std::size_t>(r)];
      if (r == rank_)
        v.state = state();
      else if (answered(r))
        v.state = decode(channel_.reply(r));
      else
        v.silent = silence(channel_.answer(r)), v.known = channel_.answer(r) != Answer::unasked;
    }
    apart_.remember(all, static_cast<double>(steady_now_ns()) * 1e-9, oldest_open().age, limits());
    return all;
  }

  void conclude(const Inquiry& q) {
    if (q.about_gap) return conclude_gap();
    if (q.apart) return judge();
    const auto all = views();
    const std::string text = describe_hang(all, options_.apart ? ranks_alive(all) : std::vector<bool>());
    if (q.question != join) {
      inquiry_.reset();
      const Open open = oldest_open();
      if (open.log != warned_.first || open.call.sequence != warned_.second) return;  // it came meanwhile
      options_.print("trireme: warning: " + text);
      return;
    }
    const std::string files =
        options_.folder.empty() ? "" : "; the last calls of every rank are in " + options_.folder + "/hang.rank*.json";
    const bool slow = text.find(" did not enter it") != text.npos &&
                      std::ranges::all_of(all, [](const RankView& v) { return v.state.has_value(); });
    options_.print("trireme: error: " + text + files +
                   (slow ? "; if it was only slow, raise watchdog.later (or first)" : ""));
    for (int r = 0; r < size_; ++r) channel_.end(r);
    inquiry_.reset();
    spoke_ = true;
    spoke_at_ = Clock::now();
  }

  // Seen twice, some seconds apart: at the end of a run the others may be a little ahead.
  void conclude_gap() {
    bool gone = false;
    for (int r = 0; r < size_; ++r) gone |= channel_.answer(r) == Answer::gone;
    inquiry_.reset();
    if (gone && suspect_ && !quit_) {
      write_record();  // the others said that it would be there
      for (int waited = 0; !written_->load() && waited < 20; ++waited)
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      options_.print("trireme: error: rank " + std::to_string(rank_) + ": was stopped for " +
                     std::to_string(static_cast<int>(gap_)) + " s, and the job has ended meanwhile");
      return finish();
    }
    if (gone && !suspect_) probe_again_ = Clock::now() + probe_pause;
    suspect_ = gone && !suspect_;
  }

  void end_if_due() {
    const auto now = Clock::now();
    const bool file_done = written_->load();
    if (spoke_ && now - spoke_at_ > grace && (file_done || now - spoke_at_ > file_patience)) return finish();
    if (leader_ended_ && (file_done || now - hang_begin_ > file_patience)) return finish();
    if (!inquiry_ && !spoke_ && now - hang_begin_ > follow_patience) {
      if (late_) return finish();
      // Whoever was to speak is gone.
      std::vector<RankView> only(static_cast<std::size_t>(size_), RankView{{}, "not asked"});
      only[static_cast<std::size_t>(rank_)].state = state();
      options_.print("trireme: error: " + describe_hang(only));
      finish();
    }
  }

  void finish() {
    quit_ = true;
    options_.end();
  }

  const int rank_, size_;
  Options options_;
  const Seen& seen_;
  const std::shared_ptr<FlightRecorder> recorder_;
  SideChannel channel_;
  const pid_t parent_;
  std::atomic<bool> quit_{false};

  // Of the thread.
  bool joined_ = false, hang_ = false, late_ = false, leader_ended_ = false, spoke_ = false;
  double gap_ = 0;        // the last time without looks, seconds
  bool suspect_ = false;  // after it the job did not look alive
  Clock::time_point probe_again_;
  std::deque<std::pair<std::int64_t, double>> gaps_;
  std::optional<Inquiry> inquiry_;
  WorkApart apart_;
  Clock::time_point judge_again_;
  std::pair<const CommLog*, std::uint64_t> warned_{nullptr, 0};
  Clock::time_point hang_begin_, spoke_at_;
  const std::shared_ptr<std::atomic<bool>> written_ = std::make_shared<std::atomic<bool>>(false);
  std::thread thread_;
};

Watchdog::Watchdog(Traced& world, Options options) {
  seen_.since_ns = steady_now_ns();
  if (world.size() > 1) thread_ = std::make_unique<Thread>(world, std::move(options), seen_);
}
Watchdog::~Watchdog() = default;

void Watchdog::phase(const char* what) {
  seen_.phase.store(what, std::memory_order_relaxed);
  seen_.since_ns.store(steady_now_ns(), std::memory_order_relaxed);
}

void Watchdog::begins(const char* what) {
  seen_.one_step.store(false, std::memory_order_relaxed);
  phase(what);
}

void Watchdog::finished(std::int64_t step) {
  seen_.since_ns.store(steady_now_ns(), std::memory_order_relaxed);
  seen_.step.store(step, std::memory_order_relaxed);
  seen_.one_step.store(true, std::memory_order_relaxed);
}

}  // namespace trireme
