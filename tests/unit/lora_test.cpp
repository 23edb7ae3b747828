// Batched LoRA: every backend against autograd in f64; jobs that share a batch against the same jobs alone; the
// optimizer against PyTorch's.
#include "framework/kernels/byte_transpose.h"
#include "framework/nn/adapter_optimizer.h"
#include "framework/nn/checkpoint.h"
#include "framework/nn/fp8_matrix.h"
#include "framework/nn/lora_pass.h"

#include <cmath>
#include <cstring>
#include <map>

#include <gtest/gtest.h>
#include <torch/optim/adamw.h>

namespace trireme::nn {
namespace {

// Relative to the largest of b, or of 1. NaN where either has one.
double max_difference(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0) return a.sizes() == b.sizes() ? 0 : 1;
  const at::Tensor x = a.to(at::kDouble), y = b.to(at::kDouble);
  return ((x - y).abs().max() / at::clamp_min(y.abs().max(), 1)).item<double>();
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() &&
         std::memcmp(a.contiguous().const_data_ptr(), b.contiguous().const_data_ptr(), a.nbytes()) == 0;
}

constexpr std::int64_t in = 48, out = 80;

std::vector<Projection> projections(at::ScalarType type) {
  at::manual_seed(1);
  return {{"m.0.q_proj", at::randn({out, in}, at::kDouble).div_(8).to(type), at::randn({out}, at::kDouble).to(type)},
          {"m.0.k_proj", at::randn({out, in}, at::kDouble).div_(8).to(type), {}},
          {"m.0.o_proj", at::randn({in, out}, at::kDouble).div_(8).to(type), {}}};
}

// o(gelu(q(x)) * k(x)): two targets of one input, and one behind.
at::Tensor model(AdapterStore& store, const at::Tensor& x) {
  const std::int64_t targets[] = {0, 1};
  const auto y = store.project(targets, x);
  return store.project(2, at::gelu(y[0]) * y[1]);
}

struct Job {
  std::vector<AdapterShape> shapes;
  std::int64_t rows;
};

// Ranks 4 to 64, one job that adapts one target only, scales other than 1, lengths around a block's 64 rows, none too.
const std::vector<Job> jobs = {{{{8, 2.0}, {8, 0.5}, {4, 1.5}}, 1}, {{{16, 0.5}, {16, 0.5}, {16, 3}}, 63},
                               {{{64, 1}, {64, 1}, {64, 1}}, 0},    {{{64, 0.25}, {16, 2}, {8, 1}}, 64},
                               {{{0, 0}, {12, 1.25}, {0, 0}}, 65},  {{{16, 1}, {64, 0.5}, {64, 0.5}}, 1000}};

struct Batch {
  std::vector<SlotRows> rows;
  at::Tensor x, g;
};

// Slot 2 stays empty; rows of no slot stand before, between and behind.
Batch fill(AdapterStore& store, double dropout) {
  Batch batch;
  std::int64_t at = 3;
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    const auto slot = std::int64_t(i + (i >= 2));
    store.fill(slot, {.shapes = jobs[i].shapes, .seed = 5 + i, .dropout = i % 2 ? dropout : 0});
    for (auto& t : store.weights(slot)) t.b.copy_(at::randn(t.b.sizes(), at::kDouble).mul_(0.2));
    store.publish(slot);
    batch.rows.push_back({slot, at, at + jobs[i].rows, 7, 100});
    at += jobs[i].rows + std::int64_t(i == 3);
  }
  const auto type = store.targets()[0].weight.scalar_type();
  batch.x = at::randn({at + 2, in}, at::kDouble).to(type);
  batch.g = at::randn({at + 2, in}, at::kDouble).to(type);
  return batch;
}

struct Reference {
  at::Tensor y, dx;
  std::map<std::pair<std::int64_t, std::string>, std::pair<at::Tensor, at::Tensor>> gradients;  // slot, target: a, b
};

