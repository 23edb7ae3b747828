// Where gradients lie: flat buckets per (communicator, type, device), filled in an order of the parameters, and the
// pieces that each is reduced in. Memory only; what travels when is the reducer's business.
#pragma once
#include "comm/communicator.h"
#include "framework/base/param.h"
#include "framework/gradients/hook.h"
#include "framework/gradients/slot.h"

#include <cstdint>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

struct Layout {
  struct Options {
    double bucket_mib = 25, first_bucket_mib = 1;
    bool shard = false;  // ZeRO-1: every rank owns an equal part of a bucket, and weights lie as gradients do
    bool whole = false;  // buckets are never cut into pieces
  };
  struct Flat : Bucket {
    Communicator* comm = nullptr;     // null: never reduced
    std::vector<std::size_t> params;  // in the order they lie there
    std::vector<std::int64_t> ends;   // of the pieces it is reduced in, in elements
    at::Tensor weights;               // with `shard`, once they moved in: flat, as `flat`
  };

  // `grad`: of params whose `replicas` is null.
  Layout(const std::vector<Param>& params, Communicator& grad, Options options);

  // Collective: new buckets, and slots that point into them. `order`: all parameters of this rank, as SharedOrder has
  // them.
  void build(const std::vector<std::int64_t>& order);
  // Collective. With `shard`: weights move into flat memory laid out as the buckets.
  void home_weights();
  // What this rank updates, by parameter; all of each unless `shard`.
  std::vector<Slice> owned() const;
  // This rank's part of a bucket, or of its weights.
  static at::Tensor shard_of(const Flat& bucket, const at::Tensor& flat);

  std::vector<Param> params;
  std::vector<GradientSlot> slots;     // by parameter; they stay where they are
  std::vector<Flat> buckets;           // in the order they leave
  std::vector<std::size_t> bucket_of;  // by parameter

 private:
  Communicator* comm_of(const Param& p) const;
  void allocate(Flat& bucket);
  void cut(Flat& bucket);

  Communicator& grad_;
  Options options_;
};

}  // namespace trireme
