#include "framework/models/dit/image_to_video.h"

#include "comm/error.h"

#include <ATen/ATen.h>

namespace trireme {

at::Tensor first_frame_condition(const DenoiserInfo& info, const at::Tensor& first, std::int64_t frames) {
  const std::int64_t masks = info.image_channels - info.channels;
  if (masks < 0)
    throw UsageError("image to video", "the model takes no picture",
                     "use one whose in_channels hold latent, picture and mask");
  if (first.dim() != 5 || first.size(1) != info.channels || first.size(2) != 1 || frames < 1)
    throw UsageError("image to video",
                     "the first frame is no latent [B, " + std::to_string(info.channels) + ", 1, H, W]",
                     "encode one picture");
  const auto alone = [&](const at::Tensor& frame) { return at::constant_pad_nd(frame, {0, 0, 0, 0, 0, frames - 1}); };
  const at::Tensor mask = alone(at::ones_like(first.narrow(1, 0, 1))).repeat({1, masks, 1, 1, 1});
  return info.layout == "wan" ? at::cat({mask, alone(first)}, 1) : at::cat({alone(first), mask}, 1);
}

}  // namespace trireme
