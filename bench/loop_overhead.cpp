// What the training loop costs on one rank: `trireme train` itself (loader, session, agreement, metrics, progress)
// against a loop written by hand with LibTorch: forward, loss, backward, fused AdamW and nothing else.
#include "bench/own_run.h"
#include "comm/error.h"
#include "comm/local/self.h"
#include "data/loader.h"
#include "data/rng.h"
#include "framework/losses/contrastive.h"
#include "framework/models/clip.h"
#include "trainers/loop.h"

#include <cmath>
#include <fstream>

#include <ATen/Parallel.h>

#include <unistd.h>

namespace trireme::bench {
namespace {

using Clock = std::chrono::steady_clock;

const char* const quickstart = R"(
steps: 1000000
batch_size: 64
threads: 1
optimizer: {lr: 5.0e-4, beta2: 0.98, eps: 1.0e-8, weight_decay: 0.2, schedule: const}
log_every: 20
checkpoint: {every: 0}
data: {file: openclipart}
model: {embed_dim: 192, image_size: 32, patch_size: 8, vision_width: 192, vision_layers: 4, vision_heads: 3, context: 20,
        vocab: 4096, text_width: 192, text_layers: 2, text_heads: 3}
loss: {name: rgclg, tau: 0.05, rho: 1.0, lr_tau: 1.0e-3, lr_tau_schedule: const, gamma_schedule: constant, gamma_min: 0.8}
)";
const char* const mlp = R"(
steps: 100000000
batch_size: 32
threads: 1
optimizer: {lr: 1.0e-3, beta2: 0.98, eps: 1.0e-8, weight_decay: 0.0, schedule: const}
checkpoint: {every: 0}
sizes: [64, 128, 10]
)";

bool is_mlp(const Options& o) { return o.problem == "mlp"; }

// Forwards everything to the recipe it stands for. A step begins where the last one began its backward: what lies
// between is all that the loop does.
class Paced : public Recipe {
 public:
  static inline std::string name, folder;

  Paced() : inner_(Recipes::create(name)), server_(folder, 0) {}
  void fields(Fields& f) override { inner_->fields(f); }
  void setup(Context& c) override { inner_->setup(c); }
  std::vector<Param> parameters() override { return inner_->parameters(); }
  const Dataset& train_data() override { return inner_->train_data(); }
  std::vector<std::int64_t> train_ids() override { return inner_->train_ids(); }
  bool whole_batch() const override { return inner_->whole_batch(); }
  void update(const Step& s, Context& c) override { inner_->update(s, c); }
  GroupSettings group(std::string_view n, const Step& s, const Context& c) const override {
    return inner_->group(n, s, c);
  }
  void state(Archive& ar) override { inner_->state(ar); }
  std::string describe() const override { return inner_->describe(); }

  at::Tensor backward(const Batch& batch, Context& c) override {
    if (left_ == 0) {
      if (!losses_.empty())
        server_.reply(std::chrono::duration<double, std::milli>(Clock::now() - begin_).count(), thread_cpu_ms() - cpu_,
                      losses_);
      const auto n = server_.next();
      if (!n) _exit(0);  // the loop has no other end
      left_ = *n;
      losses_.clear();
      begin_ = Clock::now();
      cpu_ = thread_cpu_ms();
    }
    --left_;
    at::Tensor loss = inner_->backward(batch, c);
    losses_.push_back(loss.item<double>());
    return loss;
  }

 private:
  std::unique_ptr<Recipe> inner_;
  Server server_;
  int left_ = 0;
  std::vector<double> losses_;
  Clock::time_point begin_;
  double cpu_ = 0;
};

void serve_loop(const Options& o, Communicator& world) {
  Paced::name = is_mlp(o) ? "mlp" : "fastclip";
  Paced::folder = o.serve;
  Recipes::add("paced", [] { return std::make_unique<Paced>(); });
  const std::string file = o.serve + "/loop.yaml";
  std::ofstream(file) << "recipe: paced\n" << (is_mlp(o) ? mlp : quickstart);
  train({file, {}, o.serve + "/run", 0, false, false, false}, world, 1);
}

// AdamW by hand over (parameters, weight decay, lr).
struct AdamW {
  std::vector<at::Tensor> values, first, second, steps;
  double decay, lr;

  AdamW(std::vector<at::Tensor> v, double weight_decay, double rate)
      : values(std::move(v)), decay(weight_decay), lr(rate) {
    for (const auto& p : values) {
      first.push_back(at::zeros_like(p));
      second.push_back(at::zeros_like(p));
      steps.push_back(at::zeros({}, at::kFloat));
    }
  }
  void step() {
    at::NoGradGuard no_grad;
    std::vector<at::Tensor> grads;
    for (const auto& p : values) grads.push_back(p.grad());
    at::_foreach_add_(steps, 1);
    at::_fused_adamw_(values, grads, first, second, {}, steps, lr, 0.9, 0.98, decay, 1e-8, false, false);
    for (auto& p : values) p.mutable_grad().reset();
  }
};

