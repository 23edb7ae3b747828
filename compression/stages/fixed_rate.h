// Codes of fixed rate, without a bound: fp16, bf16, fp8 (e4m3, an f32 scale a row), int8_row32 (8 bits, f32 scale and
// least value for 32 values of a row), int4 (an f32 scale a row, two codes a byte, -7 to 7). Values are finite; fp16
// keeps to 65504. Layout: scales row by row, then the codes row by row.
#pragma once
#include "compression/stages/bytes.h"
#include "compression/stages/quantize.h"
#include "compression/stages/rate_values.h"

namespace trireme::coding {

void encode_fixed_rate(Encoder encoder, const Rows& rows, std::uint8_t* out);
// bytes.size() is fixed_rate_bytes. Throws BadStream; what it gives is finite.
void decode_fixed_rate(Encoder encoder, std::span<const std::uint8_t> bytes, std::size_t n, std::size_t dim,
                       float* rows, std::size_t stride);

}  // namespace trireme::coding
