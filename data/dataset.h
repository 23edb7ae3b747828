// Samples by number, and the loader that turns them into global batches.
#pragma once
#include "comm/archive.h"

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace trireme {

// One rank's rows of a global batch. Column tensors have the rank's rows first: [b, ...].
struct Batch {
  std::vector<std::int64_t> global_ids;  // all B sample ids, rank-major: rank k owns [k*b, (k+1)*b)
  std::vector<std::int64_t> ids;         // this rank's b ids
  std::map<std::string, at::Tensor> columns;
  std::int64_t epoch = 0;
};

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual std::int64_t size() const = 0;
  // Rows for these ids, in this order. Thread safe. Throws DataError with file and row.
  virtual Batch read(std::span<const std::int64_t> ids) const = 0;
};

}  // namespace trireme
