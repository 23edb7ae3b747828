#include "trainers/sweep/pack.h"

#include "framework/base/tensor.h"
#include "framework/losses/token_loss.h"

#include <algorithm>

namespace trireme::sweep {
namespace {

at::Tensor on_device(const std::vector<std::int64_t>& values, at::Device device) {
  return to_device(at::tensor(values, at::kLong), device);
}

}  // namespace

void Pack::begin_job(std::int64_t slot, std::int64_t step, std::int64_t job_row) {
  const auto here = std::int64_t(ids_.size());
  rows_.push_back({slot, here, here, job_row, step});
  counts_.push_back(0), own_tokens_.push_back(0);
  first_sample_.push_back(std::int64_t(lengths_.size()));
  first_pair_.push_back(std::int64_t(reference_margins_.size()));
}

void Pack::add(const Example& example) {
  const std::size_t n = example.ids.size();
  for (std::size_t i = 0; i < n; ++i) {
    const bool counts = i + 1 < n && example.mask[i + 1];
    ids_.push_back(example.ids[i]);
    labels_.push_back(counts ? example.ids[i + 1] : ignored_label);
    if (!pairs_) counts_.back() += counts;
  }
  own_tokens_.back() += std::int64_t(n);
  const std::size_t padded = std::max(n, std::size_t(length_));
  ids_.insert(ids_.end(), padded - n, example.ids[n - 1]);
  labels_.insert(labels_.end(), padded - n, ignored_label);
  lengths_.push_back(std::int64_t(padded));
  rows_.back().last = std::int64_t(ids_.size());
}

void Pack::add(const ReferencedPair& pair) {
  pairs_ = true;
  add(pair.pair->chosen);
  add(pair.pair->rejected);
  reference_margins_.push_back(pair.chosen - pair.rejected);
  ++counts_.back();
}

TokenBatch Pack::tokens(at::Device device) const { return {on_device(ids_, device), lengths_}; }
at::Tensor Pack::labels(at::Device device) const { return on_device(labels_, device); }

AdapterBatch Pack::batch(at::Device device) const {
  at::Tensor counts = at::empty({std::int64_t(counts_.size())}, at::kFloat);
  for (std::size_t k = 0; k < counts_.size(); ++k)
    counts[std::int64_t(k)] = double(std::max<std::int64_t>(1, counts_[k]));
  return {tokens(device), labels(device), rows_, counts};
}

at::Tensor Pack::log_probabilities(const at::Tensor& token_losses) const {
  std::vector<std::int64_t> sample;
  for (std::size_t s = 0; s < lengths_.size(); ++s)
    sample.insert(sample.end(), std::size_t(lengths_[s]), std::int64_t(s));
  const at::Tensor zero = at::zeros({std::int64_t(lengths_.size())}, token_losses.options());
  return -zero.index_add(0, on_device(sample, token_losses.device()), token_losses);
}

at::Tensor Pack::loss_sum(std::size_t job, const at::Tensor& token_losses, double beta) const {
  const nn::SlotRows& r = rows_[job];
  if (!pairs_) return token_losses.narrow(0, r.first, r.last - r.first).sum();
  const std::int64_t pairs = counts_[job];
  const at::Tensor both = log_probabilities(token_losses).narrow(0, first_sample_[job], 2 * pairs).view({pairs, 2});
  const auto from = reference_margins_.begin() + first_pair_[job];
  const at::Tensor reference = at::tensor(std::vector<double>(from, from + pairs), at::kDouble).to(both.options());
  return -at::log_sigmoid(beta * (both.select(1, 0) - both.select(1, 1) - reference)).sum();
}

}  // namespace trireme::sweep
