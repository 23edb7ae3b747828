// Collectives through memory that the ranks of a node share. All ranks arrive, each with a word on what it brings, and
// then go one of the four ways of shm_operation.h. Per collective:
//   all_reduce      small: everybody adds up all payloads itself. direct: the buffer is cut into chunks; a rank reduces
//                   those of its own slice, then helps with others', and writes each sum to all. staged: a round is a
//                   window of a slice a rank: put the others' slices into the ring, reduce the own one, fetch the
//                   others.
//   reduce_scatter  each rank reduces its own part: out of the payloads, the peers' buffers, or the ring.
//   all_gather, all_to_all, broadcast  each rank copies what it is to have: out of the payloads, the peers' memory
//                   (also private, through the kernel, where that is quicker), or the ring.
// Sums are taken in rank order whatever the way, so that the result is the same to the bit on all of them.
#include "comm/mpi/shm.h"

#include "comm/copy.h"
#include "comm/error.h"
#include "comm/mpi/shm_operation.h"
#include "comm/reduce.h"

#include <algorithm>

namespace trireme::shm {
namespace {

std::size_t divide_up(std::size_t a, std::size_t b) { return (a + b - 1) / b; }
std::size_t index(int r) { return static_cast<std::size_t>(r); }

// The kernel's single copy is quicker than staging up to these bytes from a peer. Above, the stores of staging that go
// past the caches win, and in a broadcast that the root fills the ring while others empty it [measured: Xeon, EPYC].
constexpr std::size_t longest_read = 8u << 20, longest_broadcast_read = 1u << 20;

// The payloads of all arrivals, in rank order.
std::vector<const void*> payloads(const std::function<Arrival&(int)>& arrival, int size, std::size_t offset) {
  std::vector<const void*> in;
  for (int r = 0; r < size; ++r) in.push_back(arrival(r).payload() + offset);
  return in;
}

class AllReduce final : public ShmOperation {
 public:
  AllReduce(MpiGroup& group, Buffer b, Op op)
      : ShmOperation(group, Collective::all_reduce, b.dtype, op, 0, b.count), b_(b), op_(op) {
    two_phases = true;
    in_.resize(index(size()));
    if (!small()) share(b.data, b.bytes());
  }

 private:
  bool small() const override { return b_.bytes() <= c.small_bytes(); }
  void publish(Arrival& mine) override {
    if (small()) copy_bytes(mine.payload(), b_.data, b_.bytes());
  }
  void finish_small() override {
    for (int r = 0; r < size(); ++r) in_[index(r)] = arrival(r).payload();
    reduce(op_, b_.dtype, b_.data, in_, b_.count);
  }

  // Any rank may reduce any chunk, the result is the same: a rank begins with its own slice and then helps
  // those that are busy elsewhere.
  Step direct() override {
    constexpr std::size_t chunk = 32u << 10;
    const std::size_t n = index(size());
    const std::size_t slice = divide_up(divide_up(b_.bytes(), n), 64) * 64;
    while (victim_ < size()) {
      const int s = (rank() + victim_) % size();
      const std::size_t begin = std::min(b_.bytes(), index(s) * slice), end = std::min(b_.bytes(), begin + slice);
      const auto chunks = static_cast<std::uint32_t>(divide_up(end - begin, chunk));
      const std::uint32_t taken = c.claims(s).take(tag(), chunks);
      if (taken == chunks) {
        total_ += chunks;
        ++victim_;
        continue;
      }
      const std::size_t from = begin + taken * chunk;
      reduce_shared(from, std::min(chunk, end - from));
      c.done().take(tag(), ~0u);
      return Step::advanced;
    }
    return c.done().value(tag()) == total_ ? Step::complete : Step::blocked;
  }
  void reduce_shared(std::size_t begin, std::size_t bytes) {
    constexpr std::size_t block = 8u << 10;  // the copies find the sum in the first-level cache
    for (std::size_t done = 0; done < bytes; done += block) {
      const std::size_t from = begin + done, n = std::min(block, bytes - done);
      for (int r = 0; r < size(); ++r) in_[index(r)] = shared(r) + from;
      std::byte* own = shared(rank()) + from;
      reduce(op_, b_.dtype, own, in_, n / size_of(b_.dtype));
      peers([&](int r) { copy_bytes(shared(r) + from, own, n); });
    }
  }

