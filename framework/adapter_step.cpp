#include "framework/adapter_step.h"

#include "framework/base/tensor.h"
#include "framework/losses/token_loss.h"

#include <algorithm>
#include <cmath>
#include <iostream>
#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme {
namespace {

constexpr std::size_t most_kinds = 32;  // evaluations of four batch sizes in four pieces take 18

std::vector<std::int64_t> slots_of(const AdapterBatch& batch) {
  std::vector<std::int64_t> slots;
  for (const auto& r : batch.rows) slots.push_back(r.slot);
  return slots;
}

// What decides which work is enqueued, but for the numbers in it.
std::vector<std::int64_t> key_of(const AdapterBatch& batch) {
  std::vector<std::int64_t> key = batch.tokens.lengths;
  key.push_back(-1);
  for (const auto& r : batch.rows) key.insert(key.end(), {r.slot, r.first, r.last});
  return key;
}

}  // namespace

// One composition: where its graph reads and writes, and what that must keep alive.
struct AdapterStep::Kind {
  std::vector<std::int64_t> key;
  AdapterBatch batch;
  Places places;
  at::Tensor result;
  std::shared_ptr<const void> pass, layout;
  std::unique_ptr<StepGraph> graph;
};

AdapterStep::AdapterStep(const CausalLm& model, nn::AdapterStore& store, nn::AdapterOptimizer& optimizer, bool record,
                         MovingLayers layers)
    : model_(model),
      store_(store),
      optimizer_(optimizer),
      layers_(std::move(layers)),
      recordable_(record),
      record_{record, record},
      light_(light_tokens(model.config().hidden)) {}
AdapterStep::~AdapterStep() = default;
void AdapterStep::forget() { seen_ = {}; }

// Of an H200: 2 ms a layer to enqueue a step with adapters (17 for 8 layers), and the time of 4,100 tokens through a
// layer of width 2,048; work a token is between the width and its square.
std::int64_t AdapterStep::light_tokens(std::int64_t hidden) {
  return std::int64_t(4100 * std::pow(2048.0 / double(hidden), 1.5));
}

AdapterStep::Places AdapterStep::places_of(const AdapterBatch& batch) const {
  std::vector<std::int64_t> owners(std::size_t(batch.tokens.ids.size(0)), std::int64_t(batch.rows.size()));
  for (std::size_t k = 0; k < batch.rows.size(); ++k)
    std::fill(owners.begin() + batch.rows[k].first, owners.begin() + batch.rows[k].last, std::int64_t(k));
  const auto there = [&](const at::Tensor& host) { return to_device(host, model_.device()); };
  return {there(at::tensor(slots_of(batch), at::kLong)), there(at::tensor(owners, at::kLong)), there(batch.counts)};
}

// Backward begins at the sum of the jobs' means, each over what counts in its own batch: every adapter's gradient is
// that of the job alone. What that sum says to a token's loss, one over its job's count, is written down.
at::Tensor AdapterStep::enqueue(const AdapterBatch& batch, const Places& places) {
  store_.zero_gradients(slots_of(batch));  // a graph always writes them first
  const at::Tensor losses = token_losses(model_.hidden(batch.tokens), model_.head(), batch.labels);
  const at::Tensor nobody = at::zeros({1}, places.counts.options());
  const at::Tensor slopes = at::cat({places.counts.reciprocal(), nobody}).index_select(0, places.owners);
  torch::autograd::backward({losses}, {slopes.to(losses.scalar_type())});
  std::vector<at::Tensor> sums;
  for (const auto& r : batch.rows) sums.push_back(losses.detach().narrow(0, r.first, r.last - r.first).sum());
  const at::Tensor means = at::stack(sums).to(at::kFloat) / places.counts;
  at::Tensor by_slot = at::zeros({store_.slots()}, means.options());
  by_slot.index_copy_(0, places.slots, means);
  optimizer_.step(slots_of(batch), by_slot);
  return means;
}

at::Tensor AdapterStep::sums_of(const AdapterBatch& batch) {
  const at::Tensor losses = token_losses(model_.hidden(batch.tokens), model_.head(), batch.labels).to(at::kDouble);
  std::vector<at::Tensor> sums;
  for (const auto& r : batch.rows) sums.push_back(losses.narrow(0, r.first, r.last - r.first).sum());
  return at::stack(sums);
}

