// SuperGen: windows, gates and refinement on any number of ranks, against transcripts in numpy, f64 and runs without a
// cache.
#include "comm/archive.h"
#include "comm/local/loopback.h"
#include "comm/local/self.h"
#include "comm/wrappers/traced.h"
#include "framework/kernels/window_means.h"
#include "framework/models/dit/canvas.h"
#include "framework/sampler.h"
#include "recipes/supergen/fitted.h"
#include "recipes/supergen/tile_rope.h"
#include "tests/fake_tiles.h"
#include "tests/fault/program.h"
#include "tests/unit/reference_files.h"
#include "tests/unit/said.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <set>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme::test {
namespace {

using Windows = CanvasConfig::Windows;
using nlohmann::json;
constexpr double infinity = 1e300;

at::Tensor counting(at::IntArrayRef shape) {
  std::int64_t n = 1;
  for (const std::int64_t d : shape) n *= d;
  return at::arange(n, at::kDouble).view(shape);
}

Refined on_ranks(int ranks, const CanvasConfig& shape, const RefinerConfig& config, std::int64_t samples = 1,
                 at::ScalarType wire = at::kFloat) {
  std::vector<Refined> all(static_cast<std::size_t>(ranks));
  run_loopback(
      ranks, [&](Communicator& comm) { all[std::size_t(comm.rank())] = refined(comm, shape, config, samples, wire); });
  for (const Refined& r : all) EXPECT_TRUE(at::equal(r.canvas, all[0].canvas));
  return all[0];
}

std::int64_t reused(const Refined& r) {
  std::int64_t n = 0;
  for (const auto& c : r.counts) n += c.tiles - c.computed;
  return n;
}

// G2, and what a window that wraps shows.
TEST(Canvas, EveryPlaceLiesInOneWindowAtEveryShift) {
  for (const auto& shape :
       {sizes({180, 320}, {90, 160}, 16), sizes({24, 40}, {12, 10}, 4), sizes({9, 64}, {9, 16}, 5)}) {
    const Canvas canvas(shape);
    const std::int64_t cycle = canvas.rows().modulus() * canvas.columns().modulus();
    for (std::int64_t j = 0; j <= cycle; ++j) {
      EXPECT_TRUE(canvas.disjoint(j));
      if (j % 7 == 0) {
        EXPECT_TRUE(at::equal(canvas.counts(j), at::ones(at::IntArrayRef(shape.size))));
      }
    }
  }
  const Canvas canvas(sizes({270, 480}, {90, 160}, 16));
  EXPECT_EQ(canvas.tiles(), 9);
  EXPECT_EQ(canvas.rows().modulus(), 18);
  EXPECT_EQ(canvas.columns().modulus(), 16);
  const auto windows = canvas.windows(17);
  EXPECT_EQ(windows[8].row, (180 + 17 * 5) % 270);
  EXPECT_EQ(windows[8].column, 320 + 10);
}

// G13: one cut for noise and conditioning; rows and columns that wrap come in the order of the torus.
TEST(Canvas, CutsAndPutsWindowsThatWrap) {
  const auto shape = sizes({12, 20}, {6, 10}, 3);
  const Canvas canvas(shape);
  const at::Tensor noise = counting({2, 3, 12, 20}), image = counting({1, 12, 20});
  for (std::int64_t j = 0; j < 15; ++j) {
    at::Tensor back = at::zeros_like(noise);
    for (const auto& w : canvas.windows(j)) {
      const at::Tensor tile = canvas.cut(noise, w), part = canvas.cut(image, w);
      for (std::int64_t r = 0; r < 6; ++r)
        for (std::int64_t c = 0; c < 10; ++c) {
          const std::int64_t row = (w.row + r) % 12, column = (w.column + c) % 20;
          ASSERT_EQ(tile[1][2][r][c].item<double>(), noise[1][2][row][column].item<double>());
          ASSERT_EQ(part[0][r][c].item<double>(), image[0][row][column].item<double>());
        }
      canvas.put(back, w, tile);
    }
    EXPECT_TRUE(at::equal(back, noise)) << "shift " << j;
  }
}

// G3.
TEST(Canvas, BoundariesVisitEveryBandOfTheAxis) {
  const auto largest_gap = [](bool shared) {
    CanvasConfig c = sizes({270, 480}, {90, 160}, 16);
    c.shared_modulus = shared;
    const CanvasAxis axis(c, 0);
    std::set<std::int64_t> at;
    for (std::int64_t j = 0; j < 200; ++j)
      for (const std::int64_t start : axis.starts(j)) at.insert(start);
    std::int64_t gap = *at.begin() + 270 - *at.rbegin();
    for (auto a = at.begin(), b = std::next(a); b != at.end(); ++a, ++b) gap = std::max(gap, *b - *a);
    return gap;
  };
  EXPECT_EQ(largest_gap(false), 5);
  EXPECT_EQ(largest_gap(true), 15);
}

TEST(Canvas, OverlappingWindowsCoverAndAreAveraged) {
  CanvasConfig half = sizes({12, 20}, {6, 10}, 3), clamped = half, padded = sizes({13, 20}, {6, 10}, 3);
  half.windows = Windows::half_overlap, clamped.windows = Windows::clamped, padded.pad = true;
  EXPECT_TRUE(at::equal(Canvas(half).counts(2), at::full({12, 20}, 4.0f)));
  EXPECT_EQ(Canvas(half).windows(0).size(), 16u);
  for (std::int64_t j = 0; j < 6; ++j) {
    for (const auto& w : Canvas(clamped).windows(j)) EXPECT_TRUE(w.row <= 6 && w.column <= 10);
    EXPECT_EQ(Canvas(clamped).windows(j).size(), j % 3 == 0 && j % 10 == 0 ? 4u : j % 3 == 0 ? 6u : 9u) << j;
    EXPECT_GE(Canvas(clamped).counts(j).min().item<float>(), 1);
    EXPECT_GE(Canvas(padded).counts(j).min().item<float>(), 1);
  }
  // A model that says the same everywhere is the same after averaging.
  for (const auto& shape : {half, clamped, padded}) {
    RefinerConfig config;
    config.cache = false, config.gate.steps = 3;
    run_loopback(1, [&](Communicator& comm) {
      Refiner refiner(config, Canvas(shape), comm, 1);
      const at::Tensor x = start_of(1, shape.size[0], shape.size[1]);
      const at::Tensor y =
          refiner.predict(x, 1, at::kFloat, [](const at::Tensor& tile, auto&&...) { return tile * 2; });
      EXPECT_LE((y - 2 * x).abs().max().item<float>(), 1e-6f);
    });
  }
}

// G12.
TEST(Canvas, RefusesWhatDoesNotTileAndNamesTheNearest) {
  const auto said = [](CanvasConfig c) {
    c.pixels_a_unit = 8;
    try {
      Canvas canvas(c);
    } catch (const UsageError& e) {
      return std::string(e.what());
    }
    return std::string();
  };
  EXPECT_NE(said(sizes({100, 160}, {90, 160}, 16)).find("720 and 1440"), std::string::npos);
  EXPECT_NE(said(sizes({90, 100}, {90, 160}, 16)).find("nearest sizes are 1280"), std::string::npos);
  EXPECT_NE(said(sizes({180, 160}, {90, 160}, 91)).find("at most 90"), std::string::npos);
  EXPECT_EQ(said(sizes({180, 320}, {90, 160}, 16)), "");
}

// G9: statistics of bf16 canvases against f64, windows that wrap among them.
TEST(WindowMeans, EqualThoseInDoublePrecision) {
  at::manual_seed(3);
  const Canvas canvas(sizes({12, 20}, {6, 10}, 3));
  for (const auto type : {at::kBFloat16, at::kFloat, at::kDouble}) {
    const at::Tensor a = at::randn({4, 12, 20}).to(type), b = at::randn({4, 12, 20}).to(type);
    for (std::int64_t j = 0; j < 8; ++j) {
      kernels::WindowMeansJob job;
      job.a[0] = a.const_data_ptr(), job.b[0] = b.const_data_ptr(), job.a[1] = b.const_data_ptr();
      job.differences = 2, job.dtype = type == at::kFloat ? DType::f32 : type == at::kDouble ? DType::f64 : DType::bf16;
      job.planes = 4, job.rows = 12, job.columns = 20, job.window_rows = 6, job.window_columns = 10;
      const auto rows = canvas.rows().starts(j), columns = canvas.columns().starts(j);
      job.row_starts = 2, job.column_starts = 2;
      std::copy(rows.begin(), rows.end(), job.row_start), std::copy(columns.begin(), columns.end(), job.column_start);
      std::vector<double> partial(4 * kernels::parts_of_a_window * 2);
      std::vector<float> means(8);
      job.partial = partial.data(), job.means = means.data();
      kernels::window_means(job, {});
      for (const auto& w : canvas.windows(j)) {
        const at::Tensor x = canvas.cut(a, w).to(at::kDouble), y = canvas.cut(b, w).to(at::kDouble);
        EXPECT_NEAR(means[std::size_t(w.tile) * 2], (x - y).abs().mean().item<double>(), 1e-6);
        EXPECT_NEAR(means[std::size_t(w.tile) * 2 + 1], y.abs().mean().item<double>(), 1e-6);
      }
    }
  }
}

// G4.
TEST(Gate, DecidesAsATranscriptInNumpyDoes) {
  std::ifstream in(test::reference_file("supergen_gate.json"));
  const json cases = json::parse(in);
  ASSERT_GE(cases.size(), 5u);
  for (const json& c : cases) {
    const auto shape = sizes({c["size"][0], c["size"][1]}, {c["window"][0], c["window"][1]}, c["loop_step"]);
    RefinerConfig config = cached(c["base"], c["steps"]);
    config.shift_every = c["shift_every"];
    config.gate.ret_steps = c["ret_steps"], config.gate.a = c["a"], config.gate.every = c["every"];
    if (c["mode"] == "max_min_adjust") config.gate.mode = TileGateConfig::Mode::max_min_adjust;
    const Refined r = on_ranks(1, shape, config);
    EXPECT_EQ(r.map, c["decisions"].get<std::vector<std::string>>()) << c["base"];
    for (std::size_t t = 0; t < r.k.size(); ++t) {
      EXPECT_NEAR(r.k[t], c["k"][t].get<double>(), 2e-3 * r.k[t]);
      EXPECT_NEAR(r.thresholds[t], c["thresholds"][t].get<double>(), 1e-9);
    }
    const auto x = r.canvas.select(2, 0)[0]
                       .slice(1, 0, {}, shape.size[0] / 4)
                       .slice(2, 0, {}, shape.size[1] / 4)
                       .contiguous()
                       .to(at::kDouble);
    const at::Tensor expected = at::tensor(c["canvas"].get<std::vector<double>>(), at::kDouble).view_as(x);
    EXPECT_LE((x - expected).abs().max().item<double>(), 2e-5);
  }
}

// What the gate sees in a forced run of skips: inputs and the prediction move together, as y = x + R has it.
TEST(Gate, HoldsKThroughARunOfSkips) {
  const Canvas canvas(sizes({8, 8}, {8, 8}, 4));
  const auto windows = canvas.windows(0);
  TileGateConfig config;
  config.base = infinity, config.steps = 40;
  for (const bool release : {false, true}) {
    config.release = release;
    TileGate gate(config, canvas);
    for (std::int64_t i = 0; i < 5; ++i) gate.decide(i, windows, {});
    std::vector<TileMeans> means{{0.1f, 0.1f, 0.35f, 1.0f}};
    EXPECT_FALSE(gate.decide(5, windows, means)[0]);
    EXPECT_NEAR(gate.k(0), 3.5, 1e-6);
    means[0].changed_p = 0.1f;
    for (std::int64_t i = 6; i < 30; ++i) EXPECT_FALSE(gate.decide(i, windows, means)[0]);
    EXPECT_NEAR(gate.k(0), release ? 1 : 3.5, 1e-6);
  }
}

// G5 on a canvas: the release's k becomes exactly 1, ours stays.
TEST(Refiner, HoldsKOnTheCanvas) {
  RefinerConfig config = cached(infinity);
  config.shift_every = 0;
  const auto shape = sizes({12, 20}, {12, 10}, 4);
  const Refined held = on_ranks(1, shape, config);
  config.gate.release = true;
  const Refined released = on_ranks(1, shape, config);
  for (std::size_t t = 0; t < 2; ++t) {
    EXPECT_NEAR(released.k[t], 1, 1e-4);
    EXPECT_GT(std::abs(held.k[t] - 1), 0.01);
  }
}

// G1, G10.
TEST(Refiner, GivesTheSameCanvasOnAnyNumberOfRanks) {
  for (const auto& shape : {sizes({24, 20}, {12, 10}, 4), sizes({36, 30}, {12, 10}, 4)}) {
    std::int64_t some = 0;
    for (const double base : {0.0, 0.5, infinity})
      for (const bool redistribute : {true, false}) {
        RefinerConfig config = cached(base);
        config.redistribute = redistribute, config.gates = RefinerConfig::Gates::checked;
        const Refined one = on_ranks(1, shape, config, 2);
        some += reused(one);
        for (const int ranks : {2, 3, 4}) {
          const Refined many = on_ranks(ranks, shape, config, 2);
          EXPECT_EQ((many.canvas - one.canvas).abs().max().item<float>(), 0.0f)
              << ranks << " ranks, threshold " << base;
          EXPECT_EQ(many.map, one.map);
          EXPECT_EQ(many.second_map, one.second_map);
        }
      }
    EXPECT_GT(some, 0);
  }
  RefinerConfig config = cached(0.5);
  config.gates = RefinerConfig::Gates::broadcast, config.halves = 2, config.guidance = 2.5;
  const auto shape = sizes({36, 30}, {12, 10}, 4);
  EXPECT_TRUE(at::equal(on_ranks(1, shape, config, 1, at::kBFloat16).canvas,
                        on_ranks(4, shape, config, 1, at::kBFloat16).canvas));
}

// Rank 0's gates hold where they are broadcast; differing ones are an error where they are checked.
TEST(Refiner, RanksThatWouldDecideOtherwise) {
  const auto shape = sizes({36, 30}, {12, 10}, 4);
  const Refined one = on_ranks(1, shape, cached(0.5));
  ASSERT_GT(reused(one), 0);
  for (const bool checked : {false, true})
    run_loopback(3, [&](Communicator& comm) {
      RefinerConfig own = cached(0.5);
      own.gates = checked ? RefinerConfig::Gates::checked : RefinerConfig::Gates::broadcast;
      if (comm.rank() > 0) own.gate.base = 0;
      if (checked) {
        EXPECT_THROW(refined(comm, shape, own), Error);
      } else {
        EXPECT_TRUE(at::equal(refined(comm, shape, own).canvas, one.canvas));
      }
    });
}

// G6, G7.
TEST(Refiner, ReusesNothingAtZeroAndAllAtInfinity) {
  const auto shape = sizes({24, 20}, {12, 10}, 4);
  RefinerConfig uncached;
  uncached.cache = false, uncached.gate.steps = 20;
  const Refined plain = on_ranks(1, shape, uncached), none = on_ranks(1, shape, cached(0)),
                all = on_ranks(1, shape, cached(infinity));
  EXPECT_TRUE(at::equal(plain.canvas, none.canvas));
  EXPECT_EQ(reused(none), 0);
  EXPECT_EQ(reused(all), (20 - 5 - 1) * 4);
  std::int64_t last = 0;
  for (const double base : {0.01, 0.1, 0.3, 0.6, 1.0, 3.0, 10.0}) {
    const std::int64_t now = reused(on_ranks(1, shape, cached(base)));
    EXPECT_GE(now, last) << base;
    last = now;
  }
}

// G8.
TEST(Refiner, KeepsTilesApart) {
  const Canvas canvas(sizes({8, 16}, {8, 8}, 4));
  const auto windows = canvas.windows(0);
  TileGateConfig config;
  config.base = 1;
  TileGate both(config, canvas), alone(config, canvas);
  for (std::int64_t i = 0; i < 5; ++i) both.decide(i, windows, {}), alone.decide(i, windows, {});
  for (std::int64_t i = 5; i < 20; ++i) {
    const float v = 1 + 0.1f * float(i);
    std::vector<TileMeans> quiet{{0.001f, 0.2f, v, 1}, {0.1f, 0.2f, v, 1}}, loud{{9, 0.2f, v, 1}, {0.1f, 0.2f, v, 1}};
    EXPECT_EQ(both.decide(i, windows, quiet)[1], alone.decide(i, windows, loud)[1]);
    EXPECT_EQ(both.k(1), alone.k(1));
  }
  // Without a skip the release's form is ours.
  const auto shape = sizes({24, 20}, {12, 10}, 4);
  RefinerConfig fixed = cached(1e-12), release = fixed;
  release.gate.release = true;
  const Refined a = on_ranks(1, shape, fixed), b = on_ranks(1, shape, release);
  EXPECT_EQ(reused(a), 0);
  EXPECT_EQ(a.k, b.k);
  EXPECT_TRUE(at::equal(a.canvas, b.canvas));
}

// G11, by a communicator that counts.
TEST(Refiner, GathersOnceAStepAndNoMoreThanThePredictions) {
  const auto shape = sizes({36, 30}, {12, 10}, 4);
  const double latent = 3 * 36 * 30;
  for (const int ranks : {1, 2, 4})
    run_loopback(ranks, [&](Communicator& world) {
      Traced comm(world);
      const Refined r = refined(comm, shape, cached(0.5));
      std::uint64_t gathers = 0;
      for (const auto& c : r.counts) {
        EXPECT_EQ(c.gathers, c.computed > 0);
        EXPECT_NEAR(double(c.payload) / latent, double(c.computed) / 9, 1e-12);
        EXPECT_NEAR(double(c.wire) / latent, double((c.computed + ranks - 1) / ranks * ranks) / 9, 1e-12);
        gathers += std::uint64_t(c.gathers);
      }
      EXPECT_EQ(comm.stats().calls, gathers);
    });
}

TEST(Refiner, FollowsAGivenPattern) {
  const auto shape = sizes({24, 20}, {12, 10}, 4);
  const Refined free = on_ranks(1, shape, cached(0.5));
  RefinerConfig config = cached(0);
  config.pattern = free.map;
  const Refined forced = on_ranks(2, shape, config);
  EXPECT_GT(reused(free), 0);
  EXPECT_EQ(forced.map, free.map);
  EXPECT_TRUE(at::equal(forced.canvas, free.canvas));
  config.pattern.pop_back();
  EXPECT_THROW(on_ranks(1, shape, config), UsageError);
}

TEST(Gate, FindsTheThresholdOfAWantedShare) {
  const auto shape = sizes({24, 20}, {12, 10}, 4);
  RefinerConfig config = cached(0, 40);
  config.record = true;
  run_loopback(1, [&](Communicator& comm) {
    const Canvas canvas(shape);
    Refiner refiner(config, canvas, comm, 1);
    at::Tensor x = start_of(1, 24, 20);
    for (std::int64_t i = 0; i < 40; ++i)
      x = x - 1.0 / 40 * refiner.predict(x, i, at::kFloat, [&](const at::Tensor& tile, auto&&...) {
        return fake_model(tile, 1 - double(i) / 40);
      });
    const std::vector<std::vector<GateRecord>> runs{refiner.records(0)};
    const double base = fit_base(config.gate, canvas, runs, 0.4).value();
    TileGateConfig gate = config.gate;
    gate.base = base;
    EXPECT_NEAR(replayed_skip(gate, canvas, runs), 0.4, 0.04);
    EXPECT_FALSE(fit_base(config.gate, canvas, runs, 0.95));
    // The run itself, whose histories are those of its own skips, comes near.
    const double share = double(reused(on_ranks(1, shape, cached(base, 40)))) / 160;
    EXPECT_NEAR(share, 0.4, 0.15);
  });
}

// Keeps what is saved in memory.
class MemoryArchive final : public Archive {
 public:
  bool loading() const override { return loading_; }
  void array(std::string_view name, DType dtype, std::span<const std::int64_t> shape, void* data, Sharing) override {
    std::size_t bytes = size_of(dtype);
    for (const std::int64_t n : shape) bytes *= std::size_t(n);
    std::string& kept = kept_[full(name)];
    if (!loading_) kept.assign(static_cast<const char*>(data), bytes);
    ASSERT_EQ(kept.size(), bytes) << name;
    std::memcpy(data, kept.data(), bytes);
  }
  void text(std::string_view name, std::string& value, bool) override {
    (loading_ ? value : kept_[full(name)]) = loading_ ? kept_[full(name)] : value;
  }
  bool has(std::string_view name) const override { return !loading_ || kept_.contains(full(name)); }
  void load() { loading_ = true; }
  void forget(const std::string& name) { EXPECT_EQ(kept_.erase(name), 1u); }

