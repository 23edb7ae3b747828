// A communicator that passes every call on: for tests that watch or change one of them.
#pragma once
#include "comm/wrappers/wrapper.h"

namespace trireme::test {

class Forwarding : public Wrapper {
 public:
  using Wrapper::Wrapper;
  Work all_reduce(Buffer inout, Op op) override { return inner_.all_reduce(inout, op); }
  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override { return inner_.reduce_scatter(in, out, op); }
  Work all_gather(ConstBuffer in, Buffer out) override { return inner_.all_gather(in, out); }
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    return inner_.all_to_all(in, send, out, recv);
  }
  Work broadcast(Buffer inout, int root) override { return inner_.broadcast(inout, root); }
  Work barrier() override { return inner_.barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override { return inner_.split(color, key); }
};

}  // namespace trireme::test
