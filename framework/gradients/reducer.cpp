#include "framework/gradients/reducer.h"

#include "comm/call_site.h"
#include "comm/error.h"
#include "framework/base/param.h"
#include "framework/base/tensor.h"
#include "framework/gradients/slot.h"
#include "framework/kernels/sum_of_squares.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/function_hook.h>

namespace trireme {
namespace {

struct Hook : torch::autograd::PostAccumulateGradHook {
  explicit Hook(std::function<void()> f) : run(std::move(f)) {}
  void operator()(const at::Tensor&) override { run(); }
  std::function<void()> run;
};

}  // namespace

struct Reducer::Impl {
  struct Part : Bucket {
    Communicator* comm = nullptr;  // null: never reduced
    std::vector<std::size_t> params;
    at::Tensor weights;  // with `shard`: flat, as `flat`
    std::unique_ptr<GradientHook> hook;
    std::vector<Communicator*> lanes;  // of `comm`, for the hook
    std::vector<std::int64_t> ends;    // of the pieces it is reduced in, in elements
    std::size_t front = 0, sent = 0;   // first parameter without its gradient; pieces on their way
    std::vector<Work> works;
    std::vector<c10::Stream> producers;  // streams its gradients came on, and it was launched on
  };

  std::vector<Param> params;
  std::vector<GradientSlot> slots_of;
  Communicator& grad;
  Options options;
  std::vector<std::int64_t> order;     // params in the order buckets are filled
  std::vector<std::int64_t> observed;  // order of readiness in this step
  std::vector<std::int64_t> loaded_order;
  static constexpr std::size_t lanes = 4;
  static constexpr double shortest_piece_mib = 0.25;
  std::map<Communicator*, std::vector<std::unique_ptr<Communicator>>> copies_of;  // the lanes beside it
  std::vector<Part> buckets;
  std::vector<std::size_t> bucket_of;
  std::vector<bool> ready, seen;      // seen: is in `observed`
  std::vector<std::int64_t> written;  // elements of a gradient that is not ready
  std::size_t next_launch = 0;
  std::int64_t step = 0;
  bool last = false, order_known = false;

  Impl(const std::vector<Param>& p, Communicator& g, Options o)
      : params(p), slots_of(p.size()), grad(g), options(std::move(o)) {
    order.resize(params.size());
    std::iota(order.rbegin(), order.rend(), 0);
    build();
    for (std::size_t i = 0; i < params.size(); ++i) {
      torch::autograd::impl::set_post_acc_grad_hooks(params[i].value,
                                                     std::make_unique<Hook>([this, i] { on_grad(i); }));
      slots_of[i].written = [this, i](std::int64_t rows) { on_written(i, rows); };
      GradientSlot::offer(params[i].value, slots_of[i]);
    }
  }

  ~Impl() {
    for (auto& b : buckets)
      for (auto& work : b.works) try {
          work.wait();
        } catch (...) {  // the error was already reported by finish()
        }
    for (auto& p : params) {
      GradientSlot::withdraw(p.value);
      torch::autograd::impl::set_post_acc_grad_hooks(p.value, nullptr);
      p.value.mutable_grad().reset();
    }
  }

  Communicator* comm_of(const Param& p) const {
    Communicator* c = p.replicas ? p.replicas : &grad;
    return c->size() > 1 ? c : nullptr;
  }

  // Cuts `order` into buckets: a new one when full, or when communicator, type or device change.
  void build() {
    buckets.clear();
    bucket_of.assign(params.size(), 0);
    std::size_t filled = 0;
    for (const auto i : order) {
      const auto& v = params[i].value;
      const std::size_t limit =
          std::size_t((buckets.size() <= 1 ? options.first_bucket_mib : options.bucket_mib) * 1048576);
      const bool fits = !buckets.empty() && filled < limit && buckets.back().comm == comm_of(params[i]) &&
                        params[buckets.back().params[0]].value.options().type_equal(v.options());
      if (!fits) {
        buckets.emplace_back().comm = comm_of(params[i]);
        filled = 0;
      }
      buckets.back().params.push_back(i);
      bucket_of[i] = buckets.size() - 1;
      filled += v.nbytes();
    }
    for (auto& b : buckets) allocate(b);
  }

  // Zeros that the communicator moves fastest.
  static at::Tensor flat_memory(Communicator* comm, std::int64_t count, const at::TensorOptions& options) {
    if (!comm || !options.device().is_cpu()) return at::zeros({count}, options);
    auto memory = comm->allocate(std::size_t(count) * options.dtype().itemsize());
    return at::from_blob(
        memory.get(), {count}, [memory](void*) {}, options);
  }