  // Staged: a window has one slice a rank. A rank stages the others' slices and finds the result in its own
  // place.
  std::size_t window() const { return c.part_bytes() * index(size()); }
  std::uint64_t round_count() const override { return divide_up(b_.bytes(), window()); }
  struct Slice {
    std::byte* data;
    std::size_t bytes;
  };
  Slice slice(std::uint64_t round, int r) const {
    const std::size_t begin = round * window(), bytes = std::min(window(), b_.bytes() - begin);
    const std::size_t each = divide_up(divide_up(bytes, index(size())), 64) * 64;
    const std::size_t from = std::min(bytes, index(r) * each), to = std::min(bytes, from + each);
    return {at(b_.data, begin + from), to - from};
  }
  void copy_in(std::uint64_t k) override {
    peers([&](int r) {
      const Slice s = slice(k, r);
      copy_bytes(staged(rank(), r, k), s.data, s.bytes);
    });
  }
  void combine(std::uint64_t k) override {
    const Slice own = slice(k, rank());
    constexpr std::size_t block = 8u << 10;  // the copy finds the sum in the first-level cache
    for (std::size_t done = 0; done < own.bytes; done += block) {
      const std::size_t n = std::min(block, own.bytes - done);
      std::byte* sum = own.data + done;
      for (int r = 0; r < size(); ++r) in_[index(r)] = r == rank() ? sum : staged(r, rank(), k) + done;
      reduce(op_, b_.dtype, sum, in_, n / size_of(b_.dtype));
      copy_bytes(staged(rank(), rank(), k) + done, sum, n);
    }
  }
  void copy_out(std::uint64_t k) override {
    peers([&](int r) {
      const Slice s = slice(k, r);
      copy_bytes(s.data, staged(r, r, k), s.bytes);
    });
  }

  const Buffer b_;
  const Op op_;
  std::vector<const void*> in_;
  int victim_ = 0;
  std::uint32_t total_ = 0;
};

class ReduceScatter final : public ShmOperation {
 public:
  ReduceScatter(MpiGroup& group, ConstBuffer in, Buffer out, Op op)
      : ShmOperation(group, Collective::reduce_scatter, out.dtype, op, 0, out.count), in_(in), out_(out), op_(op) {
    if (misplaced(in.data, in.bytes(), out.data, out.bytes(), rank())) in_ = copy_.separate(in);
    if (!small()) share(in_.data, in_.bytes());
  }

 private:
  bool small() const override { return in_.bytes() <= c.small_bytes(); }
  void publish(Arrival& mine) override {
    if (small()) copy_bytes(mine.payload(), in_.data, in_.bytes());
  }
  void finish_small() override {
    const auto in = payloads([&](int r) -> Arrival& { return arrival(r); }, size(), index(rank()) * out_.bytes());
    reduce(op_, out_.dtype, out_.data, in, out_.count);
  }
  Step direct() override {
    constexpr std::size_t chunk = 64u << 10;
    if (begin_ < out_.bytes()) {
      const std::size_t bytes = std::min(chunk, out_.bytes() - begin_);
      std::vector<const void*> in;
      for (int r = 0; r < size(); ++r) in.push_back(shared(r) + index(rank()) * out_.bytes() + begin_);
      reduce(op_, out_.dtype, at(out_.data, begin_), in, bytes / size_of(out_.dtype));
      begin_ += bytes;
      if (begin_ == out_.bytes()) finish();
      return Step::advanced;
    }
    return all_finished() ? Step::complete : Step::blocked;
  }
  std::uint64_t round_count() const override { return divide_up(out_.bytes(), c.part_bytes()); }
  std::size_t piece_bytes(std::uint64_t k) const { return std::min(c.part_bytes(), out_.bytes() - k * c.part_bytes()); }
  const std::byte* piece(int r, std::uint64_t k) const {
    return at(in_.data, index(r) * out_.bytes() + k * c.part_bytes());
  }
  void copy_in(std::uint64_t k) override {
    peers([&](int r) { copy_bytes(staged(rank(), r, k), piece(r, k), piece_bytes(k)); });
  }
  void combine(std::uint64_t k) override {
    std::vector<const void*> in;
    for (int r = 0; r < size(); ++r) in.push_back(r == rank() ? piece(r, k) : staged(r, rank(), k));
    reduce(op_, out_.dtype, at(out_.data, k * c.part_bytes()), in, piece_bytes(k) / size_of(out_.dtype));
  }

