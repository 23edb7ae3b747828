// A few threads that share the items of one task: pictures to decode. What an item gives must not depend on the others.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

namespace trireme {

class Workers {
 public:
  explicit Workers(int threads);  // >= 1; with 1 the caller works alone
  ~Workers();
  Workers(const Workers&) = delete;
  Workers& operator=(const Workers&) = delete;

  int threads() const;
  // Calls f(i) for every i in [0, n), in any order, on all threads and the caller's own. Whatever the number of
  // threads, of several errors the one with the least i is thrown, once all are at rest. Thread safe: one task at a
  // time.
  void each(std::int64_t n, const std::function<void(std::int64_t)>& f);

 private:
  struct Team;
  std::unique_ptr<Team> team_;
};

}  // namespace trireme