// By autograd in f64, from the weights in the base's type.
Reference reference(AdapterStore& store, const Batch& batch, const std::map<std::string, at::Tensor>& masks) {
  Reference r;
  std::map<std::pair<std::int64_t, std::string>, std::pair<at::Tensor, at::Tensor>> leaves;
  const auto type = store.targets()[0].weight.scalar_type();
  const auto wide = [&](const at::Tensor& t) { return t.detach().to(type).to(at::kDouble); };
  const auto layer = [&](std::size_t target, const at::Tensor& h) {
    const Projection& base = store.targets()[target];
    std::vector<at::Tensor> parts;
    const at::Tensor own = at::linear(h, wide(base.weight), base.bias.defined() ? wide(base.bias) : at::Tensor());
    std::int64_t done = 0;
    for (const auto& rows : batch.rows) {
      parts.push_back(own.slice(0, done, rows.first));
      at::Tensor y = own.slice(0, rows.first, rows.last);
      for (const auto& w : store.weights(rows.slot))
        if (w.target == base.name) {
          auto& leaf = leaves[{rows.slot, base.name}];
          leaf = {wide(w.a).set_requires_grad(true), wide(w.b).set_requires_grad(true)};
          at::Tensor x = h.slice(0, rows.first, rows.last);
          if (!masks.empty()) x = x * masks.at(base.name).slice(0, rows.first, rows.last);
          y = y + store.init(rows.slot).shapes[target].scale * x.mm(leaf.first.t()).mm(leaf.second.t());
        }
      parts.push_back(y);
      done = rows.last;
    }
    parts.push_back(own.slice(0, done));
    return at::cat(parts);
  };
  const at::Tensor x = wide(batch.x).set_requires_grad(true);
  r.y = layer(2, at::gelu(layer(0, x)) * layer(1, x));
  r.y.backward(batch.g.to(at::kDouble));
  r.dx = x.grad();
  for (auto& [key, leaf] : leaves) r.gradients[key] = {leaf.first.grad(), leaf.second.grad()};
  return r;
}

// The mask of all rows, 1 where a job drops nothing.
std::map<std::string, at::Tensor> masks_of(AdapterStore& store, const Batch& batch) {
  std::map<std::string, at::Tensor> all;
  for (const auto& target : store.targets()) {
    at::Tensor m = at::ones({batch.x.size(0), target.weight.size(1)}, at::kDouble);
    for (const auto& rows : batch.rows) {
      const auto& init = store.init(rows.slot);
      if (init.dropout == 0) continue;
      const kernels::DropoutKey key = dropout_key(init, rows);
      auto at = m.accessor<double, 2>();
      for (std::int64_t i = rows.first; i < rows.last; ++i)
        for (std::int64_t c = 0; c < m.size(1); ++c) {
          const auto words = kernels::dropout_words(key, dropout_module(target.name), std::uint32_t(i - rows.first),
                                                    std::uint32_t(c / 4));
          at[i][c] = double(words.word[c % 4]) < init.dropout * 0x1p32 ? 0 : double(float(1 / (1 - init.dropout)));
        }
    }
    all[target.name] = m;
  }
  return all;
}

class Backends : public testing::TestWithParam<std::tuple<LoraBackend, at::ScalarType, double>> {};

TEST_P(Backends, EqualAutogradInF64) {
  const auto [backend, type, dropout] = GetParam();
  AdapterStore store(projections(type), 8, 64, backend);
  const Batch batch = fill(store, dropout);
  store.begin(batch.rows, true);
  const at::Tensor x = batch.x.clone().set_requires_grad(true);
  const at::Tensor y = model(store, x);
  y.backward(batch.g);
  const Reference want =
      reference(store, batch, dropout > 0 ? masks_of(store, batch) : std::map<std::string, at::Tensor>());
  const double near = type == at::kDouble ? 1e-11 : type == at::kFloat ? 2e-5 : 0.03;
  EXPECT_LT(max_difference(y, want.y), near);
  EXPECT_LT(max_difference(x.grad(), want.dx), near);
  std::size_t compared = 0;
  for (const auto& rows : batch.rows)
    for (const auto& got : store.gradients(rows.slot)) {
      const auto& [a, b] = want.gradients.at({rows.slot, got.target});
      EXPECT_LT(max_difference(got.a, a), near) << rows.slot << got.target;
      EXPECT_LT(max_difference(got.b, b), near) << rows.slot << got.target;
      ++compared;
    }
  EXPECT_EQ(compared, 16u);
}

std::string name_of(const testing::TestParamInfo<Backends::ParamType>& info) {
  const char* const names[] = {"kernels", "grouped_mm", "bmm", "loop", "wide"};
  const auto type = std::get<1>(info.param);
  return std::string(names[int(std::get<0>(info.param))]) +
         (type == at::kDouble  ? "_f64"
          : type == at::kFloat ? "_f32"
                               : "_bf16") +
         (std::get<2>(info.param) > 0 ? "_dropout" : "");
}

