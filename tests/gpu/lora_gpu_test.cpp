// Batched LoRA on a GPU: the grouped kernels and the pointwise ones against their host twins, every backend against the
// host's, a training whose jobs are the same bits alone and in company, and recorded steps against plain ones.
#include "comm/device.h"
#include "framework/adapter_step.h"
#include "framework/base/tensor.h"
#include "framework/kernels/byte_transpose.h"
#include "framework/losses/token_loss.h"
#include "framework/models/adapters.h"
#include "framework/nn/fp8_matrix.h"
#include "framework/nn/lm_ops.h"
#include "framework/nn/sample_attention.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace trireme::nn {
namespace {

bool no_gpu() { return !device_runtime() || device_runtime()->count() == 0; }

double off(const at::Tensor& a, const at::Tensor& b) {
  if (a.numel() == 0) return 0;
  const at::Tensor x = a.detach().to(at::kCPU, at::kDouble), y = b.detach().to(at::kCPU, at::kDouble);
  return ((x - y).abs().max() / at::clamp_min(y.abs().max(), 1e-3)).item<double>();
}

bool same_bits(const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor x = a.cpu().contiguous(), y = b.cpu().contiguous();
  return x.sizes() == y.sizes() && std::memcmp(x.const_data_ptr(), y.const_data_ptr(), x.nbytes()) == 0;
}

struct Case {
  std::int64_t in, out;
  std::vector<std::int64_t> ranks, rows;
  double dropout = 0;
  bool whole = false;  // every row is somebody's
};

// Three targets of one input -> their outputs, dx and all gradients, on the host. Data and weights are values of bf16
// in every type.
std::vector<at::Tensor> run(const Case& c, LoraBackend backend, at::Device device, at::ScalarType type) {
  at::manual_seed(11);
  const auto draw = [&](at::IntArrayRef shape, double std) {
    return (at::randn(shape) * std).to(at::kBFloat16).to(device, type);
  };
  const double std = 1 / std::sqrt(double(c.in));
  AdapterStore store({{"q", draw({c.out, c.in}, std), draw({c.out}, 1)},
                      {"k", draw({72, c.in}, std), {}},
                      {"v", draw({c.in, c.in}, std), {}}},
                     std::int64_t(c.ranks.size()), 128, backend);
  std::vector<SlotRows> rows;
  std::int64_t at = c.whole ? 0 : 1;
  for (std::size_t i = 0; i < c.ranks.size(); ++i) {
    const auto slot = std::int64_t(i);
    store.fill(slot, {.shapes = {{c.ranks[i], 0.5}, {8, 2}, {c.ranks[i], 1}}, .seed = i, .dropout = c.dropout});
    for (auto& t : store.weights(slot)) {
      t.a.copy_(draw(t.a.sizes(), std));
      t.b.copy_(draw(t.b.sizes(), 0.1));
    }
    store.publish(slot);
    rows.push_back({slot, at, at + c.rows[i], 3, 50});
    at += c.rows[i] + (c.whole ? 0 : std::int64_t(i % 2));
  }
  if (!c.whole) at += 3;
  const at::Tensor x = draw({at, c.in}, 1).set_requires_grad(true);
  store.begin(rows, true);
  const std::int64_t targets[] = {0, 1, 2};
  std::vector<at::Tensor> all = store.project(targets, x), g;
  for (const auto& y : all) g.push_back(draw(y.sizes(), 1));
  torch::autograd::backward(all, g);
  all.push_back(x.grad());
  for (std::size_t i = 0; i < c.ranks.size(); ++i) all.push_back(store.flat_gradients(std::int64_t(i)));
  for (auto& t : all) t = t.detach().cpu();
  return all;
}

// Tiles and their edges; sums cut into parts, over columns and over tokens; ranks of every template; widths that no
// tile takes.
const std::vector<Case> cases = {{96, 200, {8, 16, 4, 16}, {1, 63, 64, 65}},
                                 {136, 64, {32, 24, 8}, {30, 70, 0}},
                                 {640, 1032, {64, 40, 8}, {130, 17, 64}},
                                 {2048, 256, {128, 72, 16}, {130, 17, 64}},
                                 {256, 384, {16}, {1100}},
                                 {512, 512, {16, 64, 8, 32, 16, 16, 64, 128}, {100, 1, 300, 64, 65, 7, 0, 512}},
                                 {37, 50, {16, 24}, {30, 70}},
                                 {256, 512, {16, 64}, {100, 200}, 0.25},
                                 {512, 640, {16, 64, 8, 32}, {100, 1, 300, 64}, 0, true},
                                 {256, 512, {16, 64}, {100, 200}, 0.25, true},
                                 {37, 50, {16, 24}, {30, 70}, 0, true}};

TEST(Gpu, LoraKernelsEqualTheHosts) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const auto want = run(cases[i], LoraBackend::kernels, at::kCPU, at::kFloat);
    for (const auto type : {at::kBFloat16, at::kFloat}) {
      const auto got = run(cases[i], LoraBackend::kernels, {at::kCUDA, 0}, type);
      const auto again = run(cases[i], LoraBackend::kernels, {at::kCUDA, 0}, type);
      for (std::size_t k = 0; k < want.size(); ++k) {
        EXPECT_LE(off(got[k], want[k]), type == at::kFloat ? 1e-4 : 2e-2) << "case " << i << ", tensor " << k;
        EXPECT_TRUE(same_bits(got[k], again[k])) << "case " << i << ", tensor " << k;
      }
    }
  }
}

