// Collectives as messages between every two ranks, for groups that span nodes.
//
// all_reduce of n ranks: the buffer is cut into windows and a window into n slices; rank r reduces slice r of each.
//   scatter  every rank sends slice r of the window to rank r, for all r;
//   reduce   rank r adds up what it got in rank order: the sum does not depend on how a buffer is cut;
//   gather   rank r sends the sum to all others.
// A rank so sends 2(n-1)/n of the buffer, as in a ring, in two message times a window instead of 2(n-1). Four windows
// are under way: while one is reduced, contributions to the next and sums of those before travel. What is small goes
// whole from everybody to everybody: one message time. reduce_scatter is the first two steps; all_gather and all_to_all
// send from each to each; broadcast goes piece by piece down a binomial tree; barrier takes log2(n) rounds of signals.
#include "comm/mpi/messages.h"

#include "comm/error.h"
#include "comm/reduce.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace trireme::p2p {
namespace {

// Up to here an all-reduce sends everything to everybody: one message time instead of two. Between two ranks that is
// not a byte more.
constexpr std::size_t one_phase_bytes(int ranks) { return ranks == 2 ? 64u << 10 : 2048; }
// A reduction works on windows with slices of at most this size, which bounds its temporary memory. Four windows are
// under way, and there are 16 at least unless the slices became too small: the link never runs empty even if the
// communication thread gets a core late, and the last window, beside which nothing travels, is short.
constexpr std::size_t slice_bytes = 256u << 10, small_slice_bytes = 32u << 10, windows_wanted = 16, under_way = 4;
constexpr std::size_t broadcast_piece = 1u << 20;

void check(int code, const MpiGroup& g) {
  if (code == MPI_SUCCESS) return;
  char text[MPI_MAX_ERROR_STRING] = "";
  int length = 0;
  MPI_Error_string(code, text, &length);
  throw CommError(place(g.me), std::string("MPI: ") + text);
}

// The messages an operation waits for. Between two ranks they match in the order in which they are posted.
class Messages {
 public:
  explicit Messages(MpiGroup& group) : g_(group) {}

  void send(int to, const void* data, std::size_t bytes) {
    pieces(bytes, [&](std::size_t begin, int n) {
      check(MPI_Isend(at(data, begin), n, MPI_BYTE, g_.world[to], g_.tag, g_.link->comm, next()), g_);
    });
  }
  void recv(int from, void* data, std::size_t bytes) {
    pieces(bytes, [&](std::size_t begin, int n) {
      check(MPI_Irecv(at(data, begin), n, MPI_BYTE, g_.world[from], g_.tag, g_.link->comm, next()), g_);
    });
  }
  // Removes what has completed; true once nothing is left.
  bool complete() {
    if (requests_.empty()) return true;
    int n = 0;
    indices_.resize(requests_.size());
    check(MPI_Testsome(static_cast<int>(requests_.size()), requests_.data(), &n, indices_.data(), MPI_STATUSES_IGNORE),
          g_);
    if (n > 0) std::erase(requests_, MPI_REQUEST_NULL);
    return requests_.empty();
  }

 private:
  template <class F>
  void pieces(std::size_t bytes, F&& post) {
    const std::size_t limit = g_.link->options.chunk_limit;
    for (std::size_t begin = 0; begin < bytes; begin += limit)
      post(begin, static_cast<int>(std::min(limit, bytes - begin)));
  }
  MPI_Request* next() { return &requests_.emplace_back(MPI_REQUEST_NULL); }

  MpiGroup& g_;
  std::vector<MPI_Request> requests_;
  std::vector<int> indices_;
};

// An operation is a list of stages; a stage runs once it is ready: when the messages of the one before have completed.
class MessageOperation : public Operation {
 public:
  explicit MessageOperation(MpiGroup& group) : g(group), messages(group) {}
  Step progress() final {
    if (!ready()) return Step::blocked;
    for (;;) {
      if (!stage()) return Step::complete;
      if (!ready()) return Step::advanced;
    }
  }