INSTANTIATE_TEST_SUITE_P(F64, Backends,
                         testing::Combine(testing::Values(LoraBackend::kernels, LoraBackend::bmm, LoraBackend::loop,
                                                          LoraBackend::wide),
                                          testing::Values(at::kDouble), testing::Values(0.0, 0.3)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Narrow, Backends,
                         testing::Combine(testing::Values(LoraBackend::kernels, LoraBackend::grouped_mm,
                                                          LoraBackend::bmm, LoraBackend::loop, LoraBackend::wide),
                                          testing::Values(at::kFloat, at::kBFloat16), testing::Values(0.0)),
                         name_of);
INSTANTIATE_TEST_SUITE_P(Dropout, Backends,
                         testing::Combine(testing::Values(LoraBackend::grouped_mm), testing::Values(at::kFloat),
                                          testing::Values(0.3)),
                         name_of);

// e4m3 has 3 bits behind the point: products of long rows are off by some hundredths, on each backend alike.
TEST(Lora, Fp8BaseIsTheBaseButForItsRounding) {
  at::manual_seed(8);
  const at::Tensor x0 = at::randn({70, 64}), g = at::randn({70, 96});
  std::vector<at::Tensor> exact;
  for (const auto backend : {LoraBackend::kernels, LoraBackend::loop}) {
    std::vector<std::vector<at::Tensor>> found;
    for (const bool fp8 : {false, true}) {
      at::manual_seed(9);
      const at::Tensor w = at::randn({96, 64}) / 8, bias = at::randn({96});
      AdapterStore store({{"w", w, bias}}, 1, 8, backend);
      if (fp8) store.set_fp8_base(0, fp8_rows(w), bias);
      store.fill(0, {.shapes = {{8, 1}}, .seed = 1});
      store.begin({{.slot = 0, .first = 0, .last = 70}}, true);
      const at::Tensor x = x0.clone().set_requires_grad(true), y = store.project(0, x);
      y.backward(g);
      found.push_back({y.detach(), x.grad(), store.flat_gradients(0)});
    }
    for (std::size_t i = 0; i < 3; ++i) {
      const double off = ((found[1][i] - found[0][i]).norm() / found[0][i].norm()).item<double>();
      EXPECT_LT(off, i < 2 ? 0.06 : 1e-6) << i;  // the adapter's own path is not rounded
      if (i < 2) {
        EXPECT_GT(off, 0.005) << i;
      }
    }
  }
}

TEST(Lora, BytesAreTurned) {
  for (const std::int64_t rows : {4, 96, 144}) {
    const at::Tensor from = at::randint(256, {rows, 48}, at::kByte), to = at::zeros({48, rows}, at::kByte);
    kernels::byte_transpose({from.const_data_ptr<std::uint8_t>(), to.mutable_data_ptr<std::uint8_t>(), rows, 48}, {});
    EXPECT_TRUE(to.equal(from.t())) << rows;
  }
}

// dy W of codes by rows alone, against f64: W's own rounding and dy's, also where rows of W differ by a thousand.
TEST(Lora, Fp8GoesBackByTheSameCodes) {
  at::manual_seed(10);
  for (const auto& [out, in] : std::vector<std::pair<std::int64_t, std::int64_t>>{{96, 64}, {16, 208}, {144, 16}}) {
    const at::Tensor dy = at::randn({33, out}) * 1e-5,
                     w = 1e-4 * at::randn({out, in}) * at::exp(at::linspace(0, std::log(1e3), out)).unsqueeze(1);
    w[3].zero_();  // whose scale must not drown the others
    const Fp8Rows codes = fp8_rows(w);
    const at::Tensor kept = codes.values.to(at::kDouble) * codes.scales.to(at::kDouble).unsqueeze(1),
                     exact = dy.to(at::kDouble).mm(kept), found = fp8_product_back(dy, codes).to(at::kDouble);
    EXPECT_EQ(found.sizes(), exact.sizes());
    EXPECT_LT(((found - exact).norm() / exact.norm()).item<double>(), 0.04);  // dy's rounding alone
    EXPECT_LT(((found - dy.to(at::kDouble).mm(w.to(at::kDouble))).norm() / exact.norm()).item<double>(), 0.06);
  }
}

TEST(Lora, Fp8RowsShowWhatIsNotFinite) {
  at::Tensor x = at::randn({5, 32});
  x[1].zero_();
  x[4].zero_();
  x[4][3] = 1e-38;  // a scale of which 1 / scale is no number
  x[2][5] = NAN;
  x[3][9] = INFINITY;
  const Fp8Rows rows = fp8_rows(x);
  const at::Tensor back = rows.values.to(at::kFloat) * rows.scales.unsqueeze(1);
  EXPECT_LT((back[0] - x[0]).abs().max().item<double>(), x[0].abs().max().item<double>() / 16);
  EXPECT_EQ(back[1].abs().max().item<double>(), 0);
  EXPECT_TRUE(at::isfinite(back[4]).all().item<bool>());
  EXPECT_EQ((rows.values[4].to(at::kFloat) != 0).sum().item<std::int64_t>(), 0);
  EXPECT_TRUE(at::isnan(back[2]).all().item<bool>());
  EXPECT_TRUE(at::isnan(back[3]).all().item<bool>());
  EXPECT_EQ(rows.values[0].to(at::kFloat).abs().max().item<double>(), 448);
  EXPECT_THROW(fp8_rows(at::randn({4, 24})), UsageError);
}

// gate, up and down of one node against the same by a loop over jobs and autograd.
TEST(Lora, GatedIsItsParts) {
  const auto run = [](LoraBackend backend, at::ScalarType type, std::int64_t rows_of_nobody) {
    at::manual_seed(10);
    const auto draw = [&](at::IntArrayRef shape) { return (at::randn(shape, at::kDouble) / 6).to(type); };
    AdapterStore store(
        {{"gate", draw({out, in}), {}}, {"up", draw({out, in}), draw({out})}, {"down", draw({in, out}), {}}}, 3, 16,
        backend);
    std::vector<SlotRows> rows;
    std::int64_t at = 0;
    for (const std::int64_t slot : {0, 1, 2}) {
      store.fill(slot, {.shapes = {{8, 0.5}, {4 + 4 * slot, 2}, {16, 1.5}}, .seed = std::uint64_t(slot)});
      store.flat_weights(slot).copy_(draw({store.flat_weights(slot).numel()}));
      store.publish(slot);
      rows.push_back({.slot = slot, .first = at, .last = at + 30 + 41 * slot});
      at = rows.back().last;
    }
    const at::Tensor x = draw({at + rows_of_nobody, in}).set_requires_grad(true);
    const at::Tensor g = draw({at + rows_of_nobody, in});
    store.begin(rows, true);
    at::Tensor y = store.gated(0, 1, 2, x);
    const bool whole = y.defined();
    const std::int64_t both[] = {0, 1};
    if (!whole) {
      const auto parts = store.project(both, x);
      y = store.project(2, at::silu(parts[0]) * parts[1]);
    }
    y.backward(g);
    std::vector<at::Tensor> all{at::tensor(whole ? 1.0 : 0.0), y.detach(), x.grad()};
    // Padding's gradients are whatever they are.
    for (const std::int64_t slot : {0, 1, 2})
      for (const auto& t : store.gradients(slot)) all.insert(all.end(), {t.a.clone(), t.b.clone()});
    return all;
  };
  const auto want = run(LoraBackend::loop, at::kDouble, 0);
  EXPECT_EQ(want[0].item<double>(), 0);
  for (const auto type : {at::kDouble, at::kFloat, at::kBFloat16}) {
    const auto got = run(LoraBackend::kernels, type, 0);
    EXPECT_EQ(got[0].item<double>(), 1);
    for (std::size_t i = 1; i < want.size(); ++i)
      EXPECT_LT(max_difference(got[i], want[i]), type == at::kDouble ? 1e-6 : type == at::kFloat ? 1e-5 : 0.05) << i;
  }
  EXPECT_EQ(run(LoraBackend::kernels, at::kDouble, 5)[0].item<double>(), 0);  // rows of nobody: part by part
}

// Where every row has a job that adapts every target, the base's product is put on what the kernels wrote.
TEST(Lora, KernelsMayWriteBeforeTheBase) {
  std::vector<at::Tensor> all[2];
  for (const auto backend : {LoraBackend::loop, LoraBackend::kernels}) {
    AdapterStore store(projections(at::kDouble), 3, 64, backend);
    std::vector<SlotRows> rows;
    for (std::int64_t i = 0; i < 3; ++i) {
      store.fill(i, {.shapes = {{8 << i, 2}, {8, 0.5}, {16, 1}}, .seed = std::uint64_t(i), .dropout = 0.1 * double(i)});
      at::manual_seed(std::uint64_t(i));
      for (auto& t : store.weights(i)) t.b.normal_();
      rows.push_back({i, 70 * i, 70 * (i + 1)});
    }
    store.begin(rows, true);
    const at::Tensor x = at::randn({210, in}, at::kDouble).set_requires_grad(true);
    const at::Tensor y = model(store, x);
    y.square().sum().backward();
    auto& found = all[backend == LoraBackend::kernels];
    found = {y, x.grad()};
    for (std::int64_t i = 0; i < 3; ++i) found.push_back(store.flat_gradients(i));
  }
  for (std::size_t k = 0; k < all[0].size(); ++k) EXPECT_LT(max_difference(all[1][k], all[0][k]), 1e-12) << k;
}

// PEFT: A uniform in +-1/sqrt(in) (kaiming_uniform_ with a = sqrt 5), or normal of std 1/rank; B zero. By seed and name
// alone: another slot, store and order of targets give the same bits.
TEST(Lora, InitIsPeftsAndKnowsNoSlot) {
  const at::Tensor w = at::zeros({32, 4096});
  AdapterStore one({{"a", w, {}}, {"b", w, {}}}, 3, 64), other({{"b", w, {}}}, 1, 64);
  one.fill(0, {.shapes = {{64, 1}, {64, 1}}, .seed = 9});
  one.fill(2, {.shapes = {{64, 1}, {64, 1}}, .seed = 10, .gaussian = true});
  other.fill(0, {.shapes = {{64, 2}}, .seed = 9});
  const auto t = one.weights(0), n = one.weights(2);
  const double bound = 1 / std::sqrt(4096.0);
  EXPECT_LE(t[0].a.abs().max().item<double>(), bound * 1.0001);
  EXPECT_GT(t[0].a.abs().max().item<double>(), bound * 0.999);
  EXPECT_NEAR(t[0].a.mean().item<double>() / bound, 0, 0.006);
  EXPECT_NEAR(t[0].a.var().item<double>() / (bound * bound / 3), 1, 0.01);
  EXPECT_NEAR(n[0].a.std().item<double>() * 64, 1, 0.01);
  EXPECT_NEAR((n[0].a.pow(4).mean() * std::pow(64.0, 4)).item<double>(), 3, 0.1);  // of a normal one
  EXPECT_EQ(t[0].b.abs().max().item<double>(), 0);
  EXPECT_FALSE(same_bits(t[0].a, t[1].a));
  EXPECT_TRUE(same_bits(t[1].a, other.weights(0)[0].a));
}

TEST(Lora, RefusesWhatHasNoRoom) {
  AdapterStore store(projections(at::kFloat), 2, 16);
  EXPECT_THROW(store.fill(0, {.shapes = {{17, 1}, {0, 0}, {0, 0}}}), UsageError);
  EXPECT_THROW(store.fill(0, {.shapes = {{0, 0}, {0, 0}, {0, 0}}}), UsageError);
  EXPECT_THROW(store.fill(0, {.shapes = {{8, NAN}, {0, 0}, {0, 0}}}), UsageError);
  EXPECT_THROW(store.fill(0, {.shapes = {{8, 1}, {0, 0}, {0, 0}}, .dropout = 1}), UsageError);
  EXPECT_THROW(AdapterStore(projections(at::kFloat), 1, 129), UsageError);
  EXPECT_THROW(lora_backend("fast"), UsageError);
  EXPECT_THROW(store.begin({{0, 0, 4}}, true), Error);  // an empty slot
  store.fill(0, {.shapes = {{8, 1}, {0, 0}, {0, 0}}});
  EXPECT_THROW(store.fill(0, {.shapes = {{8, 1}, {0, 0}, {0, 0}}}), Error);
  EXPECT_THROW(AdapterOptimizer(store).start(0, {.lr = NAN}), UsageError);
  store.begin({{0, 0, 40}}, true);
  EXPECT_THROW(store.project(0, at::zeros({39, in})), Error);
  EXPECT_THROW(store.project(2, at::zeros({40, in})), Error);
  EXPECT_THROW(store.begin({{0, 0, 4}, {0, 4, 8}}, true), Error);
}

// Jobs in training, alone or together; the same numbers whoever shares the batch.
struct TrainedJobs {
  AdapterStore store;
  AdapterOptimizer optimizer;
  std::vector<std::int64_t> jobs;  // in slot order
  TrainedJobs(std::vector<std::int64_t> which, at::ScalarType type, LoraBackend backend)
      : store(projections(type), std::int64_t(which.size()), 64, backend), optimizer(store), jobs(std::move(which)) {
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      const auto rank = std::int64_t(8) << jobs[i];
      store.fill(std::int64_t(i), {.shapes = {{rank, 2}, {rank, 2}, {rank, 2}},
                                   .seed = std::uint64_t(jobs[i]),
                                   .dropout = 0.1 * double(jobs[i])});
      optimizer.start(std::int64_t(i), rates(jobs[i]));
    }
  }
  static AdapterRates rates(std::int64_t job) {
    return {.lr = 0.003 * double(job + 1), .weight_decay = 0.1 * double(job), .clip_norm = job == 1 ? 0 : 0.5};
  }
  static std::int64_t length(std::int64_t job) { return 10 + 30 * job; }
  // Mean squares of a job's own rows of y - x. `poison`: a job whose input is NaN.
  void step(std::int64_t n, std::int64_t poison = -1) {
    std::vector<SlotRows> rows;
    std::vector<at::Tensor> x;
    std::vector<std::int64_t> slots;
    std::int64_t at = 0;
    const auto type = store.targets()[0].weight.scalar_type();
    for (std::size_t i = 0; i < jobs.size(); ++i) {
      const auto t = length(jobs[i]);
      rows.push_back({std::int64_t(i), at, at + t, 0, n});
      at += t;
      at::manual_seed(std::uint64_t(1000 * jobs[i] + n));
      x.push_back(at::randn({t, in}).to(type));
      if (jobs[i] == poison) x.back()[0][0] = NAN;
      slots.push_back(std::int64_t(i));
    }
    store.begin(rows, true);
    const at::Tensor all = at::cat(x), y = model(store, all);
    std::vector<at::Tensor> losses;
    for (const auto& r : rows) losses.push_back((y - all).slice(0, r.first, r.last).to(at::kFloat).square().mean());
    at::stack(losses).sum().backward();
    optimizer.step(slots, at::stack(losses).detach());
  }
};

