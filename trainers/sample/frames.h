// A picture or video that an arm has drawn, read frame by frame: however long it is, judging it takes a frame's memory.
#pragma once
#include "data/image_text/write_png.h"
#include "data/mapped_file.h"
#include "framework/metrics/pictures.h"

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace trireme::sample {

// One of them, decoded.
class Frame {
 public:
  explicit Frame(Image decoded);
  ~Frame() { --alive; }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

  const Image image;
  const std::vector<float> values;
  PicturePlanes planes() const { return {values.data(), 3, image.height, image.width}; }

  static inline std::atomic<std::int64_t> alive{0}, most_alive{0};  // in this process
};

class FramesOf {
 public:
  // The file must not change while it is read.
  explicit FramesOf(const std::string& file) : file_(file), frames_(file_.bytes(), file) {}  // DataError
  std::int64_t size() const { return frames_.size(); }
  Image picture(std::int64_t i) const { return frames_.read(i); }
  Frame at(std::int64_t i) const { return Frame(frames_.read(i)); }

 private:
  MappedFile file_;
  PngFrames frames_;
};

}  // namespace trireme::sample
