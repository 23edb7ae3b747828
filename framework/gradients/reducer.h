// Bucketed gradient reduction that overlaps with backward.
//
// Gradients live in flat buckets, filled in the order backward produces them (reverse of registration in the first
// step, from then on the order that ranks observed in it, see order.h). A full bucket is summed over ranks at once, in
// the same order on every rank; one that a large parameter made much longer than asked goes in pieces, each as
// soon as the gradients in it are written. Communicators sum in rank order element by element, so neither bucket sizes
// nor overlap change a bit of a sum (a product that is computed in blocks of rows for it may round in another way).
// Hooks (compression) work from the second step on, when the layout is final.
//
// ZeRO-1 (Rajbhandari et al., SC'20), `shard`: a rank gets the sum of its own shard of every bucket only
// (reduce_scatter), updates that part of the weights, and gather_weights() hands them round.
#pragma once
#include "comm/archive.h"
#include "comm/communicator.h"
#include "framework/gradients/hook.h"

#include <memory>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

struct Param;
struct Slice;

class Reducer {
 public:
  struct Options {
    double bucket_mib = 25, first_bucket_mib = 1;
    bool overlap = true, shard = false;
    HookConfig hook = {};
  };

  // `params`: the trained leaves; hooks are put on them until destruction. `grad`: used for params whose `replicas`
  // is null; others use their own. Collective: buckets lie in memory that `grad` allocates.
  Reducer(const std::vector<Param>& params, Communicator& grad, Options options);
  ~Reducer();

  // Forgets the gradients of the last step. `step`: optimizer steps finished.
  void begin_step(std::int64_t step);
  // Before each backward of a step: buckets are launched only while the last one runs.
  void arm(bool last);
  // After the last backward: reduces what is left (parameters without a gradient get zeros) and waits for all.
  // Then every param's grad() is the sum over its replicas, with `shard` only in the elements this rank owns.
  void finish();

  // Is the bucket layout final? From the first finish(), or a loaded state, on.
  bool settled() const;
  // What this rank updates once it is; whole parameters unless `shard`.
  std::vector<Slice> owned() const;
  // After finish(), when it is agreed whether the step is taken. `skip`: f32 scalar, 1 = it is not, and what hooks keep
  // is as before it. `rescale`: f32 scalar, what a loss scale is multiplied by from the next step on, or undefined.
  // Does not read a device.
  void step_done(const at::Tensor& skip, const at::Tensor& rescale = {});
  // With `shard`, after the update, collective: every rank gets the weights that others updated.
  void gather_weights();

  // After finish(), collective: the norm over all gradients, each value once, and the sum over ranks of `loss`, which
  // go in one message. f64 scalars.
  struct Totals {
    at::Tensor norm, loss;
  };
  Totals totals(const at::Tensor& loss) const;
  std::size_t bytes_per_step() const;  // of all buckets that are reduced
  std::size_t plain_bytes() const;     // that a rank would send for gradients without hooks

  // The bucket order; what it changes when it is loaded happens in adopt_layout(), which is collective.
  void layout(Archive& ar);
  void adopt_layout();
  // The bucket order and what hooks keep. Loading another order than the buckets have adopts it: then collective.
  void state(Archive& ar);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace trireme