  ConstBuffer in_;
  const Buffer out_;
  const Op op_;
  InputCopy copy_;
  std::size_t begin_ = 0;
};

class AllGather final : public CopyOperation {
 public:
  AllGather(MpiGroup& group, ConstBuffer in, Buffer out)
      : CopyOperation(group, Collective::all_gather, in.dtype, Op::sum, 0, in.count), in_(in), out_(out) {
    if (misplaced(out.data, out.bytes(), in.data, in.bytes(), rank())) in_ = copy_.separate(in);
    if (!small()) share(in_.data, in_.bytes());
  }

 private:
  bool small() const override { return in_.bytes() <= small_bytes(); }
  void publish(Arrival& mine) override {
    if (small()) copy_bytes(mine.payload(), in_.data, in_.bytes());
  }
  std::byte* block(int r) const { return at(out_.data, index(r) * in_.bytes()); }
  void finish_small() override {
    // In place, this rank's own block is written with what it holds.
    for (int r = 0; r < size(); ++r) copy_bytes(block(r), arrival(r).payload(), in_.bytes());
  }
  void list(CopyList& copies) const override {
    copies.add(block(rank()), {at(in_.data, 0)}, in_.bytes());
    peers([&](int r) { copies.add(block(r), source(r), in_.bytes()); });
  }
  bool can_read() const override { return in_.bytes() <= longest_read; }
  std::uint64_t round_count() const override { return divide_up(in_.bytes(), c.staging_bytes()); }
  std::size_t piece_bytes(std::uint64_t k) const {
    return std::min(c.staging_bytes(), in_.bytes() - k * c.staging_bytes());
  }
  void copy_in(std::uint64_t k) override {
    const std::byte* own = at(in_.data, k * c.staging_bytes());
    copy_bytes(c.staging(rank(), k), own, piece_bytes(k));
    copy_result(block(rank()) + k * c.staging_bytes(), own, piece_bytes(k), out_.bytes());
  }
  void combine(std::uint64_t k) override {
    peers([&](int r) { copy_result(block(r) + k * c.staging_bytes(), c.staging(r, k), piece_bytes(k), out_.bytes()); });
  }

  ConstBuffer in_;
  const Buffer out_;
  InputCopy copy_;
};

class AllToAll final : public CopyOperation {
 public:
  AllToAll(MpiGroup& group, ConstBuffer in, std::span<const std::size_t> send, Buffer out,
           std::span<const std::size_t> recv)
      : CopyOperation(group, Collective::all_to_all, in.dtype, Op::sum, 0, 0),
        in_(in),
        out_(out),
        send_(byte_offsets(send, in.dtype)),
        recv_(byte_offsets(recv, out.dtype)) {
    if (overlap(in.data, in.bytes(), out.data, out.bytes())) in_ = copy_.separate(in);
    if (send_.back() > 0) share(in_.data, send_.back());
  }