  void allocate(Part& b) {
    constexpr std::int64_t align = 64;  // elements between parameters: views start on cache lines
    std::int64_t total = 0;
    std::vector<std::int64_t> offsets;
    for (const auto i : b.params) {
      offsets.push_back(total);
      total += (params[i].value.numel() + align - 1) / align * align;
    }
    if (options.shard && b.comm) {  // every rank's shard is as long, and whole cache lines
      const std::int64_t shards = 16 * b.comm->size();
      total = (total + shards - 1) / shards * shards;
    }
    const auto options = params[b.params[0]].value.options().requires_grad(false);
    b.flat = flat_memory(b.comm, total, options);
    for (std::size_t k = 0; k < b.params.size(); ++k) {
      const auto& p = params[b.params[k]];
      b.gradients.push_back(b.flat.narrow(0, offsets[k], p.value.numel()).view(p.value.sizes()));
      b.parameters.push_back(p.name);
      slots_of[b.params[k]].view = b.gradients.back();
    }
    cut(b);
  }

  // Into pieces as long as a bucket is meant to be; a hook or a shard wants the whole. (A GPU gains 2 % by pieces, and
  // the tests there have not seen them yet.)
  void cut(Part& b) {
    const std::int64_t total = b.flat.numel(), line = 64;
    const double mib = std::max({options.bucket_mib, options.first_bucket_mib, shortest_piece_mib});
    const double wanted = mib * 1048576 / double(b.flat.element_size());
    const bool whole = !b.comm || !b.flat.is_cpu() || options.shard || options.hook.name != "none";
    const std::int64_t pieces = whole ? 1 : std::max<std::int64_t>(1, std::llround(double(total) / wanted));
    b.ends.clear();
    for (std::int64_t k = 1; k < pieces; ++k) b.ends.push_back(total * k / pieces / line * line);
    b.ends.push_back(total);
    for (std::size_t k = 0; k < b.params.size(); ++k) {
      const at::Tensor& g = b.gradients[k];
      auto& blocks = slots_of[b.params[k]].blocks;
      blocks.clear();
      if (g.dim() == 0 || g.numel() == 0) continue;
      const std::int64_t rows = g.size(0), width = g.numel() / rows;
      for (const std::int64_t end : b.ends) {
        const std::int64_t block = std::min((end - g.storage_offset() + width - 1) / width, rows);
        if (block > 0 && (blocks.empty() || block > blocks.back())) blocks.push_back(block);
      }
    }
  }

  // The layout is final: what depends on it is made now.
  void settle() {
    order_known = true;
    for (auto& b : buckets) {
      if (!b.comm) continue;
      if (options.hook.name != "none") {
        b.hook = make_hook(options.hook, b, *b.comm);
        b.lanes = lanes_of(*b.comm);
        // Each bucket begins with another lane.
        std::rotate(b.lanes.begin(), b.lanes.begin() + (&b - buckets.data()) % std::ptrdiff_t(lanes), b.lanes.end());
      }
      if (options.shard) home_weights(b);
    }
  }

  std::vector<Communicator*> lanes_of(Communicator& comm) {
    auto& copies = copies_of[&comm];
    while (copies.size() + 1 < lanes) copies.push_back(comm.split(0, comm.rank()));
    std::vector<Communicator*> all{&comm};
    for (auto& copy : copies) all.push_back(copy.get());
    return all;
  }

  void home_weights(Part& b) {
    at::NoGradGuard no_grad;
    b.weights = flat_memory(b.comm, b.flat.numel(), b.flat.options());
    for (std::size_t k = 0; k < b.params.size(); ++k) {
      at::Tensor value = params[b.params[k]].value;
      const at::Tensor home = b.weights.narrow(0, b.gradients[k].storage_offset(), value.numel()).view(value.sizes());
      home.copy_(value);
      value.set_data(home);
    }
  }

  void begin_step(std::int64_t now) {
    step = now;
    for (std::size_t i = 0; i < params.size(); ++i) {
      params[i].value.mutable_grad().reset();
      slots_of[i].taken = slots_of[i].lent = false;
    }
    for (auto& b : buckets) {
      b.front = b.sent = 0;
      b.works.clear();
      b.producers.clear();
    }
    ready.assign(params.size(), false);
    seen.assign(params.size(), false);
    written.assign(params.size(), 0);
    observed.clear();
    next_launch = 0;
    last = false;
  }

  // Rank 0's order of readiness, for all ranks: the same parameters may become ready in another order elsewhere.
  // The gradients of this step move along.
  void adopt_observed_order() {
    const CallSite here("reducer: bucket order");
    std::vector<std::int64_t> agreed = observed;
    grad.broadcast({agreed.data(), agreed.size(), DType::i64, {}}, 0).wait();
    if (agreed != order) {
      order = agreed;
      build();
      for (std::size_t i = 0; i < params.size(); ++i) {
        at::Tensor& g = params[i].value.mutable_grad();
        slots_of[i].view.copy_(g);
        g = slots_of[i].view;
      }
    }
    settle();
  }

