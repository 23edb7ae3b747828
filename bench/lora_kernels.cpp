// The LoRA path of one projection, forward and backward, by every backend beside the frozen base alone: mixed ranks,
// T tokens of Z jobs. On a GPU by its own clock; on a CPU in seconds of the processor, since others may use it.
#include "bench/bench.h"
#include "bench/device_time.h"
#include "framework/base/quantile.h"
#include "framework/nn/lora.h"

#include <ctime>

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

constexpr std::pair<const char*, nn::LoraBackend> backends[] = {{"kernels", nn::LoraBackend::kernels},
                                                                {"grouped_mm", nn::LoraBackend::grouped_mm},
                                                                {"bmm", nn::LoraBackend::bmm},
                                                                {"loop", nn::LoraBackend::loop},
                                                                {"wide", nn::LoraBackend::wide}};

struct Shape {
  std::int64_t width, tokens, jobs;
};

struct Case {
  nn::AdapterStore store;
  at::Tensor x, g;
  std::vector<nn::SlotRows> rows;

  Case(const Shape& s, const at::TensorOptions& options)
      : store({{"projection", at::randn({s.width, s.width}, options) * 0.02, {}}}, s.jobs, 64),
        x(at::randn({s.tokens, s.width}, options).set_requires_grad(true)),
        g(at::randn({s.tokens, s.width}, options)) {
    const std::int64_t ranks[] = {8, 16, 32, 64};
    for (std::int64_t i = 0; i < s.jobs; ++i) {
      store.fill(i, {.shapes = {{ranks[i % 4], 2.0}}, .seed = std::uint64_t(i)});
      rows.push_back({i, s.tokens * i / s.jobs, s.tokens * (i + 1) / s.jobs});
    }
  }
  void run() {
    x.mutable_grad().reset();
    store.project(0, x).backward(g);
  }
};

// Seconds of the processor, as ms.
double host_ms(const std::function<void()>& f) {
  const std::clock_t begin = std::clock();
  for (int i = 0; i < 3; ++i) f();
  return double(std::clock() - begin) / CLOCKS_PER_SEC * 1e3 / 3;
}

void measure(const Options& o, const Shape& s, nlohmann::json& rows) {
  const bool gpu = o.device == "cuda";
  const auto options =
      gpu ? at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA) : at::TensorOptions().dtype(at::kFloat);
  Case one(s, options);
  std::vector<DeviceArm> arms{{"frozen base", 0, [&] {
                                 one.store.begin({}, true);
                                 one.run();
                               }}};
  for (const auto& [name, backend] : backends)
    arms.push_back({name, 0, [&one, backend = backend] {
                      one.store.set_backend(backend);
                      one.store.begin(one.rows, true);
                      one.run();
                    }});
  if (gpu)
    take_turns(arms, o.blocks);
  else
    for (int block = -1; block < o.blocks; ++block)
      for (auto& arm : arms)
        if (const double ms = host_ms(arm.run); block >= 0) arm.ms.push_back(ms);
  for (const auto& arm : arms)
    rows.push_back({{"arm", arm.name},
                    {"width", s.width},
                    {"tokens", s.tokens},
                    {"jobs", s.jobs},
                    {"step_ms", arm.median()},
                    {"over_base", arm.median() / arms[0].median()}});
}

nlohmann::json run(const Options& o) {
  const bool gpu = o.device == "cuda";
  if (gpu) need_gpu(o.name);
  std::vector<Shape> shapes;
  for (const std::int64_t tokens :
       gpu ? std::vector<std::int64_t>{256, 512, 1024, 2048, 4096, 8192} : std::vector<std::int64_t>{256, 1024})
    for (const std::int64_t jobs : {4, 8, 16, 32}) shapes.push_back({gpu ? 2048 : 256, tokens, jobs});
  if (gpu) shapes.push_back({2048, 16384, 32});
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& s : shapes) measure(o, s, rows);
  return rows;
}

const Benchmarks::Entry entry({"lora_kernels",
                               "the LoRA path of one projection by every backend against the frozen base (--device)",
                               run, nullptr, /*on_devices=*/true});

}  // namespace
}  // namespace trireme::bench
