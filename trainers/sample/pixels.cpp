#include "trainers/sample/pixels.h"

#include <cstring>

#include <ATen/ATen.h>

namespace trireme::sample {
namespace {

// u8 [H, W, 3] on the host.
Image image_of(const at::Tensor& levels) {
  Image image{int(levels.size(1)), int(levels.size(0)), {}};
  const auto* begin = levels.data_ptr<std::uint8_t>();
  image.rgb.assign(begin, begin + levels.numel());
  return image;
}

}  // namespace

std::vector<std::vector<Image>> images_of(const at::Tensor& pixels) {
  const at::Tensor levels = pixels.clamp(-1, 1).add(1).mul(127.5).round().to(at::kByte).to(at::kCPU);
  std::vector<std::vector<Image>> all(std::size_t(pixels.size(0)));
  for (std::int64_t b = 0; b < pixels.size(0); ++b)
    for (std::int64_t f = 0; f < pixels.size(2); ++f)
      all[std::size_t(b)].push_back(image_of(levels[b].select(1, f).permute({1, 2, 0}).contiguous()));
  return all;
}

Image grey_image(const at::Tensor& values, int side) {
  const at::Tensor levels = values.to(at::kCPU).to(at::kFloat).clamp(0, 1).mul(255).round().to(at::kByte);
  const at::Tensor large = levels.repeat_interleave(side, 0).repeat_interleave(side, 1);
  return image_of(large.unsqueeze(2).expand({-1, -1, 3}).contiguous());
}

}  // namespace trireme::sample
