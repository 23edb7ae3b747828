// Causal language models: logits of transformers and PEFT (tests/reference/make_lm_vectors.py), packing, folders, bad
// input.
#include "framework/models/causal_lm.h"

#include "framework/adapter_step.h"
#include "framework/losses/token_loss.h"
#include "framework/models/adapters.h"
#include "framework/models/causal_lm_load.h"
#include "framework/models/generate.h"
#include "framework/nn/lm_ops.h"
#include "tests/fault/program.h"
#include "tests/needs.h"
#include "tests/unit/reference_files.h"
#include "tests/unit/said.h"

#include <cmath>
#include <cstdlib>
#include <functional>
#include <numeric>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

namespace trireme::test {
namespace {

using nlohmann::json;
using trireme::test::reference_file;

const Words families{"llama", "mistral", "qwen2", "qwen3", "gpt2"};

std::string folder_of(const std::string& family) { return reference_file("lm/" + family); }

double difference(const at::Tensor& a, const at::Tensor& b) {
  if (a.sizes() != b.sizes()) return NAN;
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

CausalLm model_of(const std::string& folder, at::ScalarType type = at::kFloat) {
  return load_causal_lm(folder, at::kCPU, type);
}

// Samples of these lengths, taken from the rows of `ids` one after the other.
TokenBatch pack(const at::Tensor& ids, const std::vector<std::int64_t>& lengths) {
  std::vector<at::Tensor> parts;
  for (std::size_t i = 0; i < lengths.size(); ++i)
    parts.push_back(ids[std::int64_t(i) % ids.size(0)].narrow(0, 0, lengths[i]));
  return {at::cat(parts), lengths};
}

std::unique_ptr<nn::AdapterStore> attach(CausalLm& model, const PeftAdapter& adapter) {
  auto store = make_adapter_store(model, {&adapter.config, 1}, 1, nn::LoraBackend::loop);
  load_adapter(model, *store, 0, adapter, "adapter");
  return store;
}

at::Tensor logits_of(const CausalLm& model, const at::Tensor& ids, nn::AdapterStore* store = nullptr) {
  const at::NoGradGuard no_grad;
  const TokenBatch batch{ids.flatten(), std::vector<std::int64_t>(std::size_t(ids.size(0)), ids.size(1))};
  if (store) store->begin({nn::SlotRows{0, 0, ids.numel(), 0}}, false);
  return model.logits(model.hidden(batch)).view({ids.size(0), ids.size(1), -1});
}

TEST(CausalLm, LogitsAreThoseOfTransformers) {
  for (const auto& family : families) {
    const Safetensors reference(folder_of(family) + "/logits.safetensors");
    const at::Tensor ids = reference.tensor("ids");
    EXPECT_LT(difference(logits_of(model_of(folder_of(family)), ids), reference.tensor("logits")), 2e-5) << family;
    // transformers computes RoPE's angles in f32 for any type, so f64 shows what is left of ours.
    EXPECT_LT(difference(logits_of(model_of(folder_of(family), at::kDouble), ids), reference.tensor("logits")), 2e-5);
    // bf16 rounds at other places than f32; far from noise it is the same model.
    EXPECT_LT(difference(logits_of(model_of(folder_of(family), at::kBFloat16), ids), reference.tensor("logits")), 0.3);
  }
}

TEST(CausalLm, AdaptersAreThoseOfPeft) {
  for (const auto& family : families) {
    const Safetensors reference(folder_of(family) + "/logits.safetensors");
    const at::Tensor ids = reference.tensor("ids");
    CausalLm model = model_of(folder_of(family));
    const PeftAdapter adapter = read_peft(folder_of(family) + "/adapter");
    const CausalLm whole = merged(model, adapter, family);
    const auto store = attach(model, adapter);
    EXPECT_LT(difference(logits_of(model, ids, store.get()), reference.tensor("adapted")), 2e-5) << family;
    // PEFT's numbers are of f32 as well: up to 1.9e-5 from the merge in f64, which stands between.
    const at::Tensor exact = logits_of(merged(model_of(folder_of(family), at::kDouble), adapter, family), ids);
    EXPECT_LT(difference(logits_of(whole, ids), exact), 2e-5) << family << " merged";
    EXPECT_LT(difference(exact, reference.tensor("adapted")), 2e-5) << family << " merged in f64";
    // The merge is of a copy: the base is as it was.
    store->begin({}, false);
    const at::NoGradGuard no_grad;
    EXPECT_LT(difference(model.logits(model.hidden({ids[0], {ids.size(1)}})), reference.tensor("logits")[0]), 2e-5);
  }
}

// Any samples beside it leave a sample's numbers alone.
TEST(CausalLm, SamplesOfABatchNeverSeeEachOther) {
  const at::NoGradGuard no_grad;
  for (const auto& family : {"qwen3", "gpt2"}) {
    const CausalLm model = model_of(folder_of(family), at::kDouble);
    const at::Tensor ids = Safetensors(folder_of(family) + "/logits.safetensors").tensor("ids");
    const std::vector<std::int64_t> lengths{3, 12, 1, 11, 7, 12, 2};
    const TokenBatch batch = pack(ids, lengths);
    const at::Tensor all = model.hidden(batch);
    std::int64_t first = 0;
    for (const auto n : lengths) {
      const at::Tensor alone = model.hidden({batch.ids.narrow(0, first, n), {n}});
      EXPECT_LT(difference(alone, all.narrow(0, first, n)), 1e-12) << family << " " << n;
      first += n;
    }
  }
}

TEST(CausalLm, CheckpointingChangesNoGradient) {
  for (const auto& family : {"llama", "gpt2"}) {
    CausalLm model = model_of(folder_of(family), at::kDouble);
    const PeftAdapter adapter = read_peft(folder_of(family) + "/adapter");
    const auto store = attach(model, adapter);
    const at::Tensor ids = Safetensors(folder_of(family) + "/logits.safetensors").tensor("ids");
    const TokenBatch batch = pack(ids, {5, 12, 8});
    const at::Tensor labels = batch.ids.roll(-1);
    std::vector<at::Tensor> gradients;
    std::int64_t layers = 0;
    model.set_before_layer([&](std::int64_t) { ++layers; });
    for (const bool on : {false, true}) {
      model.set_checkpointing(on);
      store->zero_gradients();
      store->begin({nn::SlotRows{0, 0, 25, 0}}, true);
      token_losses(model.hidden(batch), model.head(), labels, 4).mean().backward();
      gradients.push_back(store->flat_gradients(0).clone());
    }
    EXPECT_EQ(layers, 2 + 4);
    EXPECT_GT(gradients[0].abs().max().item<double>(), 1e-4);
    EXPECT_LT(difference(gradients[0], gradients[1]), 1e-14) << family;
    for (const auto& [w, value] : model.weights()) EXPECT_FALSE(value.grad().defined()) << w.name;
  }
}

TEST(TokenLoss, EqualsCrossEntropyInAnyChunks) {
  at::manual_seed(3);
  const auto options = at::TensorOptions().dtype(at::kDouble);
  const at::Tensor labels = at::randint(0, 11, {13}, at::kLong);
  labels.slice(0, 2, 5).fill_(ignored_label);
  const at::Tensor weights = at::rand({13}, options);
  const at::Tensor x = at::randn({13, 6}, options), w = at::randn({11, 6}, options);
  const auto run = [&](bool head_moves, const std::function<at::Tensor(const at::Tensor&, const at::Tensor&)>& loss) {
    at::Tensor a = x.clone().requires_grad_(), b = w.clone().set_requires_grad(head_moves);
    const at::Tensor l = loss(a, b);
    (l * weights).sum().backward();
    return std::vector<at::Tensor>{l.detach(), a.grad(), head_moves ? b.grad() : at::zeros_like(w)};
  };
  const auto expected = run(true, [&](const at::Tensor& a, const at::Tensor& b) {
    return at::cross_entropy_loss(at::linear(a, b), labels, {}, at::Reduction::None);
  });
  for (const std::int64_t chunk : {1, 4, 100})
    for (const bool head_moves : {false, true}) {
      const auto got =
          run(head_moves, [&](const at::Tensor& a, const at::Tensor& b) { return token_losses(a, b, labels, chunk); });
      EXPECT_LT(difference(got[0], expected[0]), 1e-14);
      EXPECT_LT(difference(got[1], expected[1]), 1e-14);
      EXPECT_LT(difference(got[2], head_moves ? expected[2] : at::zeros_like(w)), 1e-14);
    }
}

// A job's mean weighs by 1 / n, which bf16 lacks: the gradient is rounded where it ends, not that weight.
TEST(TokenLoss, WeightsAreNotOfTheHeadsType) {
  at::manual_seed(5);
  const at::Tensor labels = at::randint(0, 11, {64}, at::kLong);
  const at::Tensor w = at::randn({11, 16}).to(at::kBFloat16), x = at::randn({64, 16}).to(at::kBFloat16);
  const auto gradient = [&](double weight) {
    at::Tensor a = x.clone().requires_grad_();
    (token_losses(a, w, labels).sum() * weight).backward();
    return a.grad().to(at::kDouble);
  };
  const double weight = 0.3;  // bf16 says 0.3008
  const at::Tensor one = gradient(1);
  EXPECT_NEAR((gradient(weight) * one).sum().item<double>() / (one * one).sum().item<double>(), weight, 5e-4);
}

// Greedy with the cache: what transformers' generate() made; batched with others, what each gives alone.
// Outputs and gradients of one function of these inputs, which are values of bf16 in any type.
using Function = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;
std::vector<at::Tensor> both_ways(const Function& f, const std::vector<at::Tensor>& inputs, at::ScalarType type) {
  std::vector<at::Tensor> in, dy;
  for (const auto& t : inputs) in.push_back(t.to(at::kBFloat16).to(type).set_requires_grad(true));
  std::vector<at::Tensor> all = f(in);
  for (std::size_t i = 0; i < all.size(); ++i) {
    at::manual_seed(100 + i);
    dy.push_back(at::randn(all[i].sizes()).to(at::kBFloat16).to(type));
  }
  for (const auto& g : torch::autograd::grad(all, in, dy)) all.push_back(g);
  return all;
}

// In f64 these run ATen's operators.
TEST(LmOps, KernelsEqualAutogradInF64) {
  at::manual_seed(3);
  const at::Tensor weight = at::randn({48}).to(at::kBFloat16), angles = at::randn({5, 1, 4});
  const at::Tensor cos = at::cat({angles.cos(), angles.cos()}, 2), sin = at::cat({angles.sin(), angles.sin()}, 2);
  using Inputs = std::vector<at::Tensor>;
  const auto norm = [&](const at::Tensor& x, const at::Tensor& add) {
    return nn::rms_norm(x, add, weight.to(x.scalar_type()), 1e-3);
  };
  const std::vector<std::pair<Inputs, Function>> cases{
      {{at::randn({7, 30}) * 4, at::randn({7, 30})}, [](const Inputs& x) { return Inputs{nn::swiglu(x[0], x[1])}; }},
      {{at::randn({5, 3, 8})}, [&](const Inputs& x) { return Inputs{nn::rotated(x[0], cos, sin)}; }},
      {{at::randn({6, 48})},
       [&](const Inputs& x) {
         const auto y = norm(x[0], {});
         return Inputs{y.y, y.sum};
       }},
      {{at::randn({2, 3, 48}), at::randn({2, 3, 48})}, [&](const Inputs& x) {
         const auto y = norm(x[0], x[1]);
         return Inputs{y.y, y.sum};
       }}};
  for (const auto type : {at::kFloat, at::kBFloat16})
    for (std::size_t c = 0; c < cases.size(); ++c) {
      const auto got = both_ways(cases[c].second, cases[c].first, type);
      const auto want = both_ways(cases[c].second, cases[c].first, at::kDouble);
      for (std::size_t i = 0; i < want.size(); ++i)
        EXPECT_LT(difference(got[i], want[i]), type == at::kFloat ? 2e-6 : 0.04) << "case " << c << ", tensor " << i;
    }
}

TEST(LmOps, ANormWithoutItsSumAndATrainedOne) {
  at::manual_seed(4);
  const at::Tensor x = at::randn({3, 16}).set_requires_grad(true), add = at::randn({3, 16}).set_requires_grad(true);
  const at::Tensor weight = at::randn({16});
  const auto once = torch::autograd::grad({nn::rms_norm(x, add, weight, 1e-5).y.sum()}, {x, add});
  EXPECT_EQ(difference(once[0], once[1]), 0);
  const at::Tensor of_sum = torch::autograd::grad({nn::rms_norm(x, add, weight, 1e-5).sum.sum()}, {x})[0];
  EXPECT_EQ(difference(of_sum, at::ones_like(x)), 0);
  const at::Tensor trained = weight.clone().set_requires_grad(true);
  const auto all = torch::autograd::grad({nn::rms_norm(x, add, trained, 1e-5).y.sum()}, {x, trained});
  EXPECT_LT(difference(all[0], once[0]), 1e-5);
  EXPECT_GT(all[1].abs().sum().item<double>(), 0);
}

// What a graph is to AdapterStep: work that runs when it is replayed, on what lies in the recorded places then.
struct Replayed : StepGraph {
  std::function<void()> work;
  static inline bool refuse = false;
  static inline int alive = 0;
  Replayed() { ++alive; }
  ~Replayed() override { --alive; }
  std::size_t capture(const std::function<void()>& f) override {
    if (refuse) throw std::runtime_error("not permitted when a stream is capturing");
    work = f;
    return 1;
  }
  void replay() override { work(); }
};

// Two compositions in turn, a rate that moves, and a slot that changes its job -> losses and weights.
std::vector<at::Tensor> adapter_steps(bool record, std::int64_t& recorded) {
  CausalLm model = model_of(folder_of("llama"));
  std::vector<PeftConfig> configs(1);
  configs[0].rank = 8, configs[0].targets = {"q_proj", "v_proj", "down_proj"};
  const auto store = make_adapter_store(model, configs, 3, nn::LoraBackend::kernels);
  nn::AdapterOptimizer optimizer(*store);
  const auto start = [&](std::int64_t slot, std::uint64_t seed) {
    store->fill(slot, adapter_init(model, *store, configs[0], seed, "adapter"));
    optimizer.start(slot, {.lr = 1e-2, .clip_norm = 1});
  };
  start(0, 1), start(2, 2);
  AdapterStep step(model, *store, optimizer, record);
  std::vector<at::Tensor> found;
  at::manual_seed(5);
  for (int i = 0; i < 12; ++i) {
    const std::int64_t one = i % 2 ? 6 : 9;
    if (i == 6) optimizer.set_lr(0, 3e-3);
    if (i == 8) {
      optimizer.stop(2);
      store->clear(2);
      start(2, 7);
    }
    AdapterBatch batch{{at::randint(model.config().vocab, {one + 7 + 4}, at::kLong), {one, 7, 4}}, {}, {}, {}};
    batch.labels = at::roll(batch.tokens.ids, {-1});
    batch.rows = {{.slot = 0, .first = 0, .last = one}, {.slot = 2, .first = one, .last = one + 11}};
    batch.counts = at::tensor({double(one - i % 3), 11.0}, at::kFloat);
    found.push_back(step.run(batch).clone());
    found.push_back(step.evaluate(batch).clone());
  }
  for (const std::int64_t slot : {0, 2}) found.push_back(store->flat_weights(slot).clone());
  recorded = step.recorded();
  return found;
}

TEST(AdapterStep, RecordedStepsAreThePlainOnes) {
  set_step_graphs([](int, GraphMemory) -> std::unique_ptr<StepGraph> { return std::make_unique<Replayed>(); });
  std::int64_t none = 0, some = 0;
  const auto plain = adapter_steps(false, none), recorded = adapter_steps(true, some);
  EXPECT_EQ(none, 0);
  EXPECT_EQ(some, 8);  // two compositions, trained and evaluated, before and after the slot changed
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::equal(plain[i], recorded[i])) << i;
  EXPECT_GT((plain[0] - plain[20]).abs().max().item<double>(), 0);
  Replayed::refuse = true;  // what cannot be recorded runs as it is
  ::testing::internal::CaptureStderr();
  const auto refused = adapter_steps(true, some);
  EXPECT_EQ(::testing::internal::GetCapturedStderr(),
            "steps of adapters are not recorded as CUDA graphs: not permitted when a stream is capturing\n");
  Replayed::refuse = false;
  set_step_graphs(nullptr);
  EXPECT_EQ(some, 0);
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_TRUE(at::equal(plain[i], refused[i])) << i;
}

// Losses are the jobs' own means, and a job's gradient is what autograd finds of its mean alone.
// Also where the steps that come now make no graphs, which would look for theirs.
TEST(AdapterStep, GraphsOfClearedSlotsGiveBackTheirMemory) {
  set_step_graphs([](int, GraphMemory) -> std::unique_ptr<StepGraph> { return std::make_unique<Replayed>(); });
  CausalLm model = model_of(folder_of("llama"));
  std::vector<PeftConfig> configs(2);
  for (auto& c : configs) c.rank = 8, c.targets = {"q_proj", "v_proj"};
  configs[1].dropout = 0.5;
  const auto store = make_adapter_store(model, configs, 2, nn::LoraBackend::kernels);
  nn::AdapterOptimizer optimizer(*store);
  AdapterStep step(model, *store, optimizer, true);
  for (const std::int64_t slot : {0, 1}) {
    store->fill(slot, adapter_init(model, *store, configs[std::size_t(slot)], 1, "adapter"));
    optimizer.start(slot, {.lr = 1e-2});
    AdapterBatch batch{{at::arange(5), {5}}, at::arange(1, 6), {{.slot = slot, .first = 0, .last = 5}}, at::ones({1})};
    for (int i = 0; i < 3; ++i) {
      step.run(batch);
      if (slot == 0) step.evaluate(batch);
    }
    EXPECT_EQ(Replayed::alive, slot == 0 ? 2 : 0);
    optimizer.stop(slot), store->clear(slot);
  }
  set_step_graphs(nullptr);
}

TEST(AdapterStep, LossesAreMeansOfWhatCounts) {
  CausalLm model = model_of(folder_of("llama"));
  std::vector<PeftConfig> configs(1);
  configs[0].rank = 8, configs[0].targets = {"o_proj"};
  const auto store = make_adapter_store(model, configs, 1, nn::LoraBackend::loop);
  store->fill(0, adapter_init(model, *store, configs[0], 1, "adapter"));
  nn::AdapterOptimizer optimizer(*store);
  optimizer.start(0, {.lr = 0});
  at::manual_seed(6);
  AdapterBatch batch{{at::randint(model.config().vocab, {12}, at::kLong), {5, 7}}, {}, {{.slot = 0, .last = 12}}, {}};
  batch.labels = at::roll(batch.tokens.ids, {-1});
  batch.labels.narrow(0, 2, 4).fill_(ignored_label);
  batch.counts = at::tensor({8.0}, at::kFloat);
  const at::Tensor loss = AdapterStep(model, *store, optimizer, false).run(batch);
  store->begin(batch.rows, true);
  const at::Tensor logits = model.logits(model.hidden(batch.tokens));
  const at::Tensor want = at::cross_entropy_loss(logits, batch.labels);
  EXPECT_LT(std::abs(loss.item<double>() - want.item<double>()), 1e-5);
  want.backward();
  const double norm = store->flat_gradients(0).norm().item<double>();
  EXPECT_LT(std::abs(optimizer.norms()[0].item<double>() - norm), 1e-5 * norm);
}

TEST(Generate, IsTransformersGreedy) {
  for (const auto& family : families) {
    CausalLm model = model_of(folder_of(family));
    const PeftAdapter adapter = read_peft(folder_of(family) + "/adapter");
    const auto store = attach(model, adapter);
    const at::Tensor whole = Safetensors(folder_of(family) + "/logits.safetensors").tensor("greedy");
    const std::vector<std::int64_t> all(whole.data_ptr<std::int64_t>(), whole.data_ptr<std::int64_t>() + whole.numel());
    GreedyOptions o;
    o.most = 12;
    o.before_pass = [&](std::span<const std::int64_t> n) {
      store->begin({nn::SlotRows{0, 0, std::accumulate(n.begin(), n.end(), std::int64_t(0)), 0}}, false);
    };
    const std::vector<std::int64_t> prompt(all.begin(), all.begin() + 5), expected(all.begin() + 5, all.end());
    EXPECT_EQ(greedy(model, {prompt}, o)[0], expected) << family;
    const std::vector<std::vector<std::int64_t>> prompts{{1, 2}, prompt, {3}};
    o.ends = {expected[7]};
    const auto together = greedy(model, prompts, o);
    for (std::size_t i = 0; i < prompts.size(); ++i)
      EXPECT_EQ(together[i], greedy(model, {prompts[i]}, o)[0]) << family << " " << i;
    EXPECT_LE(together[1].size(), 7u);
    o.most = std::int64_t(1) << 40;  // costs nothing that is not decoded
    EXPECT_EQ(greedy(model, {prompt}, o)[0], together[1]) << family;
  }
}

// The cache grows while samples of different lengths are in it.
TEST(Generate, GoesOnBeyondTheCachesFirstRoom) {
  const CausalLm model = model_of(folder_of("llama"), at::kDouble);
  const std::vector<std::vector<std::int64_t>> prompts{{1, 2, 7, 4}, {3}};
  const auto whole = greedy(model, prompts, {.most = 150});
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    ASSERT_EQ(whole[i].size(), 150u);
    auto so_far = prompts[i];
    so_far.insert(so_far.end(), whole[i].begin(), whole[i].begin() + 140);
    EXPECT_EQ(greedy(model, {so_far}, {.most = 10})[0], std::vector(whole[i].begin() + 140, whole[i].end()));
  }
}

TEST(CausalLm, FoldersAreWrittenAsTheyWereRead) {
  for (const auto& family : families) {
    const TempFolder temp;
    const std::string out = (temp.path / "model").string();
    const CausalLm model = model_of(folder_of(family), at::kBFloat16);
    write_hf_folder(out, model, 4000, folder_of(family));  // several shards
    EXPECT_TRUE(fs::exists(out + "/model.safetensors.index.json"));
    const HfFolder before(folder_of(family)), after(out);
    EXPECT_EQ(before.names(), after.names()) << family;
    for (const auto& name : before.names()) {
      const at::Tensor t = Safetensors(before.file_of(name)).tensor(name);
      EXPECT_TRUE(at::equal(t, after.tensor(name, t.sizes()))) << name;
    }
    json a = json::parse(before.config()), b = json::parse(after.config());
    a.erase("torch_dtype"), a.erase("dtype"), b.erase("dtype");
    EXPECT_EQ(a, b);
    for (const auto& entry : fs::directory_iterator(out)) EXPECT_LT(fs::file_size(entry.path()), 8000u);
    // Whole again over the shards, which must go.
    write_hf_folder(out, model, 1 << 30, folder_of(family));
    EXPECT_FALSE(fs::exists(out + "/model.safetensors.index.json"));
    EXPECT_EQ(HfFolder(out).names(), before.names());
  }
}

TEST(CausalLm, AdapterFoldersAreWrittenAsTheyWereRead) {
  for (const auto& family : families) {
    const TempFolder temp;
    const std::string out = (temp.path / "adapter").string();
    CausalLm model = model_of(folder_of(family));
    const PeftAdapter adapter = read_peft(folder_of(family) + "/adapter");
    const auto store = attach(model, adapter);
    write_peft(out, adapter_of(*store, 0, adapter.config), family);
    const Safetensors a(folder_of(family) + "/adapter/adapter_model.safetensors"),
        b(out + "/adapter_model.safetensors");
    EXPECT_EQ(a.names(), b.names());
    for (const auto& name : a.names()) EXPECT_TRUE(at::equal(a.tensor(name), b.tensor(name))) << name;
    const json before = json::parse(read_text(folder_of(family) + "/adapter/adapter_config.json")),
               after = json::parse(read_text(out + "/adapter_config.json"));
    for (const auto& [key, value] : after.items()) {
      EXPECT_EQ(value, before[key]) << key;
    }
  }
}

// transformers 4 spelled three keys in another way, and published GPT-2 has no outer module but mask buffers.
TEST(CausalLm, OldFoldersAreRead) {
  const TempFolder temp;
  for (const std::string family : {"llama", "gpt2"}) {
    const fs::path out = temp.path / family;
    fs::create_directory(out);
    const HfFolder from(folder_of(family));
    json config = json::parse(from.config());
    if (family == "llama") {
      json scaling = config["rope_parameters"];
      config["rope_theta"] = scaling["rope_theta"];
      scaling["type"] = scaling["rope_type"];
      scaling.erase("rope_theta"), scaling.erase("rope_type");
      config["rope_scaling"] = scaling;
      config.erase("rope_parameters");
      config["torch_dtype"] = config["dtype"];
      config.erase("dtype"), config.erase("head_dim");
    }
    write_text(out / "config.json", config.dump());
    std::vector<NamedTensor> tensors{{"h.0.attn.bias", at::ones({1, 1, 4, 4})}, {"h.0.attn.masked_bias", at::ones({})}};
    for (const auto& name : from.names()) {
      const at::Tensor t = Safetensors(from.file_of(name)).tensor(name);
      tensors.push_back({family == "gpt2" ? name.substr(12) : name, t});
    }
    write_safetensors((out / "model.safetensors").string(), tensors);
    const Safetensors reference(folder_of(family) + "/logits.safetensors");
    EXPECT_EQ(load_causal_lm(out.string(), at::kCPU).dtype(), at::kBFloat16);
    EXPECT_LT(difference(logits_of(model_of(out.string()), reference.tensor("ids")), reference.tensor("logits")), 2e-5);
  }
}

// A head beside the embedding counts where it is another, though config.json ties both; a copy is the embedding.
TEST(CausalLm, AHeadOfItsOwnIsNotTied) {
  for (const std::string family : {"qwen3", "gpt2"}) {
    const TempFolder temp;
    const HfFolder from(folder_of(family));
    write_text(temp.path / "config.json", from.config());
    std::vector<NamedTensor> tensors;
    for (const auto& name : from.names()) tensors.push_back({name, Safetensors(from.file_of(name)).tensor(name)});
    const CausalLm before = model_of(folder_of(family));
    const at::Tensor ids = Safetensors(folder_of(family) + "/logits.safetensors").tensor("ids");
    const at::Tensor embedding = Safetensors(from.file_of(from.names()[0]))
                                     .tensor(family == "gpt2" ? "transformer.wte.weight" : "model.embed_tokens.weight");
    for (const double by : {1.0, -2.0}) {
      auto all = tensors;
      all.push_back({"lm_head.weight", (embedding * by).contiguous()});
      write_safetensors((temp.path / "model.safetensors").string(), all);
      const CausalLm model = model_of(temp.path.string());
      EXPECT_LT(difference(logits_of(model, ids), logits_of(before, ids) * by), 1e-5) << family << by;
      const std::string out = (temp.path / "out").string();
      write_hf_folder(out, model, 1 << 30, temp.path.string());
      EXPECT_EQ(HfFolder(out).has("lm_head.weight"), by != 1);
      EXPECT_EQ(parse_causal_lm_config(HfFolder(out).config(), out).tied, by == 1);
    }
  }
}

TEST(CausalLm, RandomModelsFollowSeedAndName) {
  const CausalLmConfig config = parse_causal_lm_config(
      R"({"model_type":"llama","vocab_size":40,"hidden_size":32,"intermediate_size":64,"num_hidden_layers":2,)"
      R"("num_attention_heads":4,"num_key_value_heads":2})",
      "here");
  const auto a = CausalLm::random(config, 1, at::kCPU, at::kFloat).weights(),
             b = CausalLm::random(config, 1, at::kCPU, at::kFloat).weights(),
             c = CausalLm::random(config, 2, at::kCPU, at::kFloat).weights();
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_TRUE(at::equal(a[i].second, b[i].second));
    EXPECT_EQ(at::equal(a[i].second, c[i].second), a[i].first.kind == LmWeight::one) << a[i].first.name;
    const bool drawn = a[i].first.kind == LmWeight::matrix || a[i].first.kind == LmWeight::embedding;
    EXPECT_NEAR(a[i].second.std().item<double>(), drawn ? 0.02 : 0, 0.003) << a[i].first.name;
  }
}

