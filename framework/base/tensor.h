// Tensors as the torch-free layers see them.
#pragma once
#include "comm/archive.h"
#include "comm/buffer.h"

#include <ATen/core/Tensor.h>

namespace trireme {

DType dtype_of(const at::Tensor& t);  // throws Error (bug) for a type that has no DType
at::ScalarType scalar_type(DType t);
// Contiguous; a view of the tensor's memory. On a device: with its current stream.
Buffer buffer_of(const at::Tensor& t);
// A host tensor there, or one that is there already. To a GPU it goes through pinned memory and the host does not wait: `to()` would, for all that
// the GPU still has to do.
at::Tensor to_device(const at::Tensor& host, at::Device device);
// Saves or loads in place. Device tensors go through host memory.
void archive(Archive& ar, std::string_view name, at::Tensor& t, Sharing sharing = {});

}  // namespace trireme
