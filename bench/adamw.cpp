// One update of AdamW on the 148 tensors of a transformer of 151 M parameters on a GPU: ours, PyTorch's fused one, and
// a copy of as many bytes, which is the floor. One process, no ranks.
#include "bench/bench.h"
#include "bench/device_time.h"
#include "framework/optim/rule.h"

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

GroupStep transformer_group(std::int64_t width, int layers) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(at::kCUDA);
  GroupStep s;
  const auto add = [&](at::IntArrayRef shape) {
    s.values.push_back(at::randn(shape, options) * 0.02);
    s.grads.push_back(at::randn(shape, options) * 1e-3);
    s.first.push_back(at::zeros(shape, options));
    s.second.push_back(at::zeros(shape, options));
  };
  for (int i = 0; i < layers; ++i) {
    for (const std::int64_t rows : {3 * width, width, 4 * width}) add({rows, width}), add({rows});
    add({width, 4 * width}), add({width});
    for (int k = 0; k < 4; ++k) add({width});  // two norms
  }
  add({256, width}), add({width}), add({width}), add({width});
  s.count = at::ones({}, options);
  s.settings = {3e-4, 0.1};
  s.skip = at::zeros({}, options);
  return s;
}

nlohmann::json run(const Options& o) {
  need_gpu(o.name);
  at::NoGradGuard no_grad;
  const GroupStep s = transformer_group(1024, 12);
  const OptimizerConfig c;
  const auto rule = UpdateRules::create("adamw", c);
  std::int64_t n = 0;
  for (const auto& v : s.values) n += v.numel();
  const double bytes = double(n) * 28;  // four arrays read, three written
  const at::Tensor from = at::randn({n * 7 / 2}, s.count.options()), to = at::empty_like(from);
  std::vector<DeviceArm> all{
      {"copy", bytes, [&] { to.copy_(from); }},
      {"trireme", bytes, [&] { rule->update(s); }},
      {"torch fused", bytes, [&] {
         auto values = s.values, grads = s.grads, first = s.first, second = s.second;
         at::_fused_adamw_(values, grads, first, second, {}, std::vector<at::Tensor>(values.size(), s.count),
                           s.settings.lr, c.beta1, c.beta2, s.settings.weight_decay, c.eps, false, false, {}, s.skip);
       }}};
  take_turns(all, o.blocks);
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& one : all)
    rows.push_back({{"arm", one.name},
                    {"parameters", n},
                    {"tensors", s.values.size()},
                    {"step_ms", one.median()},
                    {"gb_s", one.gb_s()},
                    {"share_of_copy", one.gb_s() / all[0].gb_s()}});
  return rows;
}

const Benchmarks::Entry entry({"adamw", "AdamW on a GPU against PyTorch's fused one and the copy rate", run, nullptr});

}  // namespace
}  // namespace trireme::bench
