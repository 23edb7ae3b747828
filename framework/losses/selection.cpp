#include "framework/losses/selection.h"

#include "comm/error.h"
#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/losses/risk.h"
#include "framework/losses/similarity.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace trireme {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity(), lowest = std::numeric_limits<double>::lowest();

std::int64_t rows_of_a_draw(const Selection& s, std::int64_t b) {
  return std::int64_t(std::floor(double(b) * s.fraction / double(s.chunks) + 1e-9));  // 100 * 0.29 is below 29
}

// s times the similarity of each pair's own two rows, [b].
at::Tensor own(const ScoredFeatures& f) { return (f.image * f.text).sum(1) * f.scale; }

// log-sum-exp of s times the similarities of `mine` with all of `others`, [b]; by blocks, so that no [b, B] is kept.
at::Tensor against(const at::Tensor& mine, const at::Tensor& others, const at::Tensor& scale) {
  constexpr std::int64_t block = 1024;
  std::vector<at::Tensor> parts;
  for (std::int64_t i = 0; i < mine.size(0); i += block)
    parts.push_back(at::logsumexp(at::mm(mine.narrow(0, i, std::min(block, mine.size(0) - i)) * scale, others.t()), 1));
  return at::cat(parts);
}

// Both sides' log-sum-exps against these rows of all ranks.
struct Sums {
  at::Tensor image, text;
};

Sums sums_of(Communicator& comm, const ScoredFeatures& f, const at::Tensor& rows) {
  const auto part = [&](const at::Tensor& t) { return rows.defined() ? t.index_select(0, rows) : t; };
  const fastclip::Gathered all = fastclip::gather_rows(comm, part(f.image), part(f.text));
  return {against(f.image, all.text, f.scale), against(f.text, all.image, f.scale)};
}

// Minus log(-log u), a number of the standard Gumbel distribution for each row: the largest of log weight + number are
// a sample without replacement.
at::Tensor gumbel(Rng& rng, const at::Tensor& like) {
  at::Tensor t = at::empty({like.size(0)}, at::kDouble);
  double* p = t.mutable_data_ptr<double>();
  for (std::int64_t i = 0; i < t.numel(); ++i) p[i] = -std::log(-std::log(rng.uniform()));
  return to_device(t, like.device());
}

at::Tensor jest(Communicator& comm, const Selection& selection, const ScoredFeatures& learner,
                const ScoredFeatures& reference, Rng rng) {
  const at::Tensor diagonal = (own(reference) - own(learner)).to(at::kDouble);
  const std::int64_t count = rows_of_a_draw(selection, diagonal.size(0));
  at::Tensor keys = (diagonal - diagonal.min()).log() + gumbel(rng, diagonal);
  at::Tensor chosen = at::zeros_like(diagonal, at::kBool);
  Sums mine, theirs;
  for (std::int64_t k = 0;; ++k) {
    // A row of weight 0 still comes before one that is chosen already.
    const at::Tensor rows = largest_rows(keys.clamp_min(lowest).masked_fill(chosen, -infinity), count);
    chosen = chosen.index_fill(0, rows, true);
    if (k + 1 == selection.chunks) return chosen.nonzero().squeeze(1);
    const auto add = [](Sums& all, const Sums& more) {
      all = all.image.defined() ? Sums{at::logaddexp(all.image, more.image), at::logaddexp(all.text, more.text)} : more;
    };
    add(mine, sums_of(comm, learner, rows));
    add(theirs, sums_of(comm, reference, rows));
    keys = diagonal + (mine.image - theirs.image + mine.text - theirs.text).to(at::kDouble) / 2;
    if (selection.method == "jest") keys = keys + gumbel(rng, diagonal);
  }
}

at::Tensor losses(Communicator& comm, const ScoredFeatures& f) {
  const Sums all = sums_of(comm, f, {});
  return (all.image + all.text) / 2 - own(f);
}

}  // namespace

std::int64_t selected_rows(const Selection& s, std::int64_t b) {
  const std::int64_t rows = s.method == "rho" ? std::llround(double(b) * s.fraction) : rows_of_a_draw(s, b) * s.chunks;
  if (rows < 1)
    throw UsageError("reference.select_fraction",
                     "leaves nothing of the " + std::to_string(b) + " pairs of a rank" +
                         (s.method == "rho" ? "" : " in " + std::to_string(s.chunks) + " draws"),
                     "raise it or batch_size, or lower reference.select_chunks");
  return rows;
}

at::Tensor select_rows(Communicator& comm, const Selection& selection, const ScoredFeatures& learner,
                       const ScoredFeatures& reference, std::uint64_t seed, std::int64_t step) {
  const fastclip::Exactly exactly;
  const std::int64_t rows = selected_rows(selection, learner.image.size(0));
  if (selection.method == "rho") return largest_rows(losses(comm, learner) - losses(comm, reference), rows).cpu();
  return jest(comm, selection, learner, reference, Rng(seed, "select", std::uint64_t(step), std::uint64_t(comm.rank())))
      .cpu();
}

}  // namespace trireme
