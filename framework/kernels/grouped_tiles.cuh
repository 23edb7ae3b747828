// Of the grouped kernels for bf16 by tensor cores (mma.cuh), for widths of a multiple of 8. What they read streams
// through shared memory, some copies ahead of the product. The largest rank is a template; within it a block runs the
// code of the smallest of 16, 32, 64 and 128 that holds its own group's rank, without a branch in its products.
// Included by grouped_*.cu only.
#pragma once
#include "comm/cuda_launch.h"
#include "framework/kernels/grouped_gemm.h"
#include "framework/kernels/grouped_plain.cuh"
#include "framework/kernels/mma.cuh"

#include <algorithm>
#include <atomic>

namespace trireme::kernels {
namespace {

constexpr int block_rows = grouped_rows, chunk = 64;

struct Span {
  GroupedRows group;
  GroupedAdapter adapter;
  std::int64_t first;  // row of the token matrices
  int rows;
};

__device__ Span span_of(const GroupedTable& t, const GroupedAdapter* adapters, unsigned block) {
  const GroupedBlock at = t.blocks[block];
  Span s{t.rows[at.group], adapters[at.group], 0, 0};
  s.first = s.group.first + at.block * block_rows;
  s.rows = min(block_rows, static_cast<int>(s.group.last - s.first));
  return s;
}

// A tile of rows x columns at `from`, whose rows are `stride` apart: the first `there_rows` x `there_columns` of it,
// zeros else. there_columns is a multiple of 8.
template <int threads, int rows, int columns>
__device__ void fetch(bf16* tile, const bf16* from, std::int64_t stride, int there_rows, int there_columns) {
  constexpr int each = columns / 8, pieces = rows * each;
#pragma unroll 4  // more would keep more addresses in registers than there are
  for (int k = 0; k < (pieces + threads - 1) / threads; ++k) {
    const int i = static_cast<int>(threadIdx.x) + k * threads, row = i / each, column = i % each * 8;
    if (pieces % threads != 0 && i >= pieces) break;
    const bool there = row < there_rows && column < there_columns;
    copy16(tile + row * (columns + pad) + column, there ? from + row * stride + column : from, there);
  }
}

// Runs fetch_chunk(stage, i) for i = 0 ... chunks - 1, ahead of use(stage), which sees what was fetched.
template <int stages, class Fetch, class Use>
__device__ void pipeline(int chunks, Fetch fetch_chunk, Use use) {
#pragma unroll
  for (int i = 0; i < stages - 1; ++i) {
    if (i < chunks) fetch_chunk(i, i);
    commit_copies();
  }
  for (int i = 0; i < chunks; ++i) {
    wait_copies<stages - 2>();
    __syncthreads();  // and everybody is done with the stage that is filled next
    const int next = i + stages - 1;
    if (next < chunks) fetch_chunk(next % stages, next);
    commit_copies();
    use(i % stages);
  }
  wait_copies<0>();
  __syncthreads();  // shared memory is free for other things
}

// f(the smallest of 16, 32, 64, 128 that holds `rank`) on the device; none is above `most`.
template <int most, class F>
__device__ void with_rank(int rank, F f) {
  if (most == 16 || rank <= 16) return f(std::integral_constant<int, 16>());
  if constexpr (most >= 32)
    if (most == 32 || rank <= 32) return f(std::integral_constant<int, 32>());
  if constexpr (most >= 64)
    if (most == 64 || rank <= 64) return f(std::integral_constant<int, 64>());
  if constexpr (most >= 128) f(std::integral_constant<int, 128>());
}

__host__ __device__ int part_of(std::int64_t length, std::int64_t splits) {
  const std::int64_t chunks = (length + chunk - 1) / chunk;
  return static_cast<int>((chunks + splits - 1) / splits * chunk);
}

// More than 48 KiB of shared memory must be asked for, once a device.
template <auto kernel>
void allow_shared(int bytes, Place place) {
  static std::atomic<std::uint64_t> done{0};
  const std::uint64_t bit = std::uint64_t{1} << (place.device & 63);
  if (bytes <= 48 * 1024 || (done.load() & bit)) return;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) != cudaSuccess)
    throw CommError("grouped kernels", cudaGetErrorString(cudaGetLastError()));
  done |= bit;
}

// f(the smallest template that holds a rank).
template <class F>
void by_rank(std::int64_t rank, F f) {
  if (rank <= 16) return f(std::integral_constant<int, 16>());
  if (rank <= 32) return f(std::integral_constant<int, 32>());
  if (rank <= 64) return f(std::integral_constant<int, 64>());
  if (rank <= grouped_most_rank) return f(std::integral_constant<int, 128>());
  throw Error(ExitCode::bug, "grouped kernels", "a rank above 128");
}

bool in_tiles(std::initializer_list<std::int64_t> widths, std::initializer_list<const void*> pointers) {
  for (const auto w : widths)
    if (w % 8 != 0) return false;
  for (const void* p : pointers)
    if (!aligned(p, 16)) return false;
  return true;
}

// each(target) says in_tiles of its own.
template <class Job, class F>
bool all_in_tiles(const Job& job, F each) {
  bool all = job.type == DType::bf16 && job.table.rank_stride % 8 == 0;
  for (int t = 0; t < job.targets; ++t) all = all && each(job.target[t]);
  return all;
}

}  // namespace
}  // namespace trireme::kernels
