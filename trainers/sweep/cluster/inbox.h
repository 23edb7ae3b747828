// How other processes hand tasks to a run: RUN/inbox/ID is a letter (a task's YAML), written under another name and
// renamed, so that no half of one is ever read. The run answers in one line, RUN/inbox/answers/ID, and puts the letter
// away, into accepted/ or refused/.
#pragma once
#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace trireme::cluster {

struct Letter {
  std::string id;
  std::string text;
  std::string fault;  // why it cannot be read; then there is no text
};

class Inbox {
 public:
  explicit Inbox(const std::string& run_dir);  // makes the folders
  std::vector<Letter> letters() const;         // that have no answer yet, in the order in which they were posted
  void answer(const std::string& id, bool accepted, const std::string& line) const;

 private:
  std::string folder_;
};

// Posts a file, or `text` in its place. Returns the letter's id. Throws DataError where the file or the folder is none.
std::string post(const std::string& run_dir, const std::string& file, const std::optional<std::string>& text = {});
struct Answer {
  bool accepted;
  std::string line;
};
// None within `patience`: the run is busy or does not run now; the letter stays until it does.
std::optional<Answer> await_answer(const std::string& run_dir, const std::string& id,
                                   std::chrono::milliseconds patience);

}  // namespace trireme::cluster
