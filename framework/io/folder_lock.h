// One job at a time in a folder: a lock of the kernel on FOLDER/.lock, which ends with its process however that ends.
// The file says in words who holds it.
#pragma once
#include <chrono>
#include <string>

#include <sys/file.h>

namespace trireme {

class FolderLock {
 public:
  // Takes the lock of an existing folder. A holder whose job is not whole any more (the ranks of a killed one live for
  // a second), or on another host, gets `patience` to end. Throws UsageError naming host and process of who holds it
  // then, DataError where .lock cannot be opened. lock_call: flock, or what a test puts in its place.
  explicit FolderLock(const std::string& folder, std::chrono::milliseconds patience = std::chrono::seconds(3),
                      int (*lock_call)(int, int) = ::flock);
  ~FolderLock();  // removes .lock
  FolderLock(const FolderLock&) = delete;
  FolderLock& operator=(const FolderLock&) = delete;

  // Empty, or one line saying why the file system could not lock: the folder is then used without.
  const std::string& warning() const { return warning_; }
  // The folder has another name now.
  void moved_to(const std::string& folder) { path_ = folder + "/.lock"; }

 private:
  bool take(const std::string& folder, int (*lock_call)(int, int));
  std::string path_, warning_;
  int fd_ = -1;
};

}  // namespace trireme
