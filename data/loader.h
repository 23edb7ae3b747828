// Global batches in a reproducible order: epoch e visits the split in the order permutation(n, Rng(seed, "order", e)),
// cut into batches of B; the last partial batch is dropped. Rank k reads rows [k*b, (k+1)*b), b = B / size.
#pragma once
#include "comm/archive.h"
#include "data/dataset.h"

#include <memory>

namespace trireme {

struct LoaderOptions {
  bool prefetch = true;  // one thread reads ahead: 2 batches, up to 16 where they fit into 64 MiB
  bool shuffle = true;   // false: the split's own order, for evaluation
};

// One thread uses a Loader; the data set must outlive it.
class Loader {
 public:
  // Throws UsageError, which names batch_size, when the split has fewer samples or size does not divide it.
  Loader(const Dataset& data, std::vector<std::int64_t> ids, std::int64_t global_batch, int rank, int size,
         std::uint64_t seed, LoaderOptions options = {});
  ~Loader();
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  std::int64_t steps_per_epoch() const;
  std::int64_t epoch() const;  // cursor: epoch and batch of what next() returns next
  std::int64_t batch_in_epoch() const;
  Batch next();  // endless; an error of the read thread is thrown here
  // What next() returns next, until then. It counts as not yet consumed.
  const Batch& peek();

  // The cursor of the next batch to be consumed, not of what was read ahead. On load a cursor beyond the
  // epoch (another global batch or split) throws DataError.
  void state(Archive& archive);

 private:
  struct Reader;
  std::unique_ptr<Reader> reader_;
};

}  // namespace trireme
