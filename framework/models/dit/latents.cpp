#include "framework/models/dit/latents.h"

#include "comm/error.h"

#include <string>

#include <ATen/ATen.h>

namespace trireme {
namespace {

class Patches final : public LatentCodec {
 public:
  explicit Patches(std::int64_t factor) : factor_(factor) {}
  std::string_view name() const override { return factor_ == 1 ? "pixels" : "patches"; }
  std::int64_t channels() const override { return 3 * factor_ * factor_; }
  std::int64_t factor() const override { return factor_; }
  at::Tensor encode(const at::Tensor& pixels) const override {
    if (factor_ == 1) return pixels;
    const auto s = pixels.sizes();
    const std::int64_t rows = s[3] / factor_, columns = s[4] / factor_;
    return pixels.reshape({s[0], 3, s[2], rows, factor_, columns, factor_})
        .permute({0, 1, 4, 6, 2, 3, 5})
        .reshape({s[0], channels(), s[2], rows, columns});
  }
  at::Tensor decode(const at::Tensor& latents) const override {
    if (factor_ == 1) return latents;
    const auto s = latents.sizes();
    return latents.reshape({s[0], 3, factor_, factor_, s[2], s[3], s[4]})
        .permute({0, 1, 4, 5, 2, 6, 3})
        .reshape({s[0], 3, s[2], s[3] * factor_, s[4] * factor_});
  }

 private:
  std::int64_t factor_;
};

class Opaque final : public LatentCodec {
 public:
  Opaque(std::int64_t channels, std::int64_t factor) : channels_(channels), factor_(factor) {}
  std::string_view name() const override { return "latents"; }
  std::int64_t channels() const override { return channels_; }
  std::int64_t factor() const override { return factor_; }
  bool sees_pixels() const override { return false; }
  at::Tensor encode(const at::Tensor&) const override { throw missing(); }
  at::Tensor decode(const at::Tensor&) const override { throw missing(); }

 private:
  UsageError missing() const {
    return UsageError(
        "model", "its latents of " + std::to_string(channels_) + " channels need an autoencoder, which is not here",
        "take the latents as they are (latents: true) and decode them with the model's own");
  }
  std::int64_t channels_, factor_;
};

}  // namespace

std::unique_ptr<LatentCodec> latent_codec(std::int64_t channels, std::int64_t factor) {
  if (channels == 3 * factor * factor) return std::make_unique<Patches>(factor);
  return std::make_unique<Opaque>(channels, factor);
}

}  // namespace trireme
