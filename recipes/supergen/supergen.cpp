// SuperGen (arXiv 2508.17756): pictures and videos larger than a model was trained for. A sketch at the model's own
// size is scaled up and given noise again; the last steps refine it by tiles that move from step to step, on any number
// of ranks, and tiles that change little are reused.
#include "comm/error.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/metrics/pictures.h"
#include "framework/sampler.h"
#include "recipes/supergen/config.h"
#include "recipes/supergen/tile_rope.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <optional>
#include <span>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

using nlohmann::json;
using Clock = std::chrono::steady_clock;
constexpr std::uint64_t renoise_draw = 0x5047;  // the picture's own noise begins the sketch

Conditioning samples_of(const Conditioning& c, std::span<const Refiner::Tile> which) {
  const auto rows = [which](const at::Tensor& t) {
    if (!t.defined() || which.size() == 1) return t.defined() ? t.narrow(0, which[0].sample, 1) : t;
    std::vector<at::Tensor> each;
    for (const auto& tile : which) each.push_back(t.narrow(0, tile.sample, 1));
    return at::cat(each);
  };
  return {rows(c.text), rows(c.pooled), rows(c.guidance), rows(c.image), rows(c.image_tokens)};
}

// f(frames as [B F, C, rows, columns]) for a video [B, C, F, rows, columns].
template <class F>
at::Tensor by_frame(const at::Tensor& video, const F& f) {
  const at::Tensor frames = f(video.transpose(1, 2).flatten(0, 1));
  return frames.unflatten(0, {video.size(0), video.size(2)}).transpose(1, 2).contiguous();
}

at::Tensor bicubic(const at::Tensor& video, std::int64_t rows, std::int64_t columns) {
  return by_frame(video, [&](const at::Tensor& x) { return at::upsample_bicubic2d(x, {rows, columns}, false); });
}

class Supergen final : public Sampler {
 public:
  void fields(Fields& f) override { config_.fields(f); }
  std::int64_t ranks_per_picture() const override { return 0; }
  void setup(SampleContext& context) override;
  void begin(Sampling& s, SampleContext& context) override;
  std::int64_t steps_in_all(std::int64_t steps) const override {
    const std::int64_t refining = config_.refining(steps);
    return refining < steps ? steps + refining : steps;
  }
  std::int64_t steps_taken(const Sampling& s) const override {
    return sketching_ || refining_ == s.steps() ? s.step : s.step + refining_;
  }
  at::Tensor velocity(Sampling& s, SampleContext& context) override;
  void stepped(Sampling& s, SampleContext& context) override;
  void state(Archive& ar) override;
  json report() const override;
  std::vector<SampleMap> maps() const override;
  SampleMemory memory(const DenoiserInfo& m, const Grid& grid) const override {
    const Size w = window(m);
    const std::int64_t rows = std::min(grid.rows, w[0] / m.patch), columns = std::min(grid.columns, w[1] / m.patch);
    return {.tokens = grid.frames * rows * columns,
            .canvases = 8,
            .batched = false,
            .parts = ((grid.rows + rows - 1) / rows) * ((grid.columns + columns - 1) / columns),
            .parts_at_once = config_.batch};
  }

 private:
  using Size = std::array<std::int64_t, 2>;
  Size window(const DenoiserInfo& model) const;
  Size sketch_size(const SampleContext& context) const;
  std::vector<double> sigmas(SampleContext& context, std::int64_t frames) const;
  void begin_sketch(Sampling& s, SampleContext& context);
  at::Tensor sketch_velocity(const Sampling& s, SampleContext& context);
  void end_sketch(Sampling& s, SampleContext& context);
  double seconds_so_far() const;  // of the sketch
  at::Tensor scaled_up(const at::Tensor& x, const SampleContext& context) const;
  Sampling tile_sampling(const Sampling& s, std::span<const Refiner::Tile> which) const;
  void count(SampleContext& context);
  std::vector<std::string> map_by_tile(std::int64_t sample) const;

