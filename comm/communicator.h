// The seam between training code and the wire: a fixed group of ranks and the collectives among them.
//
// Rules for every implementation (tests/contract runs each registered one):
// - Every collective is asynchronous and returns Work; blocking is `.wait()`; in place is "same buffer".
// - All ranks of the group make the same calls in the same order. Order holds within a communicator only.
// - Sums are taken in rank order, element by element: the result does not depend on how a message is cut.
// - Buffers stay valid and untouched until the Work is complete. Zero counts are legal. f16/bf16 sum in f32.
// - In a group of one an in-place collective does nothing.
// - One thread at a time may call into one communicator; different communicators may be used at once.
// - Errors throw CommError; after an error the group is unusable and the caller ends the job (`abort`).
#pragma once
#include "comm/buffer.h"
#include "comm/op.h"
#include "comm/work.h"

#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace trireme {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  virtual Work all_reduce(Buffer inout, Op op) = 0;
  // in: size() * out.count elements, block r goes to rank r.
  virtual Work reduce_scatter(ConstBuffer in, Buffer out, Op op) = 0;
  // out: size() * in.count elements, block r comes from rank r. In place: in.data is block rank() of out.
  virtual Work all_gather(ConstBuffer in, Buffer out) = 0;
  // send[r] elements to rank r, packed; recv[r] from rank r, packed. Point to point = zero counts elsewhere.
  virtual Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                          std::span<const std::size_t> recv) = 0;
  virtual Work broadcast(Buffer inout, int root) = 0;
  virtual Work barrier() = 0;

  // Collective. Ranks with equal `color` form a group, ordered by (key, rank). A duplicate is split(0,
  // rank()).
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;
  // Collective. Zeroed host memory that this communicator moves fastest (shared between the ranks of a node);
  // every rank passes the same size. Any memory works in every collective; this only makes it faster.
  virtual std::shared_ptr<void> allocate(std::size_t bytes) = 0;
  // May collectives be captured into a CUDA graph?
  virtual bool capturable() const { return false; }
  // Ends the whole job: wakes every rank, never returns where the job is a process.
  virtual void abort(int code, std::string_view why) noexcept = 0;
  virtual std::string_view backend() const = 0;
};

}  // namespace trireme
