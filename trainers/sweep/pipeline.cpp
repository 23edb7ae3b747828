#include "trainers/sweep/pipeline.h"

#include "framework/base/tensor.h"
#include "framework/losses/token_loss.h"

#include <utility>

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

namespace trireme::sweep {
namespace {

std::vector<std::int64_t> slots_of(const AdapterPipeline::Pack& pack) {
  std::vector<std::int64_t> slots;
  for (const auto& r : pack.batch.rows) slots.push_back(r.slot);
  return slots;
}

}  // namespace

// Every part of a message begins on 16 bytes, as vector loads want it.
std::int64_t AdapterPipeline::Part::bytes() const {
  if (!value) return 0;
  std::int64_t n = std::int64_t(at::elementSize(type));
  for (const auto d : shape) n *= d;
  return (n + 15) / 16 * 16;
}

AdapterPipeline::AdapterPipeline(CausalLm& stage, nn::AdapterStore& store, nn::AdapterOptimizer& optimizer,
                                 Communicator& ranks)
    : stage_(stage), store_(store), optimizer_(optimizer), ranks_(ranks) {
  stage_.set_checkpointing(true);
  losses_ = at::zeros({store_.slots()}, at::TensorOptions(stage_.device()).dtype(at::kFloat));
}

void AdapterPipeline::fill(PipelineShape shape, Source source, std::int64_t steps) {
  shape_ = shape, source_ = std::move(source), steps_ = steps;
  tick_ = 0;
}

AdapterPipeline::Flight* AdapterPipeline::at(std::int64_t delay) {
  const auto found = flights_.find(tick_ - delay);
  return found == flights_.end() || found->second.pack.batch.rows.empty() ? nullptr : &found->second;
}

void AdapterPipeline::begin() {
  const std::int64_t step = tick_ / period(), place = tick_ % period();
  if (step < steps_ && place < shape_.packs) flights_[tick_].pack = source_(step, place);
}

void AdapterPipeline::forward(Flight& f) {
  const AdapterBatch& b = f.pack.batch;
  store_.begin(b.rows, true);
  f.in = (ranks_.rank() == 0 ? stage_.embedded(b.tokens) : f.in).detach().requires_grad_();
  f.out = stage_.through_layers(f.in, b.tokens.lengths);
  if (last()) lose(f);
}

// The loss, and what its mean says to every token's.
void AdapterPipeline::lose(Flight& f) {
  const AdapterBatch& b = f.pack.batch;
  f.out = token_losses(stage_.normed(f.out), stage_.head(), b.labels);
  std::vector<at::Tensor> slopes;
  for (std::size_t k = 0; k < b.rows.size(); ++k) {
    const auto& r = b.rows[k];
    const float count = b.counts.const_data_ptr<float>()[k];
    slopes.push_back(at::full({r.last - r.first}, 1.0 / double(count), f.out.options()));
    losses_[r.slot] += f.out.detach().narrow(0, r.first, r.last - r.first).sum().to(at::kFloat) / count;
  }
  f.dy = at::cat(slopes);
}

void AdapterPipeline::backward(Flight& f) {
  store_.begin(f.pack.batch.rows, true);  // what runs again must find the same rows
  f.dx = torch::autograd::grad({f.out}, {f.in}, {f.dy})[0];
  f.in.reset(), f.out.reset(), f.dy.reset();
  if (!f.pack.ends) return;
  const auto slots = slots_of(f.pack);
  at::Tensor squares = optimizer_.squares(slots);
  if (last()) {
    const at::Tensor losses = losses_.index_select(0, to_device(at::tensor(slots, at::kLong), losses_.device()));
    squares = squares + 0 * losses;  // one that is not finite ends its job on all ranks
    for (std::size_t k = 0; heard_ && k < slots.size(); ++k) heard_(slots[k], losses[std::int64_t(k)]);
    for (const auto slot : slots) losses_[slot].zero_();
  }
  f.squares = f.squares.defined() ? f.squares + squares : squares;
}

void AdapterPipeline::update(const Flight& f) {
  const auto slots = slots_of(f.pack);
  at::Tensor by_slot = at::zeros({store_.slots()}, f.squares.options());
  by_slot.index_copy_(0, to_device(at::tensor(slots, at::kLong), by_slot.device()), f.squares);
  optimizer_.step(slots, {}, by_slot);
}

AdapterPipeline::Part AdapterPipeline::squares_of(Flight* f) const {
  if (!f || !f->pack.ends) return {};
  return {&f->squares, {std::int64_t(f->pack.batch.rows.size())}, at::kDouble};
}

AdapterPipeline::Part AdapterPipeline::activations_of(Flight* f, at::Tensor Flight::*value) const {
  if (!f) return {};
  return {&(f->*value), {f->pack.batch.tokens.ids.size(0), stage_.config().hidden}, stage_.dtype()};
}

// Up go what the next rank takes forward, and sums that are whole; down gradients, and sums of the layers above.
void AdapterPipeline::exchange() {
  const std::int64_t rank = ranks_.rank(), size = ranks_.size(), turn = 2 * size - 2;
  std::vector<std::size_t> send(std::size_t(size), 0), recv(std::size_t(size), 0);
  std::vector<Part> out, in;
  const auto add = [](std::vector<Part>& list, std::vector<std::size_t>& counts, std::int64_t to, const Part& part) {
    counts[std::size_t(to)] += std::size_t(part.bytes());
    if (part.value) list.push_back(part);
  };
  if (rank > 0) {
    add(out, send, rank - 1, squares_of(at(turn - rank)));
    add(out, send, rank - 1, activations_of(at(turn - rank), &Flight::dx));
    add(in, recv, rank - 1, squares_of(at(turn + rank - 1)));
    add(in, recv, rank - 1, activations_of(at(rank - 1), &Flight::in));
  }
  if (!last()) {
    add(out, send, rank + 1, squares_of(at(turn + rank)));
    add(out, send, rank + 1, activations_of(at(rank), &Flight::out));
    add(in, recv, rank + 1, squares_of(at(turn - rank - 1)));
    add(in, recv, rank + 1, activations_of(at(turn - rank - 1), &Flight::dy));
  }
  const auto total = [](const std::vector<Part>& parts) {
    std::int64_t n = 0;
    for (const auto& p : parts) n += p.bytes();
    return n;
  };
  const auto bytes = at::TensorOptions(stage_.device()).dtype(at::kByte);
  at::Tensor message = at::empty({total(out)}, bytes), got = at::empty({total(in)}, bytes);
  const auto place = [](const at::Tensor& buffer, const Part& p, std::int64_t at) {
    std::int64_t n = std::int64_t(at::elementSize(p.type));
    for (const auto d : p.shape) n *= d;
    return buffer.narrow(0, at, n).view(p.type).view(p.shape);
  };
  std::int64_t to = 0, from = 0;
  for (const auto& p : out) place(message, p, std::exchange(to, to + p.bytes())).copy_(p.value->detach());
  ranks_.all_to_all(buffer_of(message), send, buffer_of(got), recv).wait();
  sent_ += message.numel();
  for (const auto& p : in) *p.value = place(got, p, std::exchange(from, from + p.bytes()));
}

void AdapterPipeline::tick() {
  const std::int64_t rank = ranks_.rank(), turn = 2 * ranks_.size() - 2;
  begin();
  Flight *up = at(rank), *down = at(turn - rank);
  if (up) forward(*up);
  if (down) backward(*down);
  if (down && rank == 0 && down->pack.ends) update(*down);
  exchange();
  if (down) down->dx.reset();
  if (Flight* f = at(turn + rank - 1); rank > 0 && f && f->pack.ends) update(*f);
  flights_.erase(tick_ - (3 * std::int64_t(ranks_.size()) - 4));
  ++tick_;
}

void AdapterPipeline::drain() {
  steps_ = 0;
  while (!flights_.empty()) tick();
}

void AdapterPipeline::run() {
  for (std::int64_t t = pipeline_ticks(shape_, ranks_.size(), steps_); t > 0; --t) tick();
}

}  // namespace trireme::sweep
