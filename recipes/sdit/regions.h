// Regions of a picture on its way, and the tokens that are worth computing: SDiT (arXiv 2601.12283) as a
// RECONSTRUCTION from its abstract and a third party's notes; constants here are not the authors'. Everything runs on
// the tensors' device without the host waiting, but where it says so; sums are of whole numbers, so that every rank
// and every device of a kind selects alike.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::sdit {

// Latents are f32 [B, C, F, H, W]; maps are [B, F, H, W].
struct LabelSettings {
  double kernel_size = 3, max_dist = 6, ratio = 8;  // ratio: of features of unit deviation against places
};
// f64 [B, H, W]: unit normals keyed by the pictures' seeds; they break ties of the densities.
at::Tensor label_noise(std::span<const std::uint64_t> seeds, std::int64_t rows, std::int64_t columns,
                       at::Device device);
struct RegionLabels {
  at::Tensor map;    // i64 [B, F, H, W]: below F * H * W, regions of two frames never alike
  at::Tensor count;  // i64 [B]: regions of all frames
};
// Quickshift of the predicted clean latent x0; noise as above, of every frame.
RegionLabels label_regions(const at::Tensor& x0, const at::Tensor& noise, const LabelSettings& settings);

// a n(|Scharr g|) + b n(|Laplacian g|) + c n(mean over channels |x - x0|): g the channel mean of x0, n from least to
// largest of a sample to [0, 1], 3x3 stencils whose border repeats. weights: a, b, c.
at::Tensor complexity(const at::Tensor& x, const at::Tensor& x0, std::span<const double> weights);

// Of every pixel, which place its region takes (0 first, f32): by the mean of the largest ceil(q n) complexities of
// the region's n pixels, then by label.
at::Tensor region_places(const RegionLabels& labels, const at::Tensor& complexity, double q);

struct TokenPatch {
  std::int64_t frames = 1, side = 2;  // latent pixels of a token
};
struct TokenChoice {
  double ratio = 0.5;  // of the tokens, or of the regions
  bool regions = false, uncut = false;
  std::int64_t dilate = 1;  // latent pixels around a region that go with it
  std::int64_t round_to = 64;
  std::vector<std::int64_t> period = {};  // empty, or every how many steps the three thirds of the regions are due
};
// How many of n tokens a share is, rounded up to whole blocks.
std::int64_t rounded_count(double share, std::int64_t n, std::int64_t round_to);
// i64 [B, K], ascending: the tokens of the first regions with their rings (a token has the first place of its pixels).
// K = rounded_count(ratio, tokens) cuts the last region by index. `uncut` or `regions` keep it whole: then K is the
// largest of the samples, and reading it makes the host wait. step: of the sparse ones, for `period`.
at::Tensor choose_tokens(const at::Tensor& places, const RegionLabels& labels, TokenPatch patch,
                         const TokenChoice& choice, std::int64_t step);
// i64 [B, K] ascending: the K first by (key, index), keys [B, N] as f32.
at::Tensor first_by_key(const at::Tensor& keys, std::int64_t count);

}  // namespace trireme::sdit
