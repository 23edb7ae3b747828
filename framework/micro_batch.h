// Micro-batches of a step (`accumulate`).
#pragma once
#include "data/dataset.h"

namespace trireme {

// Part k of n equal parts of a rank's rows: ids and columns [k*m, (k+1)*m); the rest is the whole batch's. UsageError
// where n does not divide the rows.
Batch micro_batch(const Batch& batch, std::int64_t k, std::int64_t n);

}  // namespace trireme
