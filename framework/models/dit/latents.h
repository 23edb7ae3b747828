// Between pictures and the latents that a diffusion model works on. Pixels: f32 [B, 3, F, H, W] in [-1, 1]; latents:
// f32 [B, C, F, H / factor, W / factor]. A picture is a video of one frame.
#pragma once
#include <cstdint>
#include <memory>
#include <string_view>

#include <ATen/core/Tensor.h>

namespace trireme {

class LatentCodec {
 public:
  virtual ~LatentCodec() = default;
  virtual std::string_view name() const = 0;
  virtual std::int64_t channels() const = 0;
  virtual std::int64_t factor() const = 0;  // pixels a side of a latent's pixel
  // False: latents go in and out as they are, and both calls below throw UsageError.
  virtual bool sees_pixels() const { return true; }
  // Differentiable, on the input's device.
  virtual at::Tensor encode(const at::Tensor& pixels) const = 0;
  virtual at::Tensor decode(const at::Tensor& latents) const = 0;
};

// 3 channels at factor 1: the pixels themselves. 3 f^2 channels at factor f: each f x f patch of pixels as channels,
// colour by colour, rows of the patch first. Anything else is the latent of an autoencoder that we do not have.
std::unique_ptr<LatentCodec> latent_codec(std::int64_t channels, std::int64_t factor);

}  // namespace trireme
