// What open_clip's evaluation does to a picture before the model sees it, to the bit: Pillow's antialiased
// resize, crop or pad, normalisation.
#pragma once
#include "data/image_text/images.h"

#include <array>
#include <string>

#include <ATen/core/Tensor.h>

namespace trireme {

struct Preprocess {
  std::int64_t size = 224;
  std::array<double, 3> mean{0.48145466, 0.4578275, 0.40821073}, std{0.26862954, 0.26130258, 0.27577711};
  std::string interpolation = "bicubic";  // or bilinear
  std::string resize_mode = "shortest";  // ... side becomes `size`, centre cropped; longest: padded; squash: both sides
  std::int64_t fill = 0;                 // grey level of the padding

  bool operator==(const Preprocess&) const = default;
  // Resized, cropped or padded: size x size. Thread safe.
  Image square(const Image& picture) const;
  // And normalised -> [3, size, size] f32.
  at::Tensor operator()(const Image& picture) const;
};

}  // namespace trireme