 private:
  bool loading_ = false;
  std::map<std::string, std::string> kept_;
};

TEST(Refiner, GoesOnFromASavedStateToTheBit) {
  const auto shape = sizes({24, 20}, {12, 10}, 4);
  const RefinerConfig config = cached(0.5);
  run_loopback(2, [&](Communicator& comm) {
    const Refined unbroken = refined(comm, shape, config, 2);
    std::optional<Refiner> refiner(std::in_place, config, Canvas(shape), comm, 2);
    at::Tensor x = start_of(2, 24, 20);
    for (std::int64_t i = 0; i < 20; ++i) {
      const double sigma = 1 - double(i) / 20, to = i < 19 ? 1 - double(i + 1) / 20 : 0;
      x = x + (to - sigma) * refiner->predict(x, i, at::kFloat, [&](const at::Tensor& tile, auto&&...) {
        return fake_model(tile, sigma);
      });
      if (i != 8) continue;
      MemoryArchive archive;
      refiner->state(archive, x);
      archive.load();
      refiner.emplace(config, Canvas(shape), comm, 2);
      refiner->state(archive, x);
    }
    EXPECT_TRUE(at::equal(x, unbroken.canvas));
    EXPECT_EQ(refiner->map(0), unbroken.map);
    EXPECT_GT(reused(unbroken), 0);
  });
}

// The model of a picture in pixels, 4 x 4 a token, trained for 4 tokens a side.
json tiny_flux() {
  return {{"_class_name", "FluxTransformer2DModel"},
          {"in_channels", 48},
          {"num_attention_heads", 2},
          {"attention_head_dim", 16},
          {"num_layers", 1},
          {"num_single_layers", 1},
          {"axes_dims_rope", {4, 6, 6}},
          {"joint_attention_dim", 12},
          {"pooled_projection_dim", 8},
          {"guidance_embeds", false},
          {"trireme", {{"patch", 4}, {"base_side", 4}, {"base_text", 3}, {"latent_factor", 1}}}};
}

struct Drawn {
  at::Tensor x;
  json report;
  std::string said;  // to the user
};

// Of no generator: ranks are threads, which would share it.
at::Tensor values(std::uint64_t draw, at::IntArrayRef shape) { return drawn_noise(1, draw, shape, at::kCPU); }

// `yaml`: keys under supergen. `go_on_at`: after so many steps from a state as it was saved before a sketch had steps.
Drawn drawn(Communicator& comm, const std::string& yaml, std::int64_t height = 32, std::int64_t width = 48,
            std::int64_t steps = 10, std::int64_t go_on_at = -1) {
  const at::NoGradGuard no_grad;
  const auto method = Samplers::create("supergen");
  Config::parse("supergen: {" + yaml + "}", "test.yaml").read([&](Fields& f) { f.group("supergen", *method, ""); });
  const auto model = random_denoiser(tiny_flux(), 3, at::kCPU, at::kFloat);
  const auto codec = latent_codec(3, 1);
  SampleContext context(comm, *model, *codec, at::kCPU, at::kFloat);
  context.steps = steps, context.height = height, context.width = width;
  std::string said;
  context.message = [&said](std::string_view line) { said += line; };
  method->setup(context);
  Sampling s;
  s.prompts = {{"a", 5, 0}, {"b", 6, 1}};
  s.condition = {values(1, {2, 3, 12}), values(2, {2, 8}), {}, {}, {}};
  s.no_condition = {values(3, {2, 3, 12}), values(4, {2, 8}), {}, {}, {}};
  s.guidance = 2;
  s.x = drawn_noise(s.prompts, 0, {3, 1, height, width}, at::kCPU);
  s.grid = model->grid(s.x.sizes());
  const Sampling start = s;
  method->begin(s, context);
  while (s.step < s.steps()) {
    s.x = euler_step(s.x, method->velocity(s, context), s.sigma(), s.sigmas[std::size_t(s.step) + 1]);
    ++s.step, method->stepped(s, context);
    if (method->steps_taken(s) != go_on_at) continue;
    MemoryArchive archive;
    method->state(archive);
    archive.load();
    for (const char* name : {"sketching", "sketch_seconds"}) archive.forget(name);
    Sampling again = start;
    method->begin(again, context);
    again.x = s.x, again.step = s.step, again.grid = s.grid;
    method->state(archive);
    s = again;
  }
  EXPECT_EQ(method->steps_taken(s), method->steps_in_all(steps));
  return {s.x, method->report(), said};
}

Drawn drawn_on(int ranks, const std::string& yaml, std::int64_t height = 32, std::int64_t width = 48,
               std::int64_t steps = 10) {
  std::vector<Drawn> all(static_cast<std::size_t>(ranks));
  run_loopback(ranks,
               [&](Communicator& comm) { all[std::size_t(comm.rank())] = drawn(comm, yaml, height, width, steps); });
  for (const Drawn& d : all) EXPECT_TRUE(at::equal(d.x, all[0].x));
  return all[0];
}

// G1 with a real model, through the method: sketch, scaling, tiles, guidance, reuse.
TEST(Supergen, DrawsTheSamePictureOnAnyNumberOfRanks) {
  for (const std::string& keys :
       {std::string("loop_step: 4, cache: {base: 1.5, ret_steps: 3}"),
        std::string("loop_step: 4, unit: half, tile_rope: extend, redistribute: false, cache: {base: off}")}) {
    const Drawn one = drawn_on(1, keys);
    EXPECT_TRUE(at::isfinite(one.x).all().item<bool>());
    EXPECT_EQ(one.report["tile_evaluations"], 2 * 6 * 9);
    if (keys.find("off") == std::string::npos) {
      EXPECT_GT(one.report["skip_share"].get<double>(), 0);
    }
    for (const int ranks : {2, 3, 4}) {
      const Drawn many = drawn_on(ranks, keys);
      EXPECT_EQ((many.x - one.x).abs().max().item<float>(), 0.0f) << ranks << " ranks: " << keys;
      EXPECT_EQ(many.report["skip_maps"], one.report["skip_maps"]);
    }
  }
}

// States of before say nothing of the sketch, which was over.
TEST(Supergen, GoesOnFromAStateOfBefore) {
  const auto self = make_self();
  const std::string keys = "loop_step: 4, cache: {base: 1.5, ret_steps: 3}";
  const Drawn whole = drawn(*self, keys), again = drawn(*self, keys, 32, 48, 10, 15);
  EXPECT_TRUE(at::equal(whole.x, again.x));
  EXPECT_EQ(whole.report["skip_maps"], again.report["skip_maps"]);
}

// Several tiles to a forward, of several pictures, both halves, and where positions are the forward's own.
TEST(Supergen, DrawsTheSamePictureWithSeveralTilesToAForward) {
  for (const std::string& keys : {std::string("loop_step: 4, cache: {base: 1.5, ret_steps: 3}"),
                                  std::string("loop_step: 4, unit: half, tile_rope: extend, cache: {base: off}")}) {
    const Drawn one = drawn_on(1, keys);
    for (const auto& [ranks, batch] : {std::pair{1, 2}, {1, 64}, {3, 4}}) {
      const Drawn many = drawn_on(ranks, keys + ", batch: " + std::to_string(batch));
      EXPECT_LE((many.x - one.x).abs().max().item<float>(), 1e-5f) << ranks << " ranks, " << batch << ": " << keys;
      EXPECT_EQ(many.report["skip_maps"], one.report["skip_maps"]);
    }
  }
}

// One tile, no sketch: the plain sampler. No refinement: the sketch, scaled up.
TEST(Supergen, IsPlainSamplingWhereThereIsOneTile) {
  run_loopback(1, [](Communicator& comm) {
    const at::Tensor whole = drawn(comm, "refine_steps: 10, cache: {base: off}", 16, 16).x;
    const at::NoGradGuard no_grad;
    const auto model = random_denoiser(tiny_flux(), 3, at::kCPU, at::kFloat);
    const auto codec = latent_codec(3, 1);
    SampleContext context(comm, *model, *codec, at::kCPU, at::kFloat);
    Sampling s;
    const std::vector<Prompt> prompts{{"a", 5, 0}, {"b", 6, 1}};
    const at::Tensor text = values(1, {2, 3, 12}), pooled = values(2, {2, 8}), no_text = values(3, {2, 3, 12}),
                     no_pooled = values(4, {2, 8});
    std::vector<at::Tensor> each;
    for (std::int64_t b = 0; b < 2; ++b) {
      s.condition = {text.narrow(0, b, 1), pooled.narrow(0, b, 1), {}, {}, {}};
      s.no_condition = {no_text.narrow(0, b, 1), no_pooled.narrow(0, b, 1), {}, {}, {}};
      s.guidance = 2, s.sigmas = flow_sigmas(10, {}, 16),
      s.x = drawn_noise({prompts[std::size_t(b)]}, 0, {3, 1, 16, 16}, at::kCPU);
      for (s.step = 0; s.step < 10; ++s.step)
        s.x = euler_step(s.x, guided(context, s, s.x, s.sigma()), s.sigma(), s.sigmas[std::size_t(s.step) + 1]);
      each.push_back(s.x);
    }
    EXPECT_TRUE(at::equal(whole, at::cat(each)));
    const at::Tensor sketched = drawn(comm, "refine_steps: 0, loop_step: 4, sketch: [16, 16]", 32, 48).x;
    const at::Tensor expected = at::upsample_bicubic2d(whole.squeeze(2), {32, 48}, false).unsqueeze(2);
    EXPECT_LE((sketched - expected).abs().max().item<float>(), 1e-5f);
  });
}

TEST(Supergen, FitsAThresholdAndReportsIt) {
  const Drawn d = drawn_on(2, "loop_step: 4, cache: {base: fit, skip: 0.3, ret_steps: 3}", 32, 32, 30);
  EXPECT_EQ(d.report["skip_share"], 0);
  const double base = d.report["fitted_base"][0];
  EXPECT_GT(base, 0);
  const Drawn reusing =
      drawn_on(1, "loop_step: 4, cache: {base: " + std::to_string(base) + ", ret_steps: 3}", 32, 32, 30);
  EXPECT_NEAR(reusing.report["skip_share"].get<double>(), 0.3, 0.15);
  EXPECT_LE(reusing.report["longest_skip_run"][0].get<int>(), 15);
}

std::string refusal(const std::string& yaml, std::int64_t height, std::int64_t width) {
  try {
    drawn_on(1, yaml, height, width);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

// What a fitting run reports is what the next one takes; where nothing can be fitted a sentence says why.
TEST(Supergen, TakesWhatARunFitted) {
  const Drawn d = drawn_on(1, "loop_step: 4, cache: {skip: 0.3, ret_steps: 3}", 32, 32, 30);
  const TempFolder folder;
  const std::string file = (folder.path / "report.json").string();
  const json arm{{"batches", {{{"report", d.report}}}}};
  write_text(file, json{{"arms", {arm}}}.dump());
  const Drawn taken = drawn_on(2, "loop_step: 4, cache: {fit: '" + file + "', skip: 0.3, ret_steps: 3}", 32, 32, 30);
  EXPECT_NEAR(taken.report["skip_share"].get<double>(), 0.3, 0.15);
  EXPECT_NEAR(fitted_base(file, 0.3),
              (d.report["fitted_base"][0].get<double>() + d.report["fitted_base"][1].get<double>()) / 2, 1e-9);
  EXPECT_NE(said([&] { fitted_base(file, 0.25); }).find("one of 0.1, 0.2"), std::string::npos);
  EXPECT_NE(said([&] { fitted_base(file + "x", 0.3); }).find("is not there"), std::string::npos);
  EXPECT_NE(refusal("loop_step: 4, cache: {base: 1, fit: '" + file + "'}", 32, 32).find("leave one out"),
            std::string::npos);
  write_text(file, json{{"arms", {arm, arm}}}.dump());
  EXPECT_NE(said([&] { fitted_base(file, 0.3); }).find("several arms"), std::string::npos);
  for (const char* text : {"{}", "no JSON", R"({"arms": 3})", R"({"arms": [{"batches": [7]}]})"}) {
    write_text(file, text);
    EXPECT_NE(said([&] { fitted_base(file, 0.3); }).find("holds no thresholds"), std::string::npos) << text;
  }
  EXPECT_NE(d.said.find("every tile is computed and none reused"), std::string::npos);
  EXPECT_EQ(taken.said, "");
  const Drawn few = drawn_on(1, "loop_step: 4, cache: {ret_steps: 3}", 32, 32, 5);
  EXPECT_FALSE(few.report.contains("fitted_base"));
  EXPECT_NE(few.said.find("Nothing is fitted: of 5 refinement steps 1"), std::string::npos) << few.said;
  EXPECT_NE(few.report["unfitted"].get<std::string>().find("of 5 refinement steps 1 may reuse tiles"),
            std::string::npos);
}

// Looks whether a tile and its condition are of one place, where both are coded by it.
class Watching final : public Denoiser {
 public:
  explicit Watching(std::vector<std::int64_t>& rows) : rows_(rows) {
    info_.layout = "wan", info_.joint_text = false, info_.channels = 3, info_.image_channels = 3, info_.base_side = 4,
    info_.latent_factor = 1;
  }
  const DenoiserInfo& info() const override { return info_; }
  at::Tensor forward(const at::Tensor& x, const at::Tensor&, const Conditioning& c, const DitHooks&) override {
    EXPECT_TRUE(at::equal(x, c.image));
    rows_.push_back(x.size(3));
    return at::zeros_like(x);
  }
  RopeTables rope(const Grid&, std::int64_t, const Offsets&) const override { return {}; }
  std::vector<std::pair<std::string, at::Tensor>> weights() const override { return {}; }
  const json& config() const override { return config_; }

 private:
  DenoiserInfo info_;
  json config_;
  std::vector<std::int64_t>& rows_;
};

// G13 through the method: windows wrap from the second step on.
TEST(Supergen, CutsTheConditionWithTheTile) {
  run_loopback(2, [](Communicator& comm) {
    std::vector<std::int64_t> rows;
    Watching model(rows);
    const auto codec = latent_codec(3, 1);
    SampleContext context(comm, model, *codec, at::kCPU, at::kFloat);
    context.steps = 6, context.height = 16, context.width = 24, context.frames = 2;
    const auto method = Samplers::create("supergen");
    Config::parse("supergen: {loop_step: 4, refine_steps: 6, unit: half, cache: {base: off}}", "test.yaml")
        .read([&](Fields& f) { f.group("supergen", *method, ""); });
    method->setup(context);
    Sampling s;
    s.prompts = {{"a", 5, 0}, {"b", 6, 1}};
    s.x = counting({2, 3, 2, 16, 24}).to(at::kFloat);
    s.condition.text = s.no_condition.text = at::zeros({2, 1, 1});
    s.condition.image = s.no_condition.image = s.x;
    s.guidance = 3;
    method->begin(s, context);
    for (; s.step < 6; ++s.step) EXPECT_EQ(method->velocity(s, context).abs().max().item<float>(), 0.0f);
    EXPECT_EQ(rows, std::vector<std::int64_t>(6 * 2 * 6, 8));  // 6 tiles of 2 pictures in 2 halves on 2 ranks
  });
}

TEST(Supergen, RefusesWhatDoesNotFit) {
  EXPECT_NE(refusal("loop_step: 4", 40, 32).find("32 and 48"), std::string::npos);
  EXPECT_EQ(refusal("loop_step: 4, on_bad_size: pad, sketch: [16, 16]", 40, 32), "");
  EXPECT_NE(refusal("loop_step: 4, window: [18, 16]", 36, 32).find("whole tokens"), std::string::npos);
  EXPECT_NE(refusal("loop_step: 4, refine_steps: 11", 32, 32).find("11 of 10"), std::string::npos);
  EXPECT_NE(refusal("loop_step: 4, cache: {base: high}", 32, 32).find("'high' is no threshold"), std::string::npos);
  EXPECT_NE(refusal("loop_step: 4, tile_rope: extend, cache: {pattern: nowhere}", 32, 32).find("nowhere"),
            std::string::npos);
  EXPECT_NE(refusal("loop_step: 4, window: [16]", 32, 32).find("two numbers"), std::string::npos);
}

TEST(TileRope, KnowsTheCanvas) {
  const auto model = random_denoiser(tiny_flux(), 3, at::kCPU, at::kFloat);
  const auto& info = model->info();
  const Canvas canvas(sizes({32, 48}, {16, 16}, 4));
  for (const auto& w : canvas.windows(3)) {
    Offsets offsets;
    offsets.rows = w.row / 4, offsets.columns = w.column / 4, offsets.wrap = {0, 8, 12};
    const RopeTable own = model->rope({1, 4, 4}, 3, offsets).image,
                    ours = axial_rope(tile_axes("extend", canvas, w, 1, info), info.rope_axes, at::kCPU);
    EXPECT_LE((own.cos - ours.cos).abs().max().item<float>(), 1e-6f);
    EXPECT_LE((own.sin - ours.sin).abs().max().item<float>(), 1e-6f);
  }
  const CanvasWindow w{0, 16, 32};
  const auto ntk = tile_axes("ntk", canvas, w, 2, info), scaled = tile_axes("interp", canvas, w, 2, info);
  EXPECT_EQ(ntk[0].theta, 1e4);
  EXPECT_EQ(ntk[1].theta, 4e4);
  EXPECT_EQ(ntk[2].theta, 9e4);
  EXPECT_EQ(ntk[1].positions, (std::vector<double>{4, 5, 6, 7}));
  EXPECT_EQ(scaled[1].positions, (std::vector<double>{2, 2.5, 3, 3.5}));
  EXPECT_EQ(scaled[0].positions, (std::vector<double>{0, 1}));
  const CanvasWindow half{0, 30, 0};  // half a token down, and across the edge
  EXPECT_EQ(tile_axes("extend", canvas, half, 1, info)[1].positions, (std::vector<double>{7.5, 0.5, 1.5, 2.5}));
}

}  // namespace
}  // namespace trireme::test
