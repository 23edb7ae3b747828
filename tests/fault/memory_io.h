// A file system in memory that knows what was synced: power_cut() drops everything else, at its most hostile.
// And a wrapper that fails chosen calls.
#pragma once
#include "framework/io/file_io.h"

#include <atomic>
#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <mutex>

#include <fcntl.h>

namespace trireme {

class MemoryIo : public FileIo {
 public:
  struct Node {
    bool folder = false;
    std::string content, synced;  // file: now, and after a power cut
    std::map<std::string, std::shared_ptr<Node>> names,
        durable;  // folder: entries now, and after a power cut
  };

  MemoryIo() { root_->folder = true; }

  // Unsynced content and unsynced folder entries are gone; open files are closed.
  void power_cut() {
    std::lock_guard lock(mutex_);
    open_.clear();
    cut(*root_);
  }
  std::shared_ptr<MemoryIo> copy() {
    std::lock_guard lock(mutex_);
    auto other = std::make_shared<MemoryIo>();
    std::map<const Node*, std::shared_ptr<Node>> done;
    other->root_ = copy_of(root_, done);
    return other;
  }
  std::string* content(const std::string& path) {
    auto node = find(path);
    return node && !node->folder ? &node->content : nullptr;
  }

  int open(const std::string& path, int flags, mode_t) override {
    std::lock_guard lock(mutex_);
    auto [parent, name] = parent_of(path);
    if (!parent) return -ENOENT;
    auto node = name.empty() ? root_ : lookup(*parent, name);
    if (!node) {
      if (!(flags & O_CREAT)) return -ENOENT;
      node = parent->names[name] = std::make_shared<Node>();
    }
    if (flags & O_TRUNC) node->content.clear();
    open_[++last_] = {node, 0};
    return last_;
  }
  ssize_t read(int fd, void* to, std::size_t n) override {
    std::lock_guard lock(mutex_);
    auto& [node, at] = open_.at(fd);
    n = std::min(n, node->content.size() - std::min(at, node->content.size()));
    std::memcpy(to, node->content.data() + at, n);
    at += n;
    return ssize_t(n);
  }
  ssize_t write(int fd, const void* from, std::size_t n) override {
    std::lock_guard lock(mutex_);
    open_.at(fd).first->content.append(static_cast<const char*>(from), n);
    return ssize_t(n);
  }
  int fsync(int fd) override {
    std::lock_guard lock(mutex_);
    auto& node = *open_.at(fd).first;
    node.synced = node.content;
    node.durable = node.names;
    return 0;
  }
  int close(int fd) override {
    std::lock_guard lock(mutex_);
    return open_.erase(fd) ? 0 : -EBADF;
  }
  int mkdir(const std::string& path) override {
    std::lock_guard lock(mutex_);
    auto [parent, name] = parent_of(path);
    if (!parent) return -ENOENT;
    if (name.empty() || parent->names.contains(name)) return -EEXIST;
    (parent->names[name] = std::make_shared<Node>())->folder = true;
    return 0;
  }
  int rename(const std::string& from, const std::string& to) override {
    std::lock_guard lock(mutex_);
    auto [a, from_name] = parent_of(from);
    auto [b, to_name] = parent_of(to);
    if (!a || !b || !a->names.contains(from_name)) return -ENOENT;
    if (auto there = lookup(*b, to_name); there && there->folder && !there->names.empty()) return -ENOTEMPTY;
    b->names[to_name] = a->names[from_name];
    a->names.erase(from_name);
    return 0;
  }
  int unlink(const std::string& path) override {
    std::lock_guard lock(mutex_);
    auto [parent, name] = parent_of(path);
    return parent && parent->names.erase(name) ? 0 : -ENOENT;
  }
  int rmdir(const std::string& path) override {
    std::lock_guard lock(mutex_);
    auto [parent, name] = parent_of(path);
    if (!parent || !parent->names.contains(name)) return -ENOENT;
    if (!parent->names[name]->names.empty()) return -ENOTEMPTY;
    parent->names.erase(name);
    return 0;
  }
  int list(const std::string& folder, std::vector<std::string>& names) override {
    std::lock_guard lock(mutex_);
    auto node = find(folder);
    if (!node) return -ENOENT;
    names.clear();
    for (auto& [name, child] : node->names) names.push_back(name);
    return 0;
  }

