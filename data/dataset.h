// Samples by number. The loader (data/loader.h) turns them into global batches.
#pragma once
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// One rank's rows of a global batch. Every column has b rows: [b, ...].
struct Batch {
  std::vector<std::int64_t> global_ids;  // all B sample ids, rank-major: rank k owns [k*b, (k+1)*b)
  std::vector<std::int64_t> ids;         // this rank's b ids
  std::map<std::string, at::Tensor> columns;
  std::int64_t epoch = 0;  // of the order these ids come from
  std::int64_t index = 0;  // batch within the epoch
};

class Dataset {
 public:
  virtual ~Dataset() = default;
  virtual std::int64_t size() const = 0;
  // Rows for these ids, in this order. `epoch` keys random augmentation: the same (id, epoch) gives the same
  // row on any rank and after a resume. Thread safe: a prefetch thread calls it. Fills `ids` and `columns`;
  // throws DataError with file and row.
  virtual Batch read(std::span<const std::int64_t> ids, std::int64_t epoch) const = 0;
};

}  // namespace trireme
