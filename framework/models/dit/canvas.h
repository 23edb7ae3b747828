// A latent canvas larger than a model was trained for, seen through windows of the trained size that move between steps
// (SuperGen, arXiv 2508.17756). The canvas is a torus: a window that leaves one edge enters at the opposite one.
// Lengths are latent pixels.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

struct CanvasConfig {
  std::array<std::int64_t, 2> size{};    // rows, columns
  std::array<std::int64_t, 2> window{};  // rows, columns of a tile
  std::int64_t loop_step = 16;           // a shift moves the windows by floor(window / loop_step) along each axis
  // torus: side by side, wrapping. half_overlap: half a window apart, wrapping. clamped: none wraps, so that a shifted
  // axis takes one window more, and those at the edges overlap their neighbours.
  enum class Windows { torus, half_overlap, clamped } windows = Windows::torus;
  // Shifts start again once they have come round to the windows' own boundaries, each axis after its own number of
  // steps. True: both after loop_step, as the first release had it; boundaries then leave bands that none ever visits.
  bool shared_modulus = false;
  bool pad = false;  // a size that windows do not tile: cover it with overlapping ones instead of refusing it
  std::int64_t pixels_a_unit = 1;  // for messages, which speak of pixels
};

// The windows of one axis.
class CanvasAxis {
 public:
  CanvasAxis(const CanvasConfig& config,
             int axis);  // UsageError where the size does not tile, or loop_step exceeds the window
  std::int64_t tiles() const { return tiles_; }      // numbers that windows bear; a clamped one may be absent
  std::int64_t modulus() const { return modulus_; }  // shift j and j + modulus() are alike
  // First latent pixel of every tile at shift j; -1: absent.
  std::vector<std::int64_t> starts(std::int64_t shift) const;
  // By how many windows each latent pixel is covered.
  std::vector<std::int64_t> counts(std::int64_t shift) const;
  std::int64_t size() const { return size_; }
  std::int64_t window() const { return window_; }

 private:
  std::int64_t size_, window_, spacing_, step_ = 0, tiles_ = 1, modulus_ = 1;
  bool clamped_;
};

struct CanvasWindow {
  std::int64_t tile;         // its number, the same at every shift
  std::int64_t row, column;  // of its first latent pixel
};

// Copies windows of tensors whose last two dimensions are the canvas. Immutable; any thread.
class Canvas {
 public:
  explicit Canvas(const CanvasConfig& config) : rows_(config, 0), columns_(config, 1) {}
  const CanvasAxis& rows() const { return rows_; }
  const CanvasAxis& columns() const { return columns_; }
  std::int64_t tiles() const { return rows_.tiles() * columns_.tiles(); }
  std::vector<CanvasWindow> windows(std::int64_t shift) const;  // those present, in the order of their numbers
  bool disjoint(std::int64_t shift) const;                      // does every latent pixel lie in exactly one window?
  at::Tensor counts(std::int64_t shift) const;                  // f32 [rows, columns] on the host

  at::Tensor cut(const at::Tensor& canvas,
                 const CanvasWindow& w) const;  // contiguous [..., window rows, window columns]
  void put(at::Tensor& canvas, const CanvasWindow& w, const at::Tensor& tile) const;
  void add(at::Tensor& canvas, const CanvasWindow& w, const at::Tensor& tile) const;

 private:
  CanvasAxis rows_, columns_;
};

}  // namespace trireme
