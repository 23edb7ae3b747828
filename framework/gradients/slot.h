// Where hand-written backwards find the memory from which a parameter's gradient is reduced, so that it is written
// once, never copied, and on its way while the rest of the backward is computed. Any thread; shared by all reducers of
// the process (loopback ranks), told apart by the parameter.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// A fresh view of the memory that the reducer wants this parameter's gradient in, or undefined when there is none or it
// is already taken in this step.
at::Tensor gradient_destination(const at::Tensor& param);
// Ends of the blocks of rows to write one after the other, telling of each: a large gradient is reduced in pieces. The
// last one is param.size(0); a parameter without dimensions is one row.
std::vector<std::int64_t> gradient_blocks(const at::Tensor& param);
// It is written there, or its first `rows`: they may be reduced before the rest of this backward is computed. Read them
// no more.
void gradient_written(const at::Tensor& param);
void gradient_written(const at::Tensor& param, std::int64_t rows);

// The reducer's side.
struct GradientSlot {
  at::Tensor view;
  bool taken = false;  // somebody has a gradient of this step there
  bool lent = false;   // a fused backward of this pass has
  // What was lent was all of the gradient, in the last backward that lent it: the parameter has one use.
  bool alone = false;
  std::vector<std::int64_t> blocks;  // empty: all at once
  std::function<void(std::int64_t rows)> written;

  static std::int64_t rows_of(const at::Tensor& t) { return t.dim() == 0 ? 1 : t.size(0); }
  // `slot` stays where it is until it is withdrawn.
  static void offer(const at::Tensor& param, GradientSlot& slot);
  static void withdraw(const at::Tensor& param);
};

}  // namespace trireme
