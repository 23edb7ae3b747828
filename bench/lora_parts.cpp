// Every kernel of the LoRA path and of the pointwise parts around it, alone: ms, and GB/s of the bytes that it must
// move at the least. Llama's shape of 1.1 B, 32 jobs of 512 tokens, ranks 8, 16, 32 and 64 in turn, bf16.
#include "bench/bench.h"
#include "bench/device_time.h"
#include "framework/base/tensor.h"
#include "framework/kernels/grouped_swiglu.h"
#include "framework/losses/token_loss.h"
#include "framework/models/causal_lm.h"
#include "framework/nn/adapter_optimizer.h"
#include "framework/nn/lm_ops.h"

#include <cstring>

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

constexpr std::int64_t jobs = 32, each = 512, tokens = jobs * each, ranks[] = {8, 16, 32, 64}, stride = 64;
constexpr double gradient_bytes = 4, bf16_bytes = 2;

template <class T>
at::Tensor on_gpu(const std::vector<T>& items) {
  at::Tensor host = at::empty({std::int64_t(items.size() * sizeof(T))}, at::kByte);
  std::memcpy(host.mutable_data_ptr(), items.data(), std::size_t(host.numel()));
  return host.to(at::kCUDA);
}
template <class T>
const T* array_of(const at::Tensor& bytes) {
  return static_cast<const T*>(bytes.const_data_ptr());
}

const at::TensorOptions values = at::TensorOptions(at::kCUDA).dtype(at::kBFloat16);

// Targets of one input with all that their five products read and write.
struct Group {
  std::int64_t in;
  std::vector<std::int64_t> outs;
  at::Tensor rows, blocks, x, dx, s, ds;
  std::vector<at::Tensor> y, dy, adapters, keep;
  double rank_sum = 0, width_sum = 0;  // of the jobs' ranks; of in and out of all targets

  Group(std::int64_t inputs, std::vector<std::int64_t> outputs) : in(inputs), outs(std::move(outputs)) {
    std::vector<kernels::GroupedRows> all_rows;
    std::vector<kernels::GroupedBlock> all_blocks;
    for (std::int64_t g = 0; g < jobs; ++g) {
      all_rows.push_back({std::int32_t(g * each), std::int32_t((g + 1) * each), {}});
      rank_sum += double(ranks[g % 4]);
    }
    for (std::int64_t kind = 3; kind >= 0; --kind)  // large ranks first, as a pass has them
      for (std::int64_t g = kind; g < jobs; g += 4)
        for (std::int64_t b = 0; b < each / kernels::grouped_rows; ++b)
          all_blocks.push_back({std::int32_t(g), std::int32_t(b)});
    rows = on_gpu(all_rows);
    blocks = on_gpu(all_blocks);
    x = at::randn({tokens, in}, values);
    dx = at::empty_like(x);
    s = at::zeros({std::int64_t(outs.size()), tokens, stride}, values);
    ds = at::zeros_like(s);
    for (const auto out : outs) add_target(out);
  }

  void add_target(std::int64_t out) {
    y.push_back(at::empty({tokens, out}, values));
    dy.push_back(at::randn({tokens, out}, values));
    width_sum += double(in + out);
    std::vector<kernels::GroupedAdapter> all;
    for (std::int64_t g = 0; g < jobs; ++g) {
      const std::int64_t r = ranks[g % 4];
      const at::Tensor weights = at::randn({r * (in + out)}, values) * 0.02;
      const at::Tensor gradients = at::zeros({r * (in + out)}, values.dtype(at::kFloat));
      const auto* w = static_cast<const std::uint16_t*>(weights.const_data_ptr());
      auto* d = gradients.mutable_data_ptr<float>();
      all.push_back({w, w + r * in, d, d + r * in, std::int32_t(r), 2.0f});
      keep.push_back(weights);
      keep.push_back(gradients);
    }
    adapters.push_back(on_gpu(all));
  }

  kernels::GroupedTable table() const {
    return {.rows = array_of<kernels::GroupedRows>(rows),
            .blocks = array_of<kernels::GroupedBlock>(blocks),
            .groups = jobs,
            .block_count = jobs * each / kernels::grouped_rows,
            .longest = each,
            .rank_stride = stride,
            .tokens = tokens};
  }
  const kernels::GroupedAdapter* of(std::size_t t) const { return array_of<kernels::GroupedAdapter>(adapters[t]); }

