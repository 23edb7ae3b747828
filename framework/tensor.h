// Tensors as the torch-free layers see them.
#pragma once
#include "comm/archive.h"
#include "comm/buffer.h"

#include <ATen/core/Tensor.h>

namespace trireme {

DType dtype_of(const at::Tensor& t);       // throws Error (bug) for a type that has no DType
at::ScalarType scalar_type(DType t);
Buffer buffer_of(const at::Tensor& t);     // contiguous; a view of the tensor's memory
// Saves or loads in place. Device tensors go through host memory.
void archive(Archive& ar, std::string_view name, at::Tensor& t, Sharing sharing = {});

}  // namespace trireme
