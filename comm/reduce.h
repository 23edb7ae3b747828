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

float f16_to_f32(std::uint16_t h);
std::uint16_t f32_to_f16(float f);  // nearest even; overflow gives infinity
float bf16_to_f32(std::uint16_t h);
std::uint16_t f32_to_bf16(float f);  // nearest even

}  // namespace trireme
