#include "framework/io/folder_lock.h"

#include "comm/error.h"
#include "framework/io/file_io.h"

#include <array>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <sstream>
#include <system_error>
#include <thread>
#include <utility>

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

namespace trireme {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

std::string this_host() {
  std::array<char, 256> host = {};
  if (gethostname(host.data(), host.size() - 1) != 0 || !host[0]) host = {"this host"};
  return host.data();
}

// The process that started `pid`, and the one that started that: of a rank mpirun and, under --ranks, our parent.
std::string starters_of(pid_t pid) {
  std::string found;
  for (int level = 0; level < 2; ++level) {
    std::ifstream stat("/proc/" + std::to_string(pid) + "/stat");
    std::string text;
    std::getline(stat, text);
    const auto name_end = text.rfind(')');  // the name before it may hold anything
    if (name_end == text.npos || std::sscanf(text.c_str() + name_end + 1, " %*c %d", &pid) != 1) return {};
    found += " " + std::to_string(pid);
  }
  return found;
}

struct Holder {
  std::string words;     // "process P on HOST since DATE"; empty where it cannot be read
  std::string starters;  // as they were when it took the lock
  std::string print() const { return words + "\nstarted by" + starters + "\n"; }
};

Holder me() {
  std::array<char, 32> date = {};
  const std::time_t now = std::time(nullptr);
  std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return {"process " + std::to_string(getpid()) + " on " + this_host() + " since " + date.data(),
          starters_of(getpid())};
}

// Without words where whoever holds it may have taken it this moment.
Holder read_holder(const std::string& path) try {
  const auto bytes = read_whole(system_io(), path, 4096);
  std::istringstream text(std::string(reinterpret_cast<const char*>(bytes.data()), bytes.size()));
  Holder h;
  std::getline(text, h.words);
  std::getline(text, h.starters);
  h.starters.erase(0, std::string("started by").size());
  return h;
} catch (const std::exception&) {
  return {};
}

// Is its job whole, as far as this host can see? The ranks of a killed job live for a second; who started them is gone.
bool is_well(const Holder& h) {
  int pid = 0;
  if (std::sscanf(h.words.c_str(), "process %d on ", &pid) != 1) return false;
  if (h.words.find(" on " + this_host() + " since ") == h.words.npos) return false;
  return !h.starters.empty() && starters_of(pid) == h.starters;
}

bool is_still_named(int fd, const std::string& path) {
  struct stat held {
  }, named{};
  return fstat(fd, &held) == 0 && stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino &&
         held.st_dev == named.st_dev;
}

}  // namespace

// False while another process holds it.
bool FolderLock::take(const std::string& folder, int (*lock_call)(int, int)) {
  while (true) {
    fd_ = open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd_ < 0 && errno == EINTR) continue;
    if (fd_ < 0)
      throw DataError(path_, "cannot be opened: " + std::generic_category().message(errno),
                      "make the folder writable, or choose another with --out");
    int status = 0;
    do status = lock_call(fd_, LOCK_EX | LOCK_NB);
    while (status != 0 && errno == EINTR);
    const int error = status == 0 ? 0 : errno;
    if (status == 0 && is_still_named(fd_, path_)) return true;
    close(std::exchange(fd_, -1));
    if (status == 0) continue;  // its last holder removed it, or moved the folder, between our two calls
    if (error == EWOULDBLOCK || error == EACCES) return false;
    // ENOLCK, ENOSYS, EOPNOTSUPP, 524 of some network file systems: no reason not to train.
    warning_ = folder + ": the file system cannot lock it (" + std::generic_category().message(error) +
               "); do not start a second job in it";
    return true;
  }
}

FolderLock::FolderLock(const std::string& folder, milliseconds patience, int (*lock_call)(int, int))
    : path_(folder + "/.lock") {
  const auto until = steady_clock::now() + patience;
  while (!take(folder, lock_call)) {
    const Holder holder = read_holder(path_);
    if (is_well(holder) || steady_clock::now() >= until)
      throw UsageError(folder, "is in use by " + (holder.words.empty() ? "another process" : holder.words),
                       "wait for that job or stop it, or choose another --out");
    std::this_thread::sleep_for(milliseconds(50));
  }
  if (fd_ < 0) return;
  // Another node sees the words once they are on the server.
  const std::string text = me().print();
  if (ftruncate(fd_, 0) == 0 && pwrite(fd_, text.data(), text.size(), 0) > 0) fsync(fd_);
}

FolderLock::~FolderLock() {
  if (fd_ < 0) return;
  unlink(path_.c_str());
  close(fd_);
}

}  // namespace trireme