  SupergenConfig config_;
  std::int64_t refining_ = 0;
  Size size_{};  // latent pixels
  std::optional<Canvas> canvas_;
  std::optional<Refiner> refiner_;
  at::Tensor like_;
  RopeTable text_rope_;
  bool sketching_ = false;
  Sampling small_;                  // the sketch's conditions
  Clock::time_point sketch_began_;  // or went on
  double sketch_seconds_ = 0;
  json seams_;  // of each picture
  std::int64_t tiles_ = 0, computed_ = 0, gathers_ = 0, payload_ = 0, wire_ = 0;
};

Supergen::Size Supergen::window(const DenoiserInfo& m) const {
  if (config_.window[0] > 0) return {config_.window[0], config_.window[1]};
  return {m.base_side * m.patch, m.base_side * m.patch};
}

Supergen::Size Supergen::sketch_size(const SampleContext& context) const {
  const std::int64_t factor = context.codec().factor();
  if (config_.sketch[0] > 0) return {config_.sketch[0] / factor, config_.sketch[1] / factor};
  const Size w = window(const_cast<SampleContext&>(context).model().info());
  const std::int64_t by = std::max<std::int64_t>(1, std::min(size_[0] / w[0], size_[1] / w[1]));
  return {size_[0] / by, size_[1] / by};
}

void Supergen::setup(SampleContext& context) {
  const DenoiserInfo& m = context.model().info();
  const std::int64_t factor = context.codec().factor(), token = factor * m.patch;
  size_ = {context.height / factor, context.width / factor};
  refining_ = config_.refining(context.steps);
  const Size tile = window(m), sketched = sketch_size(context);
  canvas_.emplace(config_.canvas(size_, tile, factor));
  for (std::size_t a = 0; a < 2; ++a) {
    if (tile[a] % m.patch != 0)
      throw UsageError("supergen.window",
                       std::to_string(tile[a]) + " latent pixels are no whole tokens of " + std::to_string(m.patch));
    if (sketched[a] % m.patch != 0 || (config_.sketch[0] > 0 && config_.sketch[a] % token != 0))
      throw UsageError("supergen.sketch",
                       std::to_string(sketched[a] * factor) + " pixels are no whole tokens of " + std::to_string(token),
                       "name a size of the sketch");
  }
  if (config_.tile_rope != "local" && m.rope_axes.size() != 3)
    throw UsageError("supergen.tile_rope", "layout " + m.layout + " has no rotations that tell positions",
                     "say tile_rope: local");
  if (config_.upscale == "pixel_bicubic" && refining_ < context.steps && !context.codec().sees_pixels())
    throw UsageError("supergen.upscale", "these latents cannot be seen as pixels here", "say upscale: latent_bicubic");
  if (context.halves && config_.unit == "tile")
    throw UsageError("guidance_parallel", "the ranks of supergen compute whole tiles",
                     "say supergen.unit: half instead");
  agree(context.comm(), attempt([&] { config_.take_fit(); }));
  if (!same_on_all(context.comm(), std::to_string(config_.cache.fitted)))
    throw DataError(config_.cache.fit, "is not the same on all ranks", "give all nodes the same file");
  config_.refiner(refining_, 1);
  if (config_.fits() && refining_ > 0 && config_.cache.pattern.empty()) {
    const std::string not_fitted = config_.unfitted(refining_);
    context.message("supergen.cache.base is fit: every tile is computed and none reused. " +
                    (not_fitted.empty() ? "A later run with supergen.cache.fit=OUT/report.json reuses"
                                        : "Nothing is fitted: " + not_fitted));
  }
}

// Both stages share the levels, which are those of one window: that is all a forward sees.
std::vector<double> Supergen::sigmas(SampleContext& context, std::int64_t frames) const {
  const DenoiserInfo& m = context.model().info();
  const Size w = window(m);
  return flow_sigmas(context.steps, context.shift,
                     double(frames / m.patch_frames * (w[0] / m.patch) * (w[1] / m.patch)));
}