void hand_mlp(const Options& o) {
  // The recipe only makes weights and data.
  Experiment run(Config::parse(std::string("recipe: mlp") + mlp, "benchmark"));
  const auto self = make_self();
  Context context(*self, run.train);
  run.recipe->setup(context);
  std::vector<at::Tensor> p;
  for (const auto& param : run.recipe->parameters()) p.push_back(param.value);
  AdamW adam(p, 0, 1e-3);
  const auto ids = run.recipe->train_ids();
  const auto n = std::int64_t(ids.size()), steps = n / 32;
  Batch epoch;
  std::int64_t taken = 0;
  Server(o.serve, 0).run([&] {
    const std::int64_t k = taken % steps;
    if (k == 0) {  // the same samples in the same order as the loop
      std::vector<std::int64_t> order =
          permutation(n, Rng(std::uint64_t(run.train.seed), "order", std::uint64_t(taken / steps)));
      for (auto& i : order) i = ids[std::size_t(i)];
      epoch = run.recipe->train_data().read(order, 0);
    }
    ++taken;
    const at::Tensor x = epoch.columns.at("x"), label = epoch.columns.at("label");
    const at::Tensor h = at::relu(at::linear(x.narrow(0, 32 * k, 32), p[0], p[1]));
    const at::Tensor loss = at::cross_entropy_loss(at::linear(h, p[2], p[3]), label.narrow(0, 32 * k, 32));
    torch::autograd::backward({loss}, {at::ones_like(loss)});
    adam.step();
    return loss.item<double>();
  });
}

void hand_quickstart(const Options& o) {
  Experiment run(Config::parse(std::string("recipe: fastclip") + quickstart, "benchmark"));
  const auto self = make_self();
  Context context(*self, run.train);
  run.recipe->setup(context);  // data and tokenizer
  nn::Parameters made(std::uint64_t(run.train.seed), at::kFloat, at::kCPU);
  nn::ClipConfig shape;
  shape.image_size = 32, shape.vision_layers = 4, shape.context = 20, shape.text_layers = 2;
  const nn::Clip model(shape, std::log(1 / 0.05), made);
  std::vector<at::Tensor> with_decay, without;
  for (const auto& p : made.all())
    if (p.group != "temperature") (p.group == "decay" ? with_decay : without).push_back(p.value);
  AdamW groups[] = {{with_decay, 0.2, 5e-4}, {without, 0, 5e-4}, {{model.log_scale()}, 0, 1e-3}};
  const Dataset& data = run.recipe->train_data();
  const at::Tensor never = at::zeros({}, at::kFloat);
  fastclip::NormalizerTable table(data.size(), {-INFINITY}, at::TensorOptions(at::kFloat), *self, true);
  Loader loader(data, run.recipe->train_ids(), 64, 0, 1, std::uint64_t(run.train.seed));
  Server(o.serve, 0).run([&] {
    const Batch batch = loader.next();
    const at::Tensor end = batch.columns.at("end");
    const at::Tensor image = model.encode_image(batch.columns.at("image"), true);
    const at::Tensor text = model.encode_text(batch.columns.at("ids"),
                                              {end.const_data_ptr<std::int64_t>(), std::size_t(end.numel())}, true);
    const auto r = fastclip::global_loss(*self, {image.detach(), text.detach()}, model.log_scale(),
                                         table.read(*self, batch.global_ids), batch.epoch ? 0.8 : 1.0, {true, 1.0});
    table.write(batch.global_ids, r.entries, never);
    torch::autograd::backward({image, text, model.log_scale()}, {r.d_image, r.d_text, r.d_log_scale});
    for (auto& g : groups) g.step();
    at::NoGradGuard no_grad;
    model.log_scale().clamp_(0, std::log(100.0));
    return r.loss.item<double>();
  });
}

void serve(const Options& o, Communicator& world) {
  at::set_num_threads(1);
  if (o.arm == "loop") return serve_loop(o, world);
  is_mlp(o) ? hand_mlp(o) : hand_quickstart(o);
}

nlohmann::json run(const Options& o) {
  nlohmann::json rows = nlohmann::json::array();
  for (const std::string problem : {"quickstart", "mlp"}) {
    const Scratch scratch;
    Arm loop("trireme loop", own_arm(o, "loop", problem, 1, scratch.path("loop")), 1, scratch.path("loop"));
    Arm hand("by hand", own_arm(o, "hand", problem, 1, scratch.path("hand")), 1, scratch.path("hand"));
    for (auto* arm : {&loop, &hand})
      if (!arm->ready(std::chrono::seconds(300))) throw DataError("bench " + o.name, arm->skipped());
    alternate({&loop, &hand}, problem == "mlp" ? 1000 : 10, o.blocks * (problem == "mlp" ? 3 : 1));
    for (auto* arm : {&loop, &hand}) {
      auto row = arm->row();
      row["problem"] = problem;
      row["overhead_us"] = 1e3 * (arm->median_ms() - hand.median_ms());
      row["overhead_cpu_us"] = 1e3 * (arm->median_cpu_ms() - hand.median_cpu_ms());
      row["overhead_percent"] = 100 * (arm->median_ms() / hand.median_ms() - 1);
      rows.push_back(row);
    }
  }
  return rows;
}

const Benchmarks::Entry entry({"loop_overhead", "`trireme train` on one rank against a LibTorch loop by hand", run,
                               serve});

}  // namespace
}  // namespace trireme::bench