// The other way round: transformers and PEFT on folders written here, of drawn models.
TEST(CausalLm, TransformersAndPeftReadWhatIsWritten) {
  const char* python = std::getenv("TRIREME_PEFT_PYTHON");
  if (!python || !*python) GTEST_SKIP() << "TRIREME_PEFT_PYTHON names no python with transformers and peft";
  const TempFolder temp;
  for (const auto& family : families) {
    const std::string root = (temp.path / family).string();
    const HfFolder from(folder_of(family));
    CausalLm model = CausalLm::random(parse_causal_lm_config(from.config(), family), 5, at::kCPU, at::kFloat);
    for (const auto& [w, value] : model.weights()) at::Tensor(value).mul_(w.kind == LmWeight::one ? 1 : 10);
    PeftConfig config = read_peft(folder_of(family) + "/adapter").config;
    const auto store = make_adapter_store(model, {&config, 1}, 1, nn::LoraBackend::loop);
    store->fill(0, adapter_init(model, *store, config, 3, family));
    for (const auto& t : store->weights(0)) at::Tensor(t.b).uniform_(-1, 1);
    store->publish(0);
    const PeftAdapter adapter = adapter_of(*store, 0, config);
    const at::Tensor ids = Safetensors(folder_of(family) + "/logits.safetensors").tensor("ids");
    const at::Tensor adapted = logits_of(model, ids, store.get());
    store->begin({}, false);
    write_hf_folder(root + "/model", model, 9000, folder_of(family));
    write_hf_folder(root + "/merged", merged(model, adapter, family), 1 << 30, folder_of(family));
    write_peft(root + "/adapter", adapter, family);
    write_safetensors(root + "/ours.safetensors",
                      std::vector<NamedTensor>{{"ids", ids}, {"adapted", adapted}, {"base", logits_of(model, ids)}});
  }
  const std::string command =
      std::string(python) + " " + std::getenv("TRIREME_SOURCE") + "/tests/peers/lm_parity.py " + temp.path.string();
  EXPECT_EQ(std::system(command.c_str()), 0);
}

