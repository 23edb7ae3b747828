// How much of a contrastive loss's variance a reference model explains. The theory of DRRho-CLIP (arXiv 2505.06699) has
// Var(l - l_ref) in place of Var(l) in its bound: a reference helps where their ratio is below 1.
#pragma once
#include <ATen/core/Tensor.h>

namespace trireme::fastclip {

struct ExcessVariance {
  // l of a pair of an anchor and a negative, the margin s_ij - s_ii: variance over the negatives, mean over the
  // anchors. Whatever the temperature.
  double pairs = 0;
  // l of an anchor: log mean exp of its margins times `scale`; variance over the anchors.
  double anchors = 0;
};

// Unit-length rows of equal pairs [n, d] and [n, d_ref], n >= 3, on one device; both sides count. The reference's
// margins take the same scale, as the shift does.
ExcessVariance excess_variance(const at::Tensor& image, const at::Tensor& text, const at::Tensor& reference_image,
                               const at::Tensor& reference_text, double scale);

}  // namespace trireme::fastclip
