// TIDE: the tables of its positions and temperature, the identities of its text anchor, the method on small models, and
// one model on several ranks (ring, Ulysses, guidance halves) against one rank.
#include "comm/beside.h"
#include "comm/local/loopback.h"
#include "comm/wrappers/traced.h"
#include "framework/base/tensor.h"
#include "framework/device_info.h"
#include "framework/graphed_denoiser.h"
#include "framework/models/dit/level_modulations.h"
#include "framework/models/dit/sequence_parallel.h"
#include "framework/models/dit/tide_settings.h"
#include "framework/models/dit/token_set.h"
#include "framework/sampler.h"
#include "framework/step_graph.h"
#include "tests/unit/reference_files.h"
#include "tests/unit/said.h"

#include <algorithm>
#include <cmath>
#include <fstream>

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme {
namespace {

RopeAxis flux_axis(double scale) { return {.dim = 56, .theta = 1e4, .trained = 64, .scale = scale}; }

// T1: the tables of the method's description, to the digits given there.
TEST(RopeScaling, TextAnchorGrowsWithTheArea) {
  EXPECT_NEAR(text_anchor(128 * 128, 4096), 1.3863, 5e-5);
  EXPECT_NEAR(text_anchor(192 * 192, 4096), 2.1972, 5e-5);
  EXPECT_NEAR(text_anchor(256 * 256, 4096), 2.7726, 5e-5);
  // Not square: a constant of the area, not of either side (T5).
  EXPECT_EQ(text_anchor(256 * 64, 4096), std::log(4.0));
}

TEST(RopeScaling, LeastTemperature) {
  const double scale[] = {2, 3, 4, 6}, tau[] = {0.8746, 0.8118, 0.7713, 0.7192},
               inverse[] = {1.1434, 1.2318, 1.2965, 1.3905};
  for (int i = 0; i < 4; ++i) {
    EXPECT_NEAR(least_temperature(scale[i]), tau[i], 5e-5);
    EXPECT_NEAR(1 / least_temperature(scale[i]), inverse[i], 5e-5);
  }
}

TEST(RopeScaling, TemperatureOfTimeAndFrequency) {
  const double time[] = {1.0, 0.7, 0.3, 0.1};
  const double expected[4][4] = {{1.2965, 1.2965, 1.2965, 1.2965},
                                 {1.2705, 1.2481, 1.2342, 1.2264},
                                 {1.2191, 1.1662, 1.1388, 1.1249},
                                 {1.1686, 1.1020, 1.0737, 1.0610}};
  const std::size_t pair[] = {0, 2, 5, 27};
  for (int t = 0; t < 4; ++t) {
    const auto pairs = scaled_axis(flux_axis(4), {}, time[t]);
    for (int i = 0; i < 4; ++i) {
      // What two scaled tables multiply a logit by.
      EXPECT_NEAR(pairs[pair[i]].gain * pairs[pair[i]].gain, expected[t][i], 5e-5) << time[t] << ' ' << pair[i];
    }
  }
  for (const auto& p : scaled_axis(flux_axis(4), {}, 0)) EXPECT_EQ(p.gain, 1);
}

TEST(RopeScaling, YarnRampWithDype) {
  const struct {
    double time, low, high;
  } rows[] = {{1, 0, 8}, {0.9, 0, 8}, {0.7, 0, 8}, {0.5, 1, 8}, {0.3, 5, 8}, {0.01, 7, 8}};
  for (const auto& r : rows) {
    const YarnRamp ramp = yarn_ramp(flux_axis(4), true, r.time);
    EXPECT_EQ(ramp.low, r.low) << r.time;
    EXPECT_EQ(ramp.high, r.high) << r.time;
  }
  const YarnRamp constant = yarn_ramp(flux_axis(4), false, 0.01);
  EXPECT_EQ(constant.low, 0);
  EXPECT_EQ(constant.high, 8);
  // A model so small that no pair turns once over its side: a ramp all the same, and nothing divided by zero.
  const auto tiny = scaled_axis({.dim = 8, .theta = 1e4, .trained = 4, .scale = 2}, {.dype = false}, 1);
  EXPECT_NEAR(tiny[1].frequency, std::pow(1e4, -0.25) / 2, 1e-15);
}

TEST(RopeScaling, PositionsSwitchedOneByOne) {
  auto frequency = [](Positions positions, bool dype, double time, std::size_t pair) {
    return scaled_axis(flux_axis(4), {.positions = positions, .dype = dype, .dynamic_temperature = false}, time)[pair];
  };
  auto plain = [](double theta, double pair) { return std::pow(theta, -2 * pair / 56); };
  EXPECT_DOUBLE_EQ(frequency(Positions::none, true, 1, 9).frequency, plain(1e4, 9));
  EXPECT_DOUBLE_EQ(frequency(Positions::pi, true, 1, 9).frequency, plain(1e4, 9) / 4);
  // YaRN: fast pairs as they were, slow ones interpolated, half way between at the middle of the ramp.
  EXPECT_DOUBLE_EQ(frequency(Positions::yarn, false, 1, 0).frequency, 1);
  EXPECT_DOUBLE_EQ(frequency(Positions::yarn, false, 1, 4).frequency, plain(1e4, 4) * (0.5 + 0.5 / 4));
  EXPECT_DOUBLE_EQ(frequency(Positions::yarn, false, 1, 20).frequency, plain(1e4, 20) / 4);
  // NTK leaves the fastest pair alone and interpolates the slowest; DyPE squares that at t = 1 and takes it away at 0.
  EXPECT_DOUBLE_EQ(frequency(Positions::ntk, false, 0.3, 0).frequency, 1);
  EXPECT_NEAR(frequency(Positions::ntk, false, 0.3, 27).frequency, plain(1e4, 27) / 4, 1e-15);
  EXPECT_NEAR(frequency(Positions::ntk, true, 1, 27).frequency, plain(1e4, 27) / 16, 1e-15);
  EXPECT_DOUBLE_EQ(frequency(Positions::ntk, true, 0, 27).frequency, plain(1e4, 27));
  // Without the dynamic temperature: YaRN's own is constant, other positions have none.
  EXPECT_DOUBLE_EQ(frequency(Positions::yarn, true, 0.1, 5).gain, 0.1 * std::log(4.0) + 1);
  EXPECT_EQ(frequency(Positions::pi, true, 0.1, 5).gain, 1);
  EXPECT_EQ(frequency(Positions::ntk, true, 0.1, 5).gain, 1);
}

TEST(RopeScaling, NormalizedFrequencyIsThePlaceInTheAxis) {
  const auto pairs = scaled_axis(flux_axis(4), {.normalized = true}, 0.3);
  EXPECT_DOUBLE_EQ(pairs[0].gain, scaled_axis(flux_axis(4), {}, 0.3)[0].gain);
  EXPECT_NEAR(pairs[27].gain * pairs[27].gain, 1 / (1 - (1 - least_temperature(4)) * std::pow(0.3, 0.6)), 1e-12);
  EXPECT_GT(pairs[14].gain, pairs[27].gain);
  EXPECT_LT(pairs[14].gain, pairs[0].gain);
}

TEST(RopeScaling, NoLargerThanTrainedIsLeftAlone) {
  for (double scale : {0.5, 1.0}) {
    const auto pairs = scaled_axis(flux_axis(scale), {}, 0.8);
    for (std::size_t i = 0; i < pairs.size(); ++i) {
      EXPECT_EQ(pairs[i].gain, 1);
      EXPECT_DOUBLE_EQ(pairs[i].frequency, std::pow(1e4, -2.0 * static_cast<double>(i) / 56));
    }
  }
}

// T2: four ways to the same attention, in f64.
TEST(TextAnchor, FourIdentities) {
  const std::int64_t texts = 5, images = 12, dim = 8, times = 4;
  const double beta = std::log(static_cast<double>(times)), scale = 1 / std::sqrt(8.0);
  const auto generator = at::make_generator<at::CPUGeneratorImpl>(3);
  auto draw = [&](std::int64_t rows) { return at::randn({rows, dim}, generator, at::kDouble); };
  const at::Tensor q = draw(texts + images), kt = draw(texts), ki = draw(images), vt = draw(texts), vi = draw(images);
  auto attend = [](const at::Tensor& logits, const at::Tensor& v) { return logits.softmax(-1).matmul(v); };
  const at::Tensor text = q.matmul(kt.t()) * scale, image = q.matmul(ki.t()) * scale, v = at::cat({vt, vi});

  const at::Tensor biased = attend(at::cat({text + beta, image}, 1), v);
  const at::Tensor repeated =
      attend(at::cat({text.repeat({1, times}), image}, 1), at::cat({vt.repeat({times, 1}), vi}));
  const at::Tensor lt = text.logsumexp({1}, true) + beta, li = image.logsumexp({1}, true), l = at::logaddexp(lt, li);
  const at::Tensor merged = (lt - l).exp() * attend(text, vt) + (li - l).exp() * attend(image, vi);
  const at::Tensor q1 = at::cat({q, at::ones({texts + images, 1}, at::kDouble)}, 1);
  const at::Tensor k1 = at::cat({at::cat({kt, at::full({texts, 1}, beta / scale, at::kDouble)}, 1),
                                 at::cat({ki, at::zeros({images, 1}, at::kDouble)}, 1)});
  const at::Tensor channel = attend(q1.matmul(k1.t()) * scale, v);
  for (const at::Tensor& other : {repeated, merged, channel}) {
    EXPECT_LT((other - biased).abs().max().item<double>(), 1e-14);
  }
}

// FLUX's layout, 4 tokens a side, random weights: equal on every rank.
struct Small {
  static nlohmann::json config(int heads) {
    return {{"_class_name", "FluxTransformer2DModel"},
            {"in_channels", 12},
            {"num_layers", 2},
            {"num_single_layers", 2},
            {"num_attention_heads", heads},
            {"attention_head_dim", 16},
            {"joint_attention_dim", 24},
            {"pooled_projection_dim", 20},
            {"guidance_embeds", false},
            {"axes_dims_rope", {4, 6, 6}},
            {"trireme", {{"base_side", 4}, {"base_text", 5}, {"latent_factor", 1}, {"patch", 2}}}};
  }
  Small(std::int64_t rows, std::int64_t columns, int heads = 4)
      : model(random_denoiser(config(heads), 7, at::kCPU, at::kFloat)), grid{1, rows, columns} {
    x = drawn_noise(1, 0, {2, 3, 1, 2 * rows, 2 * columns}, at::kCPU);
    t = at::full({2}, 0.6f);
    condition.text = drawn_noise(2, 0, {2, 5, 24}, at::kCPU);
    condition.pooled = drawn_noise(3, 0, {2, 20}, at::kCPU);
  }
  at::Tensor run(const DitHooks& hooks) const {
    const at::NoGradGuard none;
    return model->forward(x, t, condition, hooks);
  }
  std::unique_ptr<Denoiser> model;
  Grid grid;
  at::Tensor x, t;
  Conditioning condition;
};

// What a key=value list of the settings makes of them.
TideSettings settings(const std::vector<std::string>& changes, const Denoiser& model) {
  struct Root {
    TideSettings tide;
    void fields(Fields& f) { f.group("tide", tide, "method"); }
  } root;
  const Config config = Config::parse("{}", "test", changes);
  config.read([&](Fields& f) { root.fields(f); });
  root.tide.prepare(model);
  return root.tide;
}

double error(const at::Tensor& a, const at::Tensor& truth) {
  if (a.sizes() != truth.sizes()) return NAN;
  return ((a - truth).abs().max() / truth.std()).item<double>();
}

// T4
TEST(Tide, UpToTheTrainedSizeTheModelIsThePlainOne) {
  for (const auto& [rows, columns] : {std::pair{4, 4}, {3, 4}, {2, 2}}) {
    const Small m(rows, columns);
    const DitHooks hooks = settings({}, *m.model).hooks(*m.model, m.grid, 5, 0.6);
    EXPECT_FALSE(hooks.rope);
    EXPECT_TRUE(m.run(hooks).equal(m.run({})));
  }
  // Two sides apart: the area is that trained, one side is not.
  const Small wide(2, 8);
  const DitHooks hooks = settings({}, *wide.model).hooks(*wide.model, wide.grid, 5, 0.6);
  EXPECT_EQ(hooks.text_bias, 0);
  EXPECT_TRUE(hooks.rope);
}

// T5
TEST(Tide, TablesScaleTwoAxesOfImageAndText) {
  DenoiserInfo flux;
  flux.rope_axes = {16, 56, 56};
  const double time = 0.7;
  const auto tables = scaled_rope(flux, {1, 256, 128}, 3, {}, time, at::kCPU);
  EXPECT_EQ(tables.text.cos.sizes(), (std::vector<std::int64_t>{3, 64}));
  EXPECT_EQ(tables.image.cos.sizes(), (std::vector<std::int64_t>{256 * 128, 64}));
  EXPECT_EQ(tables.text.sin.abs().max().item<float>(), 0);
  // 8 pairs are left alone, 56 (112 of 128 channels) are not: of the rows at S = 4, of the columns at S = 2.
  EXPECT_TRUE(tables.text.cos.narrow(1, 0, 8).equal(at::ones({3, 8})));
  EXPECT_EQ(at::gt(tables.text.cos[0], 1).sum().item<std::int64_t>(), 56);
  const auto rows = scaled_axis(flux_axis(4), {}, time), columns = scaled_axis(flux_axis(2), {}, time);
  const at::Tensor gain = (tables.image.cos.square() + tables.image.sin.square()).sqrt();
  for (std::int64_t i = 0; i < 28; ++i) {
    const auto at = static_cast<std::size_t>(i);
    EXPECT_EQ(tables.text.cos[1][8 + i].item<float>(), float(rows[at].gain));
    EXPECT_EQ(tables.text.cos[1][36 + i].item<float>(), float(columns[at].gain));
    EXPECT_NEAR(gain[5000][8 + i].item<double>(), rows[at].gain, 1e-6);
    EXPECT_NEAR(gain[5000][36 + i].item<double>(), columns[at].gain, 1e-6);
    const double angle = (5000 % 128) * columns[at].frequency;
    EXPECT_NEAR(tables.image.sin[5000][36 + i].item<double>(), columns[at].gain * std::sin(angle), 1e-6);
  }
  // A tile of a canvas has the canvas's scale and positions.
  const auto tile = scaled_rope(flux, {1, 64, 32}, 0, {}, time, at::kCPU, {0, 192, 96, {0, 256, 128}});
  const at::Tensor whole = tables.image.cos.view({256, 128, 64});
  EXPECT_TRUE(tile.image.cos.view({64, 32, 64}).equal(whole.narrow(0, 192, 64).narrow(1, 96, 32)));
  EXPECT_FALSE(tile.text.cos.defined());
}

TEST(Tide, UnscaledTablesAreTheModels) {
  const Small m(9, 5);
  const auto own = m.model->rope(m.grid, 5),
             ours = scaled_rope(m.model->info(), m.grid, 5,
                                {.positions = Positions::none, .dynamic_temperature = false}, 0.3, at::kCPU);
  EXPECT_TRUE(own.image.cos.equal(ours.image.cos));
  EXPECT_TRUE(own.image.sin.equal(ours.image.sin));
  EXPECT_TRUE(own.text.cos.equal(ours.text.cos));
}

TEST(Tide, PartsAreSwitches) {
  const Small m(8, 8);
  auto hooks = [&](const std::vector<std::string>& changes) {
    return settings(changes, *m.model).hooks(*m.model, m.grid, 5, 0.6);
  };
  EXPECT_EQ(hooks({}).text_bias, std::log(4.0));
  EXPECT_EQ(hooks({"tide.text_anchor=false"}).text_bias, 0);
  EXPECT_EQ(hooks({"tide.gate_px=256"}).text_bias, 0);  // 16 x 16 pixels
  EXPECT_EQ(hooks({"tide.gate_px=255"}).text_bias, std::log(4.0));
  EXPECT_EQ(hooks({"tide.beta_round=bf16"}).text_bias, 1.3828125);
  EXPECT_FALSE(hooks({"tide.positions=none", "tide.dtc=false"}).rope);
  EXPECT_TRUE(hooks({"tide.positions=none"}).rope);
  EXPECT_EQ(hooks({}).logit_scale, 1);
  EXPECT_DOUBLE_EQ(hooks({"tide.proportional=true"}).logit_scale, std::sqrt(std::log(64.0) / std::log(16.0)));
  // The authors' mask at 4096 px.
  DenoiserInfo flux;
  TideSettings rounded = settings({"tide.beta_round=bf16"}, *m.model);
  EXPECT_EQ(rounded.text_bias(flux, {1, 256, 256}), 2.765625);
  const FlowShift job{.shift = 3, .mu_mode = "linear"};
  EXPECT_EQ(settings({}, *m.model).shift(job).mu_mode, "log");
  EXPECT_EQ(settings({"tide.mu_mode=job"}, *m.model).shift(job).mu_mode, "linear");
  // A mask gives the same picture.
  EXPECT_LT(error(m.run(hooks({"tide.attention=bias"})), m.run(hooks({}))), 1e-5);
}

// What the time does not change is made once, and has the bits of what would be made anew.
TEST(Tide, TablesAreMadeAnewWhereTheyFollowTheTime) {
  const Small m(8, 8);
  const auto tables = [&](TideSettings& tide, const Grid& grid, std::int64_t texts, double sigma) {
    return tide.hooks(*m.model, grid, texts, sigma).rope.value();
  };
  for (const std::vector<std::string>& still : {std::vector<std::string>{"tide.positions=pi", "tide.dtc=false"},
                                                {"tide.positions=yarn", "tide.dtc=false", "tide.dype=false"},
                                                {"tide.positions=ntk", "tide.dtc=false", "tide.dype=false"}}) {
    TideSettings tide = settings(still, *m.model);
    const RopeTables first = tables(tide, m.grid, 5, 0.9), later = tables(tide, m.grid, 5, 0.2);
    EXPECT_TRUE(first.image.cos.is_same(later.image.cos)) << still[0];
    TideSettings fresh = settings(still, *m.model);
    const RopeTables anew = tables(fresh, m.grid, 5, 0.2);
    EXPECT_TRUE(later.image.cos.equal(anew.image.cos) && later.image.sin.equal(anew.image.sin)) << still[0];
    EXPECT_TRUE(later.text.cos.equal(anew.text.cos) && later.text.sin.equal(anew.text.sin)) << still[0];
    EXPECT_EQ(tables(tide, m.grid, 7, 0.2).text.cos.size(0), 7);
    EXPECT_EQ(tables(tide, {1, 8, 6}, 7, 0.2).image.cos.size(0), 48);
  }
  for (const char* moving : {"tide.dtc=true", "tide.dtc=false"}) {
    TideSettings tide = settings({"tide.positions=ntk", moving}, *m.model);  // with dype
    EXPECT_FALSE(tables(tide, m.grid, 5, 0.9).image.cos.equal(tables(tide, m.grid, 5, 0.2).image.cos)) << moving;
  }
}

struct CrossAttention final : Denoiser {
  CrossAttention() { about.layout = "wan", about.joint_text = false, weight = at::zeros({1}); }
  const DenoiserInfo& info() const override { return about; }
  at::Tensor forward(const at::Tensor& x, const at::Tensor&, const Conditioning&, const DitHooks&) override {
    return x;
  }
  RopeTables rope(const Grid&, std::int64_t, const Offsets&) const override { return {}; }
  std::vector<std::pair<std::string, at::Tensor>> weights() const override { return {{"weight", weight}}; }
  const nlohmann::json& config() const override { return nothing; }
  DenoiserInfo about;
  at::Tensor weight;
  nlohmann::json nothing;
};

// T7
TEST(Tide, TextAnchorNeedsJointAttention) {
  const CrossAttention model;
  try {
    settings({}, model);
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(static_cast<int>(e.code()), 2);
    EXPECT_SAYS(std::string(e.what()), "cross-attention");
    EXPECT_SAYS(std::string(e.what()), "tide.text_anchor=false");
  }
  // The rest works: without rotary channels the temperature is one factor of all logits.
  TideSettings rest = settings({"tide.text_anchor=false"}, model);
  EXPECT_EQ(rest.hooks(model, {1, 256, 256}, 0, 0.7).text_bias, 0);
  EXPECT_DOUBLE_EQ(rest.hooks(model, {1, 256, 256}, 0, 1).logit_scale, 1 / least_temperature(4));
}

// S0
TEST(Tide, CachedKeysFollowTheTables) {
  const Small m(8, 6);
  const at::Tensor active = at::tensor({0, 3, 7, 20, 21, 40}, at::kLong).repeat({2, 1});
  auto sparse = [&](TokenSet::Keys keys, const RopeScaling& scaling, bool rescale) {
    TokenSet set(keys);
    DitHooks hooks;
    hooks.tokens = &set;
    auto at = [&](double time) {
      hooks.rope = scaled_rope(m.model->info(), m.grid, 5, scaling, time, at::kCPU);
      return m.run(hooks);
    };
    at(0.9);
    if (rescale) set.rescale_keys(gain_ratio(m.model->info(), m.grid, scaling, 0.9, 0.3, at::kCPU));
    set.choose(active);
    return at(0.3);
  };
  const RopeScaling temperature{.dype = false}, both{.positions = Positions::ntk};
  const at::Tensor current = sparse(TokenSet::Keys::pre_rope, temperature, false);
  EXPECT_LT(error(sparse(TokenSet::Keys::post_rope, temperature, true), current), 1e-5);
  EXPECT_GT(error(sparse(TokenSet::Keys::post_rope, temperature, false), current), 1e-4);
  // With DyPE the angles move too: keys are kept before the rotation.
  EXPECT_GT(error(sparse(TokenSet::Keys::post_rope, both, true), sparse(TokenSet::Keys::pre_rope, both, false)), 1e-4);
}

// T6: 1, 2 and 4 ranks; sides, tokens and heads that do not divide by them.
TEST(SequenceParallel, RanksGiveWhatOneRankGives) {
  for (const int heads : {4, 5}) {
    const Small m(9, 5, heads);
    const DitHooks hooks = settings({}, *m.model).hooks(*m.model, m.grid, 5, 0.6);
    ASSERT_GT(hooks.text_bias, 1);
    const at::Tensor truth = m.run(hooks);
    DitHooks twice = hooks;
    twice.text_bias *= 2;  // what a bias that every rank adds would do on two
    ASSERT_GT(error(m.run(twice), truth), 1e-3);
    for (const int ranks : {1, 2, 4})
      for (const char* kind : {"ring", "ulysses"})
        run_loopback(ranks, [&](Communicator& world) {
          const Small mine(9, 5, heads);
          const auto parallel = sequence_parallel(kind, world);
          DitHooks shared = hooks;
          shared.parallel = parallel.get();
          EXPECT_LT(error(mine.run(shared), truth), 1e-5) << kind << ' ' << ranks;
        });
  }
}

// Heads in waves: what several exchanges carry is what one does, to the bit, also where ranks and waves hold unequally
// many heads.
TEST(SequenceParallel, WavesOfHeadsChangeNoBit) {
  for (const int heads : {8, 9})
    for (const int ranks : {1, 2, 3})
      run_loopback(ranks, [&](Communicator& world) {
        const Small mine(9, 5, heads);
        const DitHooks hooks = settings({}, *mine.model).hooks(*mine.model, mine.grid, 5, 0.6);
        auto run = [&](std::int64_t wave_bytes) {
          Traced counted(world);
          const auto parallel = sequence_parallel("ulysses", counted, wave_bytes);
          DitHooks shared = hooks;
          shared.parallel = parallel.get();
          const at::Tensor v = mine.run(shared);
          return std::pair(v, counted.stats());
        };
        const auto [whole, once] = run(1 << 30);
        const auto [waved, often] = run(1);
        EXPECT_TRUE(waved.equal(whole)) << heads << ' ' << ranks;
        const int waves = std::min(4, heads / ranks), layers = 4;
        if (ranks == 1) return;  // sends nothing
        EXPECT_EQ(often.bytes, once.bytes);
        EXPECT_EQ(once.calls, layers * 2 + 1);
        EXPECT_EQ(often.calls, layers * 2 * waves + 1);
      });
}

// Which exchanges were left the whole device, in their order.
struct SeesWhatRunsBeside : Wrapper {
  explicit SeesWhatRunsBeside(Communicator& inner) : Wrapper(inner) {}
  Work all_reduce(Buffer inout, Op op) override { return inner_.all_reduce(inout, op); }
  Work reduce_scatter(ConstBuffer in, Buffer out, Op op) override { return inner_.reduce_scatter(in, out, op); }
  Work all_gather(ConstBuffer in, Buffer out) override {
    seen += BesideComputation::now() ? "g" : "G";
    return inner_.all_gather(in, out);
  }
  Work all_to_all(ConstBuffer in, std::span<const std::size_t> send, Buffer out,
                  std::span<const std::size_t> recv) override {
    seen += BesideComputation::now() ? "x" : "X";
    return inner_.all_to_all(in, send, out, recv);
  }
  Work broadcast(Buffer inout, int root) override { return inner_.broadcast(inout, root); }
  Work barrier() override { return inner_.barrier(); }
  std::unique_ptr<Communicator> split(int color, int key) override { return inner_.split(color, key); }
  std::string seen;
};

// Only what runs beside attention leaves it the device: not the first way in, not the last one back.
TEST(SequenceParallel, WavesBesideAttentionLeaveItTheDevice) {
  run_loopback(2, [&](Communicator& world) {
    const Small mine(9, 5, 8);
    auto seen = [&](const char* kind, std::int64_t wave_bytes) {
      SeesWhatRunsBeside ranks(world);
      const auto parallel = sequence_parallel(kind, ranks, wave_bytes);
      DitHooks hooks;
      hooks.parallel = parallel.get();
      mine.run(hooks);
      return ranks.seen;
    };
    EXPECT_EQ(seen("ulysses", 1), "XxxxxxxXXxxxxxxXXxxxxxxXXxxxxxxXG");
    EXPECT_EQ(seen("ulysses", 1 << 30), "XXXXXXXXG");
    EXPECT_EQ(seen("ring", 1), "XXXXG");
    EXPECT_FALSE(BesideComputation::now());
  });
}

// The other layouts: text last (HunyuanVideo, which does not rotate it), no rotation (SD3), text in cross-attention
// alone (Wan). Their own configurations, trained for 2 tokens a side.
TEST(Tide, EveryLayoutHasThePartsItCan) {
  struct Layout {
    const char* folder;
    std::int64_t frames;
    std::vector<std::string> changes;
    bool anchored, rotated;
  };
  const Layout layouts[] = {{"hunyuan_video", 3, {}, true, true},
                            {"sd3", 1, {}, true, false},
                            {"wan", 3, {"tide.text_anchor=false"}, false, true}};
  for (const auto& layout : layouts) {
    std::ifstream file(test::reference_file("dit/" + std::string(layout.folder) + "/config.json"));
    auto config = nlohmann::json::parse(file);
    config["trireme"] = {{"base_side", 2}};
    const Grid grid{layout.frames, 5, 3};
    const at::Tensor x = drawn_noise(1, 0, {2, 4, layout.frames, 10, 6}, at::kCPU), t = at::full({2}, 0.6f);
    auto run = [&](Denoiser& model, const DitHooks& hooks) {
      const at::NoGradGuard none;
      Conditioning condition;
      condition.text = drawn_noise(2, 0, {2, 5, 24}, at::kCPU);
      condition.guidance = at::full({2}, 4.0f);
      const std::int64_t pooled = model.info().pooled_width;
      if (pooled) condition.pooled = drawn_noise(3, 0, {2, pooled}, at::kCPU);
      return model.forward(x, t, condition, hooks);
    };
    const auto model = random_denoiser(config, 7, at::kCPU, at::kFloat);
    DitHooks hooks = settings(layout.changes, *model).hooks(*model, grid, 5, 0.6);
    EXPECT_EQ(hooks.text_bias, layout.anchored ? std::log(15.0 / 4) : 0) << layout.folder;
    EXPECT_EQ(hooks.rope.has_value(), layout.rotated) << layout.folder;
    EXPECT_FALSE(hooks.rope && hooks.rope->text.cos.defined()) << layout.folder;
    EXPECT_EQ(hooks.logit_scale > 1, !layout.rotated) << layout.folder;
    const at::Tensor truth = run(*model, hooks);
    EXPECT_GT(error(run(*model, {}), truth), 1e-3) << layout.folder;
    for (const char* kind : {"ring", "ulysses"})
      run_loopback(2, [&](Communicator& world) {
        const auto parallel = sequence_parallel(kind, world);
        DitHooks shared = hooks;
        shared.parallel = parallel.get();
        EXPECT_LT(error(run(*random_denoiser(config, 7, at::kCPU, at::kFloat), shared), truth), 1e-5)
            << layout.folder << ' ' << kind;
      });
    hooks.form = DitHooks::Bias::bias;
    EXPECT_LT(error(run(*model, hooks), truth), 1e-5) << layout.folder;
  }
}

// Merging in bf16 rounds once a part: no more than what one rank's bf16 loses anyway, within a draw of rounding.
TEST(SequenceParallel, Bf16IsAsCloseAsOnOneRank) {
  const Small m(9, 5);
  const DitHooks hooks = settings({}, *m.model).hooks(*m.model, m.grid, 5, 0.6);
  const at::Tensor truth = m.run(hooks);
  auto off = [&](const DitHooks& with) {
    const at::NoGradGuard none;
    const auto model = random_denoiser(Small::config(4), 7, at::kCPU, at::kFloat);
    const auto narrow = make_denoiser(model->config(), [&](const DitWeight& w) {
      const auto all = model->weights();
      const auto found = std::find_if(all.begin(), all.end(), [&](const auto& named) { return named.first == w.name; });
      return found->second.to(at::kBFloat16);
    });
    Conditioning c = m.condition;
    c.text = c.text.to(at::kBFloat16);
    c.pooled = c.pooled.to(at::kBFloat16);
    const at::Tensor v = narrow->forward(m.x.to(at::kBFloat16), m.t, c, with).to(at::kFloat);
    return (v - truth).square().mean().sqrt().item<double>();
  };
  const double alone = off(hooks);
  for (const char* kind : {"ring", "ulysses"})
    run_loopback(4, [&](Communicator& world) {
      const auto parallel = sequence_parallel(kind, world);
      DitHooks shared = hooks;
      shared.parallel = parallel.get();
      EXPECT_LT(off(shared), 1.2 * alone) << kind;
    });
}

TEST(SequenceParallel, ChosenTokensAreShared) {
  const Small m(9, 5);
  const at::Tensor active = at::tensor({1, 4, 5, 11, 17, 23, 30, 31, 44}, at::kLong).repeat({2, 1});
  auto sparse = [&](const Small& model, SequenceParallel* parallel) {
    TokenSet set;
    DitHooks hooks;
    hooks.tokens = &set;
    hooks.parallel = parallel;
    hooks.text_bias = 1;
    model.run(hooks);
    set.choose(active);
    return model.run(hooks);
  };
  const at::Tensor truth = sparse(m, nullptr);
  for (const int ranks : {2, 4})
    for (const char* kind : {"ring", "ulysses"})
      run_loopback(ranks, [&](Communicator& world) {
        const Small mine(9, 5);
        const auto parallel = sequence_parallel(kind, world);
        EXPECT_LT(error(sparse(mine, parallel.get()), truth), 1e-5) << kind << ' ' << ranks;
      });
}

TEST(SequenceParallel, HalvesOfGuidanceOnTwoGroups) {
  const Small m(9, 5);
  const auto codec = latent_codec(3, 1);
  auto velocity = [&](Communicator& world, const Small& mine, SequenceParallel* parallel, Communicator* halves) {
    const at::NoGradGuard none;
    SampleContext context(world, *mine.model, *codec, at::kCPU, at::kFloat);
    context.parallel = parallel;
    context.halves = halves;
    Sampling s;
    s.condition = s.no_condition = mine.condition;
    s.no_condition.text = drawn_noise(5, 0, {2, 5, 24}, at::kCPU);
    s.guidance = 4;
    const DitHooks hooks = settings({}, *mine.model).hooks(*mine.model, mine.grid, 5, 0.6);
    return guided(context, s, mine.x, 0.6, hooks);
  };
  at::Tensor truth;
  run_loopback(1, [&](Communicator& world) { truth = velocity(world, m, nullptr, nullptr); });
  run_loopback(4, [&](Communicator& world) {
    const int rank = world.rank();
    const auto halves = world.split(rank % 2, rank / 2), tokens = world.split(2 + rank / 2, rank);
    const auto ring = sequence_parallel("ring", *tokens);
    const Small mine(9, 5);
    const at::Tensor v = velocity(world, mine, ring.get(), halves.get());
    EXPECT_LT(error(v, truth), 1e-5);
    // To the bit on all ranks: they go on alone.
    const at::Tensor first = v.contiguous().clone();
    world.broadcast(buffer_of(first), 0).wait();
    EXPECT_TRUE(first.equal(v));
  });
}

TEST(SequenceParallel, BytesAsTheFormulasSay) {
  constexpr std::uint64_t batch = 2, heads = 4, dim = 16, tokens = 40, texts = 5, layers = 4, features = 12, f32 = 4;
  for (const int ranks : {2, 4}) {
    const auto p = static_cast<std::uint64_t>(ranks), part = tokens / p;
    run_loopback(ranks, [&](Communicator& world) {
      const Small mine(8, 5);
      auto sent = [&](const char* kind) {
        Traced counted(world);
        const auto parallel = sequence_parallel(kind, counted);
        DitHooks hooks;
        hooks.parallel = parallel.get();
        mine.run(hooks);
        return counted.stats();
      };
      const auto ring = sent("ring"), ulysses = sent("ulysses");
      // The velocities of the tokens go to all ranks, once a forward.
      const std::uint64_t gather = (p - 1) * batch * part * features * f32;
      EXPECT_EQ(ring.bytes, layers * (p - 1) * 2 * batch * part * heads * dim * f32 + gather);
      EXPECT_EQ(ring.calls, layers * (p - 1) + 1);
      EXPECT_EQ(ulysses.bytes, layers * (p - 1) * batch * (heads / p) * dim * (4 * part + texts) * f32 + gather);
      EXPECT_EQ(ulysses.calls, layers * 2 + 1);
    });
  }
}

// A graph on a CPU: recording makes the calls, as it does on a GPU, and replaying makes them again.
struct CallsTwice : StepGraph {
  static inline thread_local bool refuse = false;  // after the calls
  std::size_t capture(const std::function<void()>& f) override {
    f();
    if (refuse) throw std::runtime_error("operation not permitted when stream is capturing");
    run = f;
    return 1;
  }
  void replay() override { run(); }
  std::function<void()> run;
};

// All ranks or none: one that cannot record keeps the others from it. A replay is counted as the calls that were
// recorded, which come beside those that this graph makes.
TEST(SequenceParallel, RecordedForwardsAreThePlainOnes) {
  set_step_graphs([](int, GraphMemory) -> std::unique_ptr<StepGraph> { return std::make_unique<CallsTwice>(); });
  for (const bool refused : {false, true})
    for (const char* kind : {"ring", "ulysses"})
      run_loopback(2, [&](Communicator& world) {
        CallsTwice::refuse = refused && world.rank() == 1;
        const at::NoGradGuard none;
        Small mine(9, 5);
        Traced counted(world);
        const auto parallel = sequence_parallel(kind, counted);
        std::vector<std::string> said;
        GraphedDenoiser graphed(*mine.model, RecordedForwards::shared_too,
                                [&](std::string_view line) { said.emplace_back(line); });
        DitHooks hooks;
        hooks.parallel = parallel.get();
        std::uint64_t calls = 0;
        LevelModulations made;
        for (std::uint64_t k = 0; k < 4; ++k) {
          mine.x = drawn_noise(1, k, mine.x.sizes().vec(), at::kCPU);
          const std::vector<double> levels{1, 0.75, 0.5, 0.25, 0};
          const at::Tensor t = at::full_like(mine.t, levels[k]);
          const Conditioning c = made.at(*mine.model, mine.condition, levels, levels[k]);
          EXPECT_TRUE(c.modulation.defined());
          const at::Tensor plain = mine.model->forward(mine.x, t, c, hooks);
          const CommStats before = counted.stats();
          EXPECT_TRUE(graphed.forward(mine.x, t, c, hooks).equal(plain)) << kind << ' ' << k;
          const std::uint64_t made = counted.stats().calls - before.calls;
          if (k == 0) calls = made;
          // The second: recorded, agreed on, and replayed or plain.
          EXPECT_EQ(made, k == 0 ? calls : k == 1 ? 2 * calls + 1 : refused ? calls : 2 * calls) << kind << ' ' << k;
        }
        EXPECT_EQ(graphed.captured(), refused ? 0 : 1);
        EXPECT_EQ(said.size(), refused ? 1u : 0u);
        GraphedDenoiser by_default(*mine.model);
        for (int k = 0; k < 3; ++k) (void)by_default.forward(mine.x, mine.t, mine.condition, hooks);
        EXPECT_EQ(by_default.captured(), 0);
        CallsTwice::refuse = false;
      });
  set_step_graphs(nullptr);
}

TEST(SequenceParallel, RefusesWhatCannotBeCut) {
  run_loopback(4, [](Communicator& world) {
    EXPECT_SAYS(test::said([&] { sequence_parallel("rings", world); }), "ring or ulysses");
    EXPECT_SAYS(test::said([&] { (void)sequence_parallel("ring", world)->slice(3); }), "fewer ranks");
    const Small narrow(4, 4, 3);
    const auto ulysses = sequence_parallel("ulysses", world);
    DitHooks hooks;
    hooks.parallel = ulysses.get();
    EXPECT_SAYS(test::said([&] { narrow.run(hooks); }), "3 heads for 4 ranks");
  });
}

// T8: 16,384 + 512 tokens, of which a mask or the scores of one head would take 571 MB.
TEST(Tide, OnAGpuNothingIsAsLargeAsAMask) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  auto config = Small::config(2);
  config["attention_head_dim"] = 64;
  config["axes_dims_rope"] = {8, 28, 28};
  const auto model = random_denoiser(config, 7, at::kCUDA, at::kBFloat16);
  const Grid grid{1, 128, 128};
  const at::Tensor x = drawn_noise(1, 0, {1, 3, 1, 256, 256}, at::kCUDA).to(at::kBFloat16);
  Conditioning condition;
  condition.text = drawn_noise(2, 0, {1, 512, 24}, at::kCUDA).to(at::kBFloat16);
  condition.pooled = drawn_noise(3, 0, {1, 20}, at::kCUDA).to(at::kBFloat16);
  const at::Tensor t = at::full({1}, 0.6f, at::kCUDA);
  const at::NoGradGuard none;
  auto peak_after = [&](const DitHooks& hooks) {
    (void)model->forward(x, t, condition, hooks).sum().item<float>();
    return peak_device_memory_gib(at::Device(at::kCUDA, 0)) * (1 << 30);
  };
  const double plain = peak_after({}), tide = peak_after(settings({}, *model).hooks(*model, grid, 512, 0.6));
  // Two partial outputs in bf16, their weighted sum and its terms in f32, and sums of exponentials.
  const double rows = 128 * 128 + 512, outputs = rows * 128 * (2 * 2 + 3 * 4), sums = 6 * rows * 2 * 4,
               tables = 4 * rows * 32 * 4;
  EXPECT_LE(tide, plain + outputs + sums + tables);
}

}  // namespace
}  // namespace trireme