  void shrink(bool backward) {
    kernels::GroupedShrink job{
        .table = table(), .type = DType::bf16, .backward = backward, .targets = int(outs.size())};
    for (std::size_t t = 0; t < outs.size(); ++t)
      job.target[t] = {of(t), backward ? dy[t].const_data_ptr() : x.const_data_ptr(), backward ? outs[t] : in,
                       (backward ? ds : s)[std::int64_t(t)].mutable_data_ptr()};
    kernels::grouped_shrink(job, buffer_of(x).place);
  }
  void expand(bool backward) {
    kernels::GroupedExpand job{
        .table = table(), .type = DType::bf16, .backward = backward, .add = false, .targets = int(outs.size())};
    for (std::size_t t = 0; t < outs.size(); ++t)
      job.target[t] = {.adapters = of(t),
                       .s = (backward ? ds : s)[std::int64_t(t)].const_data_ptr(),
                       .y = (backward ? dx : y[t]).mutable_data_ptr(),
                       .width = backward ? in : outs[t]};
    kernels::grouped_expand(job, buffer_of(x).place);
  }
  void outer() {
    kernels::GroupedOuter job{.table = table(), .type = DType::bf16, .add = false, .targets = int(outs.size())};
    for (std::size_t t = 0; t < outs.size(); ++t)
      job.target[t] = {of(t),
                       x.const_data_ptr(),
                       ds[std::int64_t(t)].const_data_ptr(),
                       dy[t].const_data_ptr(),
                       s[std::int64_t(t)].const_data_ptr(),
                       in,
                       outs[t]};
    kernels::grouped_outer(job, buffer_of(x).place);
  }

  double out_bytes() const {
    double sum = 0;
    for (const auto out : outs) sum += double(tokens * out) * bf16_bytes;
    return sum;
  }
  std::vector<DeviceArm> arms(const std::string& name) {
    const double x_bytes = double(tokens * in) * bf16_bytes;
    return {{name + " shrink", x_bytes, [this] { shrink(false); }},
            {name + " expand", out_bytes(), [this] { expand(false); }},
            {name + " shrink backward", out_bytes(), [this] { shrink(true); }},
            {name + " expand backward", x_bytes, [this] { expand(true); }},
            {name + " outer", x_bytes + out_bytes() + gradient_bytes * rank_sum * width_sum, [this] { outer(); }}};
  }
};

void gated(const Options& o, std::vector<DeviceArm>& all) {
  Group both(2048, {5632, 5632}), down(5632, {2048});
  kernels::GroupedSwiglu job;
  job.table = both.table(), job.type = DType::bf16, job.width = 5632;
  job.of_gate = {both.of(0), both.s[0].const_data_ptr(), stride};
  job.of_up = {both.of(1), both.s[1].const_data_ptr(), stride};
  job.gate = both.y[0].const_data_ptr(), job.up = both.y[1].const_data_ptr(), job.y = down.dx.mutable_data_ptr();
  kernels::GroupedSwiglu back = job;
  back.of_down = {down.of(0), down.ds[0].const_data_ptr(), stride};
  back.dy = down.x.const_data_ptr();
  back.dgate = both.dy[0].mutable_data_ptr(), back.dup = both.dy[1].mutable_data_ptr();
  for (auto& y : both.y) y.zero_();
  const double i = double(tokens) * 5632 * bf16_bytes;
  std::vector<DeviceArm> arms{
      {"swiglu with paths", 3 * i, [&] { kernels::grouped_swiglu(job, buffer_of(both.x).place); }},
      {"swiglu with paths, backward", 5 * i, [&] { kernels::grouped_swiglu(back, buffer_of(both.x).place); }}};
  take_turns(arms, o.blocks, 5);
  for (auto& arm : arms) all.push_back({arm.name, arm.bytes, {}, arm.ms});
}