// Gate, up and down as one node, forward and backward.
std::vector<at::Tensor> gated(at::Device device, at::ScalarType type, std::int64_t in, std::int64_t inner,
                              const std::vector<std::int64_t>& ranks) {
  at::manual_seed(21);
  const auto draw = [&](at::IntArrayRef shape, double std) {
    return (at::randn(shape) * std).to(at::kBFloat16).to(device, type);
  };
  const double std = 1 / std::sqrt(double(in));
  AdapterStore store(
      {{"gate", draw({inner, in}, std), {}}, {"up", draw({inner, in}, std), {}}, {"down", draw({in, inner}, std), {}}},
      std::int64_t(ranks.size()), 128);
  std::vector<SlotRows> rows;
  std::int64_t at = 0;
  for (std::size_t i = 0; i < ranks.size(); ++i) {
    const auto slot = std::int64_t(i);
    store.fill(slot, {.shapes = {{ranks[i], 0.5}, {ranks[i], 2}, {ranks[ranks.size() - 1 - i], 1}}, .seed = i});
    for (auto& t : store.weights(slot)) {
      t.a.copy_(draw(t.a.sizes(), std));
      t.b.copy_(draw(t.b.sizes(), 0.1));
    }
    store.publish(slot);
    rows.push_back({slot, at, at + 40 + 57 * slot});
    at = rows.back().last;
  }
  const at::Tensor x = draw({at, in}, 1).set_requires_grad(true);
  store.begin(rows, true);
  const at::Tensor y = store.gated(0, 1, 2, x);
  y.backward(draw(y.sizes(), 1));
  std::vector<at::Tensor> all{y, x.grad()};
  for (std::size_t i = 0; i < ranks.size(); ++i) all.push_back(store.flat_gradients(std::int64_t(i)));
  for (auto& t : all) t = t.detach().cpu();
  return all;
}

TEST(Gpu, GatedEqualsTheHosts) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const std::vector<std::int64_t> narrow{8, 16, 4}, mixed{64, 8, 32, 16}, wide{128, 16, 72};
  for (const auto& ranks : {narrow, mixed, wide})
    for (const std::int64_t inner : {200, 1408}) {
      const auto want = gated(at::kCPU, at::kFloat, 128, inner, ranks);
      const auto got = gated({at::kCUDA, 0}, at::kBFloat16, 128, inner, ranks);
      const auto again = gated({at::kCUDA, 0}, at::kBFloat16, 128, inner, ranks);
      for (std::size_t i = 0; i < want.size(); ++i) {
        EXPECT_LE(off(got[i], want[i]), 3e-2) << inner << ", ranks from " << ranks[0] << ", tensor " << i;
        EXPECT_TRUE(same_bits(got[i], again[i])) << i;
      }
    }
}

TEST(Gpu, LoraBackendsAgree) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  for (const auto backend : {LoraBackend::grouped_mm, LoraBackend::bmm, LoraBackend::loop, LoraBackend::wide})
    for (const std::size_t i : {0u, 2u, 5u, 7u}) {
      const auto want = run(cases[i], LoraBackend::kernels, at::kCPU, at::kFloat);
      const auto got = run(cases[i], backend, {at::kCUDA, 0}, at::kBFloat16);
      for (std::size_t k = 0; k < want.size(); ++k)
        EXPECT_LE(off(got[k], want[k]), 2e-2) << int(backend) << ", case " << i << ", tensor " << k;
    }
}