at::Tensor AdapterStep::plain(const AdapterBatch& batch, Use use) {
  store_.begin(batch.rows, use == training);
  return use == training ? enqueue(batch, places_of(batch)) : sums_of(batch);
}

// Graphs that would read and write where other adapters lie now.
void AdapterStep::drop_stale() {
  for (const Use use : {training, evaluation}) {
    const std::int64_t now = store_.changes() + (use == training ? optimizer_.changes() : 0);
    if (now != std::exchange(seen_[use].changes, now)) seen_[use].kinds.clear();
  }
}

// The composition, if it may be recorded and has come before.
AdapterStep::Kind* AdapterStep::kind_of(const AdapterBatch& batch, Use use) {
  if (!record_[use]) return nullptr;
  if (use == training) optimizer_.prepare(slots_of(batch));
  drop_stale();
  if (batch.tokens.ids.size(0) > std::max(most_tokens, light_)) return nullptr;
  for (const auto& r : batch.rows)  // masks change from step to step on the host
    if (use == training && store_.init(r.slot).dropout > 0) return nullptr;
  auto& kinds = seen_[use].kinds;
  const auto key = key_of(batch);
  const auto found = std::find_if(kinds.begin(), kinds.end(), [&](const auto& k) { return k->key == key; });
  if (found != kinds.end()) {
    std::rotate(kinds.begin(), found, found + 1);
    return kinds[0].get();
  }
  if (kinds.size() == most_kinds) kinds.pop_back();
  kinds.insert(kinds.begin(), std::make_unique<Kind>());
  kinds[0]->key = key;
  return nullptr;
}

// False: this cannot be recorded. No other is tried and graphs give back their memory: after a step all, after an
// evaluation, which is larger, its own.
bool AdapterStep::record(Kind& kind, const AdapterBatch& batch, Use use) {
  kind.batch = batch;
  kind.batch.tokens.ids = batch.tokens.ids.clone();
  kind.batch.labels = batch.labels.clone();
  kind.places = places_of(batch);
  kind.places.counts = kind.places.counts.clone();  // on a CPU it is the batch's own
  kind.result = at::empty_like(kind.places.counts, use == training ? at::kFloat : at::kDouble);
  store_.begin(batch.rows, use == training);
  kind.pass = store_.pass();
  kind.layout = model_.layout(batch.tokens);
  if (layers_.let_go) layers_.let_go();
  const bool captured = capture(kind, use);
  if (layers_.let_go) layers_.let_go();  // nothing of it has run
  for (const Use off : {training, evaluation})
    if (!captured && (off == use || use == training)) record_[off] = false, seen_[off] = {};
  return captured;
}

bool AdapterStep::capture(Kind& kind, Use use) {
  auto graph = make_step_graph(model_.device().index(), GraphMemory::shared);
  if (graph) try {
      graph->capture([this, &kind, use] {
        store_.begin(kind.batch.rows, use == training);  // the same composition still: nothing to enqueue
        kind.result.copy_(use == training ? enqueue(kind.batch, kind.places) : sums_of(kind.batch));
      });
      kind.graph = std::move(graph);
      ++recorded_;
      return true;
    } catch (const std::exception& e) {
      std::cerr << (use == training ? "steps" : "evaluations")
                << " of adapters are not recorded as CUDA graphs: " << first_line(e) << std::endl;
    }
  return false;
}

at::Tensor AdapterStep::run(const AdapterBatch& batch) { return run(batch, training); }

at::Tensor AdapterStep::evaluate(const AdapterBatch& batch) {
  const at::NoGradGuard no_grad;
  return run(batch, evaluation);
}

at::Tensor AdapterStep::run(const AdapterBatch& batch, Use use) {
  Kind* kind = kind_of(batch, use);
  const bool seen = kind && kind->graph;  // else its hooks see the pass that is recorded
  if (!kind || (!seen && !record(*kind, batch, use))) return plain(batch, use);
  kind->batch.tokens.ids.copy_(batch.tokens.ids, true);
  kind->batch.labels.copy_(batch.labels, true);
  kind->places.counts.copy_(to_device(batch.counts, model_.device()));
  if (layers_.let_go) layers_.let_go();
  kind->graph->replay();
  ++replayed_;
  if (seen && layers_.replayed) layers_.replayed(use == training);
  return kind->result;
}

}  // namespace trireme