// The picture at the model's own size comes first, a step of the job a step.
void Supergen::begin_sketch(Sampling& s, SampleContext& context) {
  const Size size = sketch_size(context);
  small_ = {s.prompts, s.condition, s.no_condition, s.guidance, {}, s.sigmas, 0, {}};
  for (Conditioning* c : {&small_.condition, &small_.no_condition})
    if (c->image.defined())
      c->image = by_frame(c->image, [&](const at::Tensor& x) {
        return at::_adaptive_avg_pool2d(x, {size[0], size[1]});
      });
  s.x = drawn_noise(s.prompts, 0, {s.x.size(1), s.x.size(2), size[0], size[1]}, context.device);
  s.grid = context.model().grid(s.x.sizes());
  s.step = 0;
  sketch_began_ = Clock::now();
}

// On rank 0, unless ranks share its attention, and then on all.
at::Tensor Supergen::sketch_velocity(const Sampling& s, SampleContext& context) {
  const bool mine = context.comm().rank() == 0 || context.parallel || context.halves;
  const at::Tensor v =
      mine ? guided(context, small_, s.x, s.sigma()).contiguous() : at::empty_like(s.x, at::MemoryFormat::Contiguous);
  context.comm().broadcast(buffer_of(v), 0).wait();
  return v;
}

void Supergen::end_sketch(Sampling& s, SampleContext& context) {
  s.x = scaled_up(s.x, context);
  s.grid = context.model().grid(s.x.sizes());
  s.step = s.steps() - refining_;
  if (refining_ > 0)
    s.x = renoise_flow(s.x, drawn_noise(s.prompts, renoise_draw, s.x.sizes().slice(1), context.device), s.sigma());
  s.x.flatten()[0].item<float>();  // waits for the device, once a batch
  sketch_seconds_ = seconds_so_far();
  sketching_ = false, small_ = {};
}

double Supergen::seconds_so_far() const {
  return sketch_seconds_ + (sketching_ ? std::chrono::duration<double>(Clock::now() - sketch_began_).count() : 0);
}

at::Tensor Supergen::scaled_up(const at::Tensor& x, const SampleContext& context) const {
  if (config_.upscale == "latent_bicubic") return bicubic(x, size_[0], size_[1]);
  const std::int64_t factor = context.codec().factor();
  return context.codec()
      .encode(bicubic(context.codec().decode(x), size_[0] * factor, size_[1] * factor))
      .to(at::kFloat);
}

void Supergen::begin(Sampling& s, SampleContext& context) {
  s.sigmas = sigmas(context, s.x.size(2));
  s.step = s.steps() - refining_;
  tiles_ = computed_ = gathers_ = payload_ = wire_ = 0;
  seams_ = json::array(), sketch_seconds_ = 0;
  like_ = s.x;
  RefinerConfig refiner = config_.refiner(refining_, s.guidance);
  if (!s.no_condition.text.defined() || s.guidance == 1) refiner.halves = 1;
  refiner_.emplace(refiner, *canvas_, context.comm(), s.x.size(0));
  if (config_.tile_rope != "local") {
    const at::Tensor& other = s.no_condition.text;  // may be longer
    const std::int64_t longest = std::max(s.condition.text.size(1), other.defined() ? other.size(1) : 0);
    text_rope_ = context.model().rope({1, 1, 1}, longest).text;
  }
  sketching_ = s.step > 0;
  if (sketching_) begin_sketch(s, context);
}