TEST(Lora, PackedJobsEqualSoloJobs) {
  for (const auto backend : {LoraBackend::kernels, LoraBackend::loop}) {
    TrainedJobs packed({0, 1, 2}, at::kFloat, backend);
    for (std::int64_t n = 0; n < 20; ++n) packed.step(n);
    for (std::int64_t job = 0; job < 3; ++job) {
      TrainedJobs solo({job}, at::kFloat, backend);
      const at::Tensor before = solo.store.flat_weights(0).clone();
      for (std::int64_t n = 0; n < 20; ++n) solo.step(n);
      const at::Tensor w = solo.store.flat_weights(0);
      EXPECT_LT((packed.store.flat_weights(job) - w).abs().max().item<double>(), 2e-4) << job;
      EXPECT_GT((before - w).abs().max().item<double>(), 0.02) << job;
    }
  }
}

// Padding of ranks stays zero, in bf16 too, and the working copy is the masters'.
TEST(Lora, PaddingStaysZeroAndMastersArePublished) {
  AdapterStore store(projections(at::kBFloat16), 1, 64);
  AdapterOptimizer optimizer(store);
  store.fill(0, {.shapes = {{12, 1}, {3, 1}, {16, 1}}, .seed = 1});
  optimizer.start(0, {.lr = 0.01});
  for (int n = 0; n < 3; ++n) {
    store.begin({{0, 0, 30}}, true);
    model(store, at::randn({30, in}).to(at::kBFloat16)).backward(at::randn({30, in}).to(at::kBFloat16));
    optimizer.step(std::array{std::int64_t(0)}, {});
  }
  EXPECT_TRUE(same_bits(store.flat_working(0), store.flat_weights(0).to(at::kBFloat16)));
  const at::Tensor a = store.flat_weights(0).narrow(0, 0, 16 * in).view({16, in});
  const at::Tensor b = store.flat_weights(0).narrow(0, 16 * in, 16 * out).view({out, 16});
  EXPECT_GT(b.narrow(1, 0, 12).abs().min().item<double>(), 0);
  EXPECT_EQ(a.narrow(0, 12, 4).abs().max().item<double>(), 0);
  EXPECT_EQ(b.narrow(1, 12, 4).abs().max().item<double>(), 0);
}

