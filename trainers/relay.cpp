#include "trainers/relay.h"

#include <algorithm>
#include <array>
#include <cctype>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <span>
#include <utility>

#include <poll.h>
#include <sys/ioctl.h>
#include <unistd.h>

namespace trireme {
namespace {

constexpr std::string_view clear_line = "\r\x1b[K";
constexpr std::string_view bar_end = "\x1b[K";
constexpr std::string_view next_line =
    "\x1b"
    "E";

// Open MPI frames its help texts by rules of this length.
bool is_rule(std::string_view line) {
  return line.size() == 75 && line.back() == '\n' && line.find_first_not_of('-') == 74;
}

// How its help texts begin that a job without a mistake of ours may meet (help-orterun, -errmgr, -mpi-api, -plm, -odls,
// -rmaps, -mpi-btl). One that is not here is shown, rules and all: better than to swallow what a user prints.
constexpr std::array banner_openings = std::to_array<std::string_view>({
    "Primary job ",
    "MPI_ABORT was invoked",
    "MPI_INIT has failed",
    "It looks like MPI_",
    "It looks like orte_",
    "It looks like opal_",
    "Open MPI ",
    "Open RTE ",
    "ORTE ",
    "PMIx ",
    "PRTE ",
    "An ORTE daemon ",
    "An internal error has occurred in ORTE",
    "An MPI communication peer process",
    "A daemon died unexpectedly",
    "A daemon (pid",
    "A process or daemon was unable",
    "A request was made to bind",
    "A system call failed during shared memory",
    "A call to mkdir was unable",
    "There are not enough slots",
    "There are no allocated resources",
    "All nodes which are allocated",
    "Your job failed to map",
    "The OpenFabrics ",
    "WARNING: Open MPI ",
    "WARNING: There was an error initializing an OpenFabrics",
    "WARNING: No preset parameters",
    "WARNING: A process refused to die",
    "WARNING: a request was made to bind",
    "By default, for Open MPI",
});

// "mpirun noticed that ..."
constexpr std::array starters =
    std::to_array<std::string_view>({"mpirun ", "mpiexec ", "prterun ", "WARNING: mpirun "});
constexpr std::array of_starters = std::to_array<std::string_view>(
    {"noticed that", "detected that", "has exited", "has detected", "was unable to", "could not", "does not recognize",
     "failed to receive", "found multiple", "encountered a", "is in the process of"});

bool starts_with_one(std::string_view text, std::span<const std::string_view> openings) {
  return std::any_of(openings.begin(), openings.end(), [&](auto o) { return text.starts_with(o); });
}

bool opens_banner(std::string_view line) {
  for (const std::string_view starter : starters)
    if (line.starts_with(starter)) return starts_with_one(line.substr(starter.size()), of_starters);
  const bool of_a_process = line.starts_with("[[") && line.find("]: A high-performance Open MPI") != line.npos;
  return of_a_process || starts_with_one(line, banner_openings);
}

// What mpirun says outside of banners.
bool is_of_mpirun(std::string_view line) {
  constexpr std::array openings = std::to_array<std::string_view>(
      {"mpirun: Forwarding signal ", "mpirun: killing job", "mpirun: abort is already"});
  return starts_with_one(line, openings);
}

constexpr std::array runtime_openings = std::to_array<std::string_view>(
    {"*** Process received signal", "*** End of error message", "*** An error occurred", "*** reported by process",
     "*** on communicator", "*** on a NULL communicator", "*** MPI_", "***    and ", "*** The MPI_",
     "*** before MPI_INIT", "*** This is disallowed", "*** Your MPI job", "Local abort before MPI_INIT",
     "Signal: ", "Signal code: ", "Failing at address: ", "PMIX ERROR"});

// "[host:pid] ..." with the words of Open MPI's runtime: a crash report, or an echo of a banner.
bool is_of_runtime(std::string_view line) {
  const auto close = line.find("] "), colon = line.find(':');
  if (!line.starts_with('[') || close == line.npos || colon == 1 || colon > close || close == colon + 1) return false;
  if (line.find_first_not_of("0123456789", colon + 1) != close) return false;
  const std::string_view text = line.substr(close + 2);
  if (starts_with_one(text, runtime_openings)) return true;
  for (const std::string_view words : {"ORTE_ERROR_LOG", "OPAL ERROR", "sent help message", "orte_base_help_aggregate"})
    if (text.find(words) != text.npos) return true;
  // Frames of a backtrace, "[ 3] /lib/...".
  return text.size() > 4 && text[0] == '[' && (text[1] == ' ' || std::isdigit(static_cast<unsigned char>(text[1]))) &&
         std::isdigit(static_cast<unsigned char>(text[2])) && text[3] == ']';
}

// `\r` text `ESC[K` without what the window has no room for: ranks know its size at the start only, and a bar that
// wraps could not be taken back.
std::string fitted(const std::string& bar) {
  winsize window{};
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &window) != 0 || window.ws_col == 0) return bar;
  std::string fit = "\r";
  int columns = 0, rows = 1;
  for (std::size_t i = 1; i + bar_end.size() < bar.size(); ++i) {
    if (bar.compare(i, next_line.size(), next_line) == 0) {
      if (window.ws_row > 0 && ++rows >= window.ws_row) break;
      fit += next_line, columns = 0, i += next_line.size() - 1;
      continue;
    }
    columns += (bar[i] & 0xc0) != 0x80;
    if (columns < window.ws_col) fit += bar[i];
  }
  return fit + std::string(bar_end);
}

