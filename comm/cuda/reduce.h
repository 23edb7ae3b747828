// Element-wise reduction on a CUDA device; its CPU twin is comm/reduce.h. (C++17: nvcc sees it.)
#pragma once
#include "comm/buffer.h"
#include "comm/op.h"

#include <cuda_runtime_api.h>

namespace trireme::cuda {

// Throws CommError with the name of the call.
void check(cudaError_t result, const char* call);

inline constexpr std::size_t most_inputs = 64;

// out[i] = in[0][i] op in[1][i] op ..., in exactly this order, written to every one of `outs`. Enqueued on
// `stream`; at most 64 inputs and 64 outputs, which may be the same memory but must not overlap partly. Bits
// as from the twin, but for the payload of a NaN sum. Throws CommError if the launch is refused.
void reduce(Op op, DType dtype, void* const* outs, std::size_t n_outs, const void* const* ins, std::size_t n_ins,
            std::size_t count, cudaStream_t stream);

}  // namespace trireme::cuda