TEST(Lora, OneJobsNaNIsItsOwn) {
  TrainedJobs sick({0, 1, 2}, at::kFloat, LoraBackend::kernels), well({0, 1, 2}, at::kFloat, LoraBackend::kernels);
  for (std::int64_t n = 0; n < 6; ++n) {
    sick.step(n, n == 2 ? 1 : -1);
    well.step(n);
  }
  EXPECT_TRUE(same_bits(sick.optimizer.alive(), at::tensor({1.0f, 0.0f, 1.0f})));
  EXPECT_TRUE(same_bits(sick.optimizer.updates(), at::tensor({6.0f, 2.0f, 6.0f})));
  EXPECT_TRUE(at::isfinite(sick.store.flat_weights(1)).all().item<bool>());
  for (const std::int64_t slot : {0, 2})
    EXPECT_TRUE(same_bits(sick.store.flat_weights(slot), well.store.flat_weights(slot)));
}

TEST(Lora, OptimizerEqualsTorchInF64) {
  AdapterStore store({{"w", at::zeros({20, 30}), {}}}, 3, 8);
  AdapterOptimizer optimizer(store);
  std::vector<at::Tensor> want;
  std::vector<std::unique_ptr<torch::optim::AdamW>> peers;
  const AdapterRates rates[] = {{0.01, 0.1, 0.5}, {0.003, 0, 0}, {0.02, 0.01, 1e6}};
  for (std::int64_t slot = 0; slot < 3; ++slot) {
    store.fill(slot, {.shapes = {{8, 1}}, .seed = std::uint64_t(slot)});
    optimizer.start(slot, rates[slot]);
    want.push_back(store.flat_weights(slot).to(at::kDouble).set_requires_grad(true));
    torch::optim::AdamWOptions options(rates[slot].lr);
    options.weight_decay(rates[slot].weight_decay);
    peers.push_back(std::make_unique<torch::optim::AdamW>(std::vector<at::Tensor>{want.back()}, options));
  }
  at::manual_seed(3);
  for (int n = 0; n < 30; ++n) {
    for (std::int64_t slot = 0; slot < 3; ++slot) {
      const at::Tensor g = at::randn({400}, at::kDouble) * std::exp(0.1 * n - 4);  // clipping begins on the way
      store.flat_gradients(slot).copy_(g);
      double factor = 1;
      if (rates[slot].clip_norm > 0)  // torch.nn.utils.clip_grad_norm_
        factor = std::min(1.0, rates[slot].clip_norm / (g.to(at::kFloat).norm().item<double>() + 1e-6));
      want[std::size_t(slot)].mutable_grad() = g.to(at::kFloat).to(at::kDouble) * factor;
      if (n == 15 && slot == 0) {
        optimizer.set_lr(0, 0.002);
        static_cast<torch::optim::AdamWOptions&>(peers[0]->param_groups()[0].options()).lr(0.002);
      }
      peers[std::size_t(slot)]->step();
    }
    optimizer.step(std::array<std::int64_t, 3>{0, 1, 2}, {});
  }
  for (std::int64_t slot = 0; slot < 3; ++slot)
    EXPECT_LT(max_difference(store.flat_weights(slot), want[std::size_t(slot)].detach()), 3e-6) << slot;
}