// A bar without what takes the one before it from the screen, `ESC[3A` `ESC[J` behind the `\r`: the relay does that.
std::string bare(const std::string& bar) {
  std::size_t at = 1;
  if (bar.compare(at, 2, "\x1b[") == 0) {
    const std::size_t end = bar.find_first_not_of("0123456789", at + 2);
    if (end > at + 2 && end < bar.size() && bar[end] == 'A') at = end + 1;
  }
  if (bar.compare(at, 3, "\x1b[J") == 0) at += 3;
  return "\r" + bar.substr(at);
}

// What takes a bar from the screen.
std::string taken_back(const std::string& bar) {
  int above = 0;
  for (auto at = bar.find(next_line); at != bar.npos; at = bar.find(next_line, at + next_line.size())) ++above;
  return above ? "\r\x1b[" + std::to_string(above) + "A\x1b[J" : std::string(clear_line);
}

}  // namespace

void Relay::out(std::string_view text) {
  if (!out_shares_) return write_all(STDOUT_FILENO, text);
  out_line_ += text;
  const auto whole = out_line_.rfind('\n');
  if (whole == out_line_.npos) return;
  show_lines(STDOUT_FILENO, std::string_view(out_line_).substr(0, whole + 1));
  out_line_.erase(0, whole + 1);
}

void Relay::err(std::string_view text) {
  for (const char c : text) {
    if (line_.size() > 1 && line_.ends_with('\r') && c != '\n') {  // a redraw begins
      line_.pop_back();
      pass();
      line_ = '\r';
    }
    line_ += c;
    if (c == '\n') end_of_line();
    if (line_.starts_with('\r') && line_.ends_with(bar_end)) draw();
  }
  if (bar_.empty() && !line_.empty() && !undecided()) pass();
}

// Could the unfinished line be mpirun's, a bar, or an error of ours that another rank repeats?
bool Relay::undecided() const {
  if (in_banner_ || !rule_.empty() || line_.starts_with('[') || line_.starts_with('\r')) return true;
  if (line_.size() < 75 && line_.find_first_not_of('-') == line_.npos) return true;
  for (const std::string_view o : {"trireme: ", "mpirun: "})
    if (line_.starts_with(o) || o.starts_with(line_)) return true;
  return false;
}

