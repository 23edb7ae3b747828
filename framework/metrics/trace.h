// Timeline of phases and collectives, written as Chrome trace JSON (opens in Perfetto). Off unless `trace:
// true`; when off, a span costs one branch.
#pragma once
#include <atomic>
#include <cstdint>
#include <string>
#include <string_view>

namespace trireme {

class Trace {
 public:
  // Tracks nest by themselves: one for the training thread, one for communication, one for data, one for what the GPU
  // computes.
  enum class Track : std::uint8_t { step, communication, data, device };
  static void enable(int rank);
  static bool enabled() { return on_.load(std::memory_order_relaxed); }
  static std::int64_t now_ns();  // steady clock
  // Thread safe. `name` is copied. At most 2 million spans are kept; later ones are counted and dropped.
  static void add(Track, std::string_view name, std::int64_t begin_ns, std::int64_t end_ns, std::int64_t bytes = -1);
  // Writes this rank's part, `file`.rank_%05d; rank 0 then merges the parts of all ranks it finds into `file`
  // and removes them, so it calls this after a barrier that the others reach after theirs. Throws DataError.
  static void write(const std::string& file);

  class Span {
   public:
    Span(Track t, std::string_view name) : track_(t), name_(name), begin_(enabled() ? now_ns() : 0) {}
    ~Span() {
      if (begin_) add(track_, name_, begin_, now_ns());
    }
    Span(const Span&) = delete;
    Span& operator=(const Span&) = delete;

   private:
    Track track_;
    std::string_view name_;
    std::int64_t begin_;
  };

 private:
  static std::atomic<bool> on_;
};

}  // namespace trireme
