#include "framework/nn/lora.h"

#include "comm/error.h"
#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/nn/fp8_matrix.h"
#include "framework/nn/lora_pass.h"

#include <algorithm>
#include <cmath>

namespace trireme::nn {

struct AdapterStore::Slot {
  bool filled = false;
  AdapterInit init;
  at::Tensor weights, gradients;               // flat masters and their gradients
  at::Tensor working;                          // as the kernels read them; undefined: the masters
  std::vector<AdapterTensors> masters, grads;  // of adapted targets
  std::shared_ptr<std::vector<LoraAdapter>> adapters;

  void settle() const {
    for (const auto& w : *adapters)
      if (w.a.defined()) w.settle();
  }
};

namespace {

constexpr std::pair<std::string_view, LoraBackend> backends[] = {{"kernels", LoraBackend::kernels},
                                                                 {"grouped_mm", LoraBackend::grouped_mm},
                                                                 {"bmm", LoraBackend::bmm},
                                                                 {"loop", LoraBackend::loop},
                                                                 {"wide", LoraBackend::wide}};

std::int64_t padded(std::int64_t rank) { return (rank + 7) / 8 * 8; }

// Masters of one target, drawn on the host: the same on every device.
at::Tensor initial_a(const AdapterInit& init, const std::string& name, std::int64_t rank, std::int64_t in) {
  Rng rng(init.seed, "lora_A " + name);
  const double bound = 1 / std::sqrt(double(in)), std = 1 / double(rank);
  at::Tensor a = at::empty({rank, in}, at::kFloat);
  float* p = a.mutable_data_ptr<float>();
  for (std::int64_t i = 0; i < a.numel(); ++i)
    p[i] = float(init.gaussian ? std * rng.normal() : bound * (rng.u32() * 0x1p-31 - 1));
  return a;
}

// Do both need the same tables?
bool alike(const LoraPass& a, const LoraPass& b) {
  const auto same = [](const LoraGroup& x, const LoraGroup& y) {
    return x.adapters == y.adapters && x.rows.first == y.rows.first && x.rows.last == y.rows.last;
  };
  return a.backend == b.backend && std::equal(a.groups.begin(), a.groups.end(), b.groups.begin(), b.groups.end(), same);
}

}  // namespace

kernels::DropoutKey dropout_key(const AdapterInit& init, const SlotRows& rows) {
  Rng rng(init.seed, "lora_dropout");
  return {.key = {rng.u32(), rng.u32()},
          .step = std::uint32_t(rows.step),
          .row = std::uint32_t(rows.job_row),
          .threshold = std::uint32_t(std::min(init.dropout * 0x1p32, 0x1p32 - 1)),
          .scale = float(1 / (1 - init.dropout))};
}

std::uint32_t dropout_module(std::string_view target) { return Rng(0, "module " + std::string(target)).u32(); }

LoraBackend lora_backend(std::string_view name) {
  for (const auto& [known, backend] : backends)
    if (known == name) return backend;
  throw UsageError("LoRA backend", "'" + std::string(name) + "' is not known",
                   "take kernels, grouped_mm, bmm, loop or wide");
}

AdapterStore::AdapterStore(std::vector<Projection> targets, std::int64_t slots, std::int64_t r_max, LoraBackend backend)
    : targets_(std::move(targets)), slots_(std::size_t(slots)), r_max_(r_max), backend_(backend) {
  if (targets_.empty()) throw UsageError("LoRA", "there is no target module", "name modules in `targets`");
  if (slots < 1) throw UsageError("LoRA", "there must be at least one slot");
  if (r_max < 1 || r_max > 128)
    throw UsageError("LoRA", "the largest rank is " + std::to_string(r_max), "take 1 to 128");
  const auto options = targets_[0].weight.options();
  for (const auto& t : targets_)
    if (t.weight.dtype() != options.dtype() || t.weight.device() != options.device())
      throw UsageError(t.name, "its weight differs in type or device from that of " + targets_[0].name);
  for (const auto& t : targets_) modules_.push_back(dropout_module(t.name));
  fp8_.resize(targets_.size());
  anchor_ = at::zeros({}, options).set_requires_grad(true);
  pass_ = std::make_shared<LoraPass>();
}

AdapterStore::~AdapterStore() = default;

std::int64_t AdapterStore::slots() const { return std::int64_t(slots_.size()); }
const std::vector<Projection>& AdapterStore::targets() const { return targets_; }
LoraBackend AdapterStore::backend() const { return backend_; }
void AdapterStore::set_backend(LoraBackend backend) { backend_ = backend, ++changes_; }
std::shared_ptr<const void> AdapterStore::pass() const { return pass_; }

void AdapterStore::set_base(std::int64_t target, at::Tensor weight, at::Tensor bias) {
  if (fp8_[std::size_t(target)]) throw Error(ExitCode::bug, "set_base", "the FP8 codes are of the weight before");
  targets_[std::size_t(target)].weight = std::move(weight);
  targets_[std::size_t(target)].bias = std::move(bias);
}

void AdapterStore::set_fp8_base(std::int64_t target, Fp8Rows codes, at::Tensor bias) {
  fp8_[std::size_t(target)] = std::make_shared<const Fp8Rows>(std::move(codes));
  targets_[std::size_t(target)].bias = std::move(bias);
}

bool AdapterStore::has_fp8_base() const {
  return std::ranges::any_of(fp8_, [](const auto& codes) { return codes != nullptr; });
}

void AdapterStore::check_slot(std::int64_t slot, bool filled, const char* what) const {
  if (slot < 0 || slot >= slots()) throw Error(ExitCode::bug, what, "there is no slot " + std::to_string(slot));
  if (slots_[std::size_t(slot)].filled != filled)
    throw Error(ExitCode::bug, what, "slot " + std::to_string(slot) + (filled ? " is empty" : " is taken"));
}

void AdapterStore::fill(std::int64_t slot, const AdapterInit& init, const at::Tensor& flat) {
  check_slot(slot, false, "fill");
  if (init.shapes.size() != targets_.size()) throw Error(ExitCode::bug, "fill", "one shape a target is wanted");
  if (!(init.dropout >= 0 && init.dropout < 1)) throw UsageError("lora_dropout", "it must lie in [0, 1)");
  const at::NoGradGuard no_grad;
  Slot s;
  s.filled = true;
  s.init = init;
  std::int64_t size = 0;
  for (std::size_t t = 0; t < targets_.size(); ++t) {
    const auto rank = init.shapes[t].rank;
    if (rank < 0 || rank > r_max_)
      throw UsageError(targets_[t].name, "its rank is " + std::to_string(rank),
                       "ranks up to " + std::to_string(r_max_) + " have room here");
    if (!std::isfinite(init.shapes[t].scale)) throw UsageError(targets_[t].name, "its LoRA scale is not finite");
    size += padded(rank) * (targets_[t].weight.size(0) + targets_[t].weight.size(1));
  }
  if (size == 0) throw UsageError("LoRA", "the adapter has no target");
  const auto base = targets_[0].weight.options();
  const auto master = base.dtype(base.dtype() == at::kDouble ? at::kDouble : at::kFloat);
  at::Tensor host = flat.defined() ? at::Tensor() : at::zeros({size}, master.device(at::kCPU));
  s.weights = at::empty({size}, master);
  s.gradients = at::empty({size}, master);
  s.working = base.dtype() == master.dtype() ? s.weights : at::empty({size}, base);
  s.adapters = std::make_shared<std::vector<LoraAdapter>>(targets_.size());
  std::int64_t at = 0;
  for (std::size_t t = 0; t < targets_.size(); ++t) {
    const auto rank = init.shapes[t].rank, out = targets_[t].weight.size(0), in = targets_[t].weight.size(1);
    if (rank == 0) continue;
    const auto wide = padded(rank);
    const auto a = [&](const at::Tensor& flat) { return flat.narrow(0, at, wide * in).view({wide, in}); };
    const auto b = [&](const at::Tensor& flat) { return flat.narrow(0, at + wide * in, out * wide).view({out, wide}); };
    const auto named = [&](const at::Tensor& flat) {
      return AdapterTensors{targets_[t].name, a(flat).narrow(0, 0, rank), b(flat).narrow(1, 0, rank)};
    };
    if (!flat.defined()) named(host).a.copy_(initial_a(init, targets_[t].name, rank, in));
    s.masters.push_back(named(s.weights));
    s.grads.push_back(named(s.gradients));
    (*s.adapters)[t] = {a(s.working), b(s.working), a(s.gradients), b(s.gradients), init.shapes[t].scale};
    at += wide * (in + out);
  }
  if (flat.defined() && flat.numel() != size)
    throw UsageError(
        "LoRA", "the adapter has " + std::to_string(flat.numel()) + " weights, its shapes " + std::to_string(size));
  s.weights.copy_(flat.defined() ? flat : host);
  slots_[std::size_t(slot)] = std::move(s);
  ++changes_;
  publish(slot);
}

void AdapterStore::clear(std::int64_t slot) {
  check_slot(slot, true, "clear");
  slots_[std::size_t(slot)] = Slot();
  ++changes_;
  for (const auto& group : pass_->groups)
    if (group.rows.slot == slot) {
      pass_ = std::make_shared<LoraPass>();  // it would keep the memory
      return;
    }
}

bool AdapterStore::filled(std::int64_t slot) const { return slots_.at(std::size_t(slot)).filled; }

const AdapterInit& AdapterStore::init(std::int64_t slot) const {
  check_slot(slot, true, "init");
  return slots_[std::size_t(slot)].init;
}

std::vector<AdapterTensors> AdapterStore::weights(std::int64_t slot) const {
  check_slot(slot, true, "weights");
  return slots_[std::size_t(slot)].masters;
}

std::vector<AdapterTensors> AdapterStore::gradients(std::int64_t slot) const {
  check_slot(slot, true, "gradients");
  const Slot& s = slots_[std::size_t(slot)];
  s.settle();
  return s.grads;
}

at::Tensor AdapterStore::flat_weights(std::int64_t slot) const {
  check_slot(slot, true, "flat_weights");
  return slots_[std::size_t(slot)].weights;
}

at::Tensor AdapterStore::flat_gradients(std::int64_t slot) const {
  check_slot(slot, true, "flat_gradients");
  const Slot& s = slots_[std::size_t(slot)];
  s.settle();
  return s.gradients;
}

at::Tensor AdapterStore::flat_working(std::int64_t slot) const {
  check_slot(slot, true, "flat_working");
  return slots_[std::size_t(slot)].working;
}

void AdapterStore::publish(std::int64_t slot) {
  check_slot(slot, true, "publish");
  Slot& s = slots_[std::size_t(slot)];
  if (!s.working.is_same(s.weights)) s.working.copy_(s.weights);
}

void AdapterStore::begin(std::vector<SlotRows> rows, bool training) {
  auto pass = std::make_shared<LoraPass>();
  pass->backend = backend_;
  std::int64_t end = 0;
  std::vector<bool> seen(slots_.size());
  for (const auto& r : rows) {
    check_slot(r.slot, true, "begin");
    if (r.first < end || r.last < r.first) throw Error(ExitCode::bug, "begin", "rows of slots are not ascending");
    if (seen[std::size_t(r.slot)]) throw Error(ExitCode::bug, "begin", "a slot comes twice");
    seen[std::size_t(r.slot)] = true;
    end = r.last;
    if (r.last == r.first) continue;
    const Slot& s = slots_[std::size_t(r.slot)];
    pass->groups.push_back({r, {}, s.adapters});
    if (training && s.init.dropout > 0) {
      pass->groups.back().dropout = dropout_key(s.init, r);
      pass->dropout = true;
    }
  }
  if (!alike(*pass, *pass_)) {
    make_tables(*pass, targets_.size(), anchor_);
    pass_ = std::move(pass);
  } else if (pass->dropout || pass_->dropout) {  // the same tables but for the masks
    auto next = std::make_shared<LoraPass>(*pass_);
    next->dropout = pass->dropout;
    next->groups = std::move(pass->groups);
    make_rows(*next, anchor_);
    pass_ = std::move(next);
  }
}

void AdapterStore::zero_gradients() {
  for (std::int64_t slot = 0; slot < slots(); ++slot)
    if (filled(slot)) zero_gradients({&slot, 1});
}

void AdapterStore::zero_gradients(std::span<const std::int64_t> slots) {
  for (const auto slot : slots) {
    check_slot(slot, true, "zero_gradients");
    for (const auto& w : *slots_[std::size_t(slot)].adapters) w.empty = true;
  }
}

}  // namespace trireme::nn