 protected:
  virtual bool ready() { return messages.complete(); }
  virtual bool stage() = 0;  // false: nothing left to do
  int rank() const { return g.me.rank; }
  int size() const { return g.me.size; }
  // Other ranks: to send to, starting behind this one, so that not everybody sends to the same rank first; to receive
  // from, in the order in which they send.
  template <class F>
  void peers(F&& f) const {
    for (int i = 1; i < size(); ++i) f((rank() + i) % size());
  }
  template <class F>
  void senders(F&& f) const {
    for (int i = 1; i < size(); ++i) f((rank() + size() - i) % size());
  }

  MpiGroup& g;
  Messages messages;
};

// Pieces of this rank's slice as every rank has it, in rank order, ready to be reduced.
class Gathered {
 public:
  // Receives `bytes` from every peer; `own` is this rank's piece.
  void receive(Messages& messages, Member me, const void* own, std::size_t bytes) {
    if (memory_.size() < bytes * static_cast<std::size_t>(me.size))
      memory_.resize(bytes * static_cast<std::size_t>(me.size));
    in_.assign(static_cast<std::size_t>(me.size), own);
    for (int i = 1; i < me.size; ++i) {
      const int from = (me.rank + me.size - i) % me.size;
      std::byte* to = memory_.data() + static_cast<std::size_t>(from) * bytes;
      in_[static_cast<std::size_t>(from)] = to;
      messages.recv(from, to, bytes);
    }
  }
  void reduce_to(void* out, Op op, DType dtype, std::size_t count) const { reduce(op, dtype, out, in_, count); }

 private:
  std::vector<std::byte> memory_;
  std::vector<const void*> in_;
};

// A reduction of which every rank does a part, window by window, with contributions to several windows on their way.
class WindowedOperation : public MessageOperation {
 public:
  // `part`: elements that a rank reduces.
  WindowedOperation(MpiGroup& group, std::size_t part, DType dtype)
      : MessageOperation(group), scattered_(under_way, Messages(group)), gathered_(under_way) {
    const std::size_t most = std::min(slice_bytes, g.link->options.chunk_limit) / size_of(dtype);
    const std::size_t wanted = std::max(part / windows_wanted, small_slice_bytes / size_of(dtype));
    slice_ = std::max<std::size_t>(std::min({most, wanted, part}), 1);
  }

 protected:
  // Posts the contributions to window k, if there is one.
  virtual void scatter(std::size_t k) = 0;
  // False if that was done before.
  bool start() {
    if (std::exchange(started_, true)) return false;
    for (std::size_t k = 0; k < under_way; ++k) scatter(k);
    return true;
  }
  Messages& scattered(std::size_t k) { return scattered_[k % under_way]; }
  Gathered& gathered(std::size_t k) { return gathered_[k % under_way]; }

  std::size_t slice_;  // elements of a window that one rank reduces
  std::size_t current_ = 0;

 private:
  bool started_ = false;
  std::vector<Messages> scattered_;
  std::vector<Gathered> gathered_;
};

class AllReduce final : public WindowedOperation {
 public:
  AllReduce(MpiGroup& group, Buffer b, Op op)
      : WindowedOperation(
            group, (b.count + static_cast<std::size_t>(group.me.size) - 1) / static_cast<std::size_t>(group.me.size),
            b.dtype),
        b_(b),
        op_(op) {}

