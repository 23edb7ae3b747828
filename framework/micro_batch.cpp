#include "framework/micro_batch.h"

#include "comm/error.h"

#include <ATen/core/Tensor.h>

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

}  // namespace trireme
