// One forward of FLUX's shape (4 + 8 blocks of random weights, bf16) whose tokens are shared by 1, 2, 4 .. --ranks
// GPUs, by Ulysses and by ring, beside diffusers' context parallelism on the most of them. --problem "1024 4096": sides
// in pixels; with "compile" diffusers' Ulysses also by torch.compile. On a CPU: a small shape in f32, without peers.
#include "bench/bench.h"
#include "bench/flux_shape.h"
#include "bench/turns.h"
#include "comm/device.h"
#include "comm/error.h"
#include "comm/wrappers/traced.h"
#include "framework/base/quantile.h"
#include "framework/device_info.h"
#include "framework/graphed_denoiser.h"
#include "framework/models/dit/sequence_parallel.h"
#include "framework/placement.h"

#include <cmath>
#include <map>
#include <sstream>

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

struct Case {
  std::string way;  // none, ulysses, ring
  std::int64_t side = 0;

  explicit Case(const std::string& words) { std::istringstream(words) >> way >> side; }
  std::string words() const { return way + " " + std::to_string(side); }
};

struct Problem {
  std::vector<std::int64_t> sides;
  bool compile = false;

  explicit Problem(const std::string& text) {
    std::istringstream words(text);
    for (std::string word; words >> word;) {
      if (word == "compile")
        compile = true;
      else
        sides.push_back(std::atoll(word.c_str()));
    }
    for (const auto side : sides)
      if (side < 64 || side > 8192 || side % 16)
        throw UsageError("--problem", text, "sides in pixels, for example \"1024 2048 4096\"");
  }
};

// One process of one number of ranks; answers "WAY SIDE" with the time of a forward.
class Forwards {
 public:
  Forwards(const Options& o, Communicator& world) : world_(world) {
    TrainConfig train;
    train.device = o.device;
    const Placement place = place_rank(world, train);
    ranks_ = std::make_unique<Traced>(for_device(world.split(0, world.rank()), place, {}));
    device_ = place.device;
    type_ = device_.is_cuda() ? at::kBFloat16 : at::kFloat;
    model_ = random_denoiser(flux_shape(false, device_.is_cuda()), 1, device_, type_);
    graphed_ = std::make_unique<GraphedDenoiser>(*model_, RecordedForwards::shared_too);
  }

  nlohmann::json run(const Case& c) {
    const auto options = at::TensorOptions(device_).dtype(type_);
    at::manual_seed(1);  // one picture for all ranks
    const at::Tensor x = at::randn({1, 16, 1, c.side / 8, c.side / 8}, options);
    const at::Tensor t = at::full({1}, 0.7, options.dtype(at::kFloat));
    const Conditioning condition{
        at::randn({1, flux_text_tokens, 4096}, options), at::randn({1, 768}, options), {}, {}, {}};
    auto& parallel = ways_[c.way];  // kept: what is recorded uses it
    if (!parallel && c.way != "none") parallel = sequence_parallel(c.way, *ranks_);
    DitHooks hooks;
    hooks.parallel = parallel.get();
    const auto forward = [&] { return graphed_->forward(x, t, condition, hooks); };
    if (!same_.contains(c.words())) {  // the third one is replayed on what was not recorded, where that can be
      const auto of = [&](Denoiser& d, const at::Tensor& latents) { return d.forward(latents, t, condition, hooks); };
      for (int i = 0; i < 2; ++i) wait(forward());
      const at::Tensor other = x.flip(-1);
      std::int64_t same = of(*graphed_, other).equal(of(*model_, other));
      world_.all_reduce({&same, 1, DType::i64}, Op::min).wait();
      same_[c.words()] = same != 0;
    }
    world_.barrier().wait();
    const CommStats before = ranks_->stats();
    const auto begin = std::chrono::steady_clock::now();
    wait(forward());
    const double ms = std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count();
    const CommStats sent = ranks_->stats();
    return {{"ms", ms},
            {"bytes", sent.bytes - before.bytes},
            {"collectives", sent.calls - before.calls},
            {"replays_equal", same_.at(c.words())},
            {"peak_gib", device_.is_cuda() ? peak_device_memory_gib(device_) : 0.0}};
  }

 private:
  static void wait(const at::Tensor& y) { (void)y.sum(at::kFloat).item<float>(); }

  Communicator& world_;
  std::unique_ptr<Traced> ranks_;
  at::Device device_ = at::kCPU;
  at::ScalarType type_ = at::kFloat;
  std::unique_ptr<Denoiser> model_;
  std::unique_ptr<GraphedDenoiser> graphed_;
  std::map<std::string, std::unique_ptr<SequenceParallel>> ways_;
  std::map<std::string, bool> same_;  // to the bit, by case
};

