#include "framework/models/adapters.h"

#include "comm/error.h"
#include "framework/nn/fp8_matrix.h"

#include <algorithm>
#include <map>

#include <ATen/ATen.h>

namespace trireme {
namespace {

std::vector<std::string> names_of(const std::vector<nn::Projection>& projections) {
  std::vector<std::string> names;
  for (const auto& p : projections) names.push_back(p.name);
  return names;
}

struct Checked {
  const PeftModule* module;
  nn::Projection projection;
  double scale;
};

// Every module of the adapter beside the linear it changes. PEFT passes over what does not fit; here that is an error.
std::vector<Checked> checked(const CausalLm& model, const PeftAdapter& adapter, const std::string& place) {
  const auto projections = model.projections();
  std::map<std::string, const PeftModule*> modules;
  for (const auto& m : adapter.modules) modules[m.name] = &m;
  std::vector<Checked> all;
  const auto bad = [&](const std::string& what) {
    return DataError(place, what, "the adapter does not belong to this model");
  };
  for (const auto& t : peft_targets(adapter.config, names_of(projections), model.config().family, place)) {
    const nn::Projection& p = projections[t.module];
    const auto found = modules.find(p.name);
    if (found == modules.end()) throw bad("has no lora_A.weight of " + p.name + ", which its target_modules name");
    const PeftModule& m = *found->second;
    if (m.a.size(0) != t.rank)
      throw bad(p.name + " has rank " + std::to_string(m.a.size(0)) + ", its config says " + std::to_string(t.rank));
    if (m.a.size(1) != p.weight.size(1) || m.b.size(0) != p.weight.size(0))
      throw bad(p.name + " is a module of another width");
    all.push_back({&m, p, t.scale});
    modules.erase(found);
  }
  if (!modules.empty())
    throw bad("has weights of " + modules.begin()->first + ", which its target_modules do not name");
  return all;
}

}  // namespace

std::unique_ptr<nn::AdapterStore> make_adapter_store(CausalLm& model, std::span<const PeftConfig> configs,
                                                     std::int64_t slots, nn::LoraBackend backend,
                                                     const std::string& place) {
  const auto projections = model.projections();
  const auto names = names_of(projections);
  std::vector<bool> wanted(projections.size(), false);
  std::int64_t r_max = 1;
  for (const auto& c : configs)
    for (const auto& t : peft_targets(c, names, model.config().family, place)) {
      wanted[t.module] = true;
      r_max = std::max(r_max, t.rank);
    }
  std::vector<nn::Projection> targets;
  std::map<std::string, std::int64_t> target_of;
  for (std::size_t i = 0; i < projections.size(); ++i) {
    if (!wanted[i]) continue;
    target_of[names[i]] = std::int64_t(targets.size());
    targets.push_back(projections[i]);
  }
  auto store = std::make_unique<nn::AdapterStore>(std::move(targets), slots, r_max, backend);
  model.attach(store.get(), target_of);
  return store;
}

void check_fp8_widths(const nn::AdapterStore& store, const std::string& place) {
  for (const auto& t : store.targets())
    for (const std::int64_t d : t.weight.sizes())
      if (d % 16 != 0)
        throw UsageError(place,
                         "FP8 takes widths that are multiples of 16, and " + t.name + " has " + std::to_string(d),
                         "say precision: bf16");
}

void hold_fp8_base(CausalLm& model, nn::AdapterStore& store, const CausalLm::Source& layers) {
  if (!layers) throw Error(ExitCode::bug, "hold_fp8_base", "there is nothing to read layers from");
  const at::NoGradGuard no_grad;
  std::map<std::string, std::int64_t> target_of;
  for (const auto& t : store.targets()) target_of.emplace(t.name + ".weight", std::int64_t(target_of.size()));
  std::vector<LmWeight> wanted;
  for (const auto& [weight, value] : model.weights())
    if (weight.layer >= 0) wanted.push_back(weight);
  std::map<std::int64_t, nn::Fp8Rows> codes;
  std::map<std::string, at::Tensor> others;
  for (const LmWeight& w : wanted) {
    const auto target = target_of.find(w.name);
    const at::Tensor value = layers(w);
    if (target == target_of.end()) {
      model.set_weight(w, others[w.name] = value);
      continue;
    }
    codes.emplace(target->second, nn::fp8_rows(value));
    const at::Tensor none = at::empty({1}, value.options()).expand(w.shape);  // a shape without memory
    model.set_weight(w, none);
    store.set_base(target->second, none, {});
  }
  for (auto& [target, matrix] : codes)
    store.set_fp8_base(target, std::move(matrix), others[store.targets()[std::size_t(target)].name + ".bias"]);
}

nn::AdapterInit adapter_init(const CausalLm& model, const nn::AdapterStore& store, const PeftConfig& config,
                             std::uint64_t seed, const std::string& place) {
  const auto names = names_of(model.projections()), targets = names_of(store.targets());
  nn::AdapterInit init;
  init.shapes.resize(targets.size());
  init.seed = seed;
  init.gaussian = config.gaussian;
  init.dropout = config.dropout;
  for (const auto& t : peft_targets(config, names, model.config().family, place)) {
    const auto at = std::find(targets.begin(), targets.end(), names[t.module]);
    if (at == targets.end()) throw UsageError(place, names[t.module] + " has no place in this store");
    init.shapes[std::size_t(at - targets.begin())] = {t.rank, t.scale};
  }
  return init;
}

void load_adapter(const CausalLm& model, nn::AdapterStore& store, std::int64_t slot, const PeftAdapter& adapter,
                  const std::string& place) {
  const auto all = checked(model, adapter, place);
  store.fill(slot, adapter_init(model, store, adapter.config, 0, place));
  const at::NoGradGuard no_grad;
  for (const auto& t : store.weights(slot)) {
    const auto from =
        std::find_if(all.begin(), all.end(), [&](const Checked& c) { return c.projection.name == t.target; });
    at::Tensor a = t.a, b = t.b;
    a.copy_(from->module->a);
    b.copy_(from->module->b);
  }
  store.publish(slot);
}

PeftAdapter adapter_of(const nn::AdapterStore& store, std::int64_t slot, const PeftConfig& config) {
  PeftAdapter adapter{config, {}};
  for (const auto& t : store.weights(slot))
    adapter.modules.push_back({t.target, t.a.detach().to(at::kCPU, t.a.scalar_type(), false, true),
                               t.b.detach().to(at::kCPU, t.b.scalar_type(), false, true)});
  std::sort(adapter.modules.begin(), adapter.modules.end(),
            [](const auto& a, const auto& b) { return a.name < b.name; });
  return adapter;
}

CausalLm merged(const CausalLm& model, const PeftAdapter& adapter, const std::string& place) {
  const at::NoGradGuard no_grad;
  CausalLm result = model;
  result.attach(nullptr, {});
  std::map<std::string, LmWeight> weights;
  for (const auto& [w, value] : model.weights()) weights[w.name] = w;
  for (const auto& c : checked(model, adapter, place)) {
    // In f64: the merged weight is rounded once, to the model's type.
    const auto on = [&](const at::Tensor& t) { return t.to(model.device(), at::kDouble); };
    const at::Tensor sum = on(c.projection.weight) + c.scale * on(c.module->b).mm(on(c.module->a));
    result.set_weight(weights.at(c.projection.name + ".weight"), sum.to(model.dtype()));
  }
  return result;
}

}  // namespace trireme