// Tiles of one forward, with all that it needs.
Sampling Supergen::tile_sampling(const Sampling& s, std::span<const Refiner::Tile> which) const {
  Sampling t{{}, samples_of(s.condition, which), samples_of(s.no_condition, which), s.guidance, {}, s.sigmas, s.step,
             {}};
  for (const auto& tile : which) t.prompts.push_back(s.prompts[std::size_t(tile.sample)]);
  for (Conditioning* c : {&t.condition, &t.no_condition})
    if (c->image.defined()) {
      std::vector<at::Tensor> cuts;
      for (std::size_t i = 0; i < which.size(); ++i)
        cuts.push_back(canvas_->cut(c->image.narrow(0, std::int64_t(i), 1), which[i].window));
      c->image = cuts.size() == 1 ? cuts[0] : at::cat(cuts);
    }
  return t;
}

at::Tensor Supergen::velocity(Sampling& s, SampleContext& context) {
  if (sketching_) return sketch_velocity(s, context);
  SampleContext alone = context;  // a tile is one rank's
  alone.parallel = nullptr, alone.halves = nullptr;
  alone.modulations = nullptr;  // a tile's condition is put together for each forward
  const std::int64_t step = s.step - (s.steps() - refining_);
  const at::Tensor v =
      refiner_->predict(s.x, step, context.dtype, [&](const at::Tensor& x, std::span<const Refiner::Tile> which) {
        Sampling tiles = tile_sampling(s, which);
        if (config_.unit == "half") {
          if (which[0].half == 1) std::swap(tiles.condition, tiles.no_condition);
          tiles.no_condition = {};
        }
        DitHooks hooks;
        if (config_.tile_rope != "local") {
          const DenoiserInfo& m = context.model().info();
          const auto axes = tile_axes(config_.tile_rope, *canvas_, which[0].window, x.size(2) / m.patch_frames, m);
          hooks.rope = RopeTables{text_rope_, axial_rope(axes, m.rope_axes, context.device)};
        }
        return guided(alone, tiles, x, s.sigma(), hooks);
      });
  count(context);
  return v;
}

void Supergen::count(SampleContext& context) {
  const RefinerCounts& c = refiner_->counts();
  tiles_ += c.tiles, computed_ += c.computed, gathers_ += c.gathers, payload_ += c.payload, wire_ += c.wire;
  context.record("computed_tiles", double(c.computed));
  context.record("payload_latents", double(c.payload) / double(like_.numel()));
}

void Supergen::state(Archive& ar) {
  std::int64_t sketching = sketching_ && !ar.loading();
  double seconds = seconds_so_far();
  if (ar.has("sketching"))  // else of a version that saved only behind the sketch
    ar.value("sketching", sketching), ar.value("sketch_seconds", seconds);
  if (ar.loading()) {
    sketching_ = sketching != 0, sketch_seconds_ = seconds;
    sketch_began_ = Clock::now();
  }
  refiner_->state(ar, like_);
  for (auto [name, value] : {std::pair{"tiles", &tiles_},
                             {"computed", &computed_},
                             {"gathers", &gathers_},
                             {"payload", &payload_},
                             {"wire", &wire_}})
    ar.value(name, *value);
}

// Jumps at the boundaries of the windows that stayed, and at those of the last step, which a picture is rolled by to
// bring to the multiples.
void Supergen::stepped(Sampling& s, SampleContext& context) {
  if (sketching_ && s.step == s.steps()) end_sketch(s, context);
  if (s.step < s.steps() || refining_ == 0 || !context.codec().sees_pixels()) return;
  const std::int64_t factor = context.codec().factor(), patch = factor * context.model().info().patch;
  const std::int64_t shift = config_.shift_every ? (refining_ - 1) / config_.shift_every : 0;
  const auto last = canvas_->windows(shift).front();
  const at::Tensor pixels = ((context.codec().decode(s.x) + 1) / 2).clamp(0, 1).cpu().select(2, s.x.size(2) / 2);
  const auto ratio = [&](const at::Tensor& p) {
    const PicturePlanes planes{p.const_data_ptr<float>(), p.size(0), p.size(1), p.size(2)};
    return seam_ratio(planes, canvas_->rows().window() * factor, canvas_->columns().window() * factor, patch);
  };
  for (std::int64_t b = 0; b < pixels.size(0); ++b)
    seams_.push_back(
        {{"fixed", ratio(pixels[b].contiguous())},
         {"last", ratio(at::roll(pixels[b], {-last.row * factor, -last.column * factor}, {1, 2}).contiguous())}});
}

