#include "trainers/sample/engine.h"

#include "comm/error.h"
#include "data/image_text/write_png.h"
#include "data/workers.h"
#include "framework/base/agree.h"
#include "framework/base/tensor.h"
#include "framework/formats/safetensors.h"
#include "framework/io/checkpoint.h"
#include "framework/io/file_io.h"
#include "framework/stream_place.h"
#include "trainers/sample/pixels.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <map>

#include <ATen/ATen.h>
#include <nlohmann/json.hpp>

namespace trireme::sample {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

std::string numbered(const char* format, std::int64_t n) {
  char text[48];
  std::snprintf(text, sizeof text, format, static_cast<long long>(n));
  return text;
}

// Values that a method records, a series a name.
using SeriesOf = std::map<std::string, std::vector<double>>;

}  // namespace

struct Engine::Measured {
  double seconds = 0;
  std::int64_t steps = 0, resumed_at = -1;
  CommStats sent;  // by this rank in its steps
  SeriesOf series;
};

std::vector<std::int64_t> latent_shape(const SampleConfig& c, const DenoiserInfo& m) {
  const std::int64_t token = m.latent_factor * m.patch;
  for (int axis = 0; axis < 2; ++axis) {
    const std::int64_t size = c.size[std::size_t(axis)], below = size / token * token;
    if (size % token)
      throw UsageError("size",
                       std::to_string(size) + (axis ? " pixels of width" : " pixels of height") +
                           " are no whole tokens of " + std::to_string(token) + " pixels",
                       "the nearest that are: " + (below ? std::to_string(below) + " and " : std::string()) +
                           std::to_string(below + token));
  }
  if (c.frames % m.patch_frames)
    throw UsageError("frames", std::to_string(c.frames) + " are no whole tokens of " + std::to_string(m.patch_frames),
                     "a multiple of " + std::to_string(m.patch_frames));
  return {m.channels, c.frames, c.size[0] / m.latent_factor, c.size[1] / m.latent_factor};
}

Engine::Engine(const Arm& arm, Groups& groups, SampleContext& context, StepBar* bar)
    : arm_(arm), groups_(groups), context_(context), bar_(bar) {
  context_.modulations = &modulations_;
}

std::int64_t Engine::pictures() const { return std::int64_t(arm_.conditions.texts().size()) * arm_.config.count; }
std::int64_t Engine::batches() const { return (pictures() + arm_.config.batch - 1) / arm_.config.batch; }
std::string Engine::marker(std::int64_t batch) const { return arm_.folder + numbered("/batch_%05lld.json", batch); }
bool Engine::done(std::int64_t batch) const { return fs::exists(marker(batch)); }

Sampling Engine::begin(std::int64_t batch) {
  Sampling s;
  const auto& c = arm_.config;
  for (std::int64_t i = batch * c.batch; i < std::min(pictures(), (batch + 1) * c.batch); ++i)
    s.prompts.push_back({arm_.conditions.texts()[std::size_t(i / c.count)], std::uint64_t(c.seed + i % c.count), i});
  s.guidance = c.guidance;
  const auto shape = latent_shape(c, context_.model().info());
  arm_.conditions.fill(s, shape, context_);
  s.grid = context_.model().grid(s.x.sizes());
  arm_.method.begin(s, context_);
  return s;
}

// x is of another size before and after a sketch is scaled up, so shapes come from the file.
void Engine::state(Archive& ar, Sampling& s) {
  std::vector<std::int64_t> shape(s.x.sizes().begin(), s.x.sizes().end());
  auto levels = std::int64_t(s.sigmas.size());
  ar.array("shape", DType::i64, std::array<std::int64_t, 1>{5}, shape.data());
  ar.value("levels", levels);
  ar.value("step", s.step);
  if (ar.loading()) {
    s.x = at::empty(shape, s.x.options());
    s.sigmas.resize(std::size_t(levels));
    s.grid = context_.model().grid(shape);
  }
  ar.array("sigmas", DType::f64, std::array<std::int64_t, 1>{levels}, s.sigmas.data());
  archive(ar, "x", s.x);
  const Archive::Group group(ar, "method");
  arm_.method.state(ar);
}

bool Engine::agreed(bool mine) {
  std::int64_t any = mine;
  groups_.control->all_reduce({&any, 1, DType::i64}, Op::max).wait();
  return any != 0;
}

