// Image to video: the first frame as a condition beside the noise.
#pragma once
#include "framework/models/dit/denoiser.h"

namespace trireme {

// Conditioning::image of a video of `frames` latent frames that begins with `first` [B, C, 1, H, W] (a latent of the
// model's channels): the frame, zeros after it, and a mask of ones on it. Wan: the mask's channels (4 pixel frames a
// latent frame) stand first; HunyuanVideo: one, last. -> [B, C', frames, H, W].
// UsageError: a model that takes no picture, a first frame of another shape.
at::Tensor first_frame_condition(const DenoiserInfo& info, const at::Tensor& first, std::int64_t frames);

}  // namespace trireme