 private:
  // A window needs only its contributions; the results, which `messages` carries, have time until the end.
  bool ready() override { return window(current_) == b_.count ? messages.complete() : scattered(current_).complete(); }
  bool stage() override {
    return b_.bytes() <= std::min(one_phase_bytes(size()), g.link->options.chunk_limit) ? one_phase() : two_phases();
  }
  bool one_phase() {
    if (!sent_ && b_.count > 0) {
      sent_ = true;
      gathered(0).receive(scattered(0), g.me, b_.data, b_.bytes());
      peers([&](int to) { scattered(0).send(to, b_.data, b_.bytes()); });
      return true;
    }
    if (b_.count > 0) gathered(0).reduce_to(b_.data, op_, b_.dtype, b_.count);
    return false;
  }
  bool two_phases() {
    if (start()) return true;
    const std::size_t k = current_;
    if (window(k) == b_.count) return false;
    gathered(k).reduce_to(slice(k, rank()), op_, b_.dtype, bytes_of(k, rank()) / size_of(b_.dtype));
    senders([&](int from) { messages.recv(from, slice(k, from), bytes_of(k, from)); });
    peers([&](int to) { messages.send(to, slice(k, rank()), bytes_of(k, rank())); });
    scatter(k + under_way);
    ++current_;
    return true;
  }
  // Sends each peer its slice of window k.
  void scatter(std::size_t k) override {
    if (window(k) == b_.count) return;
    Messages& m = scattered(k);
    gathered(k).receive(m, g.me, slice(k, rank()), bytes_of(k, rank()));
    peers([&](int to) { m.send(to, slice(k, to), bytes_of(k, to)); });
  }
  // Elements before window k, and before slice r of it.
  std::size_t window(std::size_t k) const { return std::min(b_.count, k * slice_ * static_cast<std::size_t>(size())); }
  std::size_t begin(std::size_t k, int r) const {
    return std::min(b_.count, window(k) + slice_ * static_cast<std::size_t>(r));
  }
  std::byte* slice(std::size_t k, int r) const { return at(b_.data, begin(k, r) * size_of(b_.dtype)); }
  std::size_t bytes_of(std::size_t k, int r) const { return (begin(k, r + 1) - begin(k, r)) * size_of(b_.dtype); }

  const Buffer b_;
  const Op op_;
  bool sent_ = false;  // in one phase
};

class ReduceScatter final : public WindowedOperation {
 public:
  ReduceScatter(MpiGroup& group, ConstBuffer in, Buffer out, Op op)
      : WindowedOperation(group, out.count, out.dtype), in_(in), out_(out), op_(op) {
    if (misplaced(in.data, in.bytes(), out.data, out.bytes(), rank())) in_ = copy_.separate(in);
  }

 private:
  bool ready() override { return scattered(current_).complete(); }
  bool stage() override {
    if (start()) return true;
    const std::size_t k = current_++;
    if (window(k) == out_.count) return false;
    gathered(k).reduce_to(at(out_.data, window(k) * size_of(out_.dtype)), op_, out_.dtype, window(k + 1) - window(k));
    scatter(k + under_way);
    return true;
  }
  // Sends each peer window k of its part.
  void scatter(std::size_t k) override {
    const std::size_t bytes = (window(k + 1) - window(k)) * size_of(in_.dtype);
    if (bytes == 0) return;
    Messages& m = scattered(k);
    gathered(k).receive(m, g.me, piece(rank(), k), bytes);
    peers([&](int to) { m.send(to, piece(to, k), bytes); });
  }
  std::size_t window(std::size_t k) const { return std::min(out_.count, k * slice_); }  // elements before it
  const std::byte* piece(int r, std::size_t k) const {
    return at(in_.data, (static_cast<std::size_t>(r) * out_.count + window(k)) * size_of(in_.dtype));
  }

  ConstBuffer in_;
  const Buffer out_;
  const Op op_;
  InputCopy copy_;
};

class AllToAll final : public MessageOperation {
 public:
  AllToAll(MpiGroup& group, ConstBuffer in, std::span<const std::size_t> send, Buffer out,
           std::span<const std::size_t> recv)
      : MessageOperation(group),
        in_(in),
        out_(out),
        send_(byte_offsets(send, in.dtype)),
        recv_(byte_offsets(recv, out.dtype)) {
    if (overlap(in.data, in.bytes(), out.data, out.bytes())) in_ = copy_.separate(in);
  }

 private:
  bool stage() override {
    if (posted_) return false;
    posted_ = true;
    senders([&](int from) { messages.recv(from, at(out_.data, recv_[from]), recv_[from + 1] - recv_[from]); });
    peers([&](int to) { messages.send(to, at(in_.data, send_[to]), send_[to + 1] - send_[to]); });
    const std::size_t own = send_[rank() + 1] - send_[rank()];
    if (own > 0) std::memcpy(at(out_.data, recv_[rank()]), at(in_.data, send_[rank()]), own);
    return true;
  }

