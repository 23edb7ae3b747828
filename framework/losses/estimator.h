// Estimates of each sample's normaliser u, which the global contrastive losses keep between visits: the rule, and the
// table over all ranks.
#pragma once
#include "comm/archive.h"
#include "comm/communicator.h"

#include <span>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::fastclip {

// gamma of an epoch: 1 in epoch 0, then cosine from 1 to gamma_min at `decay_epochs`, or gamma_min for "constant".
double gamma_at(std::string_view schedule, double gamma_min, std::int64_t decay_epochs, std::int64_t epoch);

// From the old log u and the batch's own to the new. All in log space; a first visit takes the batch's.
struct Estimator {
  enum Kind { moving_average, scent, none } kind = moving_average;
  // linear: u is the mean over B - 1 negatives, eps is added where it divides (FastCLIP). log: eps is inside, and the
  // mean over B (DRRho-CLIP). They differ in what marks an entry as never visited, too.
  enum Domain { linear, log } domain = linear;
  double scent_a = 10;  // SCENT (arXiv 2602.02877): gamma_i = sigmoid(log u_i + a)

  at::Tensor update(const at::Tensor& old, const at::Tensor& now, double gamma) const;
};

// Numbers of every sample, in `columns` for each side (log u alone, or with a temperature and its moments), spread over
// the ranks by sample number in equal blocks, or whole on each. Never visited: log u = -inf.
class NormalizerTable {
 public:
  // initial: one value a column.
  NormalizerTable(std::int64_t n, std::vector<double> initial, at::TensorOptions options, const Communicator& comm,
                  bool sharded);
  // [2, columns, b] of this rank's rows of the global batch, whose sample numbers are `ids` [B], the same on all ranks.
  // Collective where sharded: 2 columns b (K-1)/K numbers a rank travel.
  at::Tensor read(Communicator& comm, std::span<const std::int64_t> ids) const;
  // values [2, columns, B] for `ids` [B]; of equal ids the highest row wins. skip: f32 scalar, 1 = write nothing.
  void write(std::span<const std::int64_t> ids, const at::Tensor& values, const at::Tensor& skip);
  // names: of the columns. Any number of ranks can load it.
  void state(Archive& ar, std::span<const std::string_view> names);
  // [2, columns, entries held here], and the sample number of the first of them.
  const at::Tensor& values() const { return values_; }
  std::int64_t first() const { return first_; }

 private:
  std::int64_t n_, ranks_ = 1, first_ = 0;  // ranks that it is spread over
  at::Tensor values_;
  bool sharded_;
};

}  // namespace trireme::fastclip
