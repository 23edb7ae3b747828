#include "framework/io/folder_lock.h"

#include "comm/error.h"
#include "framework/io/file_io.h"

#include <array>
#include <cerrno>
#include <ctime>
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

std::string words_about_me() {
  std::array<char, 256> host = {};
  if (gethostname(host.data(), host.size() - 1) != 0 || !host[0]) host = {"this host"};
  std::array<char, 32> date = {};
  const std::time_t now = std::time(nullptr);
  std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return "process " + std::to_string(getpid()) + " on " + host.data() + " since " + date.data() + "\n";
}

// Empty where it cannot be read: whoever holds it may have taken it this moment.
std::string words_in(const std::string& path) try {
  const auto bytes = read_whole(system_io(), path, 4096);
  const std::string text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return text.substr(0, text.find('\n'));
} catch (const Error&) {
  return {};
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
    if (steady_clock::now() < until) {
      std::this_thread::sleep_for(milliseconds(50));
      continue;
    }
    const std::string holder = words_in(path_);
    throw UsageError(folder, "is in use by " + (holder.empty() ? "another process" : holder),
                     "wait for that job or stop it, or choose another --out");
  }
  if (fd_ < 0) return;
  // Another node sees the words once they are on the server.
  const std::string words = words_about_me();
  if (ftruncate(fd_, 0) == 0 && pwrite(fd_, words.data(), words.size(), 0) > 0) fsync(fd_);
}

FolderLock::~FolderLock() {
  if (fd_ < 0) return;
  unlink(path_.c_str());
  close(fd_);
}

}  // namespace trireme
