#include "framework/micro_batch.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <ATen/ATen.h>

namespace trireme {

Batch micro_batch(const Batch& batch, std::int64_t k, std::int64_t n) {
  const std::int64_t b = std::int64_t(batch.ids.size()), m = b / n;
  if (b % n != 0)
    throw UsageError("accumulate",
                     std::to_string(n) + " does not divide the " + std::to_string(b) + " samples of a rank",
                     "choose a divisor of it");
  Batch part = batch;
  part.ids.assign(batch.ids.begin() + k * m, batch.ids.begin() + (k + 1) * m);
  for (auto& [name, column] : part.columns) column = column.narrow(0, k * m, m);
  return part;
}

Batch chosen_rows(const Batch& batch, const at::Tensor& rows, const at::Tensor& all_rows) {
  const std::int64_t m = rows.size(0), b = std::int64_t(batch.ids.size());
  if (batch.staged) batch.staged->wait();
  Batch part = batch;
  part.ids.clear(), part.global_ids.clear();
  for (std::int64_t i = 0; i < m; ++i) part.ids.push_back(batch.ids[std::size_t(rows[i].item<std::int64_t>())]);
  for (std::int64_t i = 0; i < all_rows.size(0); ++i)
    part.global_ids.push_back(batch.global_ids[std::size_t(i / m * b + all_rows[i].item<std::int64_t>())]);
  for (auto& [name, column] : part.columns) column = column.index_select(0, to_device(rows, column.device()));
  return part;
}

}  // namespace trireme
