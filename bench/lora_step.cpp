// Whole training steps of many adapters on one backbone of random bf16 weights (Llama's shape, 1.1 B, 7 modules,
// ranks 8 to 64 mixed) on one GPU, beside the same passes of the frozen base alone: forward, loss, and backward to the
// embeddings without any gradient of a weight. --problem TOKENS[/HIDDEN x LAYERS]: of a sample; a smaller shape for a
// try.
#include "bench/bench.h"
#include "bench/device_time.h"
#include "framework/losses/token_loss.h"
#include "framework/models/adapters.h"
#include "framework/nn/adapter_optimizer.h"

#include <cstdio>
#include <numeric>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::bench {
namespace {

constexpr std::int64_t ranks[] = {8, 16, 32, 64};

struct Shape {
  int tokens = 512, hidden = 2048, layers = 22;
};

Shape shape_of(const Options& o) {
  Shape s;
  if (!o.problem.empty() && std::sscanf(o.problem.c_str(), "%d/%dx%d", &s.tokens, &s.hidden, &s.layers) < 1)
    throw UsageError("--problem", o.problem + " is no number of tokens", "write for example 512, or 128/256x2");
  if (s.tokens < 1 || s.hidden < 64 || s.hidden % 64 != 0 || s.layers < 1)
    throw UsageError("--problem", o.problem + " is no shape", "tokens and layers from 1, a width in multiples of 64");
  return s;
}

CausalLm backbone(const Shape& s, at::Device device) {
  const nlohmann::json config{{"model_type", "llama"},
                              {"architectures", {"LlamaForCausalLM"}},
                              {"hidden_size", s.hidden},
                              {"intermediate_size", s.hidden * 11 / 4},
                              {"num_hidden_layers", s.layers},
                              {"num_attention_heads", s.hidden / 64},
                              {"num_key_value_heads", std::max(1, s.hidden / 512)},
                              {"vocab_size", 32000},
                              {"max_position_embeddings", 4096},
                              {"rms_norm_eps", 1e-5},
                              {"torch_dtype", "bfloat16"}};
  return CausalLm::random(parse_causal_lm_config(config.dump(), "benchmark"), 1, device, at::kBFloat16);
}

class Steps {
 public:
  Steps(const Shape& s, std::int64_t jobs, at::Device device) : shape_(s), model_(backbone(s, device)) {
    std::vector<PeftConfig> configs(1);
    configs[0].rank = 64,
    configs[0].targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
    store_ = make_adapter_store(model_, configs, jobs, nn::LoraBackend::kernels);
    optimizer_.emplace(*store_);
    for (std::int64_t i = 0; i < jobs; ++i) {
      PeftConfig c = configs[0];
      c.rank = ranks[i % 4], c.alpha = 2.0 * double(c.rank);
      store_->fill(i, adapter_init(model_, *store_, c, std::uint64_t(i), "benchmark"));
      optimizer_->start(i, {.lr = 1e-4 * double(1 + i % 5)});
    }
  }

  // `jobs` samples, one a job; without adapters the base alone.
  void run(std::int64_t jobs, bool adapted) {
    const at::TensorOptions longs = at::TensorOptions(model_.device()).dtype(at::kLong);
    if (!ids_.defined() || ids_.numel() != jobs * shape_.tokens) {
      ids_ = at::randint(32000, {jobs * shape_.tokens}, longs);
      labels_ = at::roll(ids_, {-1});
      losses_ = at::zeros({store_->slots()}, longs.dtype(at::kFloat));
    }
    std::vector<nn::SlotRows> rows;
    for (std::int64_t i = 0; adapted && i < jobs; ++i)
      rows.push_back({.slot = i, .first = i * shape_.tokens, .last = (i + 1) * shape_.tokens, .step = step_});
    store_->begin(std::move(rows), true);
    const at::Tensor hidden = model_.hidden({ids_, std::vector<std::int64_t>(std::size_t(jobs), shape_.tokens)});
    const at::Tensor loss = token_losses(hidden, model_.head(), labels_).view({jobs, shape_.tokens}).mean(1);
    torch::autograd::backward({loss.sum()}, {});
    ++step_;
    if (!adapted) return;
    losses_.narrow(0, 0, jobs).copy_(loss.detach());
    std::vector<std::int64_t> slots(static_cast<std::size_t>(jobs));
    std::iota(slots.begin(), slots.end(), 0);
    optimizer_->step(slots, losses_);
  }

 private:
  Shape shape_;
  CausalLm model_;
  std::int64_t step_ = 0;
  std::unique_ptr<nn::AdapterStore> store_;
  std::optional<nn::AdapterOptimizer> optimizer_;
  at::Tensor ids_, labels_, losses_;
};

nlohmann::json run(const Options& o) {
  need_gpu(o.name);
  const Shape s = shape_of(o);
  nlohmann::json rows = nlohmann::json::array();
  for (const std::int64_t jobs : {1, 4, 8, 16, 32}) {
    Steps steps(s, jobs, {at::kCUDA, 0});
    std::vector<DeviceArm> arms{{"frozen base", 0, [&] { steps.run(jobs, false); }},
                                {"adapters", 0, [&] { steps.run(jobs, true); }}};
    take_turns(arms, o.blocks, 4);
    for (const auto& arm : arms)
      rows.push_back({{"arm", arm.name},
                      {"jobs", jobs},
                      {"tokens", s.tokens},
                      {"step_ms", arm.median()},
                      {"tokens_per_s", double(jobs * s.tokens) / arm.median() * 1e3},
                      {"over_base", arm.median() / arms[0].median()}});
  }
  return rows;
}

const Benchmarks::Entry entry({"lora_step",
                               "training steps of 1 to 32 adapters on one frozen backbone on a GPU "
                               "(--problem TOKENS of a sample)",
                               run, nullptr});

}  // namespace
}  // namespace trireme::bench
