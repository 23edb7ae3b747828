// What the losses of this folder share: rows of all ranks, and similarities in tiles, so that no [b, B] matrix is kept.
#pragma once
#include "framework/losses/contrastive.h"

#include <algorithm>
#include <memory>

namespace trireme::fastclip {

// Similarities are f32 (f64) products also where the model's are not: 1/tau makes 1e-4 of a cosine 1 % of a weight.
// While it lives, nothing is autocast or recorded for backward.
class Exactly {
 public:
  Exactly();
  ~Exactly();

 private:
  struct Guards;
  std::unique_ptr<Guards> guards_;
};

// A pair that does not count has this similarity: its exponential is 0, and 0 times it is 0.
constexpr double left_out = -1e30;

struct Gathered {
  at::Tensor image, text;  // [B, d]
};
Gathered gather_rows(Communicator& comm, const at::Tensor& image, const at::Tensor& text);  // one all-gather
at::Tensor gather_scalars(Communicator& comm, const at::Tensor& mine);                      // [c, b] -> [c, B]
// Column of each local row's own partner in the [b, B] matrices: [b, 1] i64.
at::Tensor own_columns(const Communicator& comm, const at::Tensor& rows);

// One side's similarities on this rank, [b, B]: local anchors against all partners. As columns they are also all
// anchors of the other side against the local partners. Rows come a tile at a time and are computed again in each
// sweep, unless one tile is all of it.
class Similarity {
 public:
  Similarity(at::Tensor anchors, at::Tensor partners);

  // visit(tile [n, B], first row, n). The tile is to be left as it is.
  template <class Visit>
  void sweep(const Visit& visit) {
    const auto b = anchors_.size(0);
    for (std::int64_t first = 0; first < b; first += rows_) visit(tile(first), first, std::min(rows_, b - first));
  }
  at::Tensor tile(std::int64_t first);
  // From now on the pairs themselves, at these columns, do not count.
  void leave_out(const at::Tensor& own) { own_ = own, whole_ = at::Tensor(); }
  // Nor do pairs of equal captions [B]; the pairs themselves stay as they are.
  void leave_out_equal(const at::Tensor& captions, const at::Tensor& own);

 private:
  at::Tensor anchors_, partners_, own_, whole_, captions_, pair_;
  std::int64_t rows_;
};

// W_ij = exp(s_ij row_scale_i - row_i), and for anchors elsewhere exp(s_ij column_scale_j - column_j). row and column
// may be f64 beside similarities of f32.
struct Exponents {
  at::Tensor row, column;                        // [b], [B]
  at::Tensor row_scale = {}, column_scale = {};  // [b], [B]; undefined: 1
  bool column_moment = false;                    // is it wanted?
};

// Of the pair weights W of one side, what gradients need.
struct Weighted {
  at::Tensor by_row, by_column;      // [b] and [B]: sums of the weights that anchors here, and anchors elsewhere, give
  at::Tensor moment, column_moment;  // [b] and scalar: the same sums of s_ij W_ij
};

// The two sides of a loss: image anchors and text anchors.
struct Pulled {
  Weighted side[2];
  at::Tensor image, text;  // [b, d]: sums of weight times partner, given by anchors here and elsewhere
};

// log sum_j exp(s_ij scale_i) of each anchor [b], f64; scale [b], undefined: 1.
at::Tensor log_sums(Similarity& side, const at::Tensor& scale = {});
// log (1/n) sum_j exp(s_ij scale_i - diagonal_i) [b], f64; -inf where nothing counts.
at::Tensor log_means(Similarity& side, const at::Tensor& scale, const at::Tensor& diagonal, std::int64_t n);

// Mean over all but entries never visited (-inf), which count as 0.
at::Tensor mean_visited(const at::Tensor& log_u);

// What Reduction says: with `scalars` the columns' exponents are needed; with `reduce_scatter` they are not and the
// by_column sums are zeros.
Pulled pull(Communicator& comm, Similarity (&sides)[2], const Exponents (&exponents)[2], const Rows& rows,
            const Gathered& all, Reduction reduction);

}  // namespace trireme::fastclip
