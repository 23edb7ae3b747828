// Steps and evaluations of two adapters on a drawn backbone whose layers lie on several ranks, plain or recorded.
#pragma once
#include "framework/adapter_step.h"
#include "framework/base/drawn.h"
#include "framework/base/tensor.h"
#include "framework/models/adapters.h"
#include "framework/placement.h"
#include "trainers/sweep/sharded_backbone.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace trireme::test {

struct Moved {
  std::vector<at::Tensor> found;  // losses, then the adapters
  std::int64_t recorded = 0;
  bool fetched = false;
};

inline Moved moved_steps(Communicator& world, const Placement& place, bool fp8, bool record) {
  CausalLmConfig c;
  c.family = "llama";
  c.vocab = 512, c.hidden = 128, c.intermediate = 256, c.layers = 5, c.heads = 4, c.kv_heads = 2, c.head_dim = 32;
  c.eps = 1e-5;
  const auto options = at::TensorOptions(place.device).dtype(place.device.is_cuda() ? at::kBFloat16 : at::kFloat);
  const auto source = [&](const LmWeight& w) {
    return w.kind == LmWeight::one ? at::ones(w.shape, options) : drawn_normal(w.shape, w.std, 1, w.name, options);
  };
  CausalLm model = sweep::without_layers({c, source, options});
  std::vector<PeftConfig> configs(1);
  configs[0].rank = 8, configs[0].targets = {"q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"};
  const auto store = make_adapter_store(model, configs, 2, nn::LoraBackend::kernels);
  const auto ranks = for_device(world.split(0, world.rank()), place, {});
  sweep::ShardedBackbone sharded(model, *store, *ranks, source, fp8);
  nn::AdapterOptimizer optimizer(*store);
  for (const std::int64_t slot : {0, 1}) {
    store->fill(slot, adapter_init(model, *store, configs[0], std::uint64_t(2 * world.rank() + slot), "adapter"));
    optimizer.start(slot, {.lr = 1e-2, .clip_norm = 1});
  }
  AdapterStep step(model, *store, optimizer, record,
                   {[&] { sharded.let_go(); }, [&](bool backward) { sharded.replayed(backward); }});
  Moved all;
  const auto batch_of = [&](std::int64_t i, std::int64_t one) {
    const std::int64_t other = 32, total = one + other;
    const at::Tensor ids = to_device((at::arange(total) * (7 + 2 * i) + world.rank()).remainder(c.vocab), place.device);
    AdapterBatch batch{
        {ids, {one, other}}, at::roll(ids, {-1}), {}, at::tensor({double(one), double(other)}, at::kFloat)};
    batch.rows = {{.slot = 0, .first = 0, .last = one}, {.slot = 1, .first = one, .last = total}};
    return batch;
  };
  for (std::int64_t i = 0; i < 12; ++i) {
    // Two compositions in turn, and two that come once: a step that is not recorded, a replay and such a step again.
    const AdapterBatch batch = batch_of(i, i == 7 ? 30 : i == 8 ? 24 : i % 2 ? 60 : 40);
    all.found.push_back(step.run(batch).clone());
    all.found.push_back(step.evaluate(i == 7 ? batch_of(i, 60) : batch).clone());
  }
  for (const std::int64_t slot : {0, 1}) all.found.push_back(store->flat_weights(slot).clone());
  all.recorded = step.recorded(), all.fetched = sharded.fetched();
  sharded.let_go();
  for (const bool backward : {true, false}) {  // what is counted of a replay is what a pass gathers
    const std::int64_t before = sharded.gathers(), bytes = sharded.bytes_received();
    sharded.gather_pass(backward);
    sharded.let_go();
    const std::int64_t gathers = sharded.gathers() - before, received = sharded.bytes_received() - bytes;
    sharded.replayed(backward);
    EXPECT_EQ(sharded.gathers() - before, 2 * gathers) << backward;
    EXPECT_EQ(sharded.bytes_received() - bytes, 2 * received) << backward;
  }
  return all;
}

inline void expect_recorded_are_plain(Communicator& world, const Placement& place, bool fetched) {
  for (const bool fp8 : {false, true}) {
    const Moved plain = moved_steps(world, place, fp8, false), recorded = moved_steps(world, place, fp8, true);
    EXPECT_EQ(plain.fetched, fetched);
    EXPECT_EQ(plain.recorded, 0);
    EXPECT_EQ(recorded.recorded, 4) << "two compositions, trained and evaluated";
    for (std::size_t i = 0; i < plain.found.size(); ++i)
      EXPECT_TRUE(plain.found[i].equal(recorded.found[i])) << "FP8 " << fp8 << ", tensor " << i;
    EXPECT_GT((plain.found[0] - plain.found[20]).abs().max().item<double>(), 1e-3);
  }
}

}  // namespace trireme::test
