#include "framework/gradients/layout.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>

namespace trireme {
namespace {

constexpr std::int64_t line = 64;  // elements between parameters: views start on cache lines
constexpr double shortest_piece_mib = 0.25;

std::int64_t round_up(std::int64_t n, std::int64_t to) { return (n + to - 1) / to * to; }

// Zeros that the communicator moves fastest.
at::Tensor flat_memory(Communicator* comm, std::int64_t count, const at::TensorOptions& options) {
  if (!comm || !options.device().is_cpu()) return at::zeros({count}, options);
  auto memory = comm->allocate(std::size_t(count) * options.dtype().itemsize());
  return at::from_blob(
      memory.get(), {count}, [memory](void*) {}, options);
}

}  // namespace

Layout::Layout(const std::vector<Param>& p, Communicator& grad, Options options)
    : params(p), slots(p.size()), grad_(grad), options_(options) {}

Communicator* Layout::comm_of(const Param& p) const {
  Communicator* c = p.replicas ? p.replicas : &grad_;
  return c->size() > 1 ? c : nullptr;
}

// Cuts `order` into buckets: a new one when full, or when communicator, type or device change.
void Layout::build(const std::vector<std::int64_t>& order) {
  buckets.clear();
  bucket_of.assign(params.size(), 0);
  std::size_t filled = 0;
  for (const auto i : order) {
    const auto& v = params[std::size_t(i)].value;
    const std::size_t limit =
        std::size_t((buckets.size() <= 1 ? options_.first_bucket_mib : options_.bucket_mib) * 1048576);
    const bool fits = !buckets.empty() && filled < limit && buckets.back().comm == comm_of(params[std::size_t(i)]) &&
                      params[buckets.back().params[0]].value.options().type_equal(v.options());
    if (!fits) {
      buckets.emplace_back().comm = comm_of(params[std::size_t(i)]);
      filled = 0;
    }
    buckets.back().params.push_back(std::size_t(i));
    bucket_of[std::size_t(i)] = buckets.size() - 1;
    filled += v.nbytes();
  }
  for (auto& b : buckets) allocate(b);
}

void Layout::allocate(Flat& b) {
  std::int64_t total = 0;
  std::vector<std::int64_t> offsets;
  for (const auto i : b.params) {
    offsets.push_back(total);
    total += round_up(params[i].value.numel(), line);
  }
  // Every rank's shard is as long, and whole cache lines.
  if (options_.shard && b.comm) total = round_up(total, 16 * b.comm->size());
  b.flat = flat_memory(b.comm, total, params[b.params[0]].value.options().requires_grad(false));
  for (std::size_t k = 0; k < b.params.size(); ++k) {
    const auto& p = params[b.params[k]];
    b.gradients.push_back(b.flat.narrow(0, offsets[k], p.value.numel()).view(p.value.sizes()));
    b.parameters.push_back(p.name);
    slots[b.params[k]].view = b.gradients.back();
  }
  cut(b);
}

// Into pieces as long as a bucket is meant to be; a hook or a shard wants the whole. (A GPU gains 2 % by pieces, and
// the tests there have not seen them yet.)
void Layout::cut(Flat& b) {
  const std::int64_t total = b.flat.numel();
  const double mib = std::max({options_.bucket_mib, options_.first_bucket_mib, shortest_piece_mib});
  const double wanted = mib * 1048576 / double(b.flat.element_size());
  const bool whole = !b.comm || !b.flat.is_cpu() || options_.shard || options_.whole;
  const std::int64_t pieces = whole ? 1 : std::max<std::int64_t>(1, std::llround(double(total) / wanted));
  b.ends.clear();
  for (std::int64_t k = 1; k < pieces; ++k) b.ends.push_back(total * k / pieces / line * line);
  b.ends.push_back(total);
  for (std::size_t k = 0; k < b.params.size(); ++k) {
    const at::Tensor& g = b.gradients[k];
    auto& blocks = slots[b.params[k]].blocks;
    blocks.clear();
    if (g.dim() == 0 || g.numel() == 0) continue;
    const std::int64_t rows = g.size(0), width = g.numel() / rows;
    for (const std::int64_t end : b.ends) {
      const std::int64_t block = std::min((end - g.storage_offset() + width - 1) / width, rows);
      if (block > 0 && (blocks.empty() || block > blocks.back())) blocks.push_back(block);
    }
  }
}

void Layout::home_weights() {
  at::NoGradGuard no_grad;
  for (auto& b : buckets) {
    if (!options_.shard || !b.comm) continue;
    b.weights = flat_memory(b.comm, b.flat.numel(), b.flat.options());
    for (std::size_t k = 0; k < b.params.size(); ++k) {
      at::Tensor value = params[b.params[k]].value;
      const at::Tensor home = b.weights.narrow(0, b.gradients[k].storage_offset(), value.numel()).view(value.sizes());
      home.copy_(value);
      value.set_data(home);
    }
  }
}

at::Tensor Layout::shard_of(const Flat& b, const at::Tensor& flat) {
  const std::int64_t n = flat.numel() / b.comm->size();
  return flat.narrow(0, n * b.comm->rank(), n);
}

std::vector<Slice> Layout::owned() const {
  std::vector<Slice> slices;
  for (const auto& b : buckets) {
    for (std::size_t k = 0; k < b.params.size(); ++k) {
      const std::int64_t at = b.gradients[k].storage_offset(), n = b.gradients[k].numel();
      std::int64_t begin = 0, end = n;
      if (b.weights.defined()) {
        const std::int64_t shard = b.flat.numel() / b.comm->size(), first = shard * b.comm->rank();
        begin = std::clamp<std::int64_t>(first - at, 0, n);
        end = std::clamp<std::int64_t>(first + shard - at, 0, n);
      }
      slices.push_back({b.params[k], begin, end});
    }
  }
  std::sort(slices.begin(), slices.end(), [](const Slice& a, const Slice& b) { return a.param < b.param; });
  return slices;
}

}  // namespace trireme
