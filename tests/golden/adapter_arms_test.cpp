// The arms of `trireme bench ap_step` against each other, on loopback ranks: the same adapters, and bytes by formula.
// (The benchmarks are not part of sanitized builds, so this is no unit test.)
#include "bench/adapter_arms.h"

#include "bench/adapter_pipeline.h"
#include "comm/local/loopback.h"
#include "framework/base/drawn.h"
#include "tests/forwarding.h"
#include "tests/moving_layers.h"

#include <map>
#include <mutex>
#include <optional>

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

namespace trireme::bench {
namespace {

AdapterJobs tiny(std::vector<std::int64_t> ranks, std::int64_t batch) {
  AdapterJobs jobs;
  CausalLmConfig& c = jobs.model;
  c.family = "llama";
  c.vocab = 61, c.hidden = 32, c.intermediate = 48, c.layers = 4, c.heads = 4, c.kv_heads = 2, c.head_dim = 8;
  c.eps = 1e-5;
  jobs.ranks = std::move(ranks);
  jobs.length = 9, jobs.batch = batch, jobs.lr = 1e-3;
  return jobs;
}

// Bytes that a rank puts into gathers and sums, of its splits too.
struct Sent {
  std::size_t gathered = 0, summed = 0;
};
class Counting : public test::Forwarding {
 public:
  Counting(Communicator& inner, Sent& sent) : Forwarding(inner), sent_(sent) {}
  Counting(std::unique_ptr<Communicator> inner, Sent& sent) : Forwarding(std::move(inner)), sent_(sent) {}
  Work all_reduce(Buffer b, Op op) override { return sent_.summed += b.bytes(), inner_.all_reduce(b, op); }
  Work all_gather(ConstBuffer in, Buffer out) override {
    return sent_.gathered += in.bytes(), inner_.all_gather(in, out);
  }
  std::unique_ptr<Communicator> split(int color, int key) override {
    return std::make_unique<Counting>(inner_.split(color, key), sent_);
  }

