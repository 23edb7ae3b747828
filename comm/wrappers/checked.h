// A communicator that first compares what every rank is about to do. Ranks that disagree get a CommError
// which names both ranks and the field that differs, instead of a hang or of wrong data. That ranks call on
// different communicators is seen while they wait for each other, about a second later (comm/wrappers/parley.h).
#pragma once
#include "comm/wrappers/parley.h"
#include "comm/wrappers/wrapper.h"

namespace trireme {

class Checked final : public Wrapper {
 public:
  // Collective: fingerprints travel over a duplicate of `inner`, which must outlive this in the first form.
  // Communicators that are to be told from each other have different names and share a parley, made on all
  // their ranks; none: one of its own. Groups made by split() share it.
  explicit Checked(Communicator& inner, std::string name = "world", std::shared_ptr<Parley> parley = {});
  explicit Checked(std::unique_ptr<Communicator> inner, std::string name = "world",
                   std::shared_ptr<Parley> parley = {});
  // Pending operations are waited for, unless an exception is on its way or ranks were found to wait for each
  // other.
  ~Checked() override;

  const std::shared_ptr<Parley>& parley() const { return parley_; }

  Work all_reduce(Buffer inout, Op op) override;
  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override;
  Work all_gather(ConstBuffer in, Buffer out) override;
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override;
  Work broadcast(Buffer inout, int root) override;
  Work barrier() override;
  std::unique_ptr<Communicator> split(int color, int key) override;
  std::shared_ptr<void> allocate(std::size_t bytes) override;
  bool capturable() const override { return false; }

 private:
  struct Fingerprint;
  struct Exchange;
  struct Gate;
  class State;
  Work compare(const Fingerprint& mine, std::span<const std::size_t> send, std::span<const std::size_t> recv,
               std::function<Work()> next, bool on_device = false);

  const std::string name_;
  std::shared_ptr<Parley> parley_;
  std::unique_ptr<Communicator> side_;  // carries the fingerprints
  int splits_ = 0;
  std::shared_ptr<Gate> gate_;
};

}  // namespace trireme
