// How far a picture is from another, and what can be seen in one alone. Values f32 in [0, 1], whatever the picture's
// source; no network is asked, and nothing here is called FID or LPIPS.
#pragma once
#include "data/image_text/images.h"

#include <cstdint>
#include <vector>

namespace trireme {

// Planes [channels, height, width], row by row. Does not own the values.
struct PicturePlanes {
  const float* values = nullptr;
  std::int64_t channels = 3, height = 0, width = 0;
  const float* plane(std::int64_t c) const { return values + c * height * width; }
};
// Planes of an 8-bit picture, [3, height, width].
std::vector<float> planes_of(const Image& image);

// -10 log10(mean squared difference); infinite for equal pictures. Both of one shape, as below.
double psnr(const PicturePlanes& a, const PicturePlanes& b);
// Structural similarity (Wang et al. 2004): Gaussian window of 11 x 11, sigma 1.5, K = 0.01 and 0.03, where the window
// fits, mean over channels. UsageError: a side below 11.
double ssim(const PicturePlanes& a, const PicturePlanes& b);
// Over scales (Wang et al. 2003): at most 5, as many as halvings leave 11 pixels a side, their weights scaled to sum 1.
double ms_ssim(const PicturePlanes& a, const PicturePlanes& b);

// log10 of the mean power of brightness at each whole frequency 1 ... side/2 - 1 (cycles a picture), by a direct
// transform of rows and columns; `side`: the shorter one, cut from the middle.
std::vector<double> radial_spectrum(const PicturePlanes& p);
// Root mean square difference of two such over the frequencies both have.
double spectrum_distance(const std::vector<double>& a, const std::vector<double>& b);

// Mean absolute jump of values across lines at multiples of `tile`, over that across the other multiples of `patch`
// (pixels; tile a multiple of patch): 1 where tiles leave no seam. 0: no such lines.
double seam_ratio(const PicturePlanes& p, std::int64_t tile_rows, std::int64_t tile_columns, std::int64_t patch);

// Mean change of a frame's mean color from one frame to the next. All of one shape; none is kept.
class ColorFlicker {
 public:
  void add(const PicturePlanes& frame);
  double mean() const { return frames_ < 2 ? 0 : change_ / double(frames_ - 1); }

 private:
  std::vector<double> last_;  // mean color
  double change_ = 0;
  std::int64_t frames_ = 0;
};

}  // namespace trireme
