#include "data/image_text/preprocess.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

namespace trireme {
namespace {

// The middle `size` pixels of a side that was resized from `length` to `resized`, in pixels of `length`. torchvision
// rounds the offset half to even.
void middle(int length, int resized, int size, double& begin, double& stretch) {
  const double scale = double(length) / resized;
  begin = std::nearbyint((resized - size) / 2.0) * scale;
  stretch = size * scale;
}

Crop crop_of(const Image& image, const Preprocess& how) {
  int w = how.size, h = how.size;
  if (!how.squash) {  // the longer side is rounded down, in whole numbers as torchvision
    const std::int64_t s = how.size;
    if (image.width <= image.height)
      h = int(s * image.height / image.width);
    else
      w = int(s * image.width / image.height);
  }
  Crop crop{image.width, image.height};
  middle(image.width, w, how.size, crop.left, crop.box_width);
  middle(image.height, h, how.size, crop.top, crop.box_height);
  return crop;
}

}  // namespace

at::Tensor preprocess(std::int64_t n, const std::function<Picture(std::int64_t)>& picture, const Preprocess& how,
                      at::ScalarType type) {
  at::Tensor out = at::empty({n, 3, how.size, how.size}, type);
  auto* bytes = static_cast<std::uint8_t*>(out.mutable_data_ptr());
  const std::int64_t row = n ? std::int64_t(out.nbytes()) / n : 0;
  at::parallel_for(0, n, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) {
      const Picture p = picture(i);
      const Crop crop = crop_of(p.pixels, how);
      crop_resize({p.pixels.rgb.data(), 0, &crop, 1, how.size, how.statistics,
                   type == at::kDouble ? DType::f64 : DType::f32, bytes + i * row},
                  {});
    }
  });
  return out;
}

}  // namespace trireme