  // A fused backward has written a gradient where the reducer wants it. If that is all of it, it is on its way while
  // the backward of the same layer goes on.
  void on_written(std::size_t i, std::int64_t rows) {
    if (!last) return;
    const at::Tensor& g = slots_of[i].view;
    const bool all = rows == GradientSlot::rows_of(g);
    if (!slots_of[i].alone || !options.overlap) {
      if (all) observe(i);
    } else if (all) {
      mark_ready(i);
    } else {
      written[i] = rows * (g.numel() / g.size(0));
      note_stream(buckets[bucket_of[i]]);
      launch_full();
    }
  }

  // A gradient is complete for this backward: move it into its bucket, and launch what is full.
  void on_grad(std::size_t i) {
    auto& param = params[i].value;
    auto& g = param.mutable_grad();
    GradientSlot& slot = slots_of[i];
    const bool in_place = g.data_ptr() == slot.view.data_ptr();
    if (!in_place) {
      if (ready[i])
        throw UsageError(params[i].name, "has one use in some steps and several in others",
                         "use it as often in every step, or set overlap: false");
      at::NoGradGuard no_grad;
      slot.view.copy_(g);
      g = slot.view;
    }
    if (slot.lent) slot.alone = in_place;
    slot.lent = false;  // a later backward of this step adds to it
    slot.taken = true;
    if (last) mark_ready(i);
  }

  void observe(std::size_t i) {
    if (!seen[i]) observed.push_back(std::int64_t(i));
    seen[i] = true;
  }

  void mark_ready(std::size_t i) {
    if (ready[i]) return;
    ready[i] = true;
    observe(i);
    note_stream(buckets[bucket_of[i]]);
    if (options.overlap) launch_full();
  }

  static c10::Stream current_stream(const at::Tensor& t) {
    return c10::impl::VirtualGuardImpl(t.device().type()).getStream(t.device());
  }
  static void in_order(c10::Stream first, c10::Stream then) {
    if (first == then) return;
    c10::Event event(first.device_type());
    event.record(first);
    event.block(then);
  }
  // On a GPU gradients may come on several streams, and be used on another one.
  static void note_stream(Part& b) {
    if (b.flat.is_cpu()) return;
    const c10::Stream s = current_stream(b.flat);
    if (std::find(b.producers.begin(), b.producers.end(), s) == b.producers.end()) b.producers.push_back(s);
  }

  // Elements at the front of a bucket that are there.
  std::int64_t filled(Part& b) const {
    while (b.front < b.params.size() && ready[b.params[b.front]]) ++b.front;
    if (b.front == b.params.size()) return b.flat.numel();
    return b.gradients[b.front].storage_offset() + written[b.params[b.front]];
  }

  void launch_full() {
    for (; next_launch < buckets.size(); ++next_launch) {
      auto& b = buckets[next_launch];
      const std::int64_t there = filled(b);
      for (; b.sent < b.ends.size() && b.ends[b.sent] <= there; ++b.sent) launch(b);
      if (b.sent < b.ends.size()) return;
    }
  }

  void launch(Part& b) {
    if (!b.comm) return;
    const CallSite here("reducer: bucket", int(next_launch));
    for (const auto& s : b.producers) in_order(s, current_stream(b.flat));
    if (b.hook && step >= options.hook.start) {
      b.hook->reduce(b, b.lanes, b.works);
    } else if (b.weights.defined()) {
      b.works = {b.comm->reduce_scatter(buffer_of(b.flat), buffer_of(shard_of(b, b.flat)), Op::sum)};
    } else {
      const std::int64_t begin = b.sent == 0 ? 0 : b.ends[b.sent - 1];
      b.works.push_back(b.comm->all_reduce(buffer_of(b.flat.narrow(0, begin, b.ends[b.sent] - begin)), Op::sum));
    }
    note_stream(b);
  }

  static at::Tensor shard_of(const Part& b, const at::Tensor& flat) {
    const std::int64_t n = flat.numel() / b.comm->size();
    return flat.narrow(0, n * b.comm->rank(), n);
  }

  void finish() {
    at::NoGradGuard no_grad;
    for (std::size_t k = 0; k < order.size(); ++k) {
      const auto i = std::size_t(order[k]);
      if (ready[i]) continue;
      auto& g = params[i].value.mutable_grad();
      if (!g.defined()) {
        slots_of[i].view.zero_();
        g = slots_of[i].view;
      }
      mark_ready(i);
    }
    launch_full();
    for (auto& b : buckets) {
      for (auto& work : b.works) work.wait();
      for (const auto& s : b.producers) in_order(s, current_stream(b.flat));
    }
    if (!order_known) adopt_observed_order();
  }

