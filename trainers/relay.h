// What ranks started by mpirun print, on its way to this process's stdout and stderr.
#pragma once
#include <set>
#include <string>
#include <string_view>

namespace trireme {

// Passes bytes unchanged and in order, but for what mpirun itself says (its banners, between rules of dashes, and lines
// of its runtime), which is kept back and read, and errors that several ranks share, which pass once. On a terminal
// lines and rank 0's progress bar arrive on two ways and share the screen: the bar (`\r` text `ESC[K`, of several lines
// as LiveLines writes them) leaves it while a line is printed and comes back below. A reader that goes away ends
// nothing. One thread.
class Relay {
 public:
  // Which of stdout and stderr are terminals.
  Relay(bool out_is_terminal, bool err_is_terminal) : out_shares_(out_is_terminal && err_is_terminal) {}

  void out(std::string_view text);
  void err(std::string_view text);
  void idle();    // nothing came for some time: what might have become mpirun's passes
  void finish();  // nothing will come; whatever is printed next has a line of its own

  int ready_ranks() const { return ready_; }  // that have announced themselves
  bool error_seen() const { return !errors_.empty(); }
  int lost_rank() const { return lost_rank_; }  // -1: mpirun names none
  const std::string& lost_why() const { return lost_why_; }
  int abort_code() const { return abort_code_; }  // that a rank gave MPI_Abort; 0: mpirun told of none
  const std::string& first_banner_line() const { return banner_; }

  // What a rank prints to announce itself.
  static constexpr std::string_view ready_line = "trireme: ready\n";

 private:
  bool undecided() const;
  void end_of_line();
  void read_banner();
  void pass();
  void draw();
  void settle();
  void show_lines(int fd, std::string_view text);
  void write_all(int fd, std::string_view text);

  const bool out_shares_;
  std::string rule_;      // a rule of dashes, until the line after it tells whose it is
  std::string line_;      // of stderr, unfinished
  std::string out_line_;  // of stdout, unfinished, where it shares the screen
  std::string bar_;       // that stands on the screen
  std::string banner_, lost_why_ = "it ended without finishing";
  std::set<std::string> errors_;
  bool in_banner_ = false, told_ = false;
  int lost_rank_ = -1, ready_ = 0, abort_code_ = 0;
};

}  // namespace trireme
