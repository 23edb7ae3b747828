// A modelled link in front of any communicator: a collective takes at least the time that it would take there. For
// studies of overlap and compression on one machine. Times measured through it are *modelled* and must be called so.
//
// With n ranks and a buffer of B bytes, in the alpha-beta model (Hockney) of ring algorithms (Thakur et al., IJHPCA
// 2005): steps * alpha + sent / beta, where steps and sent bytes are
//   all_reduce      2(n-1)   2(n-1)/n B      reduce_scatter, all_gather   n-1   (n-1)/n of the whole buffer
//   all_to_all      n-1      what goes to others                broadcast   n-1   B (in a pipeline)
//   barrier         2(n-1)   0
// A collective is on the link from when this rank posts it, or from the end of the one posted before it on the same
// link if that is later.
#pragma once
#include "comm/wrappers/wrapper.h"

#include <atomic>
#include <chrono>
#include <string>

namespace trireme {

struct LinkModel {
  double alpha = 0;   // seconds a step
  double beta = 1e9;  // bytes a second, > 0
};

class Shaped final : public Wrapper {
 public:
  // `inner` must outlive this. The groups that split() makes share the link.
  Shaped(Communicator& inner, LinkModel model);

  Work all_reduce(Buffer inout, Op op) override;
  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override;
  Work all_gather(ConstBuffer in, Buffer out) override;
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override;
  Work broadcast(Buffer inout, int root) override;
  Work barrier() override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  bool capturable() const override { return false; }
  std::string_view backend() const override { return backend_; }  // ends in "modelled link"

  using Clock = std::chrono::steady_clock;
  struct Link {
    explicit Link(LinkModel m) : model(m) {}
    const LinkModel model;
    std::atomic<Clock::rep> free_at{0};  // when the last collective that was posted leaves the link
  };

 private:
  Shaped(std::unique_ptr<Communicator> inner, std::shared_ptr<Link> link);
  Work shape(Work inner, double steps, double bytes);

  std::shared_ptr<Link> link_;
  std::string backend_;
};

}  // namespace trireme
