#include "recipes/sdit/regions.h"

#include "comm/device.h"
#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/kernels/quickshift.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

namespace trireme::sdit {
namespace {

// From least to largest of each sample to [0, 1]; a constant map becomes 0.
at::Tensor normalized(const at::Tensor& map) {
  const at::Tensor least = map.amin({1, 2, 3}, true), range = map.amax({1, 2, 3}, true) - least;
  return (map - least) / range.clamp_min(1e-20);
}

// One pixel more on each side, as the border's.
at::Tensor padded(const at::Tensor& map) { return at::replication_pad2d(map, {1, 1, 1, 1}); }

at::Tensor shifted(const at::Tensor& padded, std::int64_t row, std::int64_t column) {
  const auto rows = padded.size(2) - 2, columns = padded.size(3) - 2;
  return padded.narrow(2, 1 + row, rows).narrow(3, 1 + column, columns);
}

at::Tensor scharr(const at::Tensor& map) {
  const at::Tensor p = padded(map);
  const auto difference = [&](bool across) {
    const auto at = [&](std::int64_t along, std::int64_t side) {
      return across ? shifted(p, side, along) : shifted(p, along, side);
    };
    return (3 * (at(1, -1) - at(-1, -1)) + 10 * (at(1, 0) - at(-1, 0)) + 3 * (at(1, 1) - at(-1, 1))) / 16;
  };
  return (difference(false).square() + difference(true).square()).sqrt();
}

at::Tensor laplacian(const at::Tensor& map) {
  const at::Tensor p = padded(map);
  return (shifted(p, -1, 0) + shifted(p, 1, 0) + shifted(p, 0, -1) + shifted(p, 0, 1) - 4 * map).abs();
}

// How often each value below `size` stands in a row of i64 [B, P].
at::Tensor counts(const at::Tensor& values, std::int64_t size) {
  return at::zeros({values.size(0), size}, values.options()).scatter_add_(1, values, at::ones_like(values));
}

// The inverse of the permutations in the rows of `order`.
at::Tensor inverse_order(const at::Tensor& order) {
  return at::empty_like(order).scatter_(1, order, at::arange(order.size(1), order.options()).expand_as(order));
}

at::Tensor sorted_indices(const at::Tensor& keys, bool descending) {
  return std::get<1>(at::sort(keys, /*stable=*/true, 1, descending));
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
  const at::Tensor scratch =
      at::empty({std::int64_t(kernels::quickshift_scratch(b * f, h * w))}, x0.options().dtype(at::kByte));
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
                      x0.is_cuda() ? current_place(int(x0.get_device())) : Place{});
  const at::Tensor count = segments.to(at::kLong);
  const at::Tensor before = count.cumsum(1) - count;
  return {labels.to(at::kLong) + before.view({b, f, 1, 1}), count.sum(1)};
}

at::Tensor complexity(const at::Tensor& x, const at::Tensor& x0, std::span<const double> weights) {
  const at::Tensor g = x0.mean(1);
  return weights[0] * normalized(scharr(g)) + weights[1] * normalized(laplacian(g)) +
         weights[2] * normalized((x - x0).abs().mean(1));
}

at::Tensor region_places(const RegionLabels& labels, const at::Tensor& complexity, double q) {
  const at::Tensor label = labels.map.flatten(1), c = complexity.flatten(1);
  const auto pixels = label.size(1);
  // Pixels by label, within one by falling complexity.
  const at::Tensor falling = sorted_indices(c, true);
  const at::Tensor order = falling.gather(1, sorted_indices(label.gather(1, falling), false));
  const at::Tensor sorted = label.gather(1, order), size = counts(label, pixels);
  const at::Tensor within = at::arange(pixels, label.options()) - (size.cumsum(1) - size).gather(1, sorted);
  const at::Tensor kept = (size.to(at::kDouble) * q).ceil().to(at::kLong).clamp_min(1);
  // Sums of whole numbers do not depend on their order: complexities are below 2^31 / 2^28, pixels below 2^31.
  const at::Tensor value = (c.gather(1, order).to(at::kDouble) * double(1 << 28)).round().to(at::kLong);
  const at::Tensor counted = value * (within < kept.gather(1, sorted));
  const at::Tensor sum = at::zeros_like(size).scatter_add_(1, sorted, counted);
  const at::Tensor score = (sum.to(at::kDouble) / kept).masked_fill(size == 0, -1);
  return inverse_order(sorted_indices(score, true)).gather(1, label).to(at::kFloat).view_as(complexity);
}

std::int64_t rounded_count(double share, std::int64_t n, std::int64_t round_to) {
  const auto wanted = std::max<std::int64_t>(1, std::int64_t(std::ceil(share * double(n) - 1e-9)));
  return std::min(n, (wanted + round_to - 1) / round_to * round_to);
}

at::Tensor first_by_key(const at::Tensor& keys, std::int64_t count) {
  return std::get<0>(sorted_indices(keys, false).narrow(1, 0, count).sort(1));
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