  ConstBuffer in_;
  const Buffer out_;
  const std::vector<std::size_t> send_, recv_;  // byte offsets
  InputCopy copy_;
  bool posted_ = false;
};

class AllGather final : public MessageOperation {
 public:
  AllGather(MpiGroup& group, ConstBuffer in, Buffer out) : MessageOperation(group), in_(in), out_(out) {
    if (misplaced(out.data, out.bytes(), in.data, in.bytes(), rank())) in_ = copy_.separate(in);
  }

 private:
  bool stage() override {
    if (posted_) return false;
    posted_ = true;
    senders([&](int from) { messages.recv(from, block(from), in_.bytes()); });
    peers([&](int to) { messages.send(to, in_.data, in_.bytes()); });
    if (in_.count > 0 && block(rank()) != in_.data) std::memcpy(block(rank()), in_.data, in_.bytes());
    return true;
  }
  std::byte* block(int r) const { return at(out_.data, static_cast<std::size_t>(r) * in_.bytes()); }

  ConstBuffer in_;
  const Buffer out_;
  InputCopy copy_;
  bool posted_ = false;
};

// Down a binomial tree, piece by piece: a rank passes a piece on while the next one arrives.
class Broadcast final : public MessageOperation {
 public:
  Broadcast(MpiGroup& group, Buffer b, int root)
      : MessageOperation(group),
        b_(b),
        root_(root),
        piece_(std::min(broadcast_piece, group.link->options.chunk_limit)) {}

 private:
  bool stage() override {
    if (rank() == root_) {
      const bool first = passed_ < b_.bytes();
      while (passed_ < b_.bytes()) pass_on(std::min(piece_, b_.bytes() - passed_));
      return first;
    }
    const bool arrived = received_ > passed_;
    if (arrived) pass_on(received_ - passed_);
    if (received_ == b_.bytes()) return arrived;
    const std::size_t bytes = std::min(piece_, b_.bytes() - received_);
    const int v = relative();
    messages.recv(((v & (v - 1)) + root_) % size(), at(b_.data, received_), bytes);
    received_ += bytes;
    return true;
  }
  int relative() const { return (rank() - root_ + size()) % size(); }
  void pass_on(std::size_t bytes) {
    const int v = relative();
    int top = 1;
    while (top < size() && (v == 0 || top < (v & -v))) top *= 2;
    for (int child = top / 2; child >= 1; child /= 2)
      if (v + child < size()) messages.send((v + child + root_) % size(), at(b_.data, passed_), bytes);
    passed_ += bytes;
  }

  const Buffer b_;
  const int root_;
  const std::size_t piece_;
  std::size_t received_ = 0, passed_ = 0;  // bytes
};

// Dissemination: in round i every rank signals the one 2^i further on.
class Barrier final : public MessageOperation {
 public:
  explicit Barrier(MpiGroup& group) : MessageOperation(group) {}

 private:
  bool stage() override {
    if (distance_ >= size()) return false;
    messages.recv((rank() - distance_ + size()) % size(), &in_, 1);
    messages.send((rank() + distance_) % size(), &out_, 1);
    distance_ *= 2;
    return true;
  }
  int distance_ = 1;
  char in_ = 0, out_ = 0;
};

}  // namespace

std::shared_ptr<Operation> all_reduce(MpiGroup& g, Buffer inout, Op op) {
  return std::make_shared<AllReduce>(g, inout, op);
}
std::shared_ptr<Operation> reduce_scatter(MpiGroup& g, ConstBuffer in, Buffer out, Op op) {
  return std::make_shared<ReduceScatter>(g, in, out, op);
}
std::shared_ptr<Operation> all_gather(MpiGroup& g, ConstBuffer in, Buffer out) {
  return std::make_shared<AllGather>(g, in, out);
}
std::shared_ptr<Operation> all_to_all(MpiGroup& g, ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                                      std::span<const std::size_t> recv) {
  return std::make_shared<AllToAll>(g, in, send, out, recv);
}
std::shared_ptr<Operation> broadcast(MpiGroup& g, Buffer inout, int root) {
  return std::make_shared<Broadcast>(g, inout, root);
}
std::shared_ptr<Operation> barrier(MpiGroup& g) { return std::make_shared<Barrier>(g); }

}  // namespace trireme::p2p