// ---- bad input

std::string refused(json changes) {
  json config = json::parse(read_text(folder_of("llama") + "/config.json"));
  config.merge_patch(changes);
  return said([&] { parse_causal_lm_config(config.dump(), "config.json"); });
}

TEST(CausalLm, OtherArchitecturesAreRefused) {
  EXPECT_SAYS(refused({{"model_type", "mixtral"}}), "llama, mistral, qwen2, qwen3, gpt2");
  EXPECT_SAYS(refused({{"layer_types", {"full_attention", "sliding_attention"}}}), "layer_types asks for sliding");
  EXPECT_SAYS(refused({{"use_sliding_window", true}}), "use_sliding_window");
  EXPECT_SAYS(refused({{"rope_parameters", {{"rope_type", "yarn"}}}}), "'yarn'");
  EXPECT_SAYS(refused({{"hidden_act", "gelu"}}), "hidden_act is 'gelu'");
  EXPECT_SAYS(refused({{"num_key_value_heads", 3}}), "num_key_value_heads does not divide");
  EXPECT_SAYS(refused({{"vocab_size", nullptr}}), "vocab_size is missing");
  EXPECT_SAYS(refused({{"hidden_size", 1e30}}), "hidden_size is 1e+30");
  EXPECT_SAYS(refused({{"num_hidden_layers", -1}}), "num_hidden_layers");
  EXPECT_SAYS(refused({{"quantization_config", {{"bits", 4}}}}), "quantization_config");
  EXPECT_SAYS(said([] { parse_causal_lm_config("{", "config.json"); }), "is no JSON object");
  EXPECT_SAYS(said([] { model_of("/nowhere"); }), "is no folder");
}

