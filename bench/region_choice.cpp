// What choosing tokens costs before a sparse step of SDiT (reconstruction): Quickshift's labels alone, the choice with
// labels at hand, and RAS's. A latent of 16 channels, 128 pixels a side (FLUX at 1024 px) or --problem SIDE.
#include "bench/bench.h"
#include "bench/device_time.h"
#include "comm/error.h"
#include "recipes/sdit/ras.h"

#include <cstdlib>

#include <ATen/ATen.h>

namespace trireme::bench {
namespace {

nlohmann::json run(const Options& o) {
  need_gpu(o.name);
  const std::int64_t side = o.problem.empty() ? 128 : std::atoll(o.problem.c_str());
  if (side < 16 || side > 1024 || side % 2 != 0)
    throw UsageError("--problem", "pixels of a latent's side, 16 to 1024 and even", "say --problem 128");
  const at::Device gpu(at::kCUDA, 0);
  // Smooth, as a predicted latent is: noise of an eighth of the side, scaled up.
  const at::Tensor x0 =
      at::upsample_bicubic2d(at::randn({1, 16, side / 8, side / 8}, at::TensorOptions(gpu)), {side, side}, false)
          .unsqueeze(2);
  const at::Tensor x = x0 + 0.5 * at::randn_like(x0);
  const std::uint64_t seeds[] = {1};
  const double weights[] = {1, 0.5, 0.3};
  const at::Tensor noise = sdit::label_noise(seeds, side, side, gpu);
  const sdit::RegionLabels labels = sdit::label_regions(x0, noise, {});
  at::Tensor left_out = at::zeros({1, side * side / 4}, x0.options());
  std::vector<DeviceArm> all;
  all.push_back({"quickshift", 0, [&] { sdit::label_regions(x0, noise, {}); }});
  all.push_back({"choice by regions", 0, [&] {
                   const at::Tensor places = sdit::region_places(labels, sdit::complexity(x, x0, weights), 0.75);
                   sdit::choose_tokens(places, labels, {}, {}, 0);
                 }});
  all.push_back(
      {"choice of ras", 0, [&] { sdit::choose_ras(sdit::ras_metric(x, {}, false), left_out, side * side / 8, {}); }});
  take_turns(all, o.blocks);
  nlohmann::json rows = nlohmann::json::array();
  for (const auto& one : all)
    rows.push_back(
        {{"arm", one.name}, {"side", side}, {"regions", labels.count.item<std::int64_t>()}, {"step_ms", one.median()}});
  return rows;
}

const Benchmarks::Entry entry(
    {"region_choice", "labels and choice of tokens before a sparse step on a GPU (--problem pixels of a latent's side)",
     run, nullptr});

}  // namespace
}  // namespace trireme::bench