void serve(const Options& o, Communicator& world) {
  const at::NoGradGuard none;
  Forwards forwards(o, world);
  Server server(o.serve, int(world.rank()));
  while (const auto command = server.command()) server.reply(forwards.run(Case(*command)));
}

// A row in the making: one way, number of ranks and side.
struct Row {
  Arm* arm;
  Case of;
  std::string name;
  int ranks;
  std::vector<double> ms = {};
  nlohmann::json last = {};

  void step(bool count) {
    const auto patience =
        std::chrono::seconds(of.way.ends_with("compiled") ? 150 : 45);  // a peer that hangs costs no more
    const auto answer = arm->ask(of.words(), patience);
    if (!answer) return;
    last = *answer;
    if (count) ms.push_back(answer->at("ms").get<double>());
  }
  std::string title() const { return of.words() + " " + name + " on " + std::to_string(ranks); }
};

class Bench {
 public:
  explicit Bench(const Options& o) : o_(o), problem_(o.problem.empty() ? standard(o) : o.problem) {
    const bool gpu = o.device == "cuda";
    const int most = gpu ? std::min(o.ranks, device_runtime()->count()) : o.ranks;
    for (int p = 1; p <= most; p *= 2) {
      Arm& arm = start("trireme " + std::to_string(p), p,
                       own_arm(o, "forwards", o.problem, p, scratch_.path("own" + std::to_string(p))),
                       "own" + std::to_string(p));
      const auto ways = p == 1 ? std::vector<std::string>{"none"} : std::vector<std::string>{"ulysses", "ring"};
      for (const auto& way : ways) add(arm, "trireme " + way, way, p);
    }
    if (!gpu || most == 1) return;
    std::vector<std::string> peers{"ulysses"};
    if (problem_.compile) peers.emplace_back("ulysses_compiled");
    peers.emplace_back("ring");  // last: it has been seen to hang
    for (const auto& peer : peers) {
      const std::vector<std::string> words{
          "--way", peer, "--config", flux_shape(false, true).dump(), "--port", std::to_string(free_port())};
      Arm& arm = start("diffusers " + peer, most, peer_arm("dit_ranks.py", words, scratch_.path(peer), most), peer);
      add(arm, "diffusers " + peer, peer, most);
    }
  }

  nlohmann::json run() {
    for (const auto& arm : arms_) arm->ready(std::chrono::seconds(300));
    in_turns(rows_, o_.blocks);
    nlohmann::json all = nlohmann::json::array();
    for (const auto& row : rows_) {
      nlohmann::json r{{"problem", std::to_string(row.of.side)}, {"arm", row.name}, {"ranks", row.ranks}};
      if (row.ms.empty()) {
        r["skipped"] = row.arm->skipped().empty() ? "stopped before" : row.arm->skipped();
      } else {
        r["step_ms"] = quantile(row.ms, 0.5), r["low_ms"] = quantile(row.ms, 0.25);
        r["high_ms"] = quantile(row.ms, 0.75), r["blocks"] = row.ms.size();
        for (const char* key : {"bytes", "collectives", "replays_equal", "peak_gib"})
          if (row.last.contains(key)) r[key] = row.last[key];
        if (const Row* one = alone(row.of.side)) r["over_one"] = quantile(one->ms, 0.5) / quantile(row.ms, 0.5);
      }
      all.push_back(r);
    }
    return all;
  }

 private:
  static std::string standard(const Options& o) { return o.device == "cuda" ? "1024 2048 4096" : "256"; }
  Arm& start(const std::string& name, int ranks, const std::vector<std::string>& command, const std::string& folder) {
    return *arms_.emplace_back(std::make_unique<Arm>(name, command, ranks, scratch_.path(folder)));
  }
  void add(Arm& arm, const std::string& name, const std::string& way, int ranks) {
    for (const auto side : problem_.sides) rows_.push_back({&arm, Case(way + " " + std::to_string(side)), name, ranks});
  }
  const Row* alone(std::int64_t side) const {
    for (const auto& row : rows_)
      if (row.ranks == 1 && row.of.side == side && !row.ms.empty()) return &row;
    return nullptr;
  }

  const Options& o_;
  const Problem problem_;
  const Scratch scratch_;
  std::vector<std::unique_ptr<Arm>> arms_;
  std::vector<Row> rows_;
};

const Benchmarks::Entry entry({"dit_ranks",
                               "one forward of FLUX's shape on 1, 2 .. --ranks ranks by Ulysses and ring (--device)",
                               [](const Options& o) { return Bench(o).run(); }, serve,
                               /*on_devices=*/true});

}  // namespace
}  // namespace trireme::bench
