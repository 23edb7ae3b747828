// One CLIP training step on one GPU beside OpenCLIP's own: ViT-B-32 at 224 px, 1,024 pairs, bf16, equal weights and
// batches that lie on the device. Arms run one after the other: two do not fit. And the loss alone, of up to 262,144
// rows. `weak`: ours on 1, 2 and 4 GPUs, as many pairs on each.
#include "bench/bench.h"
#include "comm/error.h"
#include "comm/local/self.h"
#include "data/image_text/prepared.h"
#include "data/loader.h"
#include "framework/device_info.h"
#include "framework/experiment.h"
#include "framework/formats/safetensors.h"
#include "framework/losses/contrastive.h"
#include "framework/placement.h"
#include "framework/session.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <numeric>

namespace trireme::bench {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int pairs = 1024, batches = 2, equal_steps = 50, steps_a_block = 10, context = 77, vocab = 49408;
constexpr double lr = 5e-4, weight_decay = 0.2;
// As FastCLIP and OpenCLIP train. After a short one two batches of noise are learnt by heart, and then any two
// roundings part: OpenCLIP's own two arms by 0.6 of the loss within 50 steps.
constexpr int warmup = 10000;

std::string yaml(const std::string& data, const std::string& loss, int ranks) {
  return "recipe: fastclip\nsteps: 1000000\nbatch_size: " + std::to_string(pairs * ranks) +
         "\ndevice: cuda\nprecision: bf16\nlog_every: 1000000\noptimizer: {lr: " + std::to_string(lr) +
         ", beta2: 0.98, eps: 1.0e-6, weight_decay: " + std::to_string(weight_decay) +
         ", schedule: const, warmup: " + std::to_string(warmup) + "}\ndata: {file: " + data +
         "}\nmodel: {embed_dim: 512, image_size: 224, patch_size: 32, vision_width: 768, vision_layers: 12, "
         "vision_heads: 12, context: 77, vocab: 49408, text_width: 512, text_layers: 12, text_heads: 8}\nloss: "
         "{name: " +
         loss + ", tau: 0.07, rho: 6.5, lr_tau: -1, gamma_min: 0.8, gamma_schedule: constant}\n";
}

std::string beside(const std::string& folder, const std::string& file) {
  return (std::filesystem::path(folder).parent_path() / file).string();
}

// What the recipe opens: one colour a picture. Its pixels are not what is trained on.
void prepare_colours(const std::string& file, int ranks) {
  PrepareSpec spec;
  spec.name = spec.source = "colours";
  spec.out = file;
  spec.size = 224;
  for (int i = 0; i < 2 * pairs * ranks; ++i)
    spec.items.push_back({std::to_string(i), "colour " + std::to_string(i), ""});
  spec.decode = [](std::size_t i) {
    Image image{224, 224, std::vector<std::uint8_t>(224 * 224 * 3, std::uint8_t(i))};
    image.rgb[0] = std::uint8_t(i >> 8);
    return image;
  };
  prepare_images(spec);
}

// Noise as pixels, random tokens up to EOT: `tokens` of them, or 20 +- 5.
Batch make_batch(const std::string& problem, Communicator& world) {
  at::Tensor ids = at::zeros({pairs, context}, at::kLong), end = at::empty({pairs}, at::kLong);
  const at::Tensor words = at::randint(1, vocab - 2, {pairs, context}, at::kLong);
  const at::Tensor lengths =
      problem != "20" ? at::full({pairs}, context, at::kLong) : at::randint(15, 26, {pairs}, at::kLong);
  for (int i = 0; i < pairs; ++i) {
    const auto n = lengths[i].item<std::int64_t>();
    ids[i].narrow(0, 0, n).copy_(words[i].narrow(0, 0, n));
    ids[i][0] = vocab - 2;
    ids[i][n - 1] = vocab - 1;
    end[i] = n - 1;
  }
  Batch b;
  b.global_ids.resize(std::size_t(pairs * world.size()));
  std::iota(b.global_ids.begin(), b.global_ids.end(), 0);
  b.ids.assign(b.global_ids.begin() + pairs * world.rank(), b.global_ids.begin() + pairs * (world.rank() + 1));
  b.epoch = 1;
  b.columns = {{"image", at::randn({pairs, 3, 224, 224})}, {"ids", ids}, {"end", end}};
  return b;
}

double ms_since(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// `step` enqueues one step and `loss` reads the last one's: the host runs ahead within a block. `said` joins the row.
void serve_steps(
    const Options& o, int rank, const std::function<void()>& step, const std::function<double()>& loss,
    const std::function<nlohmann::json()>& said = [] { return nlohmann::json::object(); }) {
  Server server(o.serve, rank);
  while (const auto command = server.command()) {
    if (*command == "memory") {
      nlohmann::json answer = said();
      answer["peak_gib"] = peak_device_memory_gib({at::kCUDA, 0});
      server.reply(answer);
      continue;
    }
    const int n = std::atoi(command->c_str());
    const auto begin = Clock::now();
    const double cpu = thread_cpu_ms();
    for (int i = 0; i < n; ++i) step();
    const double last = loss();
    server.reply(ms_since(begin), thread_cpu_ms() - cpu, std::vector<double>(n == 1 ? 1 : 0, last));
  }
}

void serve_step(const Options& o, Communicator& world) {
  const char* own = std::getenv("TRIREME_BENCH_DATA");
  const bool with_data = o.arm == "mbcl, with its data";
  const std::string data = with_data ? own : beside(o.serve, "colours.h5");
  Experiment run(Config::parse(yaml(data, o.arm == "v3" ? "rgclg" : "mbcl", world.size()), "benchmark"));
  Session session(world, run.train, *run.recipe);
  std::vector<Batch> fixed;
  std::optional<Loader> loader;
  if (with_data) {
    loader.emplace(run.recipe->train_data(), run.recipe->train_ids(), pairs, 0, 1, 1);
  } else {
    at::manual_seed(std::uint64_t(7 + world.rank()));
    for (int k = 0; k < batches; ++k) fixed.push_back(make_batch(o.problem, world));
    if (o.arm == "mbcl" && world.size() == 1) {
      std::vector<NamedTensor> tensors;
      for (const auto& p : session.parameters()) tensors.push_back({p.name, p.value.detach().cpu()});
      for (int k = 0; k < batches; ++k)
        for (const auto& [name, value] : fixed[std::size_t(k)].columns)
          tensors.push_back({"batch." + std::to_string(k) + "." + name, value});
      write_safetensors(beside(o.serve, "start.safetensors"), tensors,
                        {{"batches", std::to_string(batches)},
                         {"lr", std::to_string(lr)},
                         {"warmup", std::to_string(warmup)},
                         {"weight_decay", std::to_string(weight_decay)}});
    }
    for (auto& b : fixed)
      for (const char* column : {"image", "ids"}) b.columns[column] = b.columns[column].to(session.context().device());
  }
  std::int64_t taken = 0;
  double waited_ms = 0;
  serve_steps(
      o, world.rank(),
      [&] {
        const auto begin = Clock::now();
        Batch batch = loader ? loader->next() : fixed[std::size_t(taken % batches)];
        waited_ms += ms_since(begin);
        if (loader && o.problem == "77") batch.columns.at("end").fill_(context - 1);  // as many rows as the others have
        session.context().now.step = taken++;
        session.context().now.epoch = batch.epoch;
        session.step(batch);
      },
      [&] { return session.loss(); },
      [&] {
        return loader ? nlohmann::json{{"data_ms", waited_ms / double(taken)}} : nlohmann::json::object();
      });
}

void serve_loss(const Options& o, Communicator& world) {
  const auto comm = for_device(world.split(0, 0), {{at::kCUDA, 0}, false}, {});
  const std::int64_t rows = std::atoll(o.problem.c_str() + 5);
  const auto options = at::TensorOptions(at::Device(at::kCUDA, 0)).dtype(at::kFloat);
  const auto unit = [&] {
    const at::Tensor x = at::randn({rows, 512}, options);
    return x / at::linalg_vector_norm(x, 2, {1}, true);
  };
  const at::Tensor image = unit(), text = unit(), t = at::full({}, std::log(1 / 0.07), options);
  const at::Tensor old = at::full({2, 1, rows}, -INFINITY, options);
  at::Tensor loss;
  serve_steps(
      o, 0,
      [&] {
        loss = (o.arm == "v3" ? fastclip::global_loss(*comm, {image, text}, t, old, 1, {})
                              : fastclip::mini_batch_loss(*comm, {image, text}, t))
                   .loss;
      },
      [&] { return loss.item<double>(); });
}

void serve(const Options& o, Communicator& world) {
  o.problem.starts_with("loss ") ? serve_loss(o, world) : serve_step(o, world);
}

// Runs one arm to its end. Its row, with the losses of the equal steps.
nlohmann::json measure(Arm& arm, int blocks, int equal, int block) {
  if (arm.ready(std::chrono::seconds(300)))
    for (int i = 0; i < equal && arm.skipped().empty(); ++i) arm.block(1, true);
  for (int i = 0; i <= blocks && arm.skipped().empty(); ++i) arm.block(block, i == 0);
  const auto memory = arm.ask("memory");
  auto row = arm.row();
  if (arm.skipped().empty()) {
    row["losses"] = arm.losses(equal);
    row.update(*memory);
  }
  std::fprintf(stderr, "%s: %s (%.1f ms)\n", arm.name().c_str(), arm.skipped().empty() ? "done" : arm.skipped().c_str(),
               arm.last_ms());
  return row;
}

// The largest relative difference between the losses of two arms.
double worst_difference(const nlohmann::json& a, const nlohmann::json& b) {
  double worst = 0;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    worst = std::max(worst, std::fabs(a[i].get<double>() - b[i].get<double>()) / std::fabs(a[i].get<double>()));
  return worst;
}

struct Plan {
  std::string problem;
  std::vector<std::string> ours, peers;
  int equal, block;
  int rows;  // of one step on a rank
  int ranks = 1;
};

nlohmann::json run_plan(const Options& o, const Plan& plan) {
  const Scratch scratch;
  nlohmann::json rows = nlohmann::json::array(), losses;
  double eager = 0;
  if (!plan.problem.starts_with("loss")) prepare_colours(scratch.path("colours.h5"), plan.ranks);
  const auto add = [&](Arm& arm) {
    auto row = measure(arm, o.blocks, plan.equal, plan.block);
    row["problem"] = plan.problem;
    if (row.contains("step_ms")) {
      row["pairs_per_s"] = 1e3 * plan.rows * plan.ranks / row["step_ms"].get<double>();
      // The same loss of the same numbers; v3's is another one.
      if (plan.equal > 1 && arm.name() != "trireme v3" && arm.name() != "trireme mbcl, with its data") {
        if (losses.is_null()) losses = row["losses"];
        row["worst_loss_difference"] = worst_difference(losses, row["losses"]);
      }
    }
    rows.push_back(row);
  };
  for (const auto& name : plan.ours) {
    Arm arm("trireme " + name, own_arm(o, name, plan.problem, plan.ranks, scratch.path(name)), plan.ranks,
            scratch.path(name));
    add(arm);
  }
  for (const auto& name : plan.peers) {
    std::vector<std::string> words{"--arm", name, "--file", scratch.path("start.safetensors")};
    if (name == "loss") words = {"--arm", name, "--rows", plan.problem.substr(5)};
    Arm arm((name == "loss" ? "torch " : "open_clip ") + name, peer_arm("clip_gpu_step.py", words, scratch.path(name)),
            1, scratch.path(name));
    add(arm);
    if (name != "compile" && rows.back().contains("step_ms")) eager = rows.back()["step_ms"];
  }
  for (auto& row : rows)
    if (eager > 0 && row.contains("step_ms")) row["times_eager"] = eager / row["step_ms"].get<double>();
  return rows;
}

nlohmann::json run(const Options& o) {
  std::vector<std::string> ours{"mbcl", "v3"};
  if (std::getenv("TRIREME_BENCH_DATA")) ours.push_back("mbcl, with its data");
  const std::vector<Plan> plans = {{"77", ours, {"eager", "compile"}, equal_steps, steps_a_block, pairs},
                                   {"20", {"mbcl", "v3"}, {"eager", "compile"}, equal_steps, steps_a_block, pairs},
                                   {"loss 32768", {"mbcl", "v3"}, {"loss"}, 1, 1, 32768},
                                   {"loss 262144", {"mbcl", "v3"}, {"loss"}, 1, 1, 262144},
                                   {"weak 1", {"v3"}, {}, 0, steps_a_block, pairs, 1},
                                   {"weak 2", {"v3"}, {}, 0, steps_a_block, pairs, 2},
                                   {"weak 4", {"v3"}, {}, 0, steps_a_block, pairs, 4}};
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& plan : plans)
    if (o.problem.empty() || plan.problem.starts_with(o.problem))
      for (auto& row : run_plan(o, plan)) rows.push_back(row);
  if (rows.empty()) throw UsageError("--problem", o.problem, "77, 20, loss or weak");
  return rows;
}

const Benchmarks::Entry entry({"clip_gpu_step", "CLIP step on one GPU against OpenCLIP", run, serve});

}  // namespace
}  // namespace trireme::bench
