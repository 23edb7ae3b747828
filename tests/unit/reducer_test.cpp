// When gradients of fused backwards are reduced: at once, and only if they are whole.
#include "framework/gradients/reducer.h"

#include "comm/error.h"
#include "comm/local/loopback.h"
#include "framework/gradients/slot.h"
#include "framework/nn/linear.h"
#include "framework/recipe.h"
#include "tests/forwarding.h"

#include <functional>
#include <vector>

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme {
namespace {

// Calls `seen` when an all-reduce of gradients is posted.
class Watched final : public test::Forwarding {
 public:
  Watched(Communicator& inner, std::function<void()> seen) : test::Forwarding(inner), seen_(std::move(seen)) {}
  Work all_reduce(Buffer inout, Op op) override {
    if (op == Op::sum) seen_();
    return inner_.all_reduce(inout, op);
  }

 private:
  std::function<void()> seen_;
};

struct Layers {
  std::vector<Param> params;
  Layers() {
    at::manual_seed(5);
    for (const auto& [name, shape] : std::vector<std::pair<std::string, std::vector<std::int64_t>>>{
             {"w1", {6, 6}}, {"b1", {6}}, {"w2", {6, 6}}, {"b2", {6}}})
      params.push_back({name, at::randn(shape, at::kDouble).requires_grad_()});
  }
  at::Tensor layer(std::size_t i, const at::Tensor& x) const {
    return nn::linear(x, params[2 * i].value, params[2 * i + 1].value, true);
  }
};

at::Tensor input(int rank, std::int64_t step) {
  at::manual_seed(std::uint64_t(100 * step + rank));
  return at::randn({4, 6}, at::kDouble);
}

using Net = std::function<at::Tensor(const Layers&, const at::Tensor&)>;

// The sum over the ranks without a reducer.
std::vector<at::Tensor> reference(const Net& net, int ranks, std::int64_t step) {
  Layers layers;
  for (int r = 0; r < ranks; ++r) torch::autograd::backward({net(layers, input(r, step)).sum()}, {});
  std::vector<at::Tensor> grads;
  for (const auto& p : layers.params)
    grads.push_back(p.value.grad().defined() ? p.value.grad() : at::zeros_like(p.value));
  return grads;
}

using Backward = std::function<void(Reducer&, const Layers&, const at::Tensor& x, std::int64_t step)>;

// `steps` on two ranks: gradients equal the sum over the ranks of a plain backward of `net`. Returns how often an
// all-reduce began before autograd had handed over w2's gradient.
int early_launches(int steps, bool overlap, const std::function<Net(std::int64_t step)>& net,
                   const Backward& backward) {
  std::atomic<int> early{0};
  std::mutex one;  // the generator belongs to the process
  run_loopback(2, [&](Communicator& comm) {
    std::unique_lock lock(one);
    Layers layers;
    lock.unlock();
    Watched watched(comm, [&] { early += !layers.params[2].value.grad().defined(); });
    Reducer reducer(layers.params, watched, {.bucket_mib = 1e-6, .first_bucket_mib = 1e-6, .overlap = overlap});
    for (std::int64_t step = 0; step < steps; ++step) {
      lock.lock();
      const at::Tensor x = input(comm.rank(), step);
      const auto want = reference(net(step), 2, step);
      lock.unlock();
      reducer.begin_step(step);
      backward(reducer, layers, x, step);
      reducer.finish();
      for (std::size_t i = 0; i < want.size(); ++i)
        EXPECT_LE((layers.params[i].value.grad() - want[i]).abs().max().item<double>(), 1e-12) << step << " " << i;
    }
  });
  return early;
}

int early_launches(int steps, bool overlap, const std::function<Net(std::int64_t step)>& net) {
  return early_launches(steps, overlap, net,
                        [&](Reducer& reducer, const Layers& layers, const at::Tensor& x, std::int64_t step) {
                          reducer.arm(true);
                          torch::autograd::backward({net(step)(layers, x).sum()}, {});
                        });
}

at::Tensor once(const Layers& l, const at::Tensor& x) { return l.layer(1, l.layer(0, x)); }
at::Tensor twice(const Layers& l, const at::Tensor& x) { return l.layer(1, once(l, x)); }
Net always_once(std::int64_t) { return once; }
Net twice_from_step_1(std::int64_t step) { return step == 0 ? once : twice; }

TEST(Reducer, AFusedGradientIsOnItsWayBeforeTheLayersBackwardEnds) {
  // Not in the first step, in which the reducer learns that each parameter has one use. Both gradients of layer 2.
  EXPECT_EQ(early_launches(3, true, always_once), 2 * 2 * 2);
  EXPECT_EQ(early_launches(3, false, always_once), 0);
}

TEST(Reducer, AParameterWithTwoUsesWaitsForBoth) {
  EXPECT_EQ(early_launches(3, true, [](std::int64_t) -> Net { return twice; }), 0);
  // One of the uses is not fused.
  early_launches(3, true, [](std::int64_t) -> Net {
    return [](const Layers& l, const at::Tensor& x) {
      return at::addmm(l.params[3].value, once(l, x), l.params[2].value.t());
    };
  });
}

// What the first backward of a step left there is not the whole gradient.
TEST(Reducer, AccumulatedGradientsWaitForTheLastBackward) {
  early_launches(4, true, always_once, [](Reducer& reducer, const Layers& layers, const at::Tensor& x, std::int64_t) {
    for (const bool last : {false, true}) {
      reducer.arm(last);
      torch::autograd::backward({once(layers, x.narrow(0, last ? 2 : 0, 2)).sum()}, {});
    }
  });
}

// A gradient four times as long as a bucket is meant to be.
TEST(Reducer, ALargeGradientLeavesInPieces) {
  constexpr int ranks = 3;
  constexpr std::int64_t width = 256, rows = 512;
  std::mutex one;
  run_loopback(ranks, [&](Communicator& comm) {
    std::unique_lock lock(one);
    // Ready first and in the same bucket, so that no cut is at the end of a row.
    const at::Tensor scale = at::ones({rows}, at::kDouble).requires_grad_();
    const at::Tensor w = at::ones({rows, width}, at::kDouble).requires_grad_();
    lock.unlock();
    int launched = 0;
    Watched watched(comm, [&] { ++launched; });
    Reducer reducer({{"w", w}, {"scale", scale}}, watched, {.bucket_mib = 0.25, .first_bucket_mib = 0.01});
    const at::Tensor x = at::full({2, width}, 1.0 + comm.rank(), at::kDouble);
    const auto train = [&](std::int64_t step) {
      reducer.begin_step(step);
      reducer.arm(true);
      torch::autograd::backward({(nn::linear(x, w, at::zeros({rows}, at::kDouble), false) * scale).sum()}, {});
      reducer.finish();
      return std::exchange(launched, 0);
    };
    train(0);  // whoever gets ready in which order: the layout is final now
    const int pieces = train(1);
    EXPECT_EQ(pieces, 4);
    EXPECT_TRUE(at::equal(w.grad(), at::full_like(w, 2.0 * (1 + 2 + 3))));
    EXPECT_TRUE(at::equal(scale.grad(), at::full_like(scale, 2.0 * width * (1 + 2 + 3))));

    // Block by block, with a look between.
    reducer.begin_step(2);
    reducer.arm(true);
    torch::autograd::backward({scale.sum()}, {});
    at::Tensor d = gradient_destination(w);
    std::int64_t first = 0;
    const auto blocks = gradient_blocks(w);
    EXPECT_EQ(blocks.size(), 4u);
    EXPECT_EQ(blocks.back(), rows);
    for (std::size_t k = 0; k < blocks.size(); ++k) {
      d.narrow(0, first, blocks[k] - first).fill_(double(k) + comm.rank());
      gradient_written(w, blocks[k]);
      if (k + 1 < blocks.size()) {
        EXPECT_EQ(launched, int(k) + 1) << "on its way as soon as it is written";
      }
      first = blocks[k];
    }
    reducer.finish();
    first = 0;
    for (std::size_t k = 0; k < blocks.size(); first = blocks[k++])
      EXPECT_TRUE((d.narrow(0, first, blocks[k] - first) == double(ranks * k + 0 + 1 + 2)).all().item<bool>()) << k;
  });
}

TEST(Reducer, UsesThatChangeAreRefusedUnlessNothingOverlaps) {
  EXPECT_THROW(early_launches(2, true, twice_from_step_1), UsageError);
  EXPECT_EQ(early_launches(3, false, twice_from_step_1), 0);
}

}  // namespace
}  // namespace trireme
