// Whole training steps of many adapters on one backbone of random bf16 weights on one GPU, beside the same passes of
// the frozen base alone: forward, loss, and backward to the embeddings without any gradient of a weight. --problem
// names the rows: jobs (Llama's shape of 1.1 B, 7 modules, ranks 8 to 64 mixed, a sample of 512 tokens a job, 1 to 64
// jobs), jobs-N (that one row), lengths (8 jobs and one, of 128 to 2,048 tokens), many (256 and 1,024 adapters on q and
// v, a fifth of the slots empty), qwen3-0.6b and qwen3-1.7b (one job of rank 16, 8 samples of 2,048 tokens a step),
// fp8, and beside other programs peft (one job) and compiled (the frozen base of 32). tiny: a small shape, for a try.
#include "bench/bench.h"
#include "bench/device_time.h"
#include "framework/adapter_step.h"
#include "framework/device_info.h"
#include "framework/losses/token_loss.h"
#include "framework/models/adapters.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <iostream>
#include <map>
#include <numeric>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::bench {
namespace {

struct Row {
  std::string model = "llama-1.1b";                   // or a Qwen3, or tiny
  std::int64_t jobs = 32, samples = 1, tokens = 512;  // samples: of a job in a step
  std::vector<std::int64_t> ranks = {8, 16, 32, 64};  // in turn
  std::vector<std::string> targets = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"};
  bool checkpointing = false, empty_slots = false, fp8 = false;

  std::int64_t pass_tokens() const { return jobs * samples * tokens; }
};

nlohmann::json config_of(const std::string& model) {
  nlohmann::json c{{"model_type", "llama"},
                   {"architectures", {"LlamaForCausalLM"}},
                   {"hidden_size", 2048},
                   {"intermediate_size", 5632},
                   {"num_hidden_layers", 22},
                   {"num_attention_heads", 32},
                   {"num_key_value_heads", 4},
                   {"vocab_size", 32000},
                   {"max_position_embeddings", 4096},
                   {"rms_norm_eps", 1e-5},
                   {"torch_dtype", "bfloat16"}};
  if (model == "tiny")
    c.update({{"hidden_size", 256}, {"intermediate_size", 704}, {"num_hidden_layers", 2}, {"num_attention_heads", 4}});
  if (!model.starts_with("qwen3")) return c;
  c.update({{"model_type", "qwen3"},
            {"architectures", {"Qwen3ForCausalLM"}},
            {"num_hidden_layers", 28},
            {"num_attention_heads", 16},
            {"num_key_value_heads", 8},
            {"head_dim", 128},
            {"vocab_size", 151936},
            {"rms_norm_eps", 1e-6},
            {"rope_theta", 1e6},
            {"tie_word_embeddings", true}});
  if (model == "qwen3-0.6b")
    c.update({{"hidden_size", 1024}, {"intermediate_size", 3072}});
  else
    c.update({{"hidden_size", 2048}, {"intermediate_size", 6144}});
  return c;
}

class Steps {
 public:
  Steps(const CausalLm& model, const Row& row) : row_(row), model_(model) {
    model_.set_checkpointing(row.checkpointing);
    PeftConfig config;
    config.rank = *std::max_element(row.ranks.begin(), row.ranks.end());
    config.targets = row.targets;
    store_ = make_adapter_store(model_, std::span(&config, 1), row.empty_slots ? row.jobs * 5 / 4 : row.jobs,
                                nn::LoraBackend::kernels);
    if (row.fp8) {
      std::map<std::string, at::Tensor> values;
      for (const auto& [weight, value] : model_.weights()) values[weight.name] = value;
      hold_fp8_base(model_, *store_, [&](const LmWeight& w) { return values.at(w.name); });
    }
    optimizer_.emplace(*store_);
    const at::TensorOptions longs = at::TensorOptions(model_.device()).dtype(at::kLong);
    batch_.tokens = {at::randint(model_.config().vocab, {row.pass_tokens()}, longs),
                     std::vector<std::int64_t>(std::size_t(row.jobs * row.samples), row.tokens)};
    batch_.labels = at::roll(batch_.tokens.ids, {-1});
    batch_.counts = at::full({row.jobs}, double(row.samples * row.tokens), at::kFloat);
    for (std::int64_t i = 0; i < row.jobs; ++i) {
      const std::int64_t slot = row.empty_slots ? i + i / 4 : i, each = row.samples * row.tokens;
      PeftConfig c = config;
      c.rank = row.ranks[std::size_t(i) % row.ranks.size()], c.alpha = 2.0 * double(c.rank);
      fill(slot, c);
      optimizer_->start(slot, {.lr = 1e-5 * double(1 + i)});  // a rate each
      batch_.rows.push_back({.slot = slot, .first = i * each, .last = (i + 1) * each});
    }
    plain_.emplace(model_, *store_, *optimizer_, false);
    recorded_.emplace(model_, *store_, *optimizer_, true);
  }

