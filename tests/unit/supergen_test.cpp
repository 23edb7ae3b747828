// SuperGen: windows, gates and refinement on any number of ranks, against transcripts in numpy, f64 and runs without a cache.
#include "comm/local/loopback.h"
#include "comm/wrappers/traced.h"
#include "framework/kernels/window_means.h"
#include "framework/models/dit/canvas.h"
#include "recipes/supergen/refiner.h"
#include "tests/unit/reference_files.h"

#include <cmath>
#include <fstream>
#include <mutex>
#include <set>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme::test {
namespace {

using Windows = CanvasConfig::Windows;
using nlohmann::json;
constexpr double infinity = 1e300;

CanvasConfig sizes(std::array<std::int64_t, 2> size, std::array<std::int64_t, 2> window, std::int64_t loop_step) {
  CanvasConfig c;
  c.size = size, c.window = window, c.loop_step = loop_step;
  return c;
}

at::Tensor counting(at::IntArrayRef shape) {
  std::int64_t n = 1;
  for (const std::int64_t d : shape) n *= d;
  return at::arange(n, at::kDouble).view(shape);
}

// The stand-in of tests/reference/make_supergen_vectors.py: what it says depends on the place within the tile.
at::Tensor fake_model(const at::Tensor& tile, double sigma) {
  const auto along = [&](std::int64_t dim, double by) {
    std::vector<std::int64_t> shape(std::size_t(tile.dim()), 1);
    shape[std::size_t(dim)] = tile.size(dim);
    return (at::arange(tile.size(dim), at::kDouble) * by).view(shape);
  };
  const at::Tensor phase = along(1, 1.0) + along(3, 0.7) + along(4, 0.4), x = tile.to(at::kDouble);
  return (0.6 * x + 0.4 * sigma * at::sin(0.9 * x + phase) + 0.1 * x.mean()).to(tile.scalar_type());
}

at::Tensor start_of(std::int64_t samples, std::int64_t rows, std::int64_t columns) {
  const at::Tensor p = at::arange(3, at::kDouble).view({3, 1, 1}), r = at::arange(rows, at::kDouble).view({1, rows, 1}),
                   c = at::arange(columns, at::kDouble).view({1, 1, columns});
  const at::Tensor x = at::sin(1.3 * p + 0.37 * r) + at::cos(0.21 * c * (p + 1)) + 0.3 * at::sin(1.9 * r + 2.3 * c + p);
  std::vector<at::Tensor> all;
  for (std::int64_t b = 0; b < samples; ++b) all.push_back((x * (1 + 0.1 * double(b))).unsqueeze(1));
  return at::stack(all).to(at::kFloat);
}

struct Refined {
  at::Tensor canvas;
  std::vector<std::string> map, second_map;
  std::vector<double> k, thresholds;
  std::vector<RefinerCounts> counts;
};

Refined refined(Communicator& comm, const CanvasConfig& shape, const RefinerConfig& config, std::int64_t samples = 1,
                at::ScalarType wire = at::kFloat) {
  const Canvas canvas(shape);
  Refiner refiner(config, canvas, comm, samples);
  Refined out;
  at::Tensor x = start_of(samples, shape.size[0], shape.size[1]);
  const std::int64_t steps = config.gate.steps;
  for (std::int64_t i = 0; i < steps; ++i) {
    const double sigma = 1 - double(i) / double(steps), to = i + 1 < steps ? 1 - double(i + 1) / double(steps) : 0;
    const at::Tensor y = refiner.predict(x, i, wire, [&](const at::Tensor& tile, const CanvasWindow&, std::int64_t, std::int64_t half) {
      return fake_model(tile, half == 0 ? sigma : sigma / 2);
    });
    x = x + (to - sigma) * y;
    out.counts.push_back(refiner.counts());
  }
  out.canvas = x, out.map = refiner.map(0), out.second_map = refiner.map(samples - 1);
  for (std::int64_t t = 0; t < canvas.tiles(); ++t) out.k.push_back(refiner.gate(0).k(t)), out.thresholds.push_back(refiner.gate(0).threshold(t));
  return out;
}

Refined on_ranks(int ranks, const CanvasConfig& shape, const RefinerConfig& config, std::int64_t samples = 1,
                 at::ScalarType wire = at::kFloat) {
  std::vector<Refined> all(static_cast<std::size_t>(ranks));
  run_loopback(ranks, [&](Communicator& comm) { all[std::size_t(comm.rank())] = refined(comm, shape, config, samples, wire); });
  for (const Refined& r : all) EXPECT_TRUE(at::equal(r.canvas, all[0].canvas));
  return all[0];
}

RefinerConfig cached(double base, std::int64_t steps = 20) {
  RefinerConfig c;
  c.gate.base = base, c.gate.steps = steps;
  return c;
}

std::int64_t reused(const Refined& r) {
  std::int64_t n = 0;
  for (const auto& c : r.counts) n += c.tiles - c.computed;
  return n;
}

// G2, and what a window that wraps shows.
TEST(Canvas, EveryPlaceLiesInOneWindowAtEveryShift) {
  for (const auto& shape : {sizes({180, 320}, {90, 160}, 16), sizes({24, 40}, {12, 10}, 4), sizes({9, 64}, {9, 16}, 5)}) {
    const Canvas canvas(shape);
    const std::int64_t cycle = canvas.rows().modulus() * canvas.columns().modulus();
    for (std::int64_t j = 0; j <= cycle; ++j) {
      EXPECT_TRUE(canvas.disjoint(j));
      if (j % 7 == 0) EXPECT_TRUE(at::equal(canvas.counts(j), at::ones(at::IntArrayRef(shape.size))));
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
      const at::Tensor y = refiner.predict(x, 1, at::kFloat, [](const at::Tensor& tile, auto&&...) { return tile * 2; });
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
  std::ifstream in(testing::reference_file("supergen_gate.json"));
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
    const auto x = r.canvas.select(2, 0)[0].slice(1, 0, {}, shape.size[0] / 4).slice(2, 0, {}, shape.size[1] / 4).contiguous().to(at::kDouble);
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
          EXPECT_EQ((many.canvas - one.canvas).abs().max().item<float>(), 0.0f) << ranks << " ranks, threshold " << base;
          EXPECT_EQ(many.map, one.map);
          EXPECT_EQ(many.second_map, one.second_map);
        }
      }
    EXPECT_GT(some, 0);
  }
  RefinerConfig config = cached(0.5);
  config.gates = RefinerConfig::Gates::broadcast, config.halves = 2, config.guidance = 2.5;
  const auto shape = sizes({36, 30}, {12, 10}, 4);
  EXPECT_TRUE(at::equal(on_ranks(1, shape, config, 1, at::kBFloat16).canvas, on_ranks(4, shape, config, 1, at::kBFloat16).canvas));
}

// G6, G7.
TEST(Refiner, ReusesNothingAtZeroAndAllAtInfinity) {
  const auto shape = sizes({24, 20}, {12, 10}, 4);
  RefinerConfig uncached;
  uncached.cache = false, uncached.gate.steps = 20;
  const Refined plain = on_ranks(1, shape, uncached), none = on_ranks(1, shape, cached(0)), all = on_ranks(1, shape, cached(infinity));
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
      x = x - 1.0 / 40 * refiner.predict(x, i, at::kFloat, [&](const at::Tensor& tile, auto&&...) { return fake_model(tile, 1 - double(i) / 40); });
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

}  // namespace
}  // namespace trireme::test
