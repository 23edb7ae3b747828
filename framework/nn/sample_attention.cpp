#include "framework/nn/sample_attention.h"

#include "framework/base/tensor.h"

#include <algorithm>
#include <numeric>

#include <ATen/ATen.h>

namespace trireme::nn {
namespace {

// A group's shortest sample has at least this share of its longest: so at most log(ratio of lengths) groups.
constexpr double least_share = 0.75;

at::Tensor index(const std::vector<std::int64_t>& values, at::Device device) {
  return to_device(at::tensor(values, at::kLong), device);
}

// [rows, heads, d] -> [samples, heads, length, d]
at::Tensor padded(const at::Tensor& x, const at::Tensor& rows, std::int64_t samples, std::int64_t length) {
  return (rows.defined() ? x.index_select(0, rows) : x).view({samples, length, x.size(1), x.size(2)}).transpose(1, 2);
}

// Only CUDA's kernels read a shared head where it lies.
at::Tensor attend(const at::Tensor& q, at::Tensor k, at::Tensor v, const std::optional<at::Tensor>& mask,
                  double scale) {
  const std::int64_t share = q.size(1) / k.size(1);
  if (share > 1 && !q.is_cuda()) {
    k = k.repeat_interleave(share, 1);
    v = v.repeat_interleave(share, 1);
  }
  return at::scaled_dot_product_attention(q, k, v, mask, 0.0, !mask, scale, share > 1 && q.is_cuda());
}

// Samples of a text: scaled_dot_product_attention would take cuDNN's kernels on a GPU that has them, which makes a plan
// of 0.1 s for every number of samples and every length that is new. Flash attention has none.
at::Tensor attend_samples(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, bool varying, double scale) {
  constexpr std::int64_t little = 128;  // of so short samples attention is nothing
  const bool half = q.scalar_type() == at::kBFloat16 || q.scalar_type() == at::kHalf;
  if (!q.is_cuda() || !half || q.size(3) % 8 != 0 || q.size(3) > 128 || (!varying && q.size(2) > little))
    return attend(q, k, v, std::nullopt, scale);
  return std::get<0>(at::_scaled_dot_product_flash_attention(q, k, v, 0.0, true, false, scale));
}

// [samples, heads, length, d] -> [samples * length, heads * d]
at::Tensor flat(const at::Tensor& y) {
  return y.transpose(1, 2).reshape({y.size(0) * y.size(2), y.size(1) * y.size(3)});
}

}  // namespace

SampleLayout sample_layout(std::vector<std::int64_t> lengths, at::Device device) {
  SampleLayout layout;
  const std::size_t n = lengths.size();
  std::vector<std::int64_t> first(n), positions, order(n);
  for (std::size_t i = 0; i < n; ++i) {
    first[i] = std::int64_t(positions.size());
    for (std::int64_t p = 0; p < lengths[i]; ++p) positions.push_back(p);
  }
  layout.positions = index(positions, device);
  if (n > 0 && std::all_of(lengths.begin(), lengths.end(), [&](std::int64_t l) { return l == lengths[0]; })) {
    layout.groups.push_back({std::int64_t(n), lengths[0], {}});
    layout.lengths = std::move(lengths);
    return layout;
  }
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int64_t a, std::int64_t b) { return lengths[std::size_t(a)] > lengths[std::size_t(b)]; });
  std::vector<std::int64_t> places(positions.size());
  std::int64_t begin = 0;
  for (std::size_t i = 0; i < n;) {
    const std::int64_t longest = lengths[std::size_t(order[i])];
    std::vector<std::int64_t> rows;
    const std::size_t start = i;
    for (; i < n && double(lengths[std::size_t(order[i])]) >= least_share * double(longest); ++i) {
      const auto s = std::size_t(order[i]);
      for (std::int64_t p = 0; p < longest; ++p) {
        // Padding stands behind the sample, where no token of it looks: any row will do.
        rows.push_back(first[s] + std::min(p, lengths[s] - 1));
        if (p < lengths[s]) places[std::size_t(first[s] + p)] = begin + std::int64_t(rows.size()) - 1;
      }
    }
    begin += std::int64_t(rows.size());
    layout.groups.push_back({std::int64_t(i - start), longest, index(rows, device)});
  }
  layout.places = index(places, device);
  layout.lengths = std::move(lengths);
  return layout;
}

at::Tensor causal_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const SampleLayout& layout,
                            double scale) {
  std::vector<at::Tensor> parts;
  for (const auto& g : layout.groups) {
    const auto part = [&](const at::Tensor& x) { return padded(x, g.rows, g.samples, g.length); };
    parts.push_back(flat(attend_samples(part(q), part(k), part(v), g.rows.defined(), scale)));
  }
  const at::Tensor all = parts.size() == 1 ? parts[0] : at::cat(parts);
  return layout.places.defined() ? all.index_select(0, layout.places) : all;
}

void reserve(KvCache& cache, std::int64_t positions) {
  if (positions <= cache.capacity) return;
  const std::int64_t more = std::max(positions, 2 * cache.capacity) - cache.capacity;
  for (auto* all : {&cache.k, &cache.v})
    for (at::Tensor& t : *all) t = at::constant_pad_nd(t, {0, 0, 0, 0, 0, more});
  cache.capacity += more;
}

CachedLayout cached_layout(const KvCache& cache, const std::vector<std::int64_t>& news, at::Device device) {
  CachedLayout layout;
  layout.samples = std::int64_t(news.size());
  layout.longest = *std::max_element(news.begin(), news.end());
  layout.total = 0;
  std::vector<std::int64_t> positions, slots, rows, places;
  at::Tensor past = at::tensor(cache.lengths, at::kLong);
  for (std::size_t i = 0; i < news.size(); ++i) {
    const auto first = std::int64_t(positions.size());
    layout.total = std::max(layout.total, cache.lengths[i] + news[i]);
    for (std::int64_t p = 0; p < layout.longest; ++p) {
      rows.push_back(std::max<std::int64_t>(first + std::min(p, news[i] - 1), 0));
      if (p >= news[i]) continue;
      positions.push_back(cache.lengths[i] + p);
      slots.push_back(std::int64_t(i) * cache.capacity + positions.back());
      places.push_back(std::int64_t(rows.size()) - 1);
    }
  }
  const at::Tensor last = past.view({-1, 1, 1, 1}) + at::arange(layout.longest).view({1, 1, -1, 1});
  layout.mask = to_device(at::arange(layout.total).view({1, 1, 1, -1}).le(last), device);
  layout.positions = index(positions, device);
  layout.slots = index(slots, device);
  layout.rows = index(rows, device);
  layout.places = index(places, device);
  return layout;
}

at::Tensor cached_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, KvCache& cache,
                            std::size_t layer, const CachedLayout& layout, double scale) {
  const auto seen = [&](at::Tensor& all, const at::Tensor& x) {
    all.view({layout.samples * cache.capacity, x.size(1), x.size(2)}).index_copy_(0, layout.slots, x);
    return all.narrow(1, 0, layout.total).transpose(1, 2);
  };
  const at::Tensor keys = seen(cache.k[layer], k), values = seen(cache.v[layer], v);
  const at::Tensor y = attend(padded(q, layout.rows, layout.samples, layout.longest), keys, values, layout.mask, scale);
  return flat(y).index_select(0, layout.places);
}

}  // namespace trireme::nn