// Three steps of each job of `ranks` on the place, without the others where `only` names one -> weights.
std::vector<at::Tensor> train(at::Device device, at::ScalarType type, std::int64_t only, std::int64_t poison) {
  at::manual_seed(2);
  const at::Tensor w = (at::randn({64, 64}) * 0.1).to(device, type);
  const std::int64_t ranks[] = {8, 16, 40};
  AdapterStore store({{"w", w, {}}}, 3, 64);
  AdapterOptimizer optimizer(store);
  std::vector<std::int64_t> slots;
  for (std::int64_t i = 0; i < 3; ++i)
    if (only < 0 || only == i) {
      store.fill(i, {.shapes = {{ranks[i], 2}}, .seed = std::uint64_t(i), .dropout = 0.1});
      optimizer.start(i, {0.01, 0.1, 0.5});
      slots.push_back(i);
    }
  for (std::int64_t n = 0; n < 3; ++n) {
    std::vector<SlotRows> rows;
    std::vector<at::Tensor> x;
    for (const auto i : slots) {
      at::manual_seed(std::uint64_t(100 * i + n));
      x.push_back(at::randn({50 + 40 * i, 64}).to(device, type));
      if (i == poison && n == 1) x.back().fill_(NAN);
      const auto first = rows.empty() ? 0 : rows.back().last;
      rows.push_back({i, first, first + x.back().size(0), 0, n});
    }
    store.begin(rows, true);
    const at::Tensor all = at::cat(x), y = store.project(0, all);
    at::Tensor losses = at::zeros({3}, y.options().dtype(at::kFloat));
    std::vector<at::Tensor> terms;
    for (const auto& r : rows) {
      terms.push_back((y - all).slice(0, r.first, r.last).to(at::kFloat).square().mean());
      losses[r.slot].copy_(terms.back().detach());
    }
    at::stack(terms).sum().backward();
    optimizer.step(slots, losses);
  }
  std::vector<at::Tensor> weights(3);
  for (const auto i : slots) weights[std::size_t(i)] = optimizer.park(i).weights;
  return weights;
}

TEST(Gpu, LoraJobsTrainAsOnTheHostAndApart) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const auto host = train(at::kCPU, at::kFloat, -1, -1);
  const auto together = train({at::kCUDA, 0}, at::kFloat, -1, -1);
  const auto sick = train({at::kCUDA, 0}, at::kFloat, -1, 1);
  for (std::int64_t i = 0; i < 3; ++i) {
    const auto k = std::size_t(i);
    EXPECT_LE((together[k] - host[k]).abs().max().item<double>(), 2e-3) << i;
    const auto solo = train({at::kCUDA, 0}, at::kFloat, i, -1);
    EXPECT_LE((together[k] - solo[k]).abs().max().item<double>(), 2e-3) << i;
    if (i == 1)
      EXPECT_TRUE(at::isfinite(sick[k]).all().item<bool>());
    else
      EXPECT_TRUE(same_bits(sick[k], together[k])) << i;
  }
}

// Every pointwise kernel both ways -> outputs and gradients. Widths of a warp's rows and of a block's, and a head that
// takes single values.
std::vector<at::Tensor> pointwise(at::Device device, at::ScalarType type) {
  at::manual_seed(7);
  const auto draw = [&](at::IntArrayRef shape) { return at::randn(shape).to(at::kBFloat16).to(device, type); };
  const auto leaf = [&](at::IntArrayRef shape) { return draw(shape).set_requires_grad(true); };
  std::vector<at::Tensor> all;
  const auto both = [&](const std::vector<at::Tensor>& y, const std::vector<at::Tensor>& x) {
    std::vector<at::Tensor> dy;
    for (const auto& t : y) dy.push_back(draw(t.sizes()));
    all.insert(all.end(), y.begin(), y.end());
    for (const auto& g : torch::autograd::grad(y, x, dy)) all.push_back(g);
  };
  for (const std::int64_t width : {64, 128, 1024, 2048, 5632, 8192}) {
    const at::Tensor x = leaf({37, width}), add = leaf({37, width}), weight = draw({width});
    const Normed two = rms_norm(x, add, weight, 1e-5), one = rms_norm(x, {}, weight, 1e-5);
    both({two.y, two.sum}, {x, add});
    both({one.y, one.sum}, {x});
  }
  for (const std::int64_t d : {64, 128, 12}) {
    const at::Tensor x = leaf({21, 3, d});
    at::manual_seed(8);
    const at::Tensor angles = at::randn({21, 1, d / 2}), twice = at::cat({angles, angles}, 2).to(device);
    both({rotated(x, twice.cos(), twice.sin())}, {x});
  }
  for (const std::int64_t width : {704, 13}) {
    const at::Tensor gate = leaf({5, width}), up = leaf({5, width});
    both({swiglu(gate, up)}, {gate, up});
  }
  for (const std::int64_t vocab : {1000, 1237}) {
    const at::Tensor hidden = leaf({70, 64}), head = draw({vocab, 64});
    at::manual_seed(9);
    at::Tensor labels = at::randint(vocab, {70}, at::kLong);
    labels.narrow(0, 5, 9).fill_(ignored_label);
    const at::Tensor losses = token_losses(hidden, head, labels.to(device), 32);
    all.push_back(losses);
    all.push_back(torch::autograd::grad({losses.sum()}, {hidden})[0]);
  }
  for (auto& t : all) t = t.detach().cpu();
  return all;
}

