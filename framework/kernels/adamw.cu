// One launch for up to `most_tensors`: their table travels as the kernel's argument, so nothing is copied to the device
// first. Blocks are as many as fit on a large card and take chunks in turn: no launch and no tensor has a tail of its own.
#include "comm/cuda_launch.h"
#include "framework/kernels/adamw.h"

#include <algorithm>

namespace trireme::kernels {
namespace {

constexpr int threads = 256, width = 4, vectors = 2;  // of 16 bytes, from each array at once
constexpr std::int64_t chunk = threads * width * vectors;
constexpr int most_tensors = 80;  // arguments may be 4 KiB
constexpr unsigned most_blocks = 1056;

struct Table {
  AdamWTensor tensors[most_tensors];
  std::int32_t first_chunk[most_tensors + 1];
  std::int32_t count;
};
static_assert(sizeof(Table) + sizeof(AdamWJob) <= 4096);

__device__ int tensor_of(const Table& table, std::int32_t at) {
  int low = 0, high = table.count;
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (table.first_chunk[middle] <= at ? low : high) = middle;
  }
  return low;
}

__device__ bool in_vectors(const AdamWTensor& t) {
  return aligned(t.value, 16) && aligned(t.grad, 16) && aligned(t.first, 16) && aligned(t.second, 16);
}

__device__ void update(const AdamWStep& s, float4& value, float4 grad, float4& first, float4& second) {
  adamw_element(s, grad.x, value.x, first.x, second.x);
  adamw_element(s, grad.y, value.y, first.y, second.y);
  adamw_element(s, grad.z, value.z, first.z, second.z);
  adamw_element(s, grad.w, value.w, first.w, second.w);
}

// A whole chunk from `begin` on: everything is on its way before the first value is used.
__device__ void whole_chunk(const AdamWStep& s, const AdamWTensor& t, std::int64_t begin) {
  float4 value[vectors], grad[vectors], first[vectors], second[vectors];
#pragma unroll
  for (int k = 0; k < vectors; ++k) {
    const std::int64_t i = begin + static_cast<std::int64_t>(k * threads + threadIdx.x) * width;
    grad[k] = *reinterpret_cast<const float4*>(t.grad + i);
    value[k] = *reinterpret_cast<const float4*>(t.value + i);
    first[k] = *reinterpret_cast<const float4*>(t.first + i);
    second[k] = *reinterpret_cast<const float4*>(t.second + i);
  }
#pragma unroll
  for (int k = 0; k < vectors; ++k) {
    update(s, value[k], grad[k], first[k], second[k]);
    const std::int64_t i = begin + static_cast<std::int64_t>(k * threads + threadIdx.x) * width;
    *reinterpret_cast<float4*>(t.value + i) = value[k];
    *reinterpret_cast<float4*>(t.first + i) = first[k];
    *reinterpret_cast<float4*>(t.second + i) = second[k];
  }
}

__global__ void __launch_bounds__(threads) adamw_kernel(const __grid_constant__ Table table,
                                                        const __grid_constant__ AdamWJob job) {
  if (job.skip && *job.skip != 0) return;
  __shared__ AdamWStep shared;
  if (threadIdx.x == 0) shared = adamw_step(job);
  __syncthreads();
  const AdamWStep s = shared;
  for (std::int32_t at = blockIdx.x; at < table.first_chunk[table.count]; at += gridDim.x) {
    const int k = tensor_of(table, at);
    const AdamWTensor& t = table.tensors[k];
    const std::int64_t begin = static_cast<std::int64_t>(at - table.first_chunk[k]) * chunk;
    if (begin + chunk <= t.count && in_vectors(t)) {
      whole_chunk(s, t, begin);
      continue;
    }
    const std::int64_t end = begin + chunk < t.count ? begin + chunk : t.count;
    for (std::int64_t i = begin + threadIdx.x; i < end; i += threads)
      adamw_element(s, t.grad[i], t.value[i], t.first[i], t.second[i]);
  }
}

void launch(const Table& table, const AdamWJob& job, Place place) {
  const auto chunks = static_cast<unsigned>(table.first_chunk[table.count]);
  if (chunks == 0) return;
  adamw_kernel<<<std::min(chunks, most_blocks), threads, 0, cuda_stream(place)>>>(table, job);
  check_launch("adamw");
}

void on_cuda(const AdamWJob& job, Place place) {
  for (std::int64_t from = 0; from < job.count; from += most_tensors) {
    Table table;
    table.count = static_cast<std::int32_t>(std::min<std::int64_t>(most_tensors, job.count - from));
    table.first_chunk[0] = 0;
    for (std::int32_t k = 0; k < table.count; ++k) {
      table.tensors[k] = job.tensors[from + k];
      table.first_chunk[k + 1] =
          table.first_chunk[k] + static_cast<std::int32_t>((table.tensors[k].count + chunk - 1) / chunk);
    }
    launch(table, job, place);
  }
}

const Kernel<AdamWJob>::Twin registered(adamw, on_cuda);

}  // namespace
}  // namespace trireme::kernels
