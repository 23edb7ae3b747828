// Which rows of a super-batch to train on, by what a learner could still learn from them: its loss minus a frozen
// reference's. JEST (arXiv 2406.17711) as the DRRho-CLIP authors' baseline has it, and RHO-loss (arXiv 2206.07137).
//
//   score_ij = -s e1_i.e2_j + s_ref r1_i.r2_j; its diagonal is the learnability of a pair by itself
//   jest       draws `chunks` times floor(b fraction / chunks) of a rank's b rows without replacement: first with the
//              weights diag - min(diag) of the rank, then with
//              exp(diag_i + lse_chosen(s e1_i.e2_j) - lse_chosen(s_ref r1_i.r2_j)), lse over the rows j that all ranks
//              have chosen so far, averaged over both sides
//   jest_topk  the same, but after the first draw the largest are taken
//   rho        the round(b fraction) rows of a rank whose contrastive loss over all ranks' rows is the largest above
//              the reference's
#pragma once
#include "comm/communicator.h"

#include <cstdint>
#include <string>

#include <ATen/core/Tensor.h>

namespace trireme {

struct Selection {
  std::string method = "jest";  // jest, jest_topk, rho
  double fraction = 0.2;        // share kept, in (0, 1]
  std::int64_t chunks = 2;      // of jest
};

// Unit-length rows of a rank's super-batch, detached; any width. scale: scalar, 1 / tau.
struct ScoredFeatures {
  at::Tensor image, text;  // [b, d]
  at::Tensor scale;
};

// Rows that a rank keeps of b; the same for every rank. UsageError where that is none.
std::int64_t selected_rows(const Selection& selection, std::int64_t b);

// This rank's chosen rows, ascending i64 [selected_rows(b)] on the host (on a GPU it waits for them). Draws are keyed
// by (seed, step, rank). Collective: jest gathers the chosen rows, rho all of them.
at::Tensor select_rows(Communicator& comm, const Selection& selection, const ScoredFeatures& learner,
                       const ScoredFeatures& reference, std::uint64_t seed, std::int64_t step);

}  // namespace trireme
