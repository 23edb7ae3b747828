// A small regression as a recipe, trained in memory on loopback ranks.
#pragma once
#include "comm/local/loopback.h"
#include "data/rng.h"
#include "framework/session.h"
#include "tests/max_difference.h"

#include <cmath>
#include <mutex>

namespace trireme::test {

struct Rows : Dataset {
  std::int64_t size() const override { return 1 << 20; }
  Batch read(std::span<const std::int64_t> ids, std::int64_t) const override {
    Batch b;
    b.ids.assign(ids.begin(), ids.end());
    at::Tensor x = at::empty({std::int64_t(ids.size()), 6}, at::kDouble);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      Rng rng(1, "rows", std::uint64_t(ids[i]));
      for (int k = 0; k < 6; ++k) x.data_ptr<double>()[i * 6 + k] = rng.normal();
    }
    b.columns["x"] = x;
    return b;
  }
};

// Two layers; the share of a rank is its sum over the global batch size. One parameter is never used.
struct Regression : Recipe {
  double poison = 0;  // times a sum of weights, added to the loss: NaN makes gradients NaN
  double offset = 0;  // added to the loss: no gradient
  std::vector<Param> params;
  Rows rows;
  std::int64_t batch = 1;

  std::optional<std::string> recorded = std::nullopt;  // why_not_recorded()
  std::int64_t refuses = -1;                           // a recorded step that does not count; -1: nobody looks
  std::vector<std::int64_t> looks, taken;              // steps of accept(); of step_taken(), from 1, negative: not recorded

  void fields(Fields&) override {}
  std::optional<std::string> why_not_recorded(const Context&) const override { return recorded; }
  bool host_looks() const override { return refuses >= 0; }
  bool accept(Context& c) override {
    looks.push_back(c.now.step);
    return c.now.step != refuses;
  }
  void step_taken(bool was_recorded, Context& c) override {
    taken.push_back(was_recorded ? c.now.step + 1 : -c.now.step - 1);
  }
  void setup(Context& c) override {
    batch = c.config().batch_size / (c.accumulate() > 1 ? c.accumulate() : 1);
    at::Tensor w1 = at::empty({16, 6}, at::kDouble), w2 = at::empty({16}, at::kDouble);
    Rng rng(2, "weights");
    for (auto* w : {&w1, &w2})
      for (std::int64_t i = 0; i < w->numel(); ++i) w->data_ptr<double>()[i] = 0.3 * rng.normal();
    for (auto& [name, w] : std::vector<std::pair<std::string, at::Tensor>>{
             {"w1", w1}, {"b1", at::zeros({16}, at::kDouble)}, {"w2", w2}, {"unused", at::ones({5}, at::kDouble)}})
      params.push_back({name, w.to(c.device()).to(c.param_type()), nullptr, name[0] == 'w' ? "decay" : "no_decay"});
  }
  std::vector<Param> parameters() override { return params; }
  const Dataset& train_data() override { return rows; }
  std::vector<std::int64_t> train_ids() override { return {}; }
  at::Tensor loss(const Batch& b, Context& c) override {
    const at::Tensor x = b.columns.at("x").to(c.device()).to(c.param_type());
    const at::Tensor h = at::tanh(at::linear(x, params[0].value, params[1].value));
    const at::Tensor y = at::matmul(h, params[2].value.to(h.scalar_type())), target = at::sin(x.sum(1));
    return (y.to(x.scalar_type()) - target).square().sum() / double(batch) + poison * params[2].value.sum() + offset;
  }
};

struct Result {
  std::vector<at::Tensor> weights;
  std::vector<double> losses;
};

inline TrainConfig small() {
  TrainConfig c;
  c.batch_size = 24;
  c.steps = 12;
  c.precision = "f64";
  c.device = "cpu";
  c.optimizer.lr = 0.01;
  return c;
}

inline Result train(const TrainConfig& config, int ranks,
                    const std::function<void(Session&, Regression&, std::int64_t)>& each = {}) {
  Result result;
  result.losses.resize(config.steps);
  std::mutex mutex;
  run_loopback(ranks, [&](Communicator& world) {
    Regression recipe;
    Session session(world, config, recipe);
    const std::int64_t b = config.batch_size / ranks;
    for (std::int64_t s = 0; s < config.steps; ++s) {
      std::vector<std::int64_t> ids(b);
      for (std::int64_t i = 0; i < b; ++i) ids[i] = s * config.batch_size + world.rank() * b + i;
      session.context().now.step = s;
      if (each) each(session, recipe, s);
      session.step(recipe.rows.read(ids, 0));
      std::lock_guard lock(mutex);
      if (world.rank() == 0) result.losses[s] = session.loss();
    }
    std::lock_guard lock(mutex);
    if (world.rank() == 0)
      for (const auto& p : session.parameters()) result.weights.push_back(p.value.detach().clone());
  });
  return result;
}

// The largest relative difference of weights and losses; NaN if there is one, or if the two are not of one shape.
inline double distance(const Result& a, const Result& b) {
  double worst = 0;
  if (a.weights.size() != b.weights.size() || a.losses.size() != b.losses.size()) return std::nan("");
  for (std::size_t i = 0; i < a.weights.size(); ++i)
    worst = nan_max(
        worst, ((a.weights[i] - b.weights[i]).abs().max() / b.weights[i].abs().max().clamp_min(1e-30)).item<double>());
  for (std::size_t i = 0; i < a.losses.size(); ++i)
    worst = nan_max(worst, std::abs(a.losses[i] - b.losses[i]) / std::abs(b.losses[i]));
  return worst;
}

}  // namespace trireme::test