bool Engine::run(std::int64_t batch, const std::function<bool()>& stop) {
  const at::NoGradGuard no_grad;
  const struct Gone {  // with the batch: the next one has other conditions
    LevelModulations& made;
    ~Gone() { made.clear(); }
  } gone{modulations_};
  Measured m;
  context_.record = [&m](std::string_view name, double value) { m.series[std::string(name)].push_back(value); };
  Sampling s = begin(batch);
  const std::string folder = arm_.folder + numbered("/state/batch_%05lld", batch);
  agree(*groups_.control, attempt([&] {
    if (groups_.first()) make_folder(system_io(), folder);
  }));
  Checkpoints checkpoints(folder, 1, *groups_.control);
  const auto saving = [&](Archive& ar) { state(ar, s); };
  if (const auto saved = checkpoints.latest()) {
    checkpoints.load(*saved).restore(saving);
    m.resumed_at = arm_.method.steps_taken(s);
    if (bar_) bar_->skip(m.resumed_at * beside(batch));
  }
  const CommStats before = groups_.sent();
  const auto began = Clock::now();
  const std::int64_t every = arm_.config.save_every;
  StepsAhead ahead(context_.device);
  while (s.step < s.steps()) {
    const double from = s.sigma(), to = s.sigmas[std::size_t(s.step) + 1];
    s.x = euler_step(s.x, arm_.method.velocity(s, context_), from, to);
    ++s.step, ++m.steps;
    arm_.method.stepped(s, context_);
    ahead.step();
    if (bar_) bar_->step(beside(batch));
    const std::int64_t taken = arm_.method.steps_taken(s);
    const bool stopping = agreed(stop && stop()), due = every && taken % every == 0 && s.step < s.steps();
    if ((due || (stopping && s.step < s.steps())) && arm_.method.may_save(s)) {
      checkpoints.save(taken, Snapshot::take(saving, groups_.control->rank()), "{}");
      checkpoints.finish();
    }
    if (stopping && s.step < s.steps()) return false;
  }
  const bool finite = at::isfinite(s.x).all().item<bool>();  // waits for the device
  std::invoke(signs_of(*groups_.control));
  m.seconds = std::chrono::duration<double>(Clock::now() - began).count();
  m.sent = groups_.sent();
  m.sent.calls -= before.calls, m.sent.bytes -= before.bytes;
  if (!finite)
    throw Error(ExitCode::nonfinite, "arm " + arm_.config.arm, "latents are not finite after the last step",
                "lower guidance, use precision=f32, or check the model's weights");
  agree(*groups_.control, attempt([&] {
    if (groups_.first()) finish(batch, s, m);
  }));
  context_.record = [](std::string_view, double) {};
  return true;
}

void Engine::finish(std::int64_t batch, const Sampling& s, const Measured& m) {
  write_pictures(s);
  write_maps(s);
  nlohmann::json pictures = nlohmann::json::array();
  for (const auto& p : s.prompts) pictures.push_back({{"index", p.index}, {"prompt", p.text}, {"seed", p.seed}});
  const nlohmann::json report = {{"arm", arm_.config.arm},
                                 {"method", arm_.config.method},
                                 {"pictures", pictures},
                                 {"latent", s.x.sizes().vec()},
                                 {"tokens", s.grid.tokens()},
                                 {"sigmas", s.sigmas},
                                 {"ranks", groups_.control->size()},
                                 {"steps", m.steps},
                                 {"resumed_at", m.resumed_at},
                                 {"seconds", m.seconds},
                                 {"step_ms", m.steps ? 1000 * m.seconds / double(m.steps) : 0},
                                 {"collectives_a_step", m.steps ? double(m.sent.calls) / double(m.steps) : 0},
                                 {"bytes_a_step", m.steps ? double(m.sent.bytes) / double(m.steps) : 0},
                                 {"series", m.series},
                                 {"report", arm_.method.report()}};
  replace_durably(system_io(), marker(batch), report.dump(1, ' ', false, nlohmann::json::error_handler_t::replace));
  std::error_code ignored;
  fs::remove_all(arm_.folder + numbered("/state/batch_%05lld", batch), ignored);
}

void Engine::write_pictures(const Sampling& s) {
  std::vector<std::vector<Image>> videos;
  const bool seen = context_.codec().sees_pixels();
  if (seen) videos = images_of(context_.codec().decode(s.x));
  // Compressing a batch may take longer than drawing it.
  const auto sign = signs_of(*groups_.control);
  sign();
  Workers workers(std::clamp(groups_.placement.cores, 1, int(s.prompts.size())));
  workers.each(std::ssize(s.prompts), [&](std::int64_t at) {
    const auto i = std::size_t(at);
    const auto& p = s.prompts[i];
    const PngTexts texts = {{"Software", "Trireme " TRIREME_VERSION},
                            {"prompt", p.text},
                            {"seed", std::to_string(p.seed)},
                            {"settings", arm_.config.settings}};
    sign();
    const std::string stem = arm_.folder + numbered("/%05lld", p.index);
    if (seen) {
      const auto png = encode_png(videos[i], texts, arm_.config.fps);
      replace_durably(system_io(), stem + ".png", {reinterpret_cast<const char*>(png.data()), png.size()});
    }
    if (seen && !arm_.config.latents) return;
    const NamedTensor latents{"latents", s.x[at].contiguous()};
    write_safetensors(stem + ".safetensors", std::span(&latents, 1), {{"prompt", p.text}, {"seed", texts[2].second}});
  });
}

void Engine::write_maps(const Sampling& s) {
  Workers workers(std::clamp(groups_.placement.cores, 1, int(s.prompts.size())));
  for (const auto& map : arm_.method.maps()) {
    const at::Tensor values = map.values.cpu();
    workers.each(std::ssize(s.prompts), [&](std::int64_t i) {
      const Image image = grey_image(values[i], 4);
      const auto png = encode_png(std::span(&image, 1));
      replace_durably(system_io(),
                      arm_.folder + numbered("/%05lld", s.prompts[std::size_t(i)].index) + "." + map.name + ".png",
                      {reinterpret_cast<const char*>(png.data()), png.size()});
    });
  }
}

}  // namespace trireme::sample