void Relay::end_of_line() {
  if (line_.starts_with("trireme: ")) in_banner_ = false;  // it was none, or has no end
  if (in_banner_) {
    in_banner_ = !is_rule(line_);
    if (in_banner_) read_banner();
    line_.clear();
  } else if (is_rule(line_)) {
    if (!rule_.empty()) show_lines(STDERR_FILENO, rule_);
    rule_ = std::exchange(line_, {});
  } else if (!rule_.empty() && opens_banner(line_)) {
    in_banner_ = true;
    rule_.clear();
    read_banner();
    line_.clear();
  } else if (line_ == ready_line) {
    ++ready_;
    line_.clear();
  } else if (is_of_mpirun(line_) || is_of_runtime(line_)) {
    line_.clear();
  } else if (line_.starts_with("trireme: error")) {
    settle();
    // A stopped rank that wakes as the job ends finds its peers gone: what happened has been said.
    const bool late = error_seen() && line_.find("gone (its process has ended)") != line_.npos;
    if (errors_.insert(line_).second && !late) pass();
    line_.clear();
  } else {
    pass();
  }
}

void Relay::read_banner() {
  if (banner_.empty() && line_.find_first_not_of(" \r\n") != line_.npos) banner_ = line_.substr(0, line_.size() - 1);
  int rank = -1, signal = 0, code = 0;
  if (abort_code_ == 0 && std::sscanf(line_.c_str(), "with errorcode %d", &code) == 1) abort_code_ = code;  // the first
  const auto at = line_.find("process rank ");
  if (at == line_.npos || std::sscanf(line_.c_str() + at, "process rank %d", &rank) != 1) return;
  lost_rank_ = rank;
  const auto on = line_.find("exited on signal ");
  if (on != line_.npos && std::sscanf(line_.c_str() + on, "exited on signal %d", &signal) == 1)
    lost_why_ = "killed by signal " + std::to_string(signal) + " (" + strsignal(signal) + ")";
}

// The line, finished or not, is a rank's.
void Relay::pass() {
  const std::string text = std::exchange(rule_, {}) + std::exchange(line_, {});
  if (text == "\n" && !bar_.empty()) return settle();  // rank 0 leaves its bar
  show_lines(STDERR_FILENO, text);
}

// The bar stays as it is, above what follows.
void Relay::settle() {
  if (!bar_.empty()) write_all(STDERR_FILENO, "\n");
  bar_.clear();
}

void Relay::draw() {
  if (!rule_.empty()) show_lines(STDERR_FILENO, std::exchange(rule_, {}));
  line_ = fitted(bare(line_));
  const bool clears = line_ == clear_line;
  const auto lines = [](const std::string& bar) { return bar.find(next_line) != bar.npos; };
  const bool takes = !bar_.empty() && (lines(bar_) || lines(line_));  // else it overwrites what stood there
  if (!clears || !bar_.empty()) write_all(STDERR_FILENO, takes ? taken_back(bar_) + line_ : line_);
  bar_ = clears ? "" : line_;
  line_.clear();
}

void Relay::show_lines(int fd, std::string_view text) {
  if (bar_.empty()) return write_all(fd, text);
  write_all(STDERR_FILENO, taken_back(bar_));
  write_all(fd, text);
  bar_ = fitted(bar_);  // the window may be another one by now
  write_all(STDERR_FILENO, bar_);
}

void Relay::idle() {
  if (in_banner_ || !bar_.empty()) return;
  if (!rule_.empty() || !line_.empty()) pass();
  write_all(STDOUT_FILENO, std::exchange(out_line_, {}));
}

void Relay::finish() {
  if (!line_.empty() && !line_.ends_with(bar_end)) end_of_line();
  if (!rule_.empty()) pass();
  if (!out_line_.empty()) show_lines(STDOUT_FILENO, std::exchange(out_line_, {}));
  settle();
}

void Relay::write_all(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t n = write(fd, text.data(), text.size());
    if (n < 0 && errno == EINTR) continue;
    if (n < 0 && errno == EAGAIN) {  // whoever shares the pipe may have made it so
      pollfd room{fd, POLLOUT, 0};
      poll(&room, 1, 1000);
      continue;
    }
    if (n < 0 && errno != EPIPE && errno != EIO && fd == STDOUT_FILENO && !std::exchange(told_, true))
      show_lines(STDERR_FILENO, std::string("trireme: warning: stdout: ") + std::strerror(errno) +
                                    "; what is printed there is lost, the job goes on\n");
    if (n <= 0) return;  // the reader is gone: the job itself goes on
    text.remove_prefix(std::size_t(n));
  }
}

}  // namespace trireme