// Names in memory.
class MemoryArchive : public Archive {
 public:
  std::map<std::string, std::string> bytes;
  bool reading = false;
  bool loading() const override { return reading; }
  bool has(std::string_view name) const override { return !reading || bytes.contains(full(name)); }
  void text(std::string_view name, std::string& value, bool) override {
    reading ? void(value = bytes.at(full(name))) : void(bytes[full(name)] = value);
  }
  void array(std::string_view name, DType dtype, std::span<const std::int64_t> shape, void* data, Sharing) override {
    std::size_t size = size_of(dtype);
    for (const auto n : shape) size *= std::size_t(n);
    auto& kept = bytes[full(name)];
    if (!reading) kept.assign(static_cast<const char*>(data), size);
    ASSERT_EQ(kept.size(), size) << name;
    if (reading && size > 0) std::memcpy(data, kept.data(), size);
  }
};

// Taken out, through an archive, and back into another slot of another store: as if nothing had happened.
TEST(Lora, ParkedJobGoesOnBitByBit) {
  TrainedJobs whole({2, 1}, at::kFloat, LoraBackend::kernels), parted({2, 1}, at::kFloat, LoraBackend::kernels);
  for (std::int64_t n = 0; n < 4; ++n) whole.step(n), parted.step(n);
  MemoryArchive ar;
  for (const std::int64_t slot : {0, 1}) {
    const Archive::Group group(ar, "job" + std::to_string(slot));
    parted.optimizer.park(slot).state(ar);
  }
  TrainedJobs later({2, 1}, at::kFloat, LoraBackend::kernels);
  ar.reading = true;
  for (const std::int64_t slot : {1, 0}) {
    const Archive::Group group(ar, "job" + std::to_string(slot));
    ParkedAdapter job;
    job.state(ar);
    later.optimizer.stop(slot);
    later.store.clear(slot);
    EXPECT_FALSE(later.store.filled(slot));
    later.optimizer.unpark(slot, job);
    EXPECT_TRUE(same_bits(later.store.flat_weights(slot), whole.store.flat_weights(slot)));
  }
  for (std::int64_t n = 4; n < 8; ++n) whole.step(n), later.step(n);
  for (const std::int64_t slot : {0, 1}) {
    const ParkedAdapter a = whole.optimizer.park(slot), b = later.optimizer.park(slot);
    EXPECT_TRUE(same_bits(a.weights, b.weights));
    EXPECT_TRUE(same_bits(a.first, b.first));
    EXPECT_TRUE(same_bits(a.second, b.second));
    EXPECT_EQ(b.updates, 8);
  }
}