class BrokenFolder : public ::testing::Test {
 protected:
  BrokenFolder() : folder(temp.path / "model") {
    write_hf_folder(folder.string(), model_of(folder_of("llama"), at::kFloat), 20000, folder_of("llama"));
  }
  void change_index(const std::function<void(json&)>& change) {
    json index = json::parse(read_text(folder / "model.safetensors.index.json"));
    change(index);
    write_text(folder / "model.safetensors.index.json", index.dump());
  }
  std::string error() const {
    return said([&] { model_of(folder.string()); });
  }
  TempFolder temp;
  fs::path folder;
};

TEST_F(BrokenFolder, NamesFileAndTensor) {
  EXPECT_EQ(error(), "nothing");
  change_index([](json& i) { i["weight_map"].erase("model.norm.weight"); });
  EXPECT_SAYS(error(), "has no tensor 'model.norm.weight'");
  change_index([](json& i) { i["weight_map"]["model.norm.weight"] = "../../etc/passwd.safetensors"; });
  EXPECT_SAYS(error(), "tensor 'model.norm.weight' is placed in no file of this folder");
  change_index([](json& i) { i["weight_map"]["model.norm.weight"] = "model-00009-of-00009.safetensors"; });
  EXPECT_SAYS(error(), "model-00009-of-00009.safetensors: is missing");
  change_index([](json& i) { i["weight_map"]["model.norm.weight"] = i["weight_map"]["model.embed_tokens.weight"]; });
  EXPECT_SAYS(error(), "lacks tensor 'model.norm.weight'");
  change_index([](json& i) { i["weight_map"] = json::array(); });
  EXPECT_SAYS(error(), "has no weight_map");
}

