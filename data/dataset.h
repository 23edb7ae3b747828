// Samples by number. The loader (data/loader.h) turns them into global batches.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// Memory that columns lie in where it is not theirs: a GPU's, which another stream fills.
class Staged {
 public:
  virtual ~Staged() = default;
  virtual void wait() const = 0;  // the current stream waits until it is filled; the host does not
};

// One rank's rows of a global batch. Every column has b rows: [b, ...].
struct Batch {
  std::vector<std::int64_t> global_ids;  // all B sample ids, rank-major: rank k owns [k*b, (k+1)*b)
  std::vector<std::int64_t> ids;         // this rank's b ids
  std::map<std::string, at::Tensor> columns;
  std::int64_t epoch = 0;  // of the order these ids come from
  std::int64_t index = 0;  // batch within the epoch
  // Of columns on a device. Once the last copy of the batch is gone, and the then current stream has come that far, the
  // memory is filled anew.
  std::shared_ptr<const Staged> staged;
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
