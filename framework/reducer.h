// Bucketed gradient reduction that overlaps with backward.
//
// Gradients live in flat buckets, filled in the order backward produces them (reverse of registration at first, the
// observed order of rank 0 after the first step). A full bucket is all-reduced (sum) at once, in the same order on
// every rank. Communicators sum in rank order element by element, so neither bucket sizes nor overlap change a bit.
#pragma once
#include "comm/archive.h"
#include "comm/communicator.h"

#include <ATen/core/Tensor.h>

#include <memory>
#include <vector>

namespace trireme {

struct Param;

class Reducer {
 public:
  struct Options {
    double bucket_mib = 25, first_bucket_mib = 1;
    bool overlap = true;
  };

  // `params`: the trained leaves; hooks are put on them until destruction. `grad`: used for params whose `replicas`
  // is null; others use their own. Collective: buckets lie in memory that `grad` allocates.
  Reducer(const std::vector<Param>& params, Communicator& grad, Options options);
  ~Reducer();

  // Forgets the gradients of the last step.
  void begin_step();
  // Before each backward of a step: buckets are launched only while the last one runs.
  void arm(bool last);
  // After the last backward: reduces what is left (parameters without a gradient get zeros) and waits for all.
  // Then every param's grad() is the sum over its replicas.
  void finish();

  // After finish(), collective: norm over all gradients, each value once. An f64 scalar.
  at::Tensor gradient_norm() const;
  std::size_t bytes_per_step() const;  // of all buckets that are reduced
  void state(Archive& ar);             // the bucket order

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// For fused backwards: memory that the reducer wants this parameter's gradient in, so that it is written once and
// never copied. A fresh view each time, or undefined when there is none or it is already taken in this step.
at::Tensor gradient_destination(const at::Tensor& param);

}  // namespace trireme
