// Parts of a rank's rows of a step: micro-batches (`accumulate`), and rows that are chosen.
#pragma once
#include "data/dataset.h"

namespace trireme {

// Part k of n equal parts of a rank's rows: ids and columns [k*m, (k+1)*m); the rest is the whole batch's. UsageError
// where n does not divide the rows.
Batch micro_batch(const Batch& batch, std::int64_t k, std::int64_t n);

// These rows [m] i64 on the host: ids and columns. all_rows [K m]: those of all ranks, in rank order, of which
// global_ids become the ids. What is on a device is copied on its current stream.
Batch chosen_rows(const Batch& batch, const at::Tensor& rows, const at::Tensor& all_rows);

}  // namespace trireme
