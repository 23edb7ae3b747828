// Pillow's antialiased resize of 8-bit RGB, on the host, equal bit by bit: weights are whole numbers, and levels are
// rounded between the passes. crop.cu has the same passes for a device.
#pragma once
#include "data/image_text/crop_taps.h"
#include "data/image_text/images.h"

#include <functional>

namespace trireme {

// A part of a picture, box and region of its axes, to across.out x down.out pixels.
struct Resample {
  const std::uint8_t* pixels = nullptr;  // RGB, of across.extent x down.extent
  int pitch = 0;                         // bytes from a row to the next
  ResizeAxis across, down;
  bool mirror = false;      // left and right change places
  bool down_first = false;  // which pass comes first: down_first() of the whole picture, as Pillow has it
};

// Takes one row of the output of one channel: across.out levels, that stay until it returns.
using EmitRow = std::function<void(int channel, int y, const std::uint8_t* levels)>;

// Thread safe.
void resample(const Resample& resample, const EmitRow& emit);

// Image.resize of the whole picture. Width, height > 0. Thread safe.
Image resize(const Image& in, int width, int height, Filter filter = Filter::bicubic);

}  // namespace trireme
