#include "comm/local/fake.h"

#include "comm/engine/arguments.h"
#include "comm/local/self.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace trireme {
namespace {

class Fake final : public Communicator {
 public:
  explicit Fake(Member me) : me_(me) {}
  int rank() const override { return me_.rank; }
  int size() const override { return me_.size; }

  Work all_reduce(Buffer inout, Op) override {
    check_all_reduce(me_, inout);
    return {};
  }
  Work reduce_scatter(ConstBuffer in, Buffer out, Op) override {
    check_reduce_scatter(me_, in, out);
    if (out.count > 0) std::memmove(out.data, at(in.data, std::size_t(me_.rank) * out.bytes()), out.bytes());
    return {};
  }
  Work all_gather(ConstBuffer in, Buffer out) override {
    check_all_gather(me_, in, out);
    if (in.count == 0) return {};
    // In place the block lies within the output: it goes to its own place last, where it then already is.
    for (int r = 0; r < me_.size; ++r)
      if (r != me_.rank) std::memcpy(at(out.data, std::size_t(r) * in.bytes()), in.data, in.bytes());
    std::memmove(at(out.data, std::size_t(me_.rank) * in.bytes()), in.data, in.bytes());
    return {};
  }
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    check_all_to_all(me_, in, send, out, recv);
    const auto from = byte_offsets(send, in.dtype), to = byte_offsets(recv, out.dtype);
    std::size_t begin = from[std::size_t(me_.rank)], end = from[std::size_t(me_.rank) + 1];
    if (begin == end) begin = 0, end = from.back();
    // A copy: input and output may be the same memory.
    std::vector<std::byte> block;
    if (begin < end) block.assign(at(in.data, begin), at(in.data, end));
    for (std::size_t r = 0; r + 1 < to.size(); ++r) {
      for (std::size_t i = to[r]; i < to[r + 1];) {
        const std::size_t n = block.empty() ? to[r + 1] - i : std::min(block.size(), to[r + 1] - i);
        if (block.empty())
          std::memset(at(out.data, i), 0, n);
        else
          std::memcpy(at(out.data, i), block.data(), n);
        i += n;
      }
    }
    return {};
  }
  Work broadcast(Buffer inout, int root) override {
    check_broadcast(me_, inout, root);
    return {};
  }
  Work barrier() override { return {}; }

  std::unique_ptr<Communicator> split(int, int key) override {
    // Ordered by (key, rank); the others' key is their rank.
    int before = 0;
    for (int r = 0; r < me_.size; ++r) before += r != me_.rank && (r < key || (r == key && r < me_.rank));
    return std::make_unique<Fake>(Member{before, me_.size});
  }
  std::shared_ptr<void> allocate(std::size_t bytes) override { return allocate_private(bytes); }
  void abort(int code, std::string_view why) noexcept override {
    std::fprintf(stderr, "trireme: error: %.*s\n", static_cast<int>(why.size()), why.data());
    std::_Exit(code);
  }
  std::string_view backend() const override { return "fake"; }

 private:
  const Member me_;
};

}  // namespace

std::unique_ptr<Communicator> make_fake(int rank, int size) { return std::make_unique<Fake>(Member{rank, size}); }

}  // namespace trireme
