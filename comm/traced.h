// A communicator that counts: calls, bytes on the wire by formula, time the host was blocked.
#pragma once
#include "comm/communicator.h"

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

namespace trireme {

// Totals of one rank. Bytes a rank sends, by formula for n ranks and a buffer of B bytes: all_reduce 2(n-1)/n
// B, reduce_scatter and all_gather (n-1)/n of the whole buffer, all_to_all what goes to others, broadcast B.
struct CommStats {
  std::uint64_t calls = 0;
  std::uint64_t bytes = 0;
  std::uint64_t blocked_ns = 0;  // host time inside wait(): communication that computation did not hide
};

// One call. Times are of the steady clock; end_ns is 0 until the end was seen by wait() or done().
struct CommCall {
  std::uint64_t sequence = 0;  // from 1
  const char* name = "";
  std::uint64_t bytes = 0;
  std::int64_t begin_ns = 0, end_ns = 0;
};

class Traced final : public Communicator {
 public:
  // `name` is a collective's; begin is when it was posted, end when the caller saw that it was complete.
  using Sink =
      std::function<void(const char* name, std::int64_t begin_ns, std::int64_t end_ns, std::uint64_t bytes)>;

  // `inner` must outlive this in the first form. The sink may be called by any thread that waits, one at a
  // time.
  explicit Traced(Communicator& inner, Sink sink = {});
  explicit Traced(std::unique_ptr<Communicator> inner, Sink sink = {});

  // Any thread may read; groups made by split() count for themselves.
  CommStats stats() const;
  std::vector<CommCall> recent() const;  // the last 256 calls, oldest first

  int rank() const override { return inner_.rank(); }
  int size() const override { return inner_.size(); }
  Work all_reduce(Buffer inout, Op op) override;
  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override;
  Work all_gather(ConstBuffer in, Buffer out) override;
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override;
  Work broadcast(Buffer inout, int root) override;
  Work barrier() override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  std::shared_ptr<void> allocate(std::size_t bytes) override { return inner_.allocate(bytes); }
  bool capturable() const override { return inner_.capturable(); }
  void abort(int code, std::string_view why) noexcept override { inner_.abort(code, why); }
  std::string_view backend() const override { return inner_.backend(); }

  struct Book;  // outlives this through the Work handles

 private:
  Work count(const char* name, std::uint64_t bytes, const std::function<Work()>& call);

  std::unique_ptr<Communicator> owned_;
  Communicator& inner_;
  std::shared_ptr<Book> book_;
};

}  // namespace trireme