TEST_F(BrokenFolder, CutFilesAndOtherShapes) {
  std::string name;
  change_index([&](json& i) { name = i["weight_map"]["model.norm.weight"]; });
  const std::string bytes = read_text(folder / name);
  write_text(folder / name, bytes.substr(0, bytes.size() - 7));
  EXPECT_SAYS(error(), name);
  write_text(folder / name, bytes);
  json config = json::parse(read_text(folder / "config.json"));
  config["intermediate_size"] = 25;
  write_text(folder / "config.json", config.dump());
  EXPECT_SAYS(error(), "'model.layers.0.mlp.gate_proj.weight' has the shape [24, 32], config.json asks for [25, 32]");
  config["intermediate_size"] = 1 << 22;
  config["num_hidden_layers"] = 10000;
  write_text(folder / "config.json", config.dump());
  EXPECT_SAYS(error(), "config.json asks for");
}

TEST_F(BrokenFolder, AMisfitIsNoModel) {
  json config = json::parse(read_text(folder / "config.json"));
  config["num_hidden_layers"] = 1;
  write_text(folder / "config.json", config.dump());
  EXPECT_SAYS(error(), "holds tensor 'model.layers.1.");
}

// ---- PEFT's rules

std::vector<PeftTarget> targets(const json& changes, const std::string& family = "llama") {
  json config{{"peft_type", "LORA"}, {"r", 4}, {"lora_alpha", 8}};
  if (changes.is_object()) config.merge_patch(changes);
  const std::vector<std::string> modules{"model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj",
                                         "model.layers.1.self_attn.q_proj", "model.layers.1.mlp.up_proj",
                                         "model.layers.1.self_attn.v_proj"};
  return peft_targets(parse_peft_config(config.dump(), "adapter_config.json"), modules, family, "adapter");
}