void pointwise(const Options& o, std::vector<DeviceArm>& all) {
  const std::int64_t hidden = 2048, inner = 5632, vocab = 32000, head = 64;
  const double h = double(tokens * hidden) * bf16_bytes, i = double(tokens * inner) * bf16_bytes;
  const auto leaf = [](at::IntArrayRef shape) { return at::randn(shape, values).set_requires_grad(true); };
  const at::Tensor x = leaf({tokens, hidden}), add = leaf({tokens, hidden}), gate = leaf({tokens, inner}),
                   up = leaf({tokens, inner}), q = leaf({tokens, hidden / head, head}),
                   g = at::randn({tokens, hidden}, values), gi = at::randn({tokens, inner}, values),
                   weight = at::ones({hidden}, values), cos = at::randn({tokens, 1, head}, values.dtype(at::kFloat));
  const auto both = [](const at::Tensor& y, const at::Tensor& dy, std::vector<at::Tensor> of) {
    torch::autograd::grad({y}, of, {dy});
  };
  std::vector<DeviceArm> arms{
      {"rms_norm with sum, both ways", 7 * h,
       [&] {
         both(nn::rms_norm(x, add, weight, 1e-5).y, g, {x, add});
       }},
      {"rotated q, both ways", 4 * h, [&] { both(nn::rotated(q, cos, cos), g.view_as(q), {q}); }},
      {"swiglu, both ways", 8 * i, [&] {
         both(nn::swiglu(gate, up), gi, {gate, up});
       }}};
  const at::Tensor matrix = at::randn({vocab, hidden}, values) * 0.02, hidden_rows = leaf({tokens, hidden});
  const at::Tensor labels = at::randint(vocab, {tokens}, values.dtype(at::kLong));
  const at::Tensor ones = at::ones({tokens}, values.dtype(at::kFloat));
  arms.push_back({"loss with both products", 6 * double(tokens * vocab),
                  [&] { both(token_losses(hidden_rows, matrix, labels), ones, {hidden_rows}); }});
  const at::Tensor w = at::randn({inner, hidden}, values);
  at::Tensor up_out = at::empty({tokens, inner}, values);
  arms.push_back({"product 2048 to 5632", h + i, [&] { at::mm_out(up_out, g, w.t()); }});
  arms.push_back({"product onto what is there", h + 2 * i, [&] { up_out.addmm_(g, w.t()); }});
  arms.push_back({"copy", 2 * i, [&] { up_out.copy_(gi); }});
  take_turns(arms, o.blocks, 5);
  for (auto& arm : arms) all.push_back({arm.name, arm.bytes, {}, arm.ms});
}

// 16 M values of each job, as in a step of the whole model.
void optimizer(const Options& o, std::vector<DeviceArm>& all) {
  nn::AdapterStore store({{"w", at::empty({262144, 8}, values), {}}}, jobs, 64);
  nn::AdapterOptimizer adamw(store);
  std::vector<std::int64_t> slots;
  double count = 0;
  for (std::int64_t i = 0; i < jobs; ++i) {
    store.fill(i, {.shapes = {{64, 1}}, .seed = 1}, at::zeros({262152 * 64}, values.dtype(at::kFloat)));
    adamw.start(i, {.lr = 1e-4});
    slots.push_back(i);
    count += double(store.flat_weights(i).numel());
  }
  std::vector<DeviceArm> arms{{"AdamW of all", 34 * count, [&] { adamw.step(slots, {}); }}};
  take_turns(arms, o.blocks, 5);
  all.push_back({arms[0].name, arms[0].bytes, {}, arms[0].ms});
}

nlohmann::json run(const Options& o) {
  need_gpu(o.name);
  std::vector<DeviceArm> all;
  const std::pair<const char*, std::pair<std::int64_t, std::vector<std::int64_t>>> groups[] = {
      {"qkv", {2048, {2048, 256, 256}}},
      {"o", {2048, {2048}}},
      {"gate up", {2048, {5632, 5632}}},
      {"down", {5632, {2048}}}};
  for (const auto& [name, shape] : groups) {
    Group group(shape.first, shape.second);
    auto arms = group.arms(name);
    take_turns(arms, o.blocks, 5);
    for (auto& arm : arms) all.push_back({arm.name, arm.bytes, {}, arm.ms});
  }
  gated(o, all);
  pointwise(o, all);
  optimizer(o, all);
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& arm : all) rows.push_back({{"arm", arm.name}, {"ms", arm.median()}, {"gb_s", arm.gb_s()}});
  return rows;
}

const Benchmarks::Entry entry({"lora_parts", "each kernel of batched LoRA alone, in GB/s (on a GPU)", run, nullptr});

}  // namespace
}  // namespace trireme::bench
