// Pictures to what a model sees: crop, antialiased bicubic resize, mirror, normalisation, in one launch a batch. On the
// host (crop.cpp) and on CUDA (crop.cu, where it is linked), equal bit by bit. (C++17: nvcc sees it.)
#pragma once
#include "comm/buffer.h"
#include "comm/twins.h"

#include <cstdint>

namespace trireme {

// One picture of a batch.
struct Crop {
  std::int32_t width = 0, height = 0;  // of the region: RGB, from the beginning of the picture's bytes
  std::int32_t mirror = 0;             // 1: left and right change places
  std::int32_t pitch = 0;              // bytes from one of its rows to the next
  // The box within the region that becomes the output. Pixels of the region around it are seen by the filter at its
  // border; where a crop comes first, as in torchvision's resized_crop, the region ends at the box.
  double left = 0, top = 0, box_width = 0, box_height = 0;
  std::int32_t down_first = 0;  // 1: columns are resized before rows, as Pillow does for some shapes (crop_taps.h)
};

// value = (level / 255 - mean) / std_dev, a channel.
struct PixelStatistics {
  // OpenAI's CLIP statistics, as every CLIP descendant normalises.
  double mean[3] = {0.48145466, 0.4578275, 0.40821073}, std_dev[3] = {0.26862954, 0.26130258, 0.27577711};
};

struct CropJob {
  const std::uint8_t* bytes = nullptr;
  std::int64_t stride = 0;  // bytes from one picture to the next
  const Crop* crops = nullptr;
  std::int64_t rows = 0;
  int size = 0;  // S
  PixelStatistics statistics;
  // [rows, 3, S, S] of f32, f64 or bf16; or u8, which are levels [rows, S, S, 3]: pixels for another Crop. Host only.
  DType type = DType::f32;
  void* out = nullptr;
};

// On a device a box may be at most this many times as long as the output, either way. The host knows no limit.
inline constexpr int most_reduction = 4;

// All pointers are of the place. Thread safe; on a device in stream order, without waiting.
extern Kernel<CropJob> crop_resize;

}  // namespace trireme