std::vector<std::size_t> modules(const json& changes) {
  std::vector<std::size_t> all;
  for (const auto& t : targets(changes)) all.push_back(t.module);
  return all;
}

TEST(Peft, TargetsRanksAndScales) {
  using All = std::vector<std::size_t>;
  EXPECT_EQ(modules({}), (All{0, 2, 4}));  // PEFT's for Llama: q_proj and v_proj
  EXPECT_EQ(modules({{"target_modules", {"up_proj"}}}), (All{1, 3}));
  EXPECT_EQ(modules({{"target_modules", {"model.layers.1.mlp.up_proj", "v_proj"}}}), (All{3, 4}));
  EXPECT_EQ(modules({{"target_modules", {"1.self_attn.q_proj"}}}), (All{2}));
  EXPECT_EQ(modules({{"target_modules", R"(.*\.1\.self_attn\..*)"}}), (All{2, 4}));
  for (const char* all : {"all-linear", "All-Linear"})
    EXPECT_EQ(modules({{"target_modules", all}}), (All{0, 1, 2, 3, 4}));
  EXPECT_EQ(modules({{"target_modules", "all-linear"}, {"exclude_modules", {"q_proj"}}}), (All{1, 3, 4}));
  const json expression{{"target_modules", "all-linear"}, {"exclude_modules", R"(.*layers\.1\..*_proj)"}};
  EXPECT_EQ(modules(expression), (All{0, 1}));
  EXPECT_EQ(modules({{"target_modules", {"q_proj"}}, {"exclude_modules", "q_proj"}}), (All{0, 2})) << "of whole names";
  EXPECT_EQ(json::parse(print_peft_config(
                parse_peft_config(
                    json{{"peft_type", "LORA"}, {"exclude_modules", expression["exclude_modules"]}}.dump(), "f"),
                "llama"))["exclude_modules"],
            expression["exclude_modules"]);
  const auto t = targets({{"target_modules", "all-linear"},
                          {"use_rslora", true},
                          {"rank_pattern", {{"q_proj", 2}, {"layers.1.mlp.up_proj", 16}}},
                          {"alpha_pattern", {{"v_proj", 3}}}});
  EXPECT_EQ(t[0].rank, 2);
  EXPECT_EQ(t[1].rank, 4);
  EXPECT_EQ(t[3].rank, 16);
  EXPECT_DOUBLE_EQ(t[3].scale, 8 / 4.0);
  EXPECT_DOUBLE_EQ(t[4].scale, 3 / 2.0);
  EXPECT_DOUBLE_EQ(targets({})[0].scale, 8 / 4.0);
}