  void base() {
    store_->begin({}, true);
    const at::Tensor hidden = model_.hidden(batch_.tokens);
    torch::autograd::backward({token_losses(hidden, model_.head(), batch_.labels).sum()}, {});
  }
  void recorded_base() {
    if (!graph_) {
      store_->begin({}, true);
      graph_ = make_step_graph(0, GraphMemory::shared);
      graph_->capture([&] { base(); });
    }
    graph_->replay();
  }
  // Of the base alone, [tokens of one sample, vocab].
  at::Tensor logits() {
    const at::NoGradGuard no_grad;
    store_->begin({}, false);
    return model_.logits(model_.hidden({batch_.tokens.ids.narrow(0, 0, row_.tokens), {row_.tokens}})).to(at::kFloat);
  }
  void adapted(bool graph) { (graph ? *recorded_ : *plain_).run(batch_); }

 private:
  // Both factors are drawn on the GPU: as PEFT draws them, on the host, 32 jobs would take longer than their steps.
  void fill(std::int64_t slot, const PeftConfig& c) {
    const nn::AdapterInit init = adapter_init(model_, *store_, c, 1, "benchmark");
    std::int64_t size = 0;
    for (std::size_t t = 0; t < init.shapes.size(); ++t) {
      const at::Tensor& w = store_->targets()[t].weight;
      size += (init.shapes[t].rank + 7) / 8 * 8 * (w.size(0) + w.size(1));
    }
    store_->fill(slot, init, at::randn({size}, at::TensorOptions(model_.device()).dtype(at::kFloat)) * 0.01);
  }

