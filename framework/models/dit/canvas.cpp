#include "framework/models/dit/canvas.h"

#include "comm/error.h"

#include <algorithm>
#include <numeric>

#include <ATen/ATen.h>

namespace trireme {
namespace {

// A run of latent pixels that lies together in both the canvas and the window.
struct Piece {
  std::int64_t canvas, window, length;
};

std::vector<Piece> pieces(const CanvasAxis& axis, std::int64_t start) {
  const std::int64_t first = std::min(axis.window(), axis.size() - start);
  std::vector<Piece> all{{start, 0, first}};
  if (first < axis.window()) all.push_back({0, first, axis.window() - first});
  return all;
}

// f(part of the canvas, the same part of the tile): up to four of them.
template <class F>
void each_piece(const Canvas& c, const at::Tensor& canvas, const CanvasWindow& w, const at::Tensor& tile, const F& f) {
  for (const Piece& r : pieces(c.rows(), w.row))
    for (const Piece& k : pieces(c.columns(), w.column))
      f(canvas.narrow(-2, r.canvas, r.length).narrow(-1, k.canvas, k.length),
        tile.narrow(-2, r.window, r.length).narrow(-1, k.window, k.length));
}

std::string nearest_sizes(std::int64_t size, std::int64_t window, std::int64_t pixels) {
  const std::int64_t below = size / window * window;
  const std::string above = std::to_string((below + window) * pixels);
  return "the nearest sizes are " + (below > 0 ? std::to_string(below * pixels) + " and " + above : above);
}

}  // namespace

CanvasAxis::CanvasAxis(const CanvasConfig& c, int axis)
    : size_(c.size[std::size_t(axis)]),
      window_(c.window[std::size_t(axis)]),
      spacing_(window_),
      clamped_(c.windows == CanvasConfig::Windows::clamped) {
  const std::string name = axis == 0 ? "height" : "width", pixels = std::to_string(size_ * c.pixels_a_unit);
  const std::string where = name + " " + pixels;
  if (window_ < 1 || size_ < 1) throw UsageError(where, "windows and canvas have at least one latent pixel");
  if (size_ % window_ != 0 && (!c.pad || size_ < window_))
    throw UsageError(
        where, "windows of " + std::to_string(window_ * c.pixels_a_unit) + " do not tile it",
        nearest_sizes(size_, window_, c.pixels_a_unit) + (size_ < window_ ? "" : ", or say `on_bad_size: pad`"));
  if (size_ == window_) return;
  if (c.windows == CanvasConfig::Windows::half_overlap) {
    if (window_ % 2 != 0) throw UsageError(where, "a window of odd length has no half", "take `windows: torus`");
    spacing_ = window_ / 2;
  }
  tiles_ = (size_ + spacing_ - 1) / spacing_ + clamped_;
  step_ = window_ / c.loop_step;
  if (step_ == 0)
    throw UsageError(where,
                     "loop_step " + std::to_string(c.loop_step) + " cuts a window of " + std::to_string(window_) +
                         " latent pixels into less than one a shift",
                     "at most " + std::to_string(window_));
  modulus_ = c.shared_modulus ? c.loop_step : window_ / std::gcd(window_, step_);
}

std::vector<std::int64_t> CanvasAxis::starts(std::int64_t shift) const {
  const std::int64_t by = shift % modulus_ * step_;
  std::vector<std::int64_t> at(std::size_t(tiles_), 0);
  if (tiles_ == 1) return at;
  std::int64_t last = -1;
  for (std::int64_t t = 0; t < tiles_; ++t) {
    if (!clamped_) {
      at[std::size_t(t)] = (t * spacing_ + by) % size_;
      continue;
    }
    const std::int64_t start = std::clamp((t - 1) * spacing_ + by % window_, std::int64_t(0), size_ - window_);
    at[std::size_t(t)] = start == last ? -1 : start;
    last = start;
  }
  return at;
}

std::vector<std::int64_t> CanvasAxis::counts(std::int64_t shift) const {
  std::vector<std::int64_t> covered(std::size_t(size_), 0);
  for (const std::int64_t start : starts(shift))
    for (std::int64_t i = 0; start >= 0 && i < window_; ++i) ++covered[std::size_t((start + i) % size_)];
  return covered;
}

std::vector<CanvasWindow> Canvas::windows(std::int64_t shift) const {
  const auto rows = rows_.starts(shift), columns = columns_.starts(shift);
  std::vector<CanvasWindow> all;
  std::int64_t tile = 0;
  for (const std::int64_t row : rows)
    for (const std::int64_t column : columns) {
      if (row >= 0 && column >= 0) all.push_back({tile, row, column});
      ++tile;
    }
  return all;
}

bool Canvas::disjoint(std::int64_t shift) const {
  const auto once = [](const std::vector<std::int64_t>& counts) {
    return std::all_of(counts.begin(), counts.end(), [](std::int64_t n) { return n == 1; });
  };
  return once(rows_.counts(shift)) && once(columns_.counts(shift));
}

at::Tensor Canvas::counts(std::int64_t shift) const {
  const auto along = [&](const CanvasAxis& axis) { return at::tensor(axis.counts(shift), at::kLong).to(at::kFloat); };
  return at::outer(along(rows_), along(columns_));
}

at::Tensor Canvas::cut(const at::Tensor& canvas, const CanvasWindow& w) const {
  auto shape = canvas.sizes().vec();
  shape[shape.size() - 2] = rows_.window(), shape.back() = columns_.window();
  at::Tensor tile = at::empty(shape, canvas.options());
  each_piece(*this, canvas, w, tile, [](const at::Tensor& from, at::Tensor to) { to.copy_(from); });
  return tile;
}

void Canvas::put(at::Tensor& canvas, const CanvasWindow& w, const at::Tensor& tile) const {
  each_piece(*this, canvas, w, tile, [](at::Tensor to, const at::Tensor& from) { to.copy_(from); });
}

void Canvas::add(at::Tensor& canvas, const CanvasWindow& w, const at::Tensor& tile) const {
  each_piece(*this, canvas, w, tile, [](at::Tensor to, const at::Tensor& from) { to.add_(from); });
}

}  // namespace trireme