 private:
  static std::shared_ptr<Node> lookup(Node& folder, const std::string& name) {
    auto it = folder.names.find(name);
    return it == folder.names.end() ? nullptr : it->second;
  }
  std::pair<std::shared_ptr<Node>, std::string> parent_of(const std::string& path) {
    auto node = root_;
    std::size_t at = 0;
    while (true) {
      while (at < path.size() && path[at] == '/') ++at;
      const auto end = std::min(path.find('/', at), path.size());
      const std::string name = path.substr(at, end - at);
      if (end == path.size()) return {node, name == "." ? "" : name};
      at = end;
      if (name == ".") continue;
      node = lookup(*node, name);
      if (!node || !node->folder) return {nullptr, ""};
    }
  }
  std::shared_ptr<Node> find(const std::string& path) {
    auto [parent, name] = parent_of(path);
    return !parent ? nullptr : name.empty() ? parent : lookup(*parent, name);
  }
  static void cut(Node& node) {
    node.content = node.synced;
    node.names = node.durable;
    for (auto& [name, child] : node.names) cut(*child);
  }
  static std::shared_ptr<Node> copy_of(const std::shared_ptr<Node>& node,
                                       std::map<const Node*, std::shared_ptr<Node>>& done) {
    auto& copy = done[node.get()];
    if (copy) return copy;
    auto made = copy = std::make_shared<Node>(*node);
    for (auto* names : {&made->names, &made->durable})
      for (auto& [name, child] : *names) child = copy_of(child, done);
    return made;
  }

  std::mutex mutex_;
  std::shared_ptr<Node> root_ = std::make_shared<Node>();
  std::map<int, std::pair<std::shared_ptr<Node>, std::size_t>> open_;
  int last_ = 2;
};

// Fails call number `at` (from 0), and with `sticky` all after it. `before`, if set, sees every call first.
class FaultyIo : public FileIo {
 public:
  enum Kind { no_space, io_error, short_write, interrupted };
  FaultyIo(FileIo& inner, long at, Kind kind, bool sticky = false)
      : inner_(inner), at_(at), kind_(kind), sticky_(sticky) {}
  std::function<void(long)> before;
  long calls() const { return calls_; }
  bool fired() const { return at_ >= 0 && calls_ > at_; }

  int open(const std::string& p, int f, mode_t m) override {
    const int e = fault(true, false);
    return e ? e : inner_.open(p, f, m);
  }
  ssize_t read(int fd, void* to, std::size_t n) override {
    const int e = fault(true, false);
    return e ? e : inner_.read(fd, to, n);
  }
  ssize_t write(int fd, const void* from, std::size_t n) override {
    const int e = fault(true, true);
    return e == shortened ? inner_.write(fd, from, (n + 1) / 2) : e ? e : inner_.write(fd, from, n);
  }
  int fsync(int fd) override {
    const int e = fault(true, false);
    return e ? e : inner_.fsync(fd);
  }
  int close(int fd) override {
    const int e = fault(false, false);
    inner_.close(fd);  // a failed close closes too
    return e;
  }
  int mkdir(const std::string& p) override {
    const int e = fault(false, false);
    return e ? e : inner_.mkdir(p);
  }
  int rename(const std::string& a, const std::string& b) override {
    const int e = fault(false, false);
    return e ? e : inner_.rename(a, b);
  }
  int unlink(const std::string& p) override {
    const int e = fault(false, false);
    return e ? e : inner_.unlink(p);
  }
  int rmdir(const std::string& p) override {
    const int e = fault(false, false);
    return e ? e : inner_.rmdir(p);
  }
  int list(const std::string& f, std::vector<std::string>& names) override {
    const int e = fault(false, false);
    return e ? e : inner_.list(f, names);
  }

 private:
  static constexpr int shortened = -1000;
  int fault(bool can_interrupt, bool can_shorten) {
    const long n = calls_++;
    if (before) before(n);
    if (at_ < 0 || (sticky_ ? n < at_ : n != at_)) return 0;
    switch (kind_) {
      case no_space:
        return -ENOSPC;
      case io_error:
        return -EIO;
      case short_write:
        return can_shorten ? shortened : 0;
      case interrupted:
        return can_interrupt ? -EINTR : 0;
    }
    return 0;
  }

  FileIo& inner_;
  const long at_;
  const Kind kind_;
  const bool sticky_;
  std::atomic<long> calls_ = 0;
};

}  // namespace trireme
