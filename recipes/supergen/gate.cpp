#include "recipes/supergen/gate.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace trireme {
namespace {

constexpr std::int64_t first_steps = 3;  // without two predictions and two inputs there is no k

}  // namespace

double TileGate::PerTile::deviation() const { return count ? std::sqrt(squares / double(count)) : 0; }

TileGate::TileGate(const TileGateConfig& config, const Canvas& canvas)
    : config_(config),
      rows_(canvas.rows().size()),
      columns_(canvas.columns().size()),
      window_rows_(canvas.rows().window()),
      window_columns_(canvas.columns().window()),
      error_(std::size_t(rows_ * columns_), 0.0f),
      tiles_(std::size_t(canvas.tiles())) {
  for (PerTile& t : tiles_) t.threshold = config.base;
}

bool TileGate::reads(std::int64_t step) const {
  return step >= std::max(config_.ret_steps, first_steps) && step < config_.steps - 1;
}

template <class F>
void TileGate::each_place(const CanvasWindow& w, const F& f) {
  for (std::int64_t r = 0; r < window_rows_; ++r) {
    float* row = error_.data() + (w.row + r) % rows_ * columns_;
    for (std::int64_t c = 0; c < window_columns_; ++c) f(row[(w.column + c) % columns_]);
  }
}

double TileGate::error(const CanvasWindow& w) const {
  double sum = 0;
  const_cast<TileGate*>(this)->each_place(w, [&](float e) { sum += e; });
  return sum / double(window_rows_ * window_columns_);
}

bool TileGate::compute(std::int64_t step, const CanvasWindow& w, const TileMeans& m) {
  PerTile& t = tiles_[std::size_t(w.tile)];
  const bool sane = m.moved_p > 0 && m.y_p > 0 && std::isfinite(m.moved) && std::isfinite(m.moved_p) &&
                    std::isfinite(m.changed_p) && std::isfinite(m.y_p);
  if (!sane) return true;
  if (t.computed == step - 1 || config_.release) t.k = double(m.changed_p) / m.moved_p;
  if (t.k <= 0) return true;
  const float more = static_cast<float>(t.k * m.moved / m.y_p);
  each_place(w, [&](float& e) { e += more / cover_[std::size_t(&e - error_.data())]; });
  return !(error(w) < t.threshold);
}

std::vector<bool> TileGate::decide(std::int64_t step, std::span<const CanvasWindow> windows,
                                   std::span<const TileMeans> means) {
  if (ranks(step)) rank();
  if (reads(step)) {
    cover_.assign(error_.size(), 0.0f);
    for (const CanvasWindow& w : windows)
      each_place(w, [&](float& e) { cover_[std::size_t(&e - error_.data())] += 1; });
  }
  std::vector<bool> active(windows.size(), true);
  for (std::size_t i = 0; i < windows.size(); ++i) {
    if (reads(step)) active[i] = compute(step, windows[i], means[i]);
    if (!active[i]) continue;
    each_place(windows[i], [](float& e) { e = 0; });
    tiles_[std::size_t(windows[i].tile)].computed = step;
  }
  return active;
}

void TileGate::predicted(std::span<const CanvasWindow> windows, std::span<const float> means) {
  for (std::size_t i = 0; i < means.size(); ++i) {
    PerTile& t = tiles_[std::size_t(windows[i].tile)];
    const double off = means[i] - t.mean;
    t.mean += off / double(++t.count);
    t.squares += off * (means[i] - t.mean);
  }
}

void TileGate::rank() {
  std::vector<std::size_t> by(tiles_.size());
  std::iota(by.begin(), by.end(), 0u);
  std::erase_if(by, [&](auto t) { return tiles_[t].count == 0; });  // no window of it so far (clamped)
  std::stable_sort(by.begin(), by.end(), [&](auto a, auto b) { return tiles_[a].deviation() > tiles_[b].deviation(); });
  for (PerTile& t : tiles_) t.threshold = config_.base;
  if (by.empty()) return;
  const bool selective = config_.mode == TileGateConfig::Mode::top_selective;
  if (by.size() > 1) {
    const std::size_t other = selective ? by[1] : by.back();
    tiles_[other].threshold = config_.base * (selective ? 1 + config_.a / 2 : 1 - config_.a / 2);
  }
  tiles_[by[0]].threshold = config_.base * (1 + config_.a);
}

void TileGate::state(Archive& ar) {
  const std::int64_t n = static_cast<std::int64_t>(tiles_.size()), shape[] = {n, 6};
  std::vector<double> all(std::size_t(n) * 6);
  for (std::size_t i = 0; i < tiles_.size(); ++i) {
    const PerTile& t = tiles_[i];
    const double values[] = {t.k, t.threshold, double(t.computed), double(t.count), t.mean, t.squares};
    std::copy_n(values, 6, all.data() + 6 * i);
  }
  ar.array("tiles", DType::f64, shape, all.data());
  for (std::size_t i = 0; i < tiles_.size(); ++i) {
    const double* v = all.data() + 6 * i;
    tiles_[i] = {v[0], v[1], static_cast<std::int64_t>(v[2]), static_cast<std::int64_t>(v[3]), v[4], v[5]};
  }
  const std::int64_t map[] = {rows_, columns_};
  ar.array("error", DType::f32, map, error_.data());
}

double replayed_skip(const TileGateConfig& config, const Canvas& canvas,
                     std::span<const std::vector<GateRecord>> runs) {
  std::int64_t all = 0, reused = 0;
  for (const auto& run : runs) {
    TileGate gate(config, canvas);
    for (std::size_t i = 0; i < run.size(); ++i) {
      const auto active = gate.decide(static_cast<std::int64_t>(i), run[i].windows, run[i].means);
      gate.predicted(run[i].windows, run[i].predicted);
      all += static_cast<std::int64_t>(active.size());
      reused += std::count(active.begin(), active.end(), false);
    }
  }
  return all ? double(reused) / double(all) : 0;
}

std::optional<double> fit_base(TileGateConfig config, const Canvas& canvas,
                               std::span<const std::vector<GateRecord>> runs, double skip) {
  const auto at = [&](double base) {
    config.base = base;
    return replayed_skip(config, canvas, runs);
  };
  constexpr double least = 1e-6, most = 1e6;
  if (at(most) < skip) return {};
  double low = std::log(least), high = std::log(most);
  for (int n = 0; n < 60; ++n) (at(std::exp((low + high) / 2)) < skip ? low : high) = (low + high) / 2;
  return std::exp(high);
}

}  // namespace trireme