// A checkpointed part is computed again in backward: dropout's masks too.
TEST(Lora, CheckpointedPartsGiveTheSameBits) {
  TrainedJobs kept({0, 1, 2}, at::kFloat, LoraBackend::kernels), again({0, 1, 2}, at::kFloat, LoraBackend::kernels);
  const std::vector<SlotRows> rows = {{0, 0, 30, 4, 0}, {1, 30, 50, 2, 10}, {2, 50, 120, 9, 0}};
  const at::Tensor x = at::randn({120, in}).set_requires_grad(true), g = at::randn({120, in});
  kept.store.begin(rows, true);
  again.store.begin(rows, true);
  model(kept.store, x).backward(g);
  const at::Tensor dx = x.grad().clone();
  x.mutable_grad().reset();
  const auto part = [&](const at::Tensor& h, std::span<const at::Tensor>) { return model(again.store, h); };
  checkpointed(part, x, {}).backward(g);
  EXPECT_TRUE(same_bits(x.grad(), dx));
  for (std::int64_t slot = 0; slot < 3; ++slot)
    EXPECT_TRUE(same_bits(again.store.flat_gradients(slot), kept.store.flat_gradients(slot)));
}

// Zeroed gradients are written by the next backward and added to by those after it, job by job, also where two passes
// begin before either's backward; a job without one has zeros.
TEST(Lora, GradientsOfAStepAddUp) {
  for (const auto backend : {LoraBackend::kernels, LoraBackend::loop, LoraBackend::bmm}) {
    AdapterStore store(projections(at::kFloat), 2, 16, backend);
    for (const std::int64_t slot : {0, 1}) {
      store.fill(slot, {.shapes = {{16, 1}, {8, 1}, {16, 1}}, .seed = std::uint64_t(slot)});
      for (auto& t : store.weights(slot)) t.b.normal_();
    }
    const at::Tensor x = at::randn({40, in});
    const auto pass = [&](std::vector<SlotRows> rows) {
      store.begin(std::move(rows), true);
      return model(store, x).sum();
    };
    const std::vector<SlotRows> both = {{0, 0, 20}, {1, 20, 40}};
    EXPECT_EQ(store.flat_gradients(1).abs().max().item<float>(), 0);
    pass(both).backward();
    const at::Tensor zero = store.flat_gradients(0).clone(), one = store.flat_gradients(1).clone();
    const auto is = [&](std::int64_t slot, const at::Tensor& once, double times) {
      EXPECT_LE(max_difference(store.flat_gradients(slot), once * times), 1e-5) << int(backend) << ", slot " << slot;
    };
    const std::int64_t second = 1;
    store.zero_gradients({&second, 1});
    pass(both).backward();
    is(0, zero, 2), is(1, one, 1);
    store.zero_gradients();
    const at::Tensor first = pass(both), then = pass(both);
    first.backward(), then.backward();
    is(0, zero, 2), is(1, one, 2);
    store.zero_gradients();
    pass({{0, 0, 20}}).backward();
    is(0, zero, 1), is(1, one, 0);
  }
}

