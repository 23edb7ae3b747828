// What the exchange of a trained model would send on any number of ranks, without so many: rows that are looked up and
// their gradients, cut into the chunks of each (table, destination) and coded as a run codes them.
#pragma once
#include "recipes/dlrm/bounds.h"
#include "recipes/dlrm/config.h"

#include <map>
#include <string>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::dlrm {

// What an owner sends of one table: rows f32 [n, d], pooled over the bags ids i32 [n, width] (-1: no id) of its weight
// [rows, d]. DataError: an id beyond the table.
at::Tensor pooled_rows(const Table& table, const at::Tensor& weight, const at::Tensor& ids);

// Of one global batch of n samples: rows and their gradients f32 [tables, n, d], at these weights (by the names of
// export).
struct Looked {
  at::Tensor rows, gradients;
};
// rows: as looked up; dense [n, D] and label [n] f32. DataError: a weight is missing.
Looked look_up(const Shape& shape, const std::map<std::string, at::Tensor>& weights, const at::Tensor& rows,
               const at::Tensor& dense, const at::Tensor& label);

// Gradients f32 [tables, n, d] of samples that looked up ids i32 [n, columns] (table after table so many columns), as
// each of so many ranks combines its own (combine.h).
at::Tensor combined_for(const at::Tensor& gradients, const at::Tensor& ids, const std::vector<std::int64_t>& widths,
                        int ranks);

// f32 bytes by coded ones of [tables, n, d] on the host, a chunk a table with its own range; header and size counted.
// codecs, bounds: one a table.
double coded_ratio(const at::Tensor& chunks, const std::vector<std::string>& codecs, const std::vector<double>& bounds);

// f32 bytes by bytes sent, each chunk's header and the size that announces it counted, for each codec and `vector_lz or
// huffman`, the better of the two for each table. `bounds`: relative, one a table. ranks: each batch is cut into so
// many chunks of equally many rows. shared: the range is that of the table's whole batch, else of each chunk.
std::map<std::string, double> whole_job(const std::vector<at::Tensor>& batches, const std::vector<double>& bounds,
                                        int ranks, bool shared);

}  // namespace trireme::dlrm
