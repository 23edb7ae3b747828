// A small FastCLIP training whose data is drawn here: no image library, nothing from outside.
#pragma once
#include "data/image_text/prepared.h"
#include "data/rng.h"
#include "tests/fault/program.h"

#include <cmath>

namespace trireme::test {

// A model that trains in no time on them, for 32 px and 12 tokens.
inline const std::string small_clip =
    "model: {embed_dim: 16, image_size: 32, patch_size: 8, vision_width: 16, vision_layers: 2, vision_heads: 2, "
    "context: 12, vocab: 530, text_width: 16, text_layers: 2, text_heads: 2}\n";

// Blots whose colour and place the caption names.
inline void prepare_blots(const fs::path& file) {
  static const char* colors[] = {"red", "green", "blue", "yellow", "purple", "white"};
  static const char* places[] = {"left", "right", "top", "bottom", "middle"};
  static const int rgb[][3] = {{220, 30, 30},  {30, 200, 40},  {40, 60, 220},
                               {230, 220, 40}, {160, 40, 190}, {250, 250, 250}};
  static const int center[][2] = {{6, 16}, {26, 16}, {16, 6}, {16, 26}, {16, 16}};
  PrepareSpec spec;
  spec.name = spec.source = "blots";
  spec.out = file.string();
  spec.size = 32;
  for (int i = 0; i < 1200; ++i)
    spec.items.push_back(
        {std::to_string(i),
         std::string("a ") + colors[i % 6] + " blot on the " + places[i / 6 % 5] + " number " + std::to_string(i / 30),
         colors[i % 6]});
  spec.decode = [](std::size_t i) {
    Image image{32, 32, std::vector<std::uint8_t>(32 * 32 * 3)};
    Rng rng(5, "blots", i);
    const double radius = 3 + 5 * rng.uniform();
    for (int y = 0; y < 32; ++y)
      for (int x = 0; x < 32; ++x) {
        const bool inside = std::hypot(x - center[i / 6 % 5][0], y - center[i / 6 % 5][1]) < radius;
        for (int c = 0; c < 3; ++c)
          image.rgb[std::size_t((y * 32 + x) * 3 + c)] =
              std::uint8_t((inside ? rgb[i % 6][c] : 90) * (0.7 + 0.3 * rng.uniform()));
      }
    return image;
  };
  prepare_images(spec);
}

// An experiment on ./blots.h5 that a GPU takes a few seconds for.
inline const std::string blots_experiment =
    "recipe: fastclip\nbatch_size: 64\nsteps: 50\nlog_every: 1\nthreads: 2\nprecision: f32\ndevice: "
    "cuda\nbucket_mib: 0.5\n"
    "first_bucket_mib: 0.2\ncheckpoint: {every: 0}\ndata: {file: ./blots.h5}\noptimizer: {lr: 5.0e-4, "
    "warmup: 10}\n"
    "model: {embed_dim: 128, image_size: 32, patch_size: 8, vision_width: 192, vision_layers: 4, "
    "vision_heads: 3, "
    "context: 16, vocab: 700, text_width: 192, text_layers: 2, text_heads: 3}\n"
    "loss: {name: rgclg, tau: 0.05, rho: 1.0, lr_tau: 1.5e-3, gamma_min: 0.2}\n";

}  // namespace trireme::test