// Evaluation drops nothing, and an earlier pass's backward is right after the next has begun.
TEST(Lora, PassesKeepTheirComposition) {
  AdapterStore store(projections(at::kFloat), 2, 16);
  store.fill(0, {.shapes = {{16, 1}, {16, 1}, {16, 1}}, .seed = 1, .dropout = 0.5});
  for (auto& t : store.weights(0)) t.b.normal_();
  const at::Tensor x = at::randn({20, in});
  store.begin({{0, 0, 20, 1, 0}}, true);
  const at::Tensor first = model(store, x);
  store.begin({{0, 0, 20, 1, 0}}, false);
  const at::Tensor clean = model(store, x);
  EXPECT_GT(max_difference(first, clean), 0.01);
  store.begin({}, true);
  EXPECT_GT(max_difference(model(store, x), clean), 0.01);  // the base alone
  first.sum().backward();
  const at::Tensor g = store.flat_gradients(0).clone();
  store.zero_gradients();
  store.begin({{0, 0, 20, 1, 0}}, true);
  const at::Tensor again = model(store, x);
  again.sum().backward();
  EXPECT_TRUE(same_bits(first, again));
  EXPECT_TRUE(same_bits(g, store.flat_gradients(0)));
}

}  // namespace
}  // namespace trireme::nn
