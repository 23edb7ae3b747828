#include "recipes/dlrm/ids_ahead.h"

#include "framework/base/tensor.h"

#include <ATen/ATen.h>

namespace trireme::dlrm {

IdsAhead::IdsAhead(ShardedTables& tables, Context& context)
    : tables_(tables), context_(context), pinned_(context.device()) {}

at::Tensor IdsAhead::part_of(const Batch& batch, std::int64_t k, std::int64_t parts) {
  const at::Tensor& ids = batch.columns.at("ids");
  const std::int64_t n = ids.size(0) / parts;
  return ids.narrow(0, k * n, n);
}

void IdsAhead::forget() {
  for (Sent& s : std::exchange(sent_, {})) s.ids.work.wait();
}

ShardedTables::Ids IdsAhead::take(const Batch& batch) {
  stands_.reset(), coming_ = {};
  const std::int64_t parts = context_.accumulate();
  if (sent_.empty() || sent_.front().number != number_of(batch)) {
    forget();
    sent_.push_back({number_of(batch), tables_.send_ids(batch.columns.at("ids"))});
  }
  ShardedTables::Ids ids = std::move(sent_.front().ids);
  sent_.pop_front();
  if (++part_ < parts) return ids;
  part_ = 0;
  const Batch* next = context_.next;
  for (std::int64_t k = 0; next && k < parts; ++k)
    sent_.push_back({number_of(*next), tables_.send_ids(part_of(*next, k, parts))});
  return ids;
}

void IdsAhead::ready(const Batch& batch, const Batch* next) {
  const at::Tensor& ids = batch.columns.at("ids");
  if (next && next->columns.at("ids").sizes() != ids.sizes()) next = nullptr;
  if (!looks_ahead_) looks_ahead_ = context_.size() > 1 && next;
  if (!*looks_ahead_) return forget(), tables_.check(ids);
  if (stands_ != number_of(batch)) stand(batch);
  forget();
  stands_.reset();
  if (!next) return;  // what is sent then, nobody asks for
  const at::Tensor sorted = tables_.sorted(next->columns.at("ids"));
  if (sorted.is_cpu())
    pinned_.copy({sorted}, {input_});
  else
    input_.copy_(sorted);
  stands_ = number_of(*next);
}

// Not sent ahead, or by a step that was not recorded.
void IdsAhead::stand(const Batch& batch) {
  const bool sent = !sent_.empty() && sent_.front().number == number_of(batch);
  ShardedTables::Ids now = sent ? std::move(sent_.front().ids) : tables_.send_ids(batch.columns.at("ids"));
  if (sent) sent_.pop_front();
  now.work.wait();
  if (!standing_.sent.defined() || standing_.sent.sizes() != now.sent.sizes())
    standing_ = {at::empty_like(now.sent), at::empty_like(now.received)}, input_ = at::zeros_like(now.sent);
  standing_.b = now.b;
  standing_.sent.copy_(now.sent), standing_.received.copy_(now.received);
}

ShardedTables::Ids IdsAhead::recorded(const Batch& batch) {
  if (!*looks_ahead_) return tables_.send_ids(batch.columns.at("ids"));
  return {standing_.sent, standing_.received, {}, standing_.b, {}};
}

void IdsAhead::send_next() {
  if (*looks_ahead_) coming_ = tables_.send_sorted(input_, standing_.b);
}

void IdsAhead::join_next() {
  if (*looks_ahead_) coming_.work.wait();
}

void IdsAhead::advance() {
  if (!*looks_ahead_) return;
  standing_.sent.copy_(coming_.sent), standing_.received.copy_(coming_.received);
}

}  // namespace trireme::dlrm