TEST(Gpu, LmKernelsEqualTheHosts) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  const auto want = pointwise(at::kCPU, at::kFloat);
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const auto got = pointwise({at::kCUDA, 0}, type);
    for (std::size_t i = 0; i < want.size(); ++i)
      EXPECT_LE(off(got[i], want[i]), type == at::kFloat ? 2e-5 : 3e-2) << "tensor " << i;
  }
}

// Says what cuBLASLt takes of scales by rows here; fp8_product does without where it does not.
void tell_of_cublas(const Fp8Rows& x, const Fp8Rows& w, const at::Tensor& bias) {
  for (const bool with_bias : {false, true})
    for (const bool fast : {false, true}) {
      std::string found = "taken";
      try {
        at::_scaled_mm(x.values, w.values.t(), x.scales.unsqueeze(1), w.scales.unsqueeze(0),
                       with_bias ? std::optional(bias) : std::nullopt, {}, at::kBFloat16, fast);
      } catch (const c10::Error& e) {
        found = std::string(e.what_without_backtrace()).substr(0, 60);
      }
      std::printf("scales by rows, [%ld, %ld] x [%ld, %ld]^T%s%s: %s\n", long(x.values.size(0)), long(x.values.size(1)),
                  long(w.values.size(0)), long(w.values.size(1)), with_bias ? ", bias" : "", fast ? ", fast" : "",
                  found.c_str());
    }
}

TEST(Gpu, Fp8RowsAreTheHosts) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  at::manual_seed(12);
  for (const std::int64_t width : {64, 2048, 5632})
    for (const std::int64_t tokens : {33, 512}) {
      SCOPED_TRACE(std::to_string(tokens) + " tokens, width " + std::to_string(width));
      const at::Tensor x = at::randn({tokens, width}).to(at::kBFloat16),
                       w = (at::randn({96, width}) * 0.02).to(at::kBFloat16);
      const at::Tensor bias = at::randn({96}).to(at::kBFloat16);
      x[7].zero_();
      const Fp8Rows host = fp8_rows(x), device = fp8_rows(x.cuda());
      EXPECT_TRUE(same_bits(host.values.view(at::kByte), device.values.view(at::kByte)));
      EXPECT_TRUE(same_bits(host.scales, device.scales));
      const Fp8Rows hw = fp8_rows(w), dw = fp8_rows(w.cuda());
      tell_of_cublas(device, dw, bias.cuda());
      const at::Tensor dy = at::randn({tokens, 96}).to(at::kBFloat16), columns = at::rand({width}) * 1e-4;
      const Fp8Rows scaled = fp8_rows(x, columns), on_device = fp8_rows(x.cuda(), columns.cuda());
      EXPECT_TRUE(same_bits(scaled.values.view(at::kByte), on_device.values.view(at::kByte)));
      EXPECT_TRUE(same_bits(scaled.scales, on_device.scales));
      EXPECT_LE(off(fp8_product_back(dy.cuda(), dw), fp8_product_back(dy, hw)), 1e-2);
      for (const bool with_bias : {false, true})
        for (int again = 0; again < 2; ++again)  // the second call knows what the first one found
          EXPECT_LE(off(fp8_product(device, dw, with_bias ? bias.cuda() : at::Tensor(), at::kBFloat16),
                        fp8_product(host, hw, with_bias ? bias : at::Tensor(), at::kBFloat16)),
                    1e-2)
              << "bias " << with_bias << ", call " << again;
    }
}

TEST(Gpu, BytesAreTurned) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  for (const std::int64_t rows : {4, 16, 96, 128, 144, 5632})
    for (const std::int64_t columns : {4, 48, 128, 2064}) {
      const at::Tensor from = at::randint(256, {rows, columns}, at::kByte).cuda(),
                       to = at::zeros({columns, rows}, from.options());
      kernels::byte_transpose({from.const_data_ptr<std::uint8_t>(), to.mutable_data_ptr<std::uint8_t>(), rows, columns},
                              buffer_of(from).place);
      EXPECT_TRUE(to.equal(from.t())) << rows << " x " << columns;
    }
}