 private:
  static constexpr std::uint32_t fits = 1u << 31;
  std::size_t table_bytes() const { return send_.size() * sizeof(std::uint64_t); }
  bool fits_here() const { return table_bytes() + send_.back() <= small_bytes(); }
  bool small() const override { return small_; }
  // The payload: where each receiver's part begins, then the data if there is room.
  void publish(Arrival& mine) override {
    auto* table = reinterpret_cast<std::uint64_t*>(mine.payload());
    std::copy(send_.begin(), send_.end(), table);
    std::size_t longest = 0;
    for (int r = 0; r < size(); ++r)
      if (r != rank()) longest = std::max(longest, send_[index(r) + 1] - send_[index(r)]);
    mine.rounds = static_cast<std::uint32_t>(std::min<std::size_t>(divide_up(longest, c.part_bytes()), fits - 1));
    if (fits_here()) {
      mine.rounds |= fits;
      copy_bytes(mine.payload() + table_bytes(), in_.data, send_.back());
    }
  }
  void arrived() override {
    small_ = true;
    for (int r = 0; r < size(); ++r) {
      Arrival& a = arrival(r);
      small_ = small_ && (a.rounds & fits);
      rounds_ = std::max(rounds_, a.rounds & ~fits);
      const auto* table = reinterpret_cast<const std::uint64_t*>(a.payload());
      offsets_.push_back(table[rank()]);
      const std::size_t sent = table[rank() + 1] - table[rank()], expected = recv_bytes(r);
      if (sent != expected)
        throw CommError(place(g.me), "all_to_all: rank " + std::to_string(r) + " sends " +
                                         std::to_string(sent / size_of(in_.dtype)) + " elements to rank " +
                                         std::to_string(rank()) + ", which expects " +
                                         std::to_string(expected / size_of(in_.dtype)));
    }
  }
  std::size_t recv_bytes(int r) const { return recv_[index(r) + 1] - recv_[index(r)]; }
  std::byte* to(int r) const { return at(out_.data, recv_[index(r)]); }
  void finish_small() override {
    for (int r = 0; r < size(); ++r)
      copy_bytes(to(r), arrival(r).payload() + table_bytes() + offsets_[index(r)], recv_bytes(r));
  }
  void list(CopyList& copies) const override {
    copies.add(to(rank()), {at(in_.data, send_[index(rank())])}, recv_bytes(rank()));
    peers([&](int r) {
      PeerBytes from = source(r);
      from.data += offsets_[index(r)];
      copies.add(to(r), from, recv_bytes(r));
    });
  }
  bool can_read() const override { return rounds_ * c.part_bytes() <= longest_read; }
  std::uint64_t round_count() const override { return std::max<std::uint64_t>(rounds_, 1); }
  // Part k of what goes from one rank to another.
  std::size_t piece_bytes(std::size_t whole, std::uint64_t k) const {
    return std::min(c.part_bytes(), whole - std::min<std::size_t>(whole, k * c.part_bytes()));
  }
  void copy_in(std::uint64_t k) override {
    peers([&](int r) {
      const std::size_t whole = send_[index(r) + 1] - send_[index(r)], bytes = piece_bytes(whole, k);
      if (bytes > 0) copy_bytes(staged(rank(), r, k), at(in_.data, send_[index(r)] + k * c.part_bytes()), bytes);
    });
    if (k == 0) copy_result(to(rank()), at(in_.data, send_[index(rank())]), recv_bytes(rank()), recv_.back());
  }
  void combine(std::uint64_t k) override {
    peers([&](int r) {
      const std::size_t bytes = piece_bytes(recv_bytes(r), k);
      copy_result(to(r) + k * c.part_bytes(), staged(r, rank(), k), bytes, recv_.back());
    });
  }

  ConstBuffer in_;
  const Buffer out_;
  const std::vector<std::size_t> send_, recv_;  // byte offsets
  std::vector<std::size_t> offsets_;            // of this rank's part in every rank's input
  InputCopy copy_;
  bool small_ = false;
  std::uint32_t rounds_ = 0;
};

class Broadcast final : public CopyOperation {
 public:
  Broadcast(MpiGroup& group, Buffer b, int root)
      : CopyOperation(group, Collective::broadcast, b.dtype, Op::sum, root, b.count), b_(b), root_(root) {
    if (!small()) share(b.data, b.bytes());
  }

 private:
  bool small() const override { return b_.bytes() <= small_bytes(); }
  void publish(Arrival& mine) override {
    if (small() && rank() == root_) copy_bytes(mine.payload(), b_.data, b_.bytes());
  }
  void finish_small() override {
    if (rank() != root_) copy_bytes(b_.data, arrival(root_).payload(), b_.bytes());
  }
  void list(CopyList& copies) const override {
    if (rank() != root_) copies.add(b_.data, source(root_), b_.bytes());
  }
  bool is_read() const override { return rank() == root_; }
  bool can_read() const override { return b_.bytes() <= longest_broadcast_read; }
  std::uint64_t round_count() const override { return divide_up(b_.bytes(), c.staging_bytes()); }
  std::size_t piece_bytes(std::uint64_t k) const {
    return std::min(c.staging_bytes(), b_.bytes() - k * c.staging_bytes());
  }
  void copy_in(std::uint64_t k) override {
    if (rank() == root_) copy_bytes(c.staging(rank(), k), at(b_.data, k * c.staging_bytes()), piece_bytes(k));
  }
  void combine(std::uint64_t k) override {
    if (rank() != root_)
      copy_result(at(b_.data, k * c.staging_bytes()), c.staging(root_, k), piece_bytes(k), b_.bytes());
  }

  const Buffer b_;
  const int root_;
};

// The arrival is all there is to it.
class Barrier final : public ShmOperation {
 public:
  explicit Barrier(MpiGroup& group) : ShmOperation(group, Collective::barrier, DType::u8, Op::sum, 0, 0) {}

 private:
  bool small() const override { return true; }
  void publish(Arrival&) override {}
  void finish_small() override {}
  Step direct() override { return Step::complete; }
  std::uint64_t round_count() const override { return 0; }
  void copy_in(std::uint64_t) override {}
  void combine(std::uint64_t) override {}
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

}  // namespace trireme::shm