  Row row_;
  CausalLm model_;
  std::unique_ptr<nn::AdapterStore> store_;
  std::optional<nn::AdapterOptimizer> optimizer_;
  std::optional<AdapterStep> plain_, recorded_;
  std::unique_ptr<StepGraph> graph_;
  AdapterBatch batch_;
};

std::vector<Row> jobs_rows() {
  std::vector<Row> rows;
  for (const std::int64_t jobs : {1, 4, 8, 16, 32, 64}) rows.push_back({.jobs = jobs, .checkpointing = jobs == 64});
  return rows;
}

std::vector<Row> rows_of(const std::string& problem) {
  std::vector<Row> rows;
  if (problem.empty() || problem == "jobs") return jobs_rows();
  if (problem == "tiny") return {{.model = "tiny", .jobs = 4, .tokens = 64}};
  if (problem.starts_with("qwen3-0.6b") || problem.starts_with("qwen3-1.7b"))
    return {{.model = problem, .jobs = 1, .samples = 8, .tokens = 2048, .ranks = {16}},
            {.model = problem, .jobs = 1, .samples = 2, .tokens = 2048, .ranks = {16}}};
  if (problem == "lengths") {
    for (const std::int64_t tokens : {128, 256, 512, 1024, 2048})
      for (const std::int64_t jobs : {1, 8}) rows.push_back({.jobs = jobs, .tokens = tokens});
    return rows;
  }
  if (problem == "fp8") return {{.jobs = 32}, {.jobs = 32, .fp8 = true}};
  if (problem == "many") {
    const std::vector<std::int64_t> ranks{4, 8, 16};
    const std::vector<std::string> targets{"q_proj", "v_proj"};
    for (const std::int64_t jobs : {256, 1024})
      rows.push_back({.jobs = jobs, .tokens = 16384 / jobs, .ranks = ranks, .targets = targets, .empty_slots = true});
    return rows;
  }
  std::int64_t jobs = 0;
  const char *const from = problem.data() + std::min<std::size_t>(5, problem.size()), *const end = problem.data() +
                                                                                                   problem.size();
  if (!problem.starts_with("jobs-") || std::from_chars(from, end, jobs).ptr != end || jobs < 1 || jobs > 128)
    throw UsageError("--problem", problem + " is not known",
                     "take jobs, jobs-N, lengths, many, qwen3-0.6b, qwen3-1.7b, fp8, peft, compiled or tiny");
  return {{.jobs = jobs, .checkpointing = jobs > 32}};
}

// Root mean square of what differs over that of the logits, and how often the likeliest token is another.
nlohmann::json fp8_error(const CausalLm& model) {
  const Row row{.jobs = 4};
  Row narrow = row;
  narrow.fp8 = true;
  at::manual_seed(1);
  const at::Tensor exact = Steps(model, row).logits();
  at::manual_seed(1);
  const at::Tensor found = Steps(model, narrow).logits();
  return {{"arm", "logits of the FP8 base"},
          {"relative_error", ((found - exact).norm() / exact.norm()).item<double>()},
          {"other_choices", found.argmax(1).ne(exact.argmax(1)).to(at::kFloat).mean().item<double>()}};
}

void tell(nlohmann::json& rows, nlohmann::json row) {
  std::cerr << row.dump() << std::endl;  // what is measured stays, however the rest ends
  rows.push_back(std::move(row));
}

void measure(const Options& o, const CausalLm& model, const Row& row, nlohmann::json& rows) {
  Steps steps(model, row);
  std::vector<DeviceArm> arms{{"frozen base", 0, [&] { steps.base(); }},
                              {"adapters", 0, [&] { steps.adapted(false); }}};
  if (row.pass_tokens() <= AdapterStep::most_tokens) {
    arms.push_back({"frozen base, graph", 0, [&] { steps.recorded_base(); }});
    arms.push_back({"adapters, graph", 0, [&] { steps.adapted(true); }});
  }
  take_turns(arms, o.blocks, 3);
  double base = INFINITY;
  for (const auto& arm : arms)
    if (arm.name.starts_with("frozen")) base = std::min(base, arm.median());
  for (const auto& arm : arms)
    tell(rows, {{"arm", arm.name},
                {"model", row.model},
                {"jobs", row.jobs},
                {"samples", row.samples},
                {"tokens", row.tokens},
                {"checkpointing", row.checkpointing},
                {"fp8", row.fp8},
                {"step_ms", arm.median()},
                {"low_ms", *std::min_element(arm.ms.begin(), arm.ms.end())},
                {"tokens_per_s", double(row.pass_tokens()) / arm.median() * 1e3},
                {"over_base", arm.median() / base},
                {"peak_gib", peak_device_memory_gib({at::kCUDA, 0})}});
}

// One after the other: two of them would not fit into 80 GB.
void measure_peer(const Options& o, const std::string& arm, const Row& row, nlohmann::json& rows) {
  const Scratch scratch;
  const std::vector<std::string> words{"--arm",     arm,
                                       "--config",  config_of(row.model).dump(),
                                       "--samples", std::to_string(row.jobs * row.samples),
                                       "--tokens",  std::to_string(row.tokens),
                                       "--device",  "cuda"};
  Arm peer(arm, peer_arm("lora_step.py", words, scratch.path("peer")), 1, scratch.path("peer"));
  nlohmann::json found;
  if (peer.ready(std::chrono::seconds(300))) {
    alternate({&peer}, 3, o.blocks);
    found = peer.row();
    if (peer.skipped().empty()) found["tokens_per_s"] = double(row.pass_tokens()) / peer.median_ms() * 1e3;
    if (const auto memory = peer.skipped().empty() ? peer.ask("memory") : std::nullopt) found.update(*memory);
  } else {
    found = peer.row();
  }
  found.update({{"model", row.model}, {"jobs", row.jobs}, {"samples", row.samples}, {"tokens", row.tokens}});
  tell(rows, found);
}

CausalLm drawn(const Row& row) {
  return CausalLm::random(parse_causal_lm_config(config_of(row.model).dump(), "benchmark"), 1, {at::kCUDA, 0},
                          at::kBFloat16);
}

// One job beside PEFT's, of one sample a step and of four.
nlohmann::json beside_peft(const Options& o) {
  const Row one{.jobs = 1, .ranks = {16}}, four{.jobs = 1, .samples = 4, .ranks = {16}};
  nlohmann::json rows = nlohmann::json::array();
  {
    const CausalLm model = drawn(one);
    for (const Row& row : {one, four}) measure(o, model, row, rows);
  }
  release_device_memory();
  measure_peer(o, "peft graph", one, rows);
  measure_peer(o, "peft graph", four, rows);
  measure_peer(o, "peft eager", one, rows);
  return rows;
}

// 32 jobs and our frozen base beside torch.compile's.
nlohmann::json beside_compiled(const Options& o) {
  const Row many{.jobs = 32};
  nlohmann::json rows = nlohmann::json::array();
  measure(o, drawn(many), many, rows);
  release_device_memory();
  measure_peer(o, "base compile", many, rows);
  double base = INFINITY;
  for (const auto& r : rows)
    if (r["arm"].get<std::string>().find("base") != std::string::npos && r.contains("step_ms"))
      base = std::min(base, r["step_ms"].get<double>());
  for (auto& r : rows)
    if (r.contains("step_ms")) r["over_fastest_base"] = r["step_ms"].get<double>() / base;
  return rows;
}

nlohmann::json run(const Options& o) {
  need_gpu(o.name);
  if (o.problem == "peft") return beside_peft(o);
  if (o.problem == "compiled") return beside_compiled(o);
  nlohmann::json rows = nlohmann::json::array();
  std::optional<CausalLm> model;
  std::string name;
  for (const auto& row : rows_of(o.problem)) {
    if (name != row.model) model = drawn(row);
    name = row.model;
    measure(o, *model, row, rows);
  }
  if (o.problem == "fp8") rows.push_back(fp8_error(*model));
  return rows;
}

const Benchmarks::Entry entry({"lora_step",
                               "training steps of 1 to 1,024 adapters on one frozen backbone on a GPU (--problem jobs, "
                               "jobs-N, lengths, many, qwen3-0.6b, qwen3-1.7b, fp8, peft, compiled)",
                               run, nullptr});

}  // namespace
}  // namespace trireme::bench
