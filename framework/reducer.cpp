#include "framework/reducer.h"

#include "comm/error.h"
#include "framework/kernels/sum_of_squares.h"
#include "framework/recipe.h"
#include "framework/tensor.h"

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/function_hook.h>

#include <mutex>
#include <numeric>
#include <unordered_map>

namespace trireme {
namespace {

// Where fused backwards find the bucket view of a parameter. Shared by all reducers of the process (loopback ranks).
struct Slot {
  at::Tensor view;
  bool taken = false;
};
std::mutex slots_mutex;
std::unordered_map<const c10::TensorImpl*, Slot*> slots;

struct Hook : torch::autograd::PostAccumulateGradHook {
  explicit Hook(std::function<void()> f) : run(std::move(f)) {}
  void operator()(const at::Tensor&) override { run(); }
  std::function<void()> run;
};

}  // namespace

at::Tensor gradient_destination(const at::Tensor& param) {
  std::lock_guard lock(slots_mutex);
  const auto found = slots.find(param.unsafeGetTensorImpl());
  if (found == slots.end() || found->second->taken || !found->second->view.defined() || param.grad().defined())
    return {};
  found->second->taken = true;
  return found->second->view.view(param.sizes());
}

struct Reducer::Impl {
  struct Bucket {
    Communicator* comm;  // null: never reduced
    at::Tensor flat;
    std::vector<std::size_t> params;
    std::size_t missing = 0;  // gradients not there yet
    Work work;
    std::vector<c10::Stream> producers;  // streams its gradients came on, and it was launched on
  };

  std::vector<Param> params;
  std::vector<Slot> slots_of;
  Communicator& grad;
  Options options;
  std::vector<std::int64_t> order;     // params in the order buckets are filled
  std::vector<std::int64_t> observed;  // order of readiness in this step
  std::vector<Bucket> buckets;
  std::vector<std::size_t> bucket_of;
  std::vector<bool> ready;
  std::size_t next_launch = 0;
  bool last = false, order_known = false;

  Impl(const std::vector<Param>& p, Communicator& g, Options o) : params(p), slots_of(p.size()), grad(g), options(o) {
    order.resize(params.size());
    std::iota(order.rbegin(), order.rend(), 0);
    build();
    for (std::size_t i = 0; i < params.size(); ++i) {
      torch::autograd::impl::set_post_acc_grad_hooks(params[i].value, std::make_unique<Hook>([this, i] { on_grad(i); }));
      std::lock_guard lock(slots_mutex);
      slots[params[i].value.unsafeGetTensorImpl()] = &slots_of[i];
    }
  }

  ~Impl() {
    for (auto& b : buckets) try {
        b.work.wait();
      } catch (...) {  // the error was already reported by finish()
      }
    for (auto& p : params) {
      {
        std::lock_guard lock(slots_mutex);
        slots.erase(p.value.unsafeGetTensorImpl());
      }
      torch::autograd::impl::set_post_acc_grad_hooks(p.value, nullptr);
      p.value.mutable_grad().reset();
    }
  }

  Communicator* comm_of(const Param& p) {
    Communicator* c = p.replicas ? p.replicas : &grad;
    return c->size() > 1 ? c : nullptr;
  }

  // Cuts `order` into buckets: a new one when full, or when communicator, type or device change.
  void build() {
    for (auto& p : params) p.value.mutable_grad().reset();
    buckets.clear();
    bucket_of.assign(params.size(), 0);
    std::size_t filled = 0;
    for (const auto i : order) {
      const auto& v = params[i].value;
      const std::size_t limit = std::size_t((buckets.size() <= 1 ? options.first_bucket_mib : options.bucket_mib) * 1048576);
      const bool fits = !buckets.empty() && filled < limit && buckets.back().comm == comm_of(params[i]) &&
                        params[buckets.back().params[0]].value.options().type_equal(v.options());
      if (!fits) {
        buckets.push_back({comm_of(params[i]), {}, {}, 0, {}, {}});
        filled = 0;
      }
      buckets.back().params.push_back(i);
      bucket_of[i] = buckets.size() - 1;
      filled += v.nbytes();
    }
    for (auto& b : buckets) allocate(b);
  }

