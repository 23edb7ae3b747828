#include "framework/gradients/layout.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <ATen/ATen.h>

namespace trireme {
namespace {

constexpr std::int64_t line = 64;  // elements between parameters: views start on cache lines
constexpr double shortest_piece_mib = 0.25;
// Products of fewer rows leave a GPU idle at their end: those of 25 MiB cost 4 % of an MLP's step, and NVLink needs none.
constexpr double device_piece = 5;  // times as long as on a host

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

// Parameters of one communicator, type and device go into the same bucket until it is full, whatever lies between them
// in `order`: ranks that hold other parameters beside them cut the same buckets. A bucket leaves where its last one is.
void Layout::build(const std::vector<std::int64_t>& order) {
  struct Kind {
    Communicator* comm;
    at::TensorOptions options;
    std::size_t bucket = 0, filled = 0, made = 0;  // the one that is being filled, its bytes; how many so far
  };
  std::vector<Kind> kinds;
  std::vector<Flat> cut;
  std::vector<std::size_t> last;  // by bucket: the place of its last parameter
  for (std::size_t place = 0; place < order.size(); ++place) {
    const auto i = std::size_t(order[place]);
    const at::Tensor& v = params[i].value;
    auto kind = std::find_if(kinds.begin(), kinds.end(), [&](const Kind& k) {
      return k.comm == comm_of(params[i]) && k.options.type_equal(v.options());
    });
    if (kind == kinds.end()) kind = kinds.insert(kind, {comm_of(params[i]), v.options()});
    const double limit = kind->made <= 1 ? options_.first_bucket_mib : options_.bucket_mib;
    if (kind->made == 0 || kind->filled >= std::size_t(limit * 1048576)) {
      kind->bucket = cut.size();
      kind->filled = 0;
      ++kind->made;
      cut.emplace_back().comm = kind->comm;
      last.emplace_back();
    }
    cut[kind->bucket].params.push_back(i);
    last[kind->bucket] = place;
    kind->filled += v.nbytes();
  }
  std::vector<std::size_t> leaving(cut.size());
  std::iota(leaving.begin(), leaving.end(), 0);
  std::sort(leaving.begin(), leaving.end(), [&](auto a, auto b) { return last[a] < last[b]; });
  buckets.clear();
  bucket_of.assign(params.size(), 0);
  for (const auto k : leaving) {
    for (const auto i : cut[k].params) bucket_of[i] = buckets.size();
    buckets.push_back(std::move(cut[k]));
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

// Into pieces as long as a bucket is meant to be; a hook or a shard wants the whole.
void Layout::cut(Flat& b) {
  const std::int64_t total = b.flat.numel();
  const double mib = std::max({options_.bucket_mib, options_.first_bucket_mib, shortest_piece_mib});
  const double wanted = mib * 1048576 / double(b.flat.element_size()) * (b.flat.is_cpu() ? 1 : device_piece);
  const bool whole = !b.comm || b.comm->size() == 1 || options_.shard || options_.whole;
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
