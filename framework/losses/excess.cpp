#include "framework/losses/excess.h"

#include <cmath>

#include <ATen/ATen.h>

namespace trireme::fastclip {
namespace {

// Margins of the anchors in `a` against all but their own partner, [n, n - 1] in f64.
at::Tensor margins(const at::Tensor& a, const at::Tensor& b) {
  const std::int64_t n = a.size(0);
  const at::Tensor s = at::mm(a.to(at::kDouble), b.to(at::kDouble).t());
  const at::Tensor h = s - s.diagonal().unsqueeze(1);
  // All but the diagonal: shifted by one, it is a column of the matrix cut off its last entry.
  return h.flatten().slice(0, 1).view({n - 1, n + 1}).slice(1, 0, n).reshape({n, n - 1});
}

}  // namespace

ExcessVariance excess_variance(const at::Tensor& image, const at::Tensor& text, const at::Tensor& reference_image,
                               const at::Tensor& reference_text, double scale) {
  const at::NoGradGuard no_grad;
  double pairs[2] = {0, 0}, anchors[2] = {0, 0};  // of l - l_ref, of l
  for (const bool swapped : {false, true}) {
    const at::Tensor l = swapped ? margins(text, image) : margins(image, text),
                     r = swapped ? margins(reference_text, reference_image) : margins(reference_image, reference_text);
    const auto of_anchor = [&](const at::Tensor& h) {
      return at::logsumexp(h * scale, {1}) - std::log(double(h.size(1)));
    };
    pairs[0] += (l - r).var(1).mean().item<double>();
    pairs[1] += l.var(1).mean().item<double>();
    anchors[0] += (of_anchor(l) - of_anchor(r)).var().item<double>();
    anchors[1] += of_anchor(l).var().item<double>();
  }
  return {pairs[0] / pairs[1], anchors[0] / anchors[1]};
}

}  // namespace trireme::fastclip
