#include "framework/losses/estimator.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <unordered_map>

#include <ATen/ATen.h>

namespace trireme::fastclip {
namespace {

// For equal ids the last row counts, and of those only ids in [first, first + n).
struct TableRows {
  at::Tensor entries, rows;  // i64: place in the table, row of the batch
};

TableRows last_rows(std::span<const std::int64_t> ids, std::int64_t first, std::int64_t n, at::Device device) {
  std::unordered_map<std::int64_t, std::int64_t> last;
  for (std::size_t i = 0; i < ids.size(); ++i) last[ids[i]] = std::int64_t(i);
  std::vector<std::int64_t> entries, rows;
  for (std::size_t i = 0; i < ids.size(); ++i)
    if (ids[i] >= first && ids[i] < first + n && last[ids[i]] == std::int64_t(i)) {
      entries.push_back(ids[i] - first);
      rows.push_back(std::int64_t(i));
    }
  return {to_device(at::tensor(entries, at::kLong), device), to_device(at::tensor(rows, at::kLong), device)};
}

void check_ids(std::span<const std::int64_t> ids, std::int64_t n) {
  for (const auto id : ids)
    if (id < 0 || id >= n)
      throw DataError("sample " + std::to_string(id), "is outside the normaliser table of " + std::to_string(n));
}

}  // namespace

double gamma_at(std::string_view schedule, double gamma_min, std::int64_t decay_epochs, std::int64_t epoch) {
  if (epoch == 0) return 1;
  if (schedule == "constant" || epoch >= decay_epochs) return gamma_min;
  return 0.5 * (1 + std::cos(std::numbers::pi * double(epoch) / double(decay_epochs))) * (1 - gamma_min) + gamma_min;
}

at::Tensor Estimator::update(const at::Tensor& old, const at::Tensor& now, double gamma) const {
  if (kind == none || (kind == moving_average && gamma >= 1)) return now;
  // log(1 - gamma_i) formed directly would lose digits where gamma_i is near 1.
  const at::Tensor mixed =
      kind == scent ? at::logaddexp(old + at::log_sigmoid(-(old + scent_a)), now + at::log_sigmoid(old + scent_a))
                    : at::logaddexp(old + std::log1p(-gamma), now + std::log(gamma));
  const at::Tensor fresh = domain == linear ? old < std::log(1e-35) : old == 0;
  return at::where(fresh.logical_or(at::isinf(old)).logical_or(at::isnan(old)), now, mixed);
}

NormalizerTable::NormalizerTable(std::int64_t n, std::vector<double> initial, at::TensorOptions options,
                                 const Communicator& comm, bool sharded)
    : n_(n), sharded_(sharded) {
  if (sharded) ranks_ = comm.size(), first_ = n * comm.rank() / ranks_;
  const std::int64_t held = sharded ? n * (comm.rank() + 1) / ranks_ - first_ : n;
  values_ = at::empty({2, std::int64_t(initial.size()), held}, options);
  for (std::size_t c = 0; c < initial.size(); ++c) values_.select(1, std::int64_t(c)).fill_(initial[c]);
}

at::Tensor NormalizerTable::read(Communicator& comm, std::span<const std::int64_t> ids) const {
  const at::NoGradGuard no_grad;
  check_ids(ids, n_);
  const auto k = std::size_t(comm.size()), b = ids.size() / k, mine = b * std::size_t(comm.rank());
  const auto columns = values_.size(1);
  const auto tensor = [&](const std::vector<std::int64_t>& v) {
    return to_device(at::tensor(v, at::kLong), values_.device());
  };
  if (ranks_ == 1) {
    const std::vector<std::int64_t> own(ids.begin() + std::ptrdiff_t(mine), ids.begin() + std::ptrdiff_t(mine + b));
    return values_.index_select(2, tensor(own));
  }
  // Rank r asks for its rows in order; all ranks know all ids, so what is asked for need not be sent.
  std::vector<std::int64_t> given, places(b);
  std::vector<std::size_t> send(k, 0), received(k, 0);
  for (std::size_t r = 0; r < k; ++r)
    for (std::size_t i = r * b; i < (r + 1) * b; ++i)
      if (ids[i] >= first_ && ids[i] < first_ + values_.size(2)) given.push_back(ids[i] - first_), ++send[r];
  std::vector<std::size_t> owner(b), next(k, 0);
  for (std::size_t i = 0; i < b; ++i) ++received[owner[i] = std::size_t(((ids[mine + i] + 1) * ranks_ - 1) / n_)];
  for (std::size_t r = 1; r < k; ++r) next[r] = next[r - 1] + received[r - 1];
  for (std::size_t i = 0; i < b; ++i) places[i] = std::int64_t(next[owner[i]]++);
  const auto numbers = std::size_t(2 * columns);
  for (auto* counts : {&send, &received})
    for (auto& n : *counts) n *= numbers;
  const at::Tensor out = values_.index_select(2, tensor(given)).permute({2, 0, 1}).contiguous();
  at::Tensor in = at::empty({std::int64_t(b), 2, columns}, values_.options());
  comm.all_to_all(buffer_of(out), send, buffer_of(in), received).wait();
  return in.index_select(0, tensor(places)).permute({1, 2, 0}).contiguous();
}

void NormalizerTable::write(std::span<const std::int64_t> ids, const at::Tensor& values, const at::Tensor& skip) {
  const at::NoGradGuard no_grad;
  check_ids(ids, n_);
  const TableRows rows = last_rows(ids, first_, values_.size(2), values_.device());
  values_.index_copy_(2, rows.entries,
                      at::where(skip > 0, values_.index_select(2, rows.entries), values.index_select(2, rows.rows)));
}

void NormalizerTable::state(Archive& ar, std::span<const std::string_view> names) {
  Sharing sharing;
  if (sharded_) sharing = {Sharing::rows, first_, n_};
  for (int side = 0; side < 2; ++side)
    for (std::size_t c = 0; c < names.size(); ++c) {
      at::Tensor column = values_[side].select(0, std::int64_t(c));
      archive(ar, std::string(names[c]) + (side ? "_text" : "_image"), column, sharing);
    }
}

}  // namespace trireme::fastclip
