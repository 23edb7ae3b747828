// Element-wise reduction of several buffers, and the 16-bit float conversions it uses.
#pragma once
#include "comm/buffer.h"
#include "comm/communicator.h"

#include <span>

namespace trireme {

// out[i] = in[0][i] op in[1][i] op ..., in exactly this order. `out` may be one of the inputs, but must not
// overlap one partly. f16 and bf16 accumulate in f32 and round once, to nearest even. Integers wrap. min and
// max propagate NaN. At least one input.
void reduce(Op op, DType dtype, void* out, std::span<const void* const> in, std::size_t count);

// f32 to and from f16 or bf16, element by element: to nearest even; f16 overflows to infinity; a NaN stays one. The
// 16-bit side may be unaligned.
void narrow(DType to, const float* in, void* out, std::size_t count);
void widen(DType from, const void* in, float* out, std::size_t count);

}  // namespace trireme
