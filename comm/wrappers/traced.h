// A communicator that counts: calls, bytes on the wire by formula, time the host was blocked.
#pragma once
#include "comm/flight_recorder.h"
#include "comm/wrappers/wrapper.h"

#include <functional>
#include <vector>

namespace trireme {

class Traced final : public Wrapper {
 public:
  // `name` is a collective's; begin is when it was posted, end when the caller saw that it was complete.
  using Sink = std::function<void(const char* name, std::int64_t begin_ns, std::int64_t end_ns, std::uint64_t bytes)>;

  // `inner` must outlive this in the first form. The sink may be called by any thread that waits.
  explicit Traced(Communicator& inner, Sink sink = {}, std::string name = "world");
  explicit Traced(std::unique_ptr<Communicator> inner, Sink sink = {}, std::string name = "world");

  // Collective: a communicator that `make` makes out of this one's inner one. The making is a call of this
  // communicator; the new one counts for itself, under `name`, which is the same on all its ranks, and tells `sink`.
  using Make = std::function<std::unique_ptr<Communicator>(Communicator& inner)>;
  std::unique_ptr<Traced> derive(std::string name, const Make& make, Sink sink);

  // Of this and of what split() made of it, also after its end; what derive() made counts for itself. Any thread may
  // read.
  CommStats stats() const;
  // What a graph has recorded of this one's calls is made again: counted, and open until `work` is complete.
  void replayed(const CommStats& calls, const std::shared_ptr<Work::State>& work) { log_->replayed(calls, work); }
  std::vector<CommCall> recent() const;  // the last 256 calls of each that still exists, oldest first
  const std::string& name() const { return log_->name; }
  // The logs of this, of what it was derived from and of all that was derived from those.
  const std::shared_ptr<FlightRecorder>& recorder() const { return recorder_; }

  Work all_reduce(Buffer inout, Op op) override;
  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override;
  Work all_gather(ConstBuffer in, Buffer out) override;
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override;
  Work broadcast(Buffer inout, int root) override;
  Work barrier() override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  std::shared_ptr<void> allocate(std::size_t bytes) override;

 private:
  enum class Counts : std::uint8_t { for_itself, for_parent };
  Traced(std::unique_ptr<Communicator> inner, const Traced& parent, std::string name, Sink sink, Counts counts);
  template <class Post>
  Work record(const char* name, const ConstBuffer& same, std::uint64_t bytes, Post&& post);
  template <class Step>
  auto record_blocking(const char* name, std::size_t bytes, Step&& step);

  const std::shared_ptr<Sink> sink_;  // null: none
  std::shared_ptr<FlightRecorder> recorder_;
  std::shared_ptr<CommLog> log_;  // outlives this through the Work handles
  int splits_ = 0;
};

// Tells the watchdog of these ranks, from any thread, that this one is at work, between its calls; also after their
// end. Of ranks that are not Traced: nothing.
std::function<void()> signs_of(Communicator& ranks);

}  // namespace trireme
