// Scenes as a data set: one prepared file, or JPEG tars.
#pragma once
#include "data/image_text/prepared.h"
#include "data/image_text/write_tars.h"
#include "data/scenes/scene.h"

namespace trireme {

struct ScenesSpec {
  std::int64_t pairs = 100000;   // to train on
  std::int64_t held_out = 5000;  // beside them, their sentences all different and in no training pair
  std::uint64_t seed = 1;
  int size = 64;     // pixels a side
  double grain = 8;  // levels of noise; makes a JPEG of 256 px 20 to 25 kB
};

// For prepare_images(): training pairs first, then those held out. Classes are the largest object's ("red circle").
PrepareSpec scenes_data(const ScenesSpec& scenes);

// OUT/00000.tar ... with .jpg (quality 90), .txt, .cls and .json ({"key": i}); OUT/test/0.tar ... with those held out,
// in CLIP_benchmark's layout; OUT/classnames.txt and its companions. `spec`: folder, threads, force, progress.
void scenes_to_tars(const ScenesSpec& scenes, const WriteTarsSpec& spec);

}  // namespace trireme