TEST(Peft, BadConfigsAreRefused) {
  const auto refused = [](const json& changes) { return said([&] { targets(changes); }); };
  EXPECT_SAYS(refused({{"target_modules", {"q_prj"}}}), "did you mean q_proj?");
  EXPECT_SAYS(refused({{"target_modules", "nothing_.*"}}), "name no linear module");
  EXPECT_SAYS(refused({{"target_modules", "(a"}}), "(a");
  EXPECT_SAYS(refused({{"target_modules", "a)|(?:q_proj"}}), "refused");
  EXPECT_SAYS(refused({{"peft_type", "IA3"}}), "peft_type");
  EXPECT_SAYS(refused({{"use_dora", true}}), "use_dora");
  EXPECT_SAYS(refused({{"bias", "all"}}), "bias");
  EXPECT_SAYS(refused({{"modules_to_save", {"lm_head"}}}), "modules_to_save");
  EXPECT_SAYS(refused({{"init_lora_weights", "pissa"}}), "pissa");
  EXPECT_SAYS(refused({{"r", 0}}), "r is out of range");
  EXPECT_SAYS(refused({{"r", 4.5}}), "r is no whole number");
  EXPECT_SAYS(refused({{"rank_pattern", {{"q_proj", 0}}}}), "rank_pattern.q_proj");
}

