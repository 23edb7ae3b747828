// Tensors as pictures.
#pragma once
#include "data/image_text/images.h"

#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::sample {

// f32 [B, 3, F, H, W] in [-1, 1] on any device -> F frames for each of B; what is beyond is cut off.
std::vector<std::vector<Image>> images_of(const at::Tensor& pixels);
// [rows, columns] in [0, 1], grey, each value `side` pixels wide and high.
Image grey_image(const at::Tensor& values, int side);

}  // namespace trireme::sample