// The refiner's map has a letter a window: here a letter a tile, ' ' where it has none (clamped).
std::vector<std::string> Supergen::map_by_tile(std::int64_t sample) const {
  std::vector<std::string> lines;
  for (const auto& line : refiner_->map(sample)) {
    const auto step = std::int64_t(lines.size());
    const auto windows = canvas_->windows(config_.shift_every ? step / config_.shift_every : 0);
    std::string all(std::size_t(canvas_->tiles()), ' ');
    for (std::size_t w = 0; w < windows.size(); ++w) all[std::size_t(windows[w].tile)] = line[w];
    lines.push_back(all);
  }
  return lines;
}

std::int64_t longest_skip(const std::vector<std::string>& map) {
  std::int64_t longest = 0;
  for (std::size_t t = 0; !map.empty() && t < map[0].size(); ++t) {
    std::int64_t run = 0;
    for (const std::string& step : map)
      longest = std::max(longest, run = t < step.size() && step[t] == '.' ? run + 1 : 0);
  }
  return longest;
}

json Supergen::report() const {
  if (!refiner_ || refining_ == 0) return json::object();
  json r = {{"tile_evaluations", tiles_}, {"computed", computed_}, {"all_gathers", gathers_}};
  r["sketch_seconds"] = sketch_seconds_, r["seam_ratios"] = seams_;
  r["skip_share"] = tiles_ ? 1 - double(computed_) / double(tiles_) : 0.0;
  r["payload_latents"] = double(payload_) / double(like_.numel());
  r["wire_latents"] = double(wire_) / double(like_.numel());
  for (std::int64_t b = 0; b < like_.size(0); ++b) {
    r["skip_maps"].push_back(refiner_->map(b));
    r["longest_skip_run"].push_back(longest_skip(map_by_tile(b)));
    const auto& records = refiner_->records(b);
    if (records.empty()) continue;
    if (std::ssize(records) != refining_) {
      r["unfitted"] = "the batch went on from a saved state, and what was seen before is not kept: draw it in one go";
      continue;
    }
    const std::string not_fitted = config_.unfitted(refining_);
    const std::vector<std::vector<GateRecord>> runs{records};
    const TileGateConfig gate = config_.refiner(refining_, 1).gate;
    json curve = json::object();
    for (const double skip : {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7})
      if (const auto base = fit_base(gate, *canvas_, runs, skip)) curve[std::to_string(skip).substr(0, 3)] = *base;
    r["base_by_skip"].push_back(curve);
    if (const auto base = fit_base(gate, *canvas_, runs, config_.cache.skip))
      r["fitted_base"].push_back(*base);
    else
      r["unfitted"] = not_fitted.empty() ? "no threshold reuses so much" : not_fitted;
  }
  return r;
}

// Steps from left to right, tiles from top to bottom; white: computed.
std::vector<SampleMap> Supergen::maps() const {
  if (!refiner_ || refining_ == 0 || config_.cache.base == "off") return {};
  const std::int64_t samples = like_.size(0);
  at::Tensor values = at::zeros({samples, canvas_->tiles(), refining_});
  for (std::int64_t b = 0; b < samples; ++b) {
    const auto map = map_by_tile(b);
    for (std::size_t i = 0; i < map.size(); ++i)
      for (std::size_t t = 0; t < map[i].size(); ++t)
        if (map[i][t] == '#') values[b][std::int64_t(t)][std::int64_t(i)] = 1;
  }
  return {{"tiles", values}};
}

const Samplers::Entry registered("supergen", [] { return std::make_unique<Supergen>(); });

}  // namespace
}  // namespace trireme
