// A step, as the reducer sees it:
//  1. begin_step: no gradient is there; every bucket is empty.
//  2. Backward: autograd hands over a gradient (on_grad), or a fused backward has written one, or its first rows, where
//     it belongs (on_written). It is copied into its place in a bucket unless it lies there already.
//  3. In the last backward, where the elements at the front of the next bucket are all there, it leaves, whole or piece
//     by piece: all-reduce, reduce-scatter (ZeRO-1), or a hook. Buckets leave one after the other in the layout's
//     order, so every rank of a communicator posts the same calls; one that only this rank holds leaves never.
//  4. finish: zeros for what has no gradient, the rest leaves, wait for all.
//  5. After the first step the order in which gradients became ready is agreed by name, buckets are cut anew in it, and
//     this step's gradients move along. From now on the layout is final, and hooks and shards of weights are made.
#include "framework/gradients/reducer.h"

#include "comm/call_site.h"
#include "comm/error.h"
#include "framework/base/param.h"
#include "framework/base/tensor.h"
#include "framework/gradients/layout.h"
#include "framework/gradients/order.h"
#include "framework/kernels/sum_of_squares.h"

#include <algorithm>
#include <map>

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
  // What is on its way of a bucket.
  struct Flight {
    std::unique_ptr<GradientHook> hook;
    std::size_t number = 0;            // among the buckets of its communicator
    bool coded = false;                // the hook reduced it in this step
    std::vector<Communicator*> lanes;  // of the bucket's communicator, for the hook
    std::size_t front = 0, sent = 0;   // first parameter without its gradient; pieces on their way
    std::vector<Work> works;
    std::vector<c10::Stream> producers;  // streams its gradients came on, and it was launched on
  };

  Communicator& grad;
  Options options;
  Layout layout;
  const std::vector<Param>& params = layout.params;
  std::vector<GradientSlot>& slots = layout.slots;
  const std::vector<Layout::Flat>& buckets = layout.buckets;
  std::vector<Flight> flights;         // by bucket
  SharedOrder order;                   // in which buckets are filled
  std::vector<std::int64_t> observed;  // order of readiness in this step
  static constexpr std::size_t lanes = 4;
  std::map<Communicator*, std::vector<std::unique_ptr<Communicator>>> copies_of;  // the lanes beside it
  std::vector<bool> ready, seen;                                                  // seen: is in `observed`
  std::vector<std::int64_t> written;  // elements of a gradient that is not ready
  std::size_t next_launch = 0;
  std::int64_t step = 0;
  bool last = false, order_known = false, order_loaded = false;

  Impl(const std::vector<Param>& p, Communicator& g, Options o)
      : grad(g),
        options(std::move(o)),
        layout(p, g, {options.bucket_mib, options.first_bucket_mib, options.shard, options.hook.name != "none"}),
        order(p, g) {
    build();
    for (std::size_t i = 0; i < params.size(); ++i) {
      torch::autograd::impl::set_post_acc_grad_hooks(params[i].value,
                                                     std::make_unique<Hook>([this, i] { on_grad(i); }));
      slots[i].written = [this, i](std::int64_t rows) { on_written(i, rows); };
      GradientSlot::offer(params[i].value, slots[i]);
    }
  }

  ~Impl() {
    for (auto& f : flights)
      for (auto& work : f.works) try {
          work.wait();
        } catch (...) {  // the error was already reported by finish()
        }
    for (auto& p : layout.params) {
      GradientSlot::withdraw(p.value);
      torch::autograd::impl::set_post_acc_grad_hooks(p.value, nullptr);
      p.value.mutable_grad().reset();
    }
  }

  void build() {
    layout.build(order.own());
    flights.clear();
    flights.resize(buckets.size());
  }

  // The layout is final: what depends on it is made now.
  void settle() {
    order_known = true;
    std::map<Communicator*, std::size_t> number;  // of a communicator's buckets: the same on all its ranks
    for (std::size_t k = 0; k < buckets.size(); ++k) {
      const auto& b = buckets[k];
      if (!b.comm || b.flat.numel() == 0 || options.hook.name == "none") continue;
      auto& f = flights[k];
      f.number = number[b.comm]++;
      f.hook = make_hook(options.hook, b, *b.comm);
      // On a device coding is a small part of the time: nothing to hide.
      f.lanes = b.flat.is_cpu() ? lanes_of(*b.comm) : std::vector{b.comm};
      const auto first = std::ptrdiff_t(f.number % f.lanes.size());  // each bucket begins with another lane
      std::rotate(f.lanes.begin(), f.lanes.begin() + first, f.lanes.end());
    }
    layout.home_weights();
  }

  std::vector<Communicator*> lanes_of(Communicator& comm) {
    auto& copies = copies_of[&comm];
    while (copies.size() + 1 < lanes) copies.push_back(comm.split(0, comm.rank()));
    std::vector<Communicator*> all{&comm};
    for (auto& copy : copies) all.push_back(copy.get());
    return all;
  }

  void begin_step(std::int64_t now) {
    step = now;
    for (std::size_t i = 0; i < params.size(); ++i) {
      layout.params[i].value.mutable_grad().reset();
      slots[i].taken = slots[i].lent = false;
    }
    for (auto& f : flights) {
      f.front = f.sent = 0;
      f.coded = false;
      f.works.clear();
      f.producers.clear();
    }
    ready.assign(params.size(), false);
    seen.assign(params.size(), false);
    written.assign(params.size(), 0);
    observed.clear();
    next_launch = 0;
    last = false;
  }

  // The same parameters may become ready in another order elsewhere. The gradients of this step move along.
  void adopt_observed_order() {
    const CallSite here("reducer: bucket order");
    if (order.adopt(observed)) {
      build();
      for (std::size_t i = 0; i < params.size(); ++i) {
        at::Tensor& g = layout.params[i].value.mutable_grad();
        slots[i].view.copy_(g);
        g = slots[i].view;
      }
    }
    settle();
  }

  // A fused backward has written a gradient where the reducer wants it. If that is all of it, it is on its way while
  // the backward of the same layer goes on.
  void on_written(std::size_t i, std::int64_t rows) {
    if (!last) return;
    const at::Tensor& g = slots[i].view;
    const bool all = rows == GradientSlot::rows_of(g);
    if (!slots[i].alone || !options.overlap) {
      if (all) observe(i);
    } else if (all) {
      mark_ready(i);
    } else {
      written[i] = rows * (g.numel() / g.size(0));
      note_stream(layout.bucket_of[i]);
      launch_full();
    }
  }

  // A gradient is complete for this backward: move it into its bucket, and launch what is full.
  void on_grad(std::size_t i) {
    auto& g = layout.params[i].value.mutable_grad();
    GradientSlot& slot = slots[i];
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
    note_stream(layout.bucket_of[i]);
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
  void note_stream(std::size_t bucket) {
    const at::Tensor& flat = buckets[bucket].flat;
    if (flat.is_cpu()) return;
    const c10::Stream s = current_stream(flat);
    auto& known = flights[bucket].producers;
    if (std::find(known.begin(), known.end(), s) == known.end()) known.push_back(s);
  }

  // Elements at the front of a bucket that are there.
  std::int64_t filled(std::size_t bucket) {
    const auto& b = buckets[bucket];
    auto& front = flights[bucket].front;
    while (front < b.params.size() && ready[b.params[front]]) ++front;
    if (front == b.params.size()) return b.flat.numel();
    return b.gradients[front].storage_offset() + written[b.params[front]];
  }

  void launch_full() {
    for (; next_launch < buckets.size(); ++next_launch) {
      if (!buckets[next_launch].comm) continue;
      const auto& ends = buckets[next_launch].ends;
      auto& sent = flights[next_launch].sent;
      const std::int64_t there = filled(next_launch);
      for (; sent < ends.size() && ends[sent] <= there; ++sent) launch(next_launch);
      if (sent < ends.size()) return;
    }
  }

  void launch(std::size_t bucket) {
    auto& b = layout.buckets[bucket];
    auto& f = flights[bucket];
    const CallSite here("reducer: bucket", int(bucket));
    for (const auto& s : f.producers) in_order(s, current_stream(b.flat));
    if (f.hook && step >= options.hook.start) {
      f.coded = true;
      f.hook->reduce(b, f.lanes, f.works);
    } else if (b.weights.defined()) {
      f.works = {b.comm->reduce_scatter(buffer_of(b.flat), buffer_of(Layout::shard_of(b, b.flat)), Op::sum)};
    } else {
      const std::int64_t begin = f.sent == 0 ? 0 : b.ends[f.sent - 1];
      f.works.push_back(b.comm->all_reduce(buffer_of(b.flat.narrow(0, begin, b.ends[f.sent] - begin)), Op::sum));
    }
    note_stream(bucket);
  }

  void finish() {
    at::NoGradGuard no_grad;
    for (const auto place : order.own()) {
      const auto i = std::size_t(place);
      if (ready[i]) continue;
      auto& g = layout.params[i].value.mutable_grad();
      if (!g.defined()) {
        slots[i].view.zero_();
        g = slots[i].view;
      }
      mark_ready(i);
    }
    launch_full();
    for (std::size_t k = 0; k < buckets.size(); ++k) {
      for (auto& work : flights[k].works) work.wait();
      for (const auto& s : flights[k].producers) in_order(s, current_stream(buckets[k].flat));
    }
    if (!order_known) adopt_observed_order();
  }

  void step_done(const at::Tensor& skip, const at::Tensor& rescale) {
    if (!skip.defined()) return;
    for (std::size_t k = 0; k < buckets.size(); ++k) {
      if (!flights[k].coded) continue;
      flights[k].hook->undo(skip);
      if (rescale.defined()) flights[k].hook->rescale(rescale);
      // A code of blocks spreads what is not finite to the zeros between parameters.
      take_back(skip, buckets[k].flat, {});
    }
  }

  void gather_weights() {
    const CallSite here("reducer: weights");
    std::vector<Work> works;
    for (const auto& b : buckets)
      if (b.weights.defined())
        works.push_back(b.comm->all_gather(buffer_of(Layout::shard_of(b, b.weights)), buffer_of(b.weights)));
    for (auto& work : works) work.wait();
  }

  std::size_t plain_bytes() const {
    const auto all = std::size_t(grad.size());
    std::size_t bytes = 2 * (all - 1) * 2 * sizeof(double) / all;  // their norm, and the loss
    for (const auto& b : buckets) {
      const auto n = std::size_t(b.comm ? b.comm->size() : 1);
      bytes += 2 * (n - 1) * b.flat.nbytes() / n;
    }
    return bytes;
  }

  // Local: what a loaded order changes is made by all ranks together, in adopt_layout().
  void order_state(Archive& ar) {
    const std::vector<std::int64_t> before = order.shared();
    std::int64_t known = order_known;
    order.state(ar);
    ar.value("order_known", known);
    if (ar.loading() && known) order_loaded = !order_known || before != order.shared();
  }

  void adopt_layout() {
    if (!std::exchange(order_loaded, false)) return;
    for (auto& p : layout.params) p.value.mutable_grad().reset();
    build();
    settle();
  }

  void state(Archive& ar) {
    order_state(ar);
    adopt_layout();
    for (std::size_t k = 0; k < buckets.size(); ++k) {
      if (!flights[k].hook) continue;
      // A group's bucket goes by its name: another group may have as many.
      const bool world = buckets[k].comm == &grad;
      Archive::Group g(ar, "hook/" + (world ? std::to_string(flights[k].number) : buckets[k].parameters[0]));
      flights[k].hook->state(ar, world ? Sharing::replicated : Sharing::per_rank);
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
std::vector<Slice> Reducer::owned() const { return impl_->layout.owned(); }
void Reducer::step_done(const at::Tensor& skip, const at::Tensor& rescale) { impl_->step_done(skip, rescale); }
void Reducer::gather_weights() { impl_->gather_weights(); }
std::size_t Reducer::plain_bytes() const { return impl_->plain_bytes(); }
void Reducer::layout(Archive& ar) { impl_->order_state(ar); }
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

Reducer::Totals Reducer::totals(const at::Tensor& loss) const {
  at::NoGradGuard no_grad;
  const CallSite here("reducer: gradient norm and loss");
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
  if (!sum.defined()) sum = at::zeros_like(loss);
  if (impl_->grad.size() == 1) return {sum.sqrt(), loss};
  const at::Tensor both = at::stack({sum, loss.to(sum.device())});
  impl_->grad.all_reduce(buffer_of(both), Op::sum).wait();
  return {both[0].sqrt(), both[1]};
}

std::size_t Reducer::bytes_per_step() const {
  std::size_t bytes = 0;
  for (const auto& b : impl_->buckets)
    if (b.comm) bytes += b.flat.nbytes();
  return bytes;
}

}  // namespace trireme
