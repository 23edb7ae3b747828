#include "trainers/sweep/cluster/inbox.h"

#include "comm/error.h"
#include "framework/io/file_io.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <thread>

#include <unistd.h>

namespace trireme::cluster {
namespace {

namespace fs = std::filesystem;
constexpr std::size_t most_bytes = 1 << 20;

std::string text_of(const std::string& path) {
  if (!fs::is_regular_file(fs::symlink_status(path))) throw DataError(path, "is no plain file");
  const auto bytes = read_whole(system_io(), path, most_bytes);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// Letters, digits, dash and underscore of the file's stem, so that a letter's name is one everywhere.
std::string stem_of(const std::string& file) {
  std::string stem = fs::path(file).stem().string().substr(0, 60);
  for (char& c : stem)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '-') c = '_';
  return stem;
}

}  // namespace

Inbox::Inbox(const std::string& run_dir) : folder_(run_dir + "/inbox") {
  for (const char* sub : {"answers", "accepted", "refused"}) make_folder(system_io(), folder_ + "/" + sub);
}

std::vector<Letter> Inbox::letters() const {
  std::vector<std::string> names;
  if (system_io().list(folder_, names) < 0) return {};
  std::sort(names.begin(), names.end());
  std::vector<Letter> letters;
  for (const auto& name : names) {
    if (name.starts_with(".") || name == "answers" || name == "accepted" || name == "refused") continue;
    Letter letter{name, "", ""};
    try {
      letter.text = text_of(folder_ + "/" + name);
    } catch (const std::exception& e) {
      letter.fault = e.what();
    }
    letters.push_back(std::move(letter));
  }
  return letters;
}

void Inbox::answer(const std::string& id, bool accepted, const std::string& line) const {
  std::string one_line = line;
  std::replace(one_line.begin(), one_line.end(), '\n', ' ');
  replace_durably(system_io(), folder_ + "/answers/" + id, (accepted ? "accepted " : "refused ") + one_line + "\n");
  std::error_code ignored;  // a letter that its sender took back is answered all the same
  fs::rename(folder_ + "/" + id, folder_ + (accepted ? "/accepted/" : "/refused/") + id, ignored);
}

std::string post(const std::string& run_dir, const std::string& file, const std::optional<std::string>& text) {
  const std::string words = text ? *text : text_of(file), folder = run_dir + "/inbox";
  if (!fs::is_directory(folder))
    throw DataError(run_dir, "is no run that takes tasks", "give the folder of a sweep that runs, as it printed it");
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const auto us = std::chrono::duration_cast<std::chrono::microseconds>(now).count();
  const std::string id = std::to_string(us) + "-" + std::to_string(getpid()) + "-" + stem_of(file);
  write_durably(system_io(), folder + "/." + id, words);
  rename_path(system_io(), folder + "/." + id, folder + "/" + id);
  return id;
}

std::optional<Answer> await_answer(const std::string& run_dir, const std::string& id,
                                   std::chrono::milliseconds patience) {
  const std::string path = run_dir + "/inbox/answers/" + id;
  const auto until = std::chrono::steady_clock::now() + patience;
  while (!fs::exists(path)) {
    if (std::chrono::steady_clock::now() > until) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  std::string line = text_of(path);
  while (line.ends_with("\n")) line.pop_back();
  const std::size_t space = line.find(' ');
  return Answer{line.starts_with("accepted "), line.substr(space == std::string::npos ? 0 : space + 1)};
}

}  // namespace trireme::cluster