// Steps of two compositions in turn; a rate moves, and a slot changes its job -> losses and weights.
std::vector<at::Tensor> adapter_steps(bool record, std::int64_t& recorded) {
  const std::string config =
      R"({"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 256, "intermediate_size": 704,
          "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 1000,
          "max_position_embeddings": 512, "rms_norm_eps": 1e-5})";
  CausalLm model = CausalLm::random(parse_causal_lm_config(config, "test"), 1, {at::kCUDA, 0}, at::kBFloat16);
  PeftConfig peft;
  peft.rank = 16, peft.targets = {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"};
  const auto store = make_adapter_store(model, {&peft, 1}, 4, LoraBackend::kernels);
  AdapterOptimizer optimizer(*store);
  const auto start = [&](std::int64_t slot, std::uint64_t seed) {
    store->fill(slot, adapter_init(model, *store, peft, seed, "test"));
    optimizer.start(slot, {.lr = 1e-2, .clip_norm = 1});
  };
  for (const std::int64_t slot : {0, 1, 3}) start(slot, std::uint64_t(slot));
  AdapterStep step(model, *store, optimizer, record);
  std::vector<at::Tensor> found;
  for (int i = 0; i < 14; ++i) {
    if (i == 6) optimizer.set_lr(0, 3e-3);
    if (i == 8) {
      optimizer.stop(1);
      store->clear(1);
      start(1, 9);
    }
    const std::int64_t one = i % 2 ? 64 : 96;
    at::manual_seed(std::uint64_t(i));
    AdapterBatch batch{{at::randint(1000, {one + 2 * 64}, at::kLong).to(at::kCUDA), {one, 64, 64}}, {}, {}, {}};
    batch.labels = at::roll(batch.tokens.ids, {-1});
    batch.rows = {{.slot = 0, .first = 0, .last = one},
                  {.slot = 1, .first = one, .last = one + 64},
                  {.slot = 3, .first = one + 64, .last = one + 128}};
    batch.counts = at::tensor({double(one - i), 64.0, 60.0}, at::kFloat);
    found.push_back(step.run(batch).cpu());
    found.push_back(step.evaluate(batch).cpu());
  }
  for (const std::int64_t slot : {0, 1, 3}) found.push_back(store->flat_weights(slot).cpu());
  recorded = step.recorded();
  return found;
}

// Samples of different lengths and short ones, heads that share keys, in bf16 against the host in f64.
TEST(Gpu, AttentionOfSamplesIsTheHosts) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  for (const std::vector<std::int64_t>& lengths :
       {std::vector<std::int64_t>{70, 109, 31, 82}, {64, 64, 64}, {300, 200}, {256, 256}}) {
    const auto run = [&](at::Device device, at::ScalarType type) {
      at::manual_seed(4);
      const std::int64_t n = std::accumulate(lengths.begin(), lengths.end(), std::int64_t(0));
      const auto draw = [&](std::int64_t heads) {
        return at::randn({n, heads, 64}).to(at::kBFloat16).to(device, type);
      };
      const at::Tensor q = draw(4).set_requires_grad(true), k = draw(2).set_requires_grad(true),
                       v = draw(2).set_requires_grad(true), dy = draw(4).view({n, 256});
      const at::Tensor y = causal_attention(q, k, v, sample_layout(lengths, device), 0.125);
      torch::autograd::backward({y}, {dy});
      return std::vector{y.detach(), q.grad(), k.grad(), v.grad()};
    };
    const auto host = run(at::kCPU, at::kDouble), gpu = run(at::kCUDA, at::kBFloat16);
    for (std::size_t i = 0; i < host.size(); ++i) EXPECT_LE(off(gpu[i], host[i]), 2e-2) << lengths[0] << " " << i;
  }
}

TEST(Gpu, RecordedStepsAreThePlainOnes) {
  if (no_gpu()) GTEST_SKIP() << "no GPU";
  std::int64_t none = 0, some = 0;
  const auto plain = adapter_steps(false, none), recorded = adapter_steps(true, some);
  EXPECT_EQ(none, 0);
  EXPECT_EQ(some, 8);  // trained and evaluated
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_LE(off(recorded[i], plain[i]), 1e-6) << i;
}

}  // namespace
}  // namespace trireme::nn