  void allocate(Bucket& b) {
    constexpr std::int64_t align = 64;  // elements between parameters: views start on cache lines
    std::int64_t total = 0;
    std::vector<std::int64_t> offsets;
    for (const auto i : b.params) {
      offsets.push_back(total);
      total += (params[i].value.numel() + align - 1) / align * align;
    }
    const auto& first = params[b.params[0]].value;
    if (b.comm && first.is_cpu()) {
      auto memory = b.comm->allocate(std::size_t(total) * first.element_size());
      b.flat = at::from_blob(memory.get(), {total}, [memory](void*) {}, first.options().requires_grad(false));
    } else {
      b.flat = at::zeros({total}, first.options().requires_grad(false));
    }
    for (std::size_t k = 0; k < b.params.size(); ++k) {
      const auto& v = params[b.params[k]].value;
      slots_of[b.params[k]].view = b.flat.narrow(0, offsets[k], v.numel()).view(v.sizes());
    }
  }

  void begin_step() {
    if (!order_known && !observed.empty()) adopt_observed_order();
    for (std::size_t i = 0; i < params.size(); ++i) {
      params[i].value.mutable_grad().reset();
      slots_of[i].taken = false;
    }
    for (auto& b : buckets) {
      b.missing = b.params.size();
      b.work = {};
      b.producers.clear();
    }
    ready.assign(params.size(), false);
    observed.clear();
    next_launch = 0;
    last = false;
  }

  // Rank 0's order of readiness, for all ranks: the same parameters may become ready in another order elsewhere.
  void adopt_observed_order() {
    order_known = true;
    std::vector<std::int64_t> agreed = observed;
    grad.broadcast({agreed.data(), agreed.size(), DType::i64, {}}, 0).wait();
    if (agreed == order) return;
    order = agreed;
    build();
  }

  // A gradient is complete for this backward: move it into its bucket, and launch what is full.
  void on_grad(std::size_t i) {
    auto& param = params[i].value;
    auto& g = param.mutable_grad();
    const at::Tensor& view = slots_of[i].view;
    if (g.data_ptr() != view.data_ptr()) {
      at::NoGradGuard no_grad;
      view.copy_(g);
      g = view;
    }
    slots_of[i].taken = true;
    if (last) mark_ready(i);
  }

  void mark_ready(std::size_t i) {
    if (ready[i]) return;
    ready[i] = true;
    observed.push_back(std::int64_t(i));
    --buckets[bucket_of[i]].missing;
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
  static void note_stream(Bucket& b) {
    if (b.flat.is_cpu()) return;
    const c10::Stream s = current_stream(b.flat);
    if (std::find(b.producers.begin(), b.producers.end(), s) == b.producers.end()) b.producers.push_back(s);
  }

  void launch_full() {
    for (; next_launch < buckets.size() && buckets[next_launch].missing == 0; ++next_launch) {
      auto& b = buckets[next_launch];
      if (!b.comm) continue;
      for (const auto& s : b.producers) in_order(s, current_stream(b.flat));
      b.work = b.comm->all_reduce(buffer_of(b.flat), Op::sum);
      if (!b.flat.is_cpu()) b.producers.insert(b.producers.begin(), current_stream(b.flat));
    }
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
      b.work.wait();
      for (const auto& s : b.producers) in_order(s, current_stream(b.flat));
    }
  }
};

Reducer::Reducer(const std::vector<Param>& params, Communicator& grad, Options options)
    : impl_(std::make_unique<Impl>(params, grad, options)) {}
Reducer::~Reducer() = default;
void Reducer::begin_step() { impl_->begin_step(); }
void Reducer::arm(bool last) { impl_->last = last; }
void Reducer::finish() { impl_->finish(); }

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
  // The ranks that hold the same gradients share the work: each squares its part, and every value counts once.
  at::Tensor sum;
  for (const auto& b : impl_->buckets) {
    const Communicator* holders = impl_->params[b.params[0]].replicas;
    if (!holders) holders = &impl_->grad;
    const std::int64_t n = b.flat.numel(), k = holders->size(), r = holders->rank();
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

void Reducer::state(Archive& ar) {
  auto order = impl_->order;
  std::int64_t known = impl_->order_known || !impl_->observed.empty();
  // What the next step would use: the order observed in the first step is adopted before it is saved.
  if (!ar.loading() && known && !impl_->order_known) {
    impl_->adopt_observed_order();
    order = impl_->order;
  }
  const std::int64_t n = std::int64_t(order.size());
  ar.array("order", DType::i64, {&n, 1}, order.data());
  ar.value("order_known", known);
  if (!ar.loading()) return;
  impl_->order_known = known != 0;
  if (order != impl_->order) {
    impl_->order = order;
    impl_->build();
  }
}

}  // namespace trireme
