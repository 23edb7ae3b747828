#include "recipes/sdit/regions.h"

#include "comm/device.h"
#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/kernels/quickshift.h"
#include "framework/kernels/region_choice.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

namespace trireme::sdit {
namespace {

Place place_of(const at::Tensor& t) { return t.is_cuda() ? current_place(int(t.get_device())) : Place{}; }

at::Tensor scratch_of(std::size_t bytes, const at::Tensor& like) {
  return at::empty({std::int64_t(bytes)}, like.options().dtype(at::kByte));
}

// The least of each token's pixels, [B, N]; pixels up to `ring` away count as its own.
at::Tensor least_of_tokens(const at::Tensor& map, TokenPatch patch, std::int64_t ring) {
  at::Tensor best = -map;
  if (ring > 0) best = at::max_pool2d(best, {2 * ring + 1, 2 * ring + 1}, {1, 1}, {ring, ring});
  best = best.unflatten(1, {map.size(1) / patch.frames, patch.frames}).amax(2);
  return -at::max_pool2d(best, {patch.side, patch.side}).flatten(1);
}

// Places of regions that are not due come after all others.
at::Tensor with_period(const at::Tensor& places, const RegionLabels& labels, const TokenChoice& choice,
                       std::int64_t step) {
  if (choice.period.empty()) return places;
  const at::Tensor third = (places * 3 / labels.count.view({-1, 1, 1, 1})).floor().clamp_max(2);
  at::Tensor late = at::zeros_like(places);
  for (std::int64_t k = 0; k < 3; ++k)
    if (step % choice.period[std::size_t(k)] != 0) late += (third == k);
  return places + late * places[0].numel();
}

}  // namespace

at::Tensor label_noise(std::span<const std::uint64_t> seeds, std::int64_t rows, std::int64_t columns,
                       at::Device device) {
  at::Tensor noise = at::empty({std::int64_t(seeds.size()), rows, columns}, at::kDouble);
  double* out = noise.data_ptr<double>();
  for (const auto seed : seeds) {
    Rng rng(seed, "quickshift");
    for (std::int64_t i = 0; i < rows * columns; ++i) *out++ = rng.normal();
  }
  return to_device(noise, device);
}

RegionLabels label_regions(const at::Tensor& x0, const at::Tensor& noise, const LabelSettings& settings) {
  const auto b = x0.size(0), f = x0.size(2), h = x0.size(3), w = x0.size(4);
  const at::Tensor wide = x0.to(at::kDouble);
  const at::Tensor scale = settings.ratio / wide.flatten(1).std(1, false).clamp_min(1e-12);
  const at::Tensor features = (wide * scale.view({b, 1, 1, 1, 1})).transpose(1, 2).contiguous();
  const at::Tensor normals = noise.unsqueeze(1).expand({b, f, h, w}).contiguous();
  const at::Tensor labels = at::empty({b, f, h, w}, x0.options().dtype(at::kInt));
  const at::Tensor segments = at::empty({b, f}, labels.options());
  const at::Tensor scratch = scratch_of(kernels::quickshift_scratch(b * f, h * w), x0);
  kernels::quickshift({.features = features.const_data_ptr<double>(),
                       .noise = normals.const_data_ptr<double>(),
                       .batch = b * f,
                       .channels = x0.size(1),
                       .rows = h,
                       .columns = w,
                       .kernel_size = settings.kernel_size,
                       .max_dist = settings.max_dist,
                       .labels = labels.data_ptr<std::int32_t>(),
                       .segments = segments.data_ptr<std::int32_t>(),
                       .scratch = scratch.data_ptr()},
                      place_of(x0));
  const at::Tensor count = segments.to(at::kLong);
  const at::Tensor before = count.cumsum(1) - count;
  return {labels.to(at::kLong) + before.view({b, f, 1, 1}), count.sum(1)};
}

at::Tensor complexity(const at::Tensor& x, const at::Tensor& x0, std::span<const double> weights) {
  const auto b = x0.size(0), f = x0.size(2), h = x0.size(3), w = x0.size(4);
  const at::Tensor noisy = x.contiguous(), clean = x0.contiguous(), out = at::empty({b, f, h, w}, x0.options());
  const at::Tensor scratch = scratch_of(kernels::complexity_scratch(b, f * h * w), x0);
  kernels::complexity({.x = noisy.const_data_ptr<float>(),
                       .x0 = clean.const_data_ptr<float>(),
                       .batch = b,
                       .channels = x0.size(1),
                       .frames = f,
                       .rows = h,
                       .columns = w,
                       .weight = {float(weights[0]), float(weights[1]), float(weights[2])},
                       .out = out.data_ptr<float>(),
                       .scratch = scratch.data_ptr()},
                      place_of(x0));
  return out;
}

at::Tensor region_places(const RegionLabels& labels, const at::Tensor& complexity, double q) {
  const at::Tensor map = labels.map.contiguous(), count = labels.count.contiguous(), c = complexity.contiguous();
  const at::Tensor places = at::empty(c.sizes(), c.options());
  const auto b = c.size(0), pixels = c[0].numel();
  const at::Tensor scratch = scratch_of(kernels::region_places_scratch(b, pixels), c);
  kernels::region_places({.labels = map.const_data_ptr<std::int64_t>(),
                          .regions = count.const_data_ptr<std::int64_t>(),
                          .complexity = c.const_data_ptr<float>(),
                          .q = q,
                          .batch = b,
                          .pixels = pixels,
                          .places = places.data_ptr<float>(),
                          .scratch = scratch.data_ptr()},
                         place_of(c));
  return places;
}

std::int64_t rounded_count(double share, std::int64_t n, std::int64_t round_to) {
  const auto wanted = std::max<std::int64_t>(1, std::int64_t(std::ceil(share * double(n) - 1e-9)));
  return std::min(n, (wanted + round_to - 1) / round_to * round_to);
}

at::Tensor first_by_key(const at::Tensor& keys, std::int64_t count) {
  const at::Tensor k = keys.to(at::kFloat).contiguous();
  const at::Tensor chosen = at::empty({k.size(0), count}, k.options().dtype(at::kLong));
  kernels::first_keys({.keys = k.const_data_ptr<float>(),
                       .batch = k.size(0),
                       .n = k.size(1),
                       .count = count,
                       .chosen = chosen.data_ptr<std::int64_t>()},
                      place_of(k));
  return chosen;
}

at::Tensor choose_tokens(const at::Tensor& places, const RegionLabels& labels, TokenPatch patch,
                         const TokenChoice& choice, std::int64_t step) {
  const at::Tensor due = with_period(places, labels, choice, step);
  const at::Tensor keys = least_of_tokens(due, patch, choice.dilate);
  const auto tokens = keys.size(1);
  if (!choice.regions && !choice.uncut) return first_by_key(keys, rounded_count(choice.ratio, tokens, choice.round_to));
  at::Tensor last;  // [B, 1]: the last place that is in
  if (choice.regions)
    last = (labels.count.to(at::kDouble) * choice.ratio).ceil().clamp_min(1).view({-1, 1}) - 1;
  else
    last = std::get<0>(least_of_tokens(due, patch, 0).sort(1)).narrow(1, rounded_count(choice.ratio, tokens, 1) - 1, 1);
  const auto most = (keys <= last).sum(1).amax().item<std::int64_t>();
  return first_by_key(keys, std::min(tokens, (most + choice.round_to - 1) / choice.round_to * choice.round_to));
}

}  // namespace trireme::sdit
