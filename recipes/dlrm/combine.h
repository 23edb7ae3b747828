// Samples of one rank that looked up the same row of a table: their gradients are summed before they travel, since the
// owner only adds them up. Of each group one row is left, at its first sample, and zeros elsewhere, which a codec that
// knows equal rows sends for next to nothing. The sum of n goes divided by sqrt(n), which the owner undoes: of
// gradients of random sign it has the range of one, and its error grows as that of n gradients that are rounded one by
// one. Gradients that agree have sqrt(n) times the range, and so the bound that is a share of it. Samples that asked
// for no row (an empty bag) have zeros too: their owner would drop what came.
#pragma once
#include <cstdint>
#include <map>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme::dlrm {

// Both on the device of the ids.
struct Groups {
  at::Tensor first;  // i32 [blocks, tables, b]: where each one's group begins, as a row of [tables * b]; -1: no row
  at::Tensor times;  // f32 [blocks, tables, b]: how many are in it, where a group begins; else 0
};

// Which samples ask for the same rows. Samples of a table of bags (width > 1) are groups of their own; those without any
// id are of none.
class Grouping {
 public:
  explicit Grouping(const std::vector<std::int64_t>& widths);  // of the tables
  // ids i32 [blocks, columns * b]: in each block table after table [b, width].
  Groups operator()(const at::Tensor& ids, std::int64_t b);

 private:
  const std::int64_t count_;
  std::int64_t columns_ = 0;
  at::Tensor tables_;  // u8, on the device of the ids
};

class Combiner {
 public:
  // Groups of one block, whose gradients will have d values: what can be done without them.
  void prepare(const Groups& groups, std::int64_t d);
  // gradient f32 [tables, b, d] -> the same shape. Sums go in the order of the samples.
  at::Tensor combined(const at::Tensor& gradient) const;

 private:
  Groups groups_;
  // All rows as one table, by how many there are, for the kernel that sums gradients of equal rows; u8, on the device.
  // A step that is recorded reads its own for good.
  std::map<std::int64_t, at::Tensor> tables_;
  at::Tensor table_, scratch_;  // of this call; u8
};

// What arrived of it f32 [blocks * tables, b, d], in place: sums where a group begins, else zeros.
void restore(at::Tensor& received, const Groups& groups);

}  // namespace trireme::dlrm
