// What the threads of one block do together. Every thread of the block calls; none returns early.
#pragma once
#include "comm/cuda_launch.h"

#include <cstddef>
#include <cstdint>

namespace trireme::coding {

constexpr unsigned block_threads = 1024, block_warps = block_threads / 32, all_lanes = 0xffffffffu;

// Memory of a block: shared memory while it lasts, then the chunk's own in device memory.
struct Arena {
  std::uint8_t* fast;
  std::uint32_t fast_left;
  std::uint8_t* slow;
  template <class T>
  __device__ T* take(std::size_t count) {
    const std::size_t bytes = (count * sizeof(T) + 15) / 16 * 16;
    std::uint8_t* at = slow;
    if (bytes <= fast_left) {
      at = fast;
      fast += bytes;
      fast_left -= static_cast<std::uint32_t>(bytes);
    } else {
      slow += bytes;
    }
    return reinterpret_cast<T*>(at);
  }
};

// Dynamic shared memory for a launch of the kernel: `wanted`, or what this device has. The kernel is always allowed
// `most_wanted`: another thread may be about to launch it. Throws CommError.
inline std::uint32_t shared_memory_of(const void* kernel, const char* name, std::size_t wanted,
                                      std::size_t most_wanted) {
  constexpr std::size_t others = 8192;  // what the kernel declares itself
  int device = 0, most = 0;
  cudaError_t result = cudaGetDevice(&device);
  if (result == cudaSuccess) result = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const std::size_t room = static_cast<std::size_t>(most) > others ? static_cast<std::size_t>(most) - others : 0,
                    allowed = most_wanted < room ? most_wanted : room;
  if (result == cudaSuccess)
    result = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(allowed));
  if (result != cudaSuccess) throw CommError(name, cudaGetErrorString(result));
  return static_cast<std::uint32_t>(wanted < allowed ? wanted : allowed);
}

// Sum of the values of the lanes before and this one.
__device__ inline std::uint32_t warp_scan(std::uint32_t value) {
  const unsigned lane = threadIdx.x % 32;
  for (unsigned step = 1; step < 32; step *= 2) {
    const std::uint32_t before = __shfl_up_sync(all_lanes, value, step);
    if (lane >= step) value += before;
  }
  return value;
}

// Sum of the values of the threads before. sums: shared, block_warps of them.
__device__ inline std::uint32_t block_scan(std::uint32_t value, std::uint32_t* sums, std::uint32_t& total) {
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const std::uint32_t sum = warp_scan(value);
  if (lane == 31) sums[warp] = sum;
  __syncthreads();
  if (warp == 0) sums[lane] = warp_scan(sums[lane]);
  __syncthreads();
  total = sums[block_warps - 1];
  const std::uint32_t before = (warp ? sums[warp - 1] : 0) + sum - value;
  __syncthreads();
  return before;
}

template <class T>
__device__ T warp_sum(T value) {
  for (unsigned step = 16; step > 0; step /= 2) value += __shfl_xor_sync(all_lanes, value, step);
  return value;
}
template <class T>
__device__ T warp_min(T value) {
  for (unsigned step = 16; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(all_lanes, value, step);
    value = other < value ? other : value;
  }
  return value;
}
template <class T>
__device__ T warp_max(T value) {
  for (unsigned step = 16; step > 0; step /= 2) {
    const T other = __shfl_xor_sync(all_lanes, value, step);
    value = value < other ? other : value;
  }
  return value;
}

// Fields of bits, lowest first, in words that are 0 before.
__device__ inline void put_bits(std::uint32_t* words, std::uint64_t bit, std::uint32_t value, std::uint32_t bits) {
  if (bits == 0 || value == 0) return;
  const std::uint64_t both = static_cast<std::uint64_t>(value) << (bit % 32);
  atomicOr(words + bit / 32, static_cast<std::uint32_t>(both));
  if (both >> 32) atomicOr(words + bit / 32 + 1, static_cast<std::uint32_t>(both >> 32));
}
// Of bytes at any address, at most 16 bits; reads no byte beyond the last bit's.
__device__ inline std::uint32_t get_bits(const std::uint8_t* bytes, std::uint64_t bit, std::uint32_t bits) {
  if (bits == 0) return 0;
  const std::uint64_t first = bit / 8, last = (bit + bits - 1) / 8;
  std::uint32_t word = 0;
  for (std::uint64_t b = first; b <= last; ++b) word |= static_cast<std::uint32_t>(bytes[b]) << (8 * (b - first));
  return word >> (bit % 8) & ((1u << bits) - 1);
}

// Where the elements of a block's threads lie in rows of `width`: thread by thread, block_threads further each time,
// with one division in all.
struct Walk {
  std::uint32_t row, column, width, rows, columns;
  __device__ explicit Walk(std::uint32_t w) {
    width = w, row = threadIdx.x / w, rows = block_threads / w;
    column = threadIdx.x - row * w;
    columns = block_threads - rows * w;
  }
  __device__ void next() {
    row += rows;
    column += columns;
    if (column >= width) column -= width, ++row;
  }
};

// Bytes at any addresses.
__device__ inline void block_copy(std::uint8_t* to, const std::uint8_t* from, std::size_t bytes) {
  for (std::size_t i = threadIdx.x; i < bytes; i += block_threads) to[i] = from[i];
}

}  // namespace trireme::coding