  void gather_weights() {
    const CallSite here("reducer: weights");
    for (auto& b : buckets)
      if (b.weights.defined()) b.works = {b.comm->all_gather(buffer_of(shard_of(b, b.weights)), buffer_of(b.weights))};
    for (auto& b : buckets)
      if (b.weights.defined()) b.works.front().wait();
  }

  std::vector<Slice> owned() const {
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

  std::size_t plain_bytes() const {
    const auto all = std::size_t(grad.size());
    std::size_t bytes = 2 * (all - 1) * sizeof(double) / all;  // their norm
    for (const auto& b : buckets) {
      const auto n = std::size_t(b.comm ? b.comm->size() : 1);
      bytes += 2 * (n - 1) * b.flat.nbytes() / n;
    }
    return bytes;
  }

  void layout(Archive& ar) {
    std::vector<std::int64_t> saved = order;
    std::int64_t known = order_known;
    const std::int64_t n = std::int64_t(order.size());
    ar.array("order", DType::i64, {&n, 1}, saved.data());
    ar.value("order_known", known);
    if (ar.loading() && known && !(order_known && saved == order)) loaded_order = saved;
  }

  void adopt_layout() {
    if (loaded_order.empty()) return;
    for (auto& p : params) p.value.mutable_grad().reset();
    order = std::exchange(loaded_order, {});
    build();
    settle();
  }

  void state(Archive& ar) {
    layout(ar);
    adopt_layout();
    for (std::size_t k = 0; k < buckets.size(); ++k) {
      if (!buckets[k].hook) continue;
      Archive::Group g(ar, "hook/" + std::to_string(k));
      buckets[k].hook->state(ar);
    }
  }
};

Reducer::Reducer(const std::vector<Param>& params, Communicator& grad, Options options)
    : impl_(std::make_unique<Impl>(params, grad, options)) {}
Reducer::~Reducer() = default;
void Reducer::begin_step(std::int64_t step) { impl_->begin_step(step); }
void Reducer::arm(bool last) { impl_->last = last; }
void Reducer::finish() { impl_->finish(); }
bool Reducer::settled() const { return impl_->order_known; }
std::vector<Slice> Reducer::owned() const { return impl_->owned(); }
void Reducer::gather_weights() { impl_->gather_weights(); }
std::size_t Reducer::plain_bytes() const { return impl_->plain_bytes(); }
void Reducer::layout(Archive& ar) { impl_->layout(ar); }
void Reducer::adopt_layout() { impl_->adopt_layout(); }
void Reducer::state(Archive& ar) { impl_->state(ar); }

namespace {

// An f64 scalar.
at::Tensor sum_of_squares(const at::Tensor& flat) {
  if (!flat.is_cpu()) return at::linalg_vector_norm(flat, 2, std::nullopt, false, at::kDouble).square_();
  const double sum = flat.scalar_type() == at::kDouble
                         ? kernels::sum_of_squares(flat.const_data_ptr<double>(), flat.numel())
                         : kernels::sum_of_squares(flat.const_data_ptr<float>(), flat.numel());
  return at::scalar_tensor(sum, at::kDouble);
}

}  // namespace

at::Tensor Reducer::gradient_norm() const {
  at::NoGradGuard no_grad;
  const CallSite here("reducer: gradient norm");
  // The ranks that hold the same gradients share the work: each squares its part, and every value counts once.
  at::Tensor sum;
  for (const auto& b : impl_->buckets) {
    const Communicator* holders = impl_->params[b.params[0]].replicas;
    if (!holders) holders = &impl_->grad;
    const std::int64_t n = b.flat.numel(), k = holders->size(), r = holders->rank();  // with `shard`, what it owns
    const std::int64_t first = n * r / k, last = n * (r + 1) / k;
    const at::Tensor part = k == 1 ? b.flat : b.flat.narrow(0, first, last - first);
    const at::Tensor square = sum_of_squares(part);
    sum = sum.defined() ? sum + square : square;
  }
  if (impl_->grad.size() > 1) {
    if (!sum.defined()) sum = at::zeros({}, at::kDouble);
    impl_->grad.all_reduce(buffer_of(sum), Op::sum).wait();
  }
  return sum.sqrt();
}

std::size_t Reducer::bytes_per_step() const {
  std::size_t bytes = 0;
  for (const auto& b : impl_->buckets)
    if (b.comm) bytes += b.flat.nbytes();
  return bytes;
}

}  // namespace trireme