TEST(Peft, WeightsThatDoNotFitAreNamed) {
  const CausalLm model = model_of(folder_of("llama"));
  const PeftAdapter good = read_peft(folder_of("llama") + "/adapter");
  const auto error = [&](const std::function<void(PeftAdapter&)>& change) {
    PeftAdapter bad = good;
    change(bad);
    return said([&] { merged(model, bad, "adapter"); });
  };
  EXPECT_SAYS(error([](PeftAdapter& a) { a.modules.pop_back(); }), "has no lora_A.weight of");
  EXPECT_SAYS(error([](PeftAdapter& a) { a.config.targets.pop_back(); }), "do not name");
  EXPECT_SAYS(error([](PeftAdapter& a) { a.config.rank = 5; }), "its config says 5");
  EXPECT_SAYS(error([](PeftAdapter& a) { a.modules[0].b = a.modules[0].b.slice(0, 1); }), "another width");
}

TEST(Peft, NumbersThatAreNotFiniteAreRefused) {
  const TempFolder temp;
  for (const double poison : {double(NAN), double(INFINITY)}) {
    PeftAdapter bad = read_peft(folder_of("llama") + "/adapter");
    bad.modules[1].b = bad.modules[1].b.clone();
    bad.modules[1].b[0][0] = poison;
    write_peft(temp.path.string(), bad, "llama");
    const std::string what = said([&] { read_peft(temp.path.string()); });
    EXPECT_SAYS(what, temp.path.string() + "/adapter_model.safetensors");
    EXPECT_SAYS(what, bad.modules[1].name + ".lora_B.weight' holds a number that is not finite");
  }
}

}  // namespace
}  // namespace trireme::test
