// The kernels of the codecs of fixed size: host functions in X.cpp, CUDA twins in X.cu. (C++17: nvcc sees it.)
#pragma once
#include "compression/fixed_size.h"

namespace trireme {

extern Kernel<EncodeJob> encode_bf16, encode_fp16, encode_int8, encode_fp8, encode_int4;
extern Kernel<DecodeJob> decode_bf16, decode_fp16, decode_int8, decode_fp8, decode_int4;

// Layout of a code of int8: all scales (f32), then all codes (i8).
constexpr std::size_t int8_block = 256;
constexpr float int8_levels = 127;
// 1.5 * 2^23 + x has the integer nearest to x (ties to even) in its low bits.
constexpr float int8_rounder = 12582912.0f;
constexpr std::size_t int8_blocks(std::size_t count) { return (count + int8_block - 1) / int8_block; }

}  // namespace trireme