 private:
  Sent& sent_;
};

struct Trained {
  std::map<std::int64_t, at::Tensor> weights;  // by job
  Sent sent;
};
constexpr int steps = 3;

Trained on(int ranks, const std::function<void(Communicator&, Trained&)>& work) {
  at::set_num_threads(1);
  Trained all;
  std::mutex mutex;
  run_loopback(ranks, [&](Communicator& plain) {
    Trained mine;
    Counting world(plain, mine.sent);
    work(world, mine);
    const std::lock_guard lock(mutex);
    all.weights.merge(mine.weights);
    if (plain.rank() == 0) all.sent = mine.sent;
  });
  return all;
}

Trained own(const AdapterJobs& jobs, int ranks, bool alone = false) {
  return on(ranks, [&](Communicator& world, Trained& t) {
    ShardedJobs arm(jobs, world, {});
    const auto mine = balanced(jobs.ranks, world.size())[std::size_t(world.rank())];
    arm.hold(mine);
    t.sent = {};
    for (int i = 0; i < steps; ++i) alone ? arm.compute_alone(mine) : arm.own_step(mine);
    for (const auto job : mine) t.weights[job] = arm.weights(job).clone();
    EXPECT_EQ(std::int64_t(t.sent.gathered) * (world.size() - 1), arm.backbone().bytes_received());
  });
}

Trained data_parallel(const AdapterJobs& jobs, int ranks, bool packed) {
  return on(ranks, [&](Communicator& world, Trained& t) {
    ShardedJobs arm(jobs, world, {});
    std::vector<std::int64_t> all;
    for (std::size_t j = 0; j < jobs.ranks.size(); ++j) all.push_back(std::int64_t(j));
    arm.hold(all);
    t.sent = {};
    for (int i = 0; i < steps; ++i) {
      if (packed) arm.data_parallel_step(all);
      for (std::size_t j = 0; !packed && j < all.size(); ++j) arm.data_parallel_step({&all[j], 1});
    }
    std::size_t parameters = 0;
    for (const auto job : all) {
      t.weights[job] = arm.weights(job).clone();
      parameters += std::size_t(arm.parameters(job));
    }
    EXPECT_EQ(t.sent.summed, steps * parameters * 4);  // gradients in f32, each once a step
  });
}

// Whole adapters from the ranks' layers, in their order.
Trained pipeline(const AdapterJobs& jobs, int ranks, Filling filling = Filling::jobs) {
  std::vector<std::map<std::int64_t, at::Tensor>> parts(static_cast<std::size_t>(ranks));
  on(ranks, [&](Communicator& world, Trained&) {
    PipelinedJobs arm(jobs, world, {}, filling);
    for (int i = 0; i < steps * arm.period(); ++i) arm.tick();
    arm.drain();
    for (std::size_t j = 0; j < jobs.ranks.size(); ++j)
      parts[std::size_t(world.rank())][std::int64_t(j)] = arm.weights(std::int64_t(j)).clone();
  });
  Trained t;
  for (std::size_t j = 0; j < jobs.ranks.size(); ++j) {
    std::vector<at::Tensor> pieces;
    for (auto& of : parts) pieces.push_back(of.at(std::int64_t(j)));
    t.weights[std::int64_t(j)] = at::cat(pieces);
  }
  return t;
}

// Adam divides by gradients' own size, so what rounding does to a gradient near 0 can reach a share of a step.
void expect_same(const Trained& a, const Trained& b, const char* what) {
  ASSERT_EQ(a.weights.size(), b.weights.size()) << what;
  for (const auto& [job, w] : a.weights) {
    ASSERT_EQ(w.numel(), b.weights.at(job).numel()) << what;
    const at::Tensor off = (w - b.weights.at(job)).abs();
    EXPECT_LT(off.max().item<double>(), 1e-4) << what << ", job " << job;
    EXPECT_LT(off.mean().item<double>(), 1e-7) << what << ", job " << job;
  }
}

TEST(AdapterArms, TrainTheSameAdapters) {
  for (const int ranks : {2, 4}) {
    const AdapterJobs jobs = tiny({2, 4, 8, 16, 3, 4, 8, 16}, 3);
    const Trained ours = own(jobs, ranks);
    ASSERT_EQ(ours.weights.size(), jobs.ranks.size());
    expect_same(ours, own(jobs, 1), "one rank");
    expect_same(ours, data_parallel(jobs, ranks, true), "packed");
    expect_same(ours, data_parallel(jobs, ranks, false), "one at a time");
    expect_same(ours, pipeline(jobs, ranks), "pipeline");
    expect_same(ours, pipeline(jobs, ranks, Filling::packs), "pipeline of packs");
    AdapterJobs pieces = jobs;
    pieces.pass_tokens = 20;
    const Trained accumulated = own(pieces, ranks);
    expect_same(ours, accumulated, "accumulated");
    expect_same(ours, pipeline(pieces, ranks), "pipeline of pieces");
    expect_same(ours, pipeline(pieces, ranks, Filling::packs), "pipeline of packs of pieces");
    // A pass gathers each layer once forward and once backward, but for the two that are there when it turns round.
    // At the end of a step the first two are there for the next.
    const std::size_t layer = 4 * 7744, gathers = 4 + 2 + (steps - 1) * 4;
    EXPECT_EQ(ours.sent.gathered, gathers * layer / std::size_t(ranks));
    EXPECT_GT(accumulated.sent.gathered, 2 * ours.sent.gathered);
    EXPECT_EQ(ours.sent.summed, 0u);
    // Trained at all, and not alike.
    EXPECT_GT((ours.weights.at(0).abs().sum() - ours.weights.at(5).abs().sum()).abs().item<double>(), 1);
  }
}

// With fewer jobs than a pipeline wants, ranks wait; the adapters are the same.
TEST(AdapterArms, ShortPipelines) {
  const AdapterJobs jobs = tiny({4, 8}, 1);
  expect_same(own(jobs, 2), pipeline(jobs, 4), "two jobs on four ranks");
}

// The bits of a group of one rank that trains the same jobs, in both forms of the base.
TEST(AdapterArms, EqualTheirJobsAlone) {
  at::set_num_threads(1);
  for (const bool fp8 : {false, true})
    for (const int ranks : {2, 4}) {
      AdapterJobs jobs = tiny({2, 4, 8, 16, 3, 4, 8, 16}, 2);
      jobs.fp8 = fp8;
      run_loopback(ranks, [&](Communicator& world) {
        const Sameness found = sameness(jobs, world, {}, steps);
        EXPECT_TRUE(found.with_alone && found.repeatable);
        EXPECT_EQ(found.adapters, 8);
      });
    }
}

// A model, whole, or cut over `ranks` from what it holds.
Trained of_whole(const AdapterJobs& jobs, const std::vector<std::int64_t>& own, Communicator* ranks = nullptr,
                 bool again = true) {
  const auto source = drawn_backbone(jobs.options({}));
  const LmWeights weights{jobs.model,
                          [&](const LmWeight& w) {
                            return w.kind == LmWeight::zero ? drawn_normal(w.shape, 0.5, 2, w.name, jobs.options({}))
                                                            : source(w);
                          },
                          jobs.options({})};
  CausalLm model = ranks || jobs.fp8 ? sweep::without_layers(weights) : CausalLm(weights.config, weights.read);
  model.set_checkpointing(again);
  const auto store = store_for(model, jobs);
  std::optional<sweep::ShardedBackbone> sharded;
  if (ranks) sharded.emplace(model, *store, *ranks, weights.read, jobs.fp8);
  if (!ranks && jobs.fp8) hold_fp8_base(model, *store, weights.read);
  nn::AdapterOptimizer optimizer(*store);
  const JobSamples samples(jobs, at::kCPU);
  const JobPack pack{own, 0, jobs.batch};
  Trained t;
  for (const auto job : own) {
    const auto init = jobs.init(*store, job);
    store->fill(job, init, drawn_adapter(*store, init, std::uint64_t(job)));
    optimizer.start(job, {.lr = jobs.rate(job)});
  }
  for (int i = 0; i < steps; ++i) {
    store->begin(samples.rows(pack), true);
    samples.losses(model, model.hidden(samples.batch(pack)), pack).sum().backward();
    optimizer.step(own, {});
  }
  for (const auto job : own) t.weights[job] = store->flat_weights(job);
  return t;
}

TEST(AdapterArms, CutFromAModelWithBiases) {
  at::set_num_threads(1);
  AdapterJobs jobs = tiny({2, 4, 8, 16}, 2);
  jobs.model.qkv_bias = true;
  for (const bool fp8 : {false, true}) {
    jobs.fp8 = fp8;
    run_loopback(2, [&](Communicator& world) {
      const auto mine = balanced(jobs.ranks, 2)[std::size_t(world.rank())];
      const Trained cut = of_whole(jobs, mine, &world), whole = of_whole(jobs, mine);
      for (const auto job : mine) EXPECT_TRUE(cut.weights.at(job).equal(whole.weights.at(job))) << fp8 << job;
    });
  }
}

// To the bit, though a layer that is computed again leaves out what backward does not read: on an FP8 base the least
// rounding can turn a code into its neighbour.
TEST(AdapterArms, ComputedAgainIsTheSame) {
  AdapterJobs jobs = tiny({2, 4, 8, 16}, 2);
  for (const bool fp8 : {false, true}) {
    jobs.fp8 = fp8;
    const std::vector<std::int64_t> all{0, 1, 2, 3};
    const Trained again = of_whole(jobs, all), kept = of_whole(jobs, all, nullptr, false);
    for (const auto job : all) EXPECT_TRUE(again.weights.at(job).equal(kept.weights.at(job))) << fp8 << job;
  }
}

TEST(AdapterArms, Fp8TravelsAsCodes) {
  for (const int ranks : {2, 4}) {
    AdapterJobs jobs = tiny({2, 4, 8, 16, 3, 4, 8, 16}, 2);
    const Trained exact = own(jobs, ranks);
    jobs.fp8 = true;
    const Trained found = own(jobs, ranks);
    for (const auto& mine : balanced(jobs.ranks, ranks))
      for (const auto& [job, w] : of_whole(jobs, mine).weights) {
        EXPECT_TRUE(w.equal(found.weights.at(job))) << job;
        const at::Tensor& other = exact.weights.at(job);
        EXPECT_FALSE(w.equal(other));
        EXPECT_LT((w - other).norm().item<double>(), 0.1 * other.norm().item<double>());
      }
    // Codes and their scales, and two norms in f32: backward has no others.
    const std::size_t layer = 7680 + 4 * 224 + 4 * 64, gathers = 4 + 2 + (steps - 1) * 4;
    EXPECT_EQ(found.sent.gathered, gathers * layer / std::size_t(ranks));
  }
}

// What a graph is to AdapterStep: work that runs when it is replayed. It runs the hooks too, so what letting layers go
// is for, only a device's graphs show (moving_layers_gpu_test).
struct Replayed : StepGraph {
  std::function<void()> work;
  std::size_t capture(const std::function<void()>& f) override { return work = f, 1; }
  void replay() override { work(); }
};

TEST(AdapterArms, RecordedStepsOnMovingLayersArePlainOnes) {
  at::set_num_threads(1);
  set_step_graphs([](int, GraphMemory) -> std::unique_ptr<StepGraph> { return std::make_unique<Replayed>(); });
  run_loopback(2, [](Communicator& world) { test::expect_recorded_are_plain(world, {}, false); });
  set_step_graphs(nullptr);
}

TEST(AdapterArms, Balance) {
  const std::vector<std::int64_t> ranks{16, 32, 64, 128, 16, 32, 64, 128};
  for (const auto& jobs : balanced(ranks, 4)) {
    ASSERT_EQ(jobs.size(), 2u);
    const auto sum = ranks[std::size_t(jobs[0])] + ranks[std::size_t(jobs[1])];
    EXPECT_TRUE(sum == 144 || sum == 96) << sum;
  }
}

}  // namespace
}  // namespace trireme::bench
