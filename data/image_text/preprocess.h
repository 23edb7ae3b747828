// Pictures as a model is evaluated on them: OpenCLIP's inference transform.
#pragma once
#include "data/image_text/crop.h"
#include "data/image_text/images.h"

#include <functional>

#include <ATen/core/Tensor.h>

namespace trireme {

struct Preprocess {
  int size = 224;
  PixelStatistics statistics;
  // false ("shortest"): the shorter side becomes `size`, and the middle square of it counts; true ("squash"): both
  // sides become `size`. Antialiased bicubic, rounded to levels as Pillow does.
  bool squash = false;
};

// [n, 3, size, size] on the host, f32 or f64, of pictures picture(0) ... picture(n - 1), which are decoded and resized
// on torch's threads. Throws what `picture` throws.
at::Tensor preprocess(std::int64_t n, const std::function<Picture(std::int64_t)>& picture, const Preprocess& how,
                      at::ScalarType type);

}  // namespace trireme
