// Three kernels of bf16 tiles for tensor cores (mma.cuh), for widths of a multiple of 8. Blocks of 128 threads: a warp
// owns 16 rows of its block's product. What they read streams through shared memory, two copies ahead of the product.
// The largest rank is a template; a block runs over its own group's rank alone. Anything else takes the plain kernels
// of grouped_plain.cuh.
#include "comm/cuda_launch.h"
#include "framework/kernels/grouped_gemm.h"
#include "framework/kernels/grouped_plain.cuh"
#include "framework/kernels/mma.cuh"

#include <atomic>

namespace trireme::kernels {
namespace {

constexpr int threads = 128, block_rows = grouped_rows, chunk = 64, stages = 3;
constexpr int expand_columns = 128, outer_columns = 64;

struct Span {
  GroupedRows group;
  GroupedAdapter adapter;
  std::int64_t first;  // row of the token matrices
  int rows;
};

__device__ Span span_of(const GroupedTable& t, unsigned block) {
  const GroupedBlock at = t.blocks[block];
  Span s{t.rows[at.group], t.adapters[at.group], 0, 0};
  s.first = s.group.first + at.block * block_rows;
  s.rows = min(block_rows, static_cast<int>(s.group.last - s.first));
  return s;
}

// A tile of rows x columns at `from`, whose rows are `stride` apart: the first `there_rows` x `there_columns` of it,
// zeros else. there_columns is a multiple of 8.
template <int rows, int columns>
__device__ void fetch(bf16* tile, const bf16* from, std::int64_t stride, int there_rows, int there_columns) {
  constexpr int each = columns / 8;
  static_assert(rows * each % threads == 0, "all threads copy alike");
#pragma unroll
  for (int k = 0; k < rows * each / threads; ++k) {
    const int i = static_cast<int>(threadIdx.x) + k * threads, row = i / each, column = i % each * 8;
    const bool there = row < there_rows && column < there_columns;
    copy16(tile + row * (columns + pad) + column, there ? from + row * stride + column : from, there);
  }
}

// Runs fetch_chunk(stage, i) for i = 0 ... chunks - 1, ahead of use(stage, i), which sees what was fetched.
template <class Fetch, class Use>
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
    use(i % stages, i);
  }
}

template <int rank>
constexpr int shrink_shared(bool backward) {
  return stages * (block_rows * (chunk + pad) + (backward ? chunk * (rank + pad) : rank * (chunk + pad))) * 2;
}

template <int rank, bool backward>
__global__ void __launch_bounds__(threads) shrink_kernel(const __grid_constant__ GroupedShrink job, int part) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int x_size = block_rows * (chunk + pad), stride = backward ? rank + pad : chunk + pad;
  constexpr int w_size = backward ? chunk * stride : rank * stride;
  bf16* const xs = reinterpret_cast<bf16*>(shared);
  bf16* const ws = xs + stages * x_size;
  const Span span = span_of(job.table, blockIdx.x);
  const GroupedAdapter w = span.adapter;
  if (w.rank == 0) return;
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.y) * part;
  const int length = static_cast<int>(min(static_cast<std::int64_t>(part), job.width - begin));  // may be negative
  const bf16* const x = static_cast<const bf16*>(job.x) + span.first * job.width + begin;
  const bf16* const weights =
      backward ? static_cast<const bf16*>(w.b) + begin * w.rank : static_cast<const bf16*>(w.a) + begin;
  float sum[rank / 8][4] = {};
  pipeline(
      length > 0 ? (length + chunk - 1) / chunk : 0,
      [&](int stage, int i) {
        const int from = i * chunk, left = length - from;
        fetch<block_rows, chunk>(xs + stage * x_size, x + from, job.width, span.rows, left);
        if constexpr (backward)
          fetch<chunk, rank>(ws + stage * w_size, weights + static_cast<std::int64_t>(from) * w.rank, w.rank, left,
                             w.rank);
        else
          fetch<rank, chunk>(ws + stage * w_size, weights + from, job.width, w.rank, left);
      },
      [&](int stage, int) {
#pragma unroll
        for (int k = 0; k < chunk; k += 16) {
          const Fragment a = left_rows<chunk + pad>(xs + stage * x_size + warp() * 16 * (chunk + pad) + k);
#pragma unroll
          for (int j = 0; j < rank; j += 16)
            if (j < w.rank) {
              const bf16* const tile = ws + stage * w_size;
              const Fragment b =
                  backward ? right_rows<stride>(tile + k * stride + j) : right_columns<stride>(tile + j * stride + k);
              multiply16(sum[j / 8], sum[j / 8 + 1], a, b);
            }
        }
      });
  const float scale = backward ? w.scale : 1.0f;
#pragma unroll
  for (int j = 0; j < rank; j += 8)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp() * 16 + half * 8 + lane() / 4, column = j + lane() % 4 * 2;
      if (j >= w.rank || row >= span.rows) continue;
      const float v0 = sum[j / 8][2 * half], v1 = sum[j / 8][2 * half + 1];
      const std::int64_t to = (span.first + row) * job.table.rank_stride + column;
      if (gridDim.y > 1)
        *reinterpret_cast<float2*>(job.partial + blockIdx.y * job.table.tokens * job.table.rank_stride + to) =
            make_float2(v0, v1);
      else
        *reinterpret_cast<__nv_bfloat162*>(static_cast<bf16*>(job.s) + to) =
            __floats2bfloat162_rn(v0 * scale, v1 * scale);
    }
}

// The parts of a shrink's sums, one after the other.
__global__ void __launch_bounds__(threads) shrink_sum_kernel(const __grid_constant__ GroupedShrink job, int splits) {
  const Span span = span_of(job.table, blockIdx.x);
  const int rank = span.adapter.rank;
  const float scale = job.backward ? span.adapter.scale : 1.0f;
  for (int i = static_cast<int>(threadIdx.x); i < span.rows * rank; i += threads) {
    const std::int64_t at = (span.first + i / rank) * job.table.rank_stride + i % rank;
    float sum = 0;
    for (int k = 0; k < splits; ++k) sum += job.partial[k * job.table.tokens * job.table.rank_stride + at];
    static_cast<bf16*>(job.s)[at] = __float2bfloat16_rn(sum * scale);
  }
}

template <int rank>
constexpr int expand_shared(bool backward) {
  return (block_rows * (rank + pad) + block_rows * (expand_columns + pad) +
          (backward ? rank * (expand_columns + pad) : expand_columns * (rank + pad))) *
         2;
}

// What dropout left of the inputs in two neighbouring columns, the first of which is even.
__device__ float2 factors(const GroupedRows& g, std::uint32_t module, std::int64_t row, std::int64_t column) {
  const DropoutWords w = dropout_words(g.dropout, module, static_cast<std::uint32_t>(row - g.first),
                                       static_cast<std::uint32_t>(column / 4));
  const bool second = column % 4 != 0;
  return make_float2(dropout_factor(g.dropout, second ? w.word[2] : w.word[0]),
                     dropout_factor(g.dropout, second ? w.word[3] : w.word[1]));
}

template <int rank, bool backward>
__global__ void __launch_bounds__(threads) expand_kernel(const __grid_constant__ GroupedExpand job) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int y_stride = expand_columns + pad, s_stride = rank + pad;
  constexpr int w_stride = backward ? y_stride : s_stride;
  bf16* const ys = reinterpret_cast<bf16*>(shared);
  bf16* const ss = ys + block_rows * y_stride;
  bf16* const ws = ss + block_rows * s_stride;
  const Span span = span_of(job.table, blockIdx.y);
  const GroupedAdapter w = span.adapter;
  if (w.rank == 0) return;
  const std::int64_t first_column = static_cast<std::int64_t>(blockIdx.x) * expand_columns;
  const int columns = static_cast<int>(min(static_cast<std::int64_t>(expand_columns), job.width - first_column));
  bf16* const y = static_cast<bf16*>(job.y) + span.first * job.width + first_column;
  const std::int64_t s_first = span.first * job.table.rank_stride;
  fetch<block_rows, rank>(ss, static_cast<const bf16*>(job.s) + s_first, job.table.rank_stride, span.rows, w.rank);
  if constexpr (backward)
    fetch<rank, expand_columns>(ws, static_cast<const bf16*>(w.a) + first_column, job.width, w.rank, columns);
  else
    fetch<expand_columns, rank>(ws, static_cast<const bf16*>(w.b) + first_column * w.rank, w.rank, columns, w.rank);
  commit_copies();
  fetch<block_rows, expand_columns>(ys, y, job.width, span.rows, columns);
  commit_copies();
  wait_copies<1>();
  __syncthreads();
  float sum[expand_columns / 8][4] = {};
#pragma unroll
  for (int k = 0; k < rank; k += 16)
    if (k < w.rank) {
      const Fragment a = left_rows<s_stride>(ss + warp() * 16 * s_stride + k);
#pragma unroll
      for (int j = 0; j < expand_columns; j += 16) {
        const Fragment b =
            backward ? right_rows<w_stride>(ws + k * w_stride + j) : right_columns<w_stride>(ws + j * w_stride + k);
        multiply16(sum[j / 8], sum[j / 8 + 1], a, b);
      }
    }
  wait_copies<0>();
  __syncthreads();
#pragma unroll
  for (int j = 0; j < expand_columns; j += 8)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp() * 16 + half * 8 + lane() / 4, column = j + lane() % 4 * 2;
      float2 by = make_float2(w.scale, w.scale);
      if constexpr (backward)
        by = span.group.dropout.threshold == 0
                 ? make_float2(1, 1)
                 : factors(span.group, job.module, span.first + row, first_column + column);
      auto* const at = reinterpret_cast<__nv_bfloat162*>(ys + row * y_stride + column);
      const float2 before = __bfloat1622float2(*at);
      *at = __floats2bfloat162_rn(fmaf(sum[j / 8][2 * half], by.x, before.x),
                                  fmaf(sum[j / 8][2 * half + 1], by.y, before.y));
    }
  __syncthreads();
  constexpr int each = expand_columns / 8;
  for (int i = static_cast<int>(threadIdx.x); i < span.rows * each; i += threads) {
    const int row = i / each, column = i % each * 8;
    if (column < columns)
      *reinterpret_cast<uint4*>(y + row * job.width + column) =
          *reinterpret_cast<const uint4*>(ys + row * y_stride + column);
  }
}

template <int rank>
constexpr int outer_shared() {
  return stages * chunk * (outer_columns + pad + rank + pad) * 2;
}

// Blocks of x: tiles of columns, of x first and then of dy. Of y: groups. Of z: parts of a group's rows.
template <int rank>
__global__ void __launch_bounds__(threads) outer_kernel(const __grid_constant__ GroupedOuter job, int part) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int wide_size = chunk * (outer_columns + pad), narrow_size = chunk * (rank + pad);
  bf16* const wide = reinterpret_cast<bf16*>(shared);
  bf16* const narrow = wide + stages * wide_size;
  const GroupedRows group = job.table.rows[blockIdx.y];
  const GroupedAdapter w = job.table.adapters[blockIdx.y];
  if (w.rank == 0) return;
  const auto in_tiles = static_cast<unsigned>((job.in + outer_columns - 1) / outer_columns);
  const bool of_a = blockIdx.x < in_tiles;
  const std::int64_t width = of_a ? job.in : job.out;
  const std::int64_t first_column =
      static_cast<std::int64_t>(of_a ? blockIdx.x : blockIdx.x - in_tiles) * outer_columns;
  const int columns = static_cast<int>(min(static_cast<std::int64_t>(outer_columns), width - first_column));
  const std::int64_t first = group.first + static_cast<std::int64_t>(blockIdx.z) * part;
  const int rows = static_cast<int>(min(static_cast<std::int64_t>(part), group.last - first));  // may be negative
  const bf16* const m = static_cast<const bf16*>(of_a ? job.x : job.dy) + first * width + first_column;
  const bf16* const n = static_cast<const bf16*>(of_a ? job.ds : job.s) + first * job.table.rank_stride;
  float sum[rank / 8][4] = {};
  pipeline(
      rows > 0 ? (rows + chunk - 1) / chunk : 0,
      [&](int stage, int i) {
        const std::int64_t from = static_cast<std::int64_t>(i) * chunk;
        const int left = rows - i * chunk;
        fetch<chunk, outer_columns>(wide + stage * wide_size, m + from * width, width, left, columns);
        fetch<chunk, rank>(narrow + stage * narrow_size, n + from * job.table.rank_stride, job.table.rank_stride, left,
                           w.rank);
      },
      [&](int stage, int) {
#pragma unroll
        for (int k = 0; k < chunk; k += 16) {
          constexpr int stride = outer_columns + pad;
          const Fragment a = left_columns<stride>(wide + stage * wide_size + k * stride + warp() * 16);
#pragma unroll
          for (int j = 0; j < rank; j += 16)
            if (j < w.rank)
              multiply16(sum[j / 8], sum[j / 8 + 1], a,
                         right_rows<rank + pad>(narrow + stage * narrow_size + k * (rank + pad) + j));
        }
      });
  const std::int64_t part_size = job.table.groups * (job.in + job.out) * job.table.rank_stride;
  float* const partial = job.partial + blockIdx.z * part_size +
                         (blockIdx.y * (job.in + job.out) + (of_a ? 0 : job.in)) * job.table.rank_stride;
#pragma unroll
  for (int j = 0; j < rank; j += 8)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp() * 16 + i / 2 * 8 + lane() / 4, of_rank = j + lane() % 4 * 2 + i % 2;
      if (j >= w.rank || row >= columns) continue;
      const std::int64_t c = first_column + row;
      if (gridDim.z > 1)
        partial[c * job.table.rank_stride + of_rank] = sum[j / 8][i];
      else
        add_gradient(w, of_a, job.in, of_rank, c, sum[j / 8][i]);
    }
}

__global__ void __launch_bounds__(threads) outer_sum_kernel(const __grid_constant__ GroupedOuter job, int splits) {
  const GroupedAdapter w = job.table.adapters[blockIdx.y];
  const std::int64_t columns = job.in + job.out, size = columns * job.table.rank_stride;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * threads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x; i < columns * w.rank;
       i += step) {
    const std::int64_t c = i / w.rank;
    const int of_rank = static_cast<int>(i % w.rank);
    const float* const at = job.partial + blockIdx.y * size + c * job.table.rank_stride + of_rank;
    float sum = 0;
    for (int k = 0; k < splits; ++k) sum += at[k * job.table.groups * size];
    add_gradient(w, c < job.in, job.in, of_rank, c < job.in ? c : c - job.in, sum);
  }
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

bool in_tiles(DType type, std::initializer_list<std::int64_t> widths, std::initializer_list<const void*> pointers) {
  if (type != DType::bf16) return false;
  for (const auto w : widths)
    if (w % 8 != 0) return false;
  for (const void* p : pointers)
    if (!aligned(p, 16)) return false;
  return true;
}

int part_of(std::int64_t length, std::int64_t splits) {
  const std::int64_t chunks = (length + chunk - 1) / chunk;
  return static_cast<int>((chunks + splits - 1) / splits * chunk);
}

template <bool backward>
void shrink(const GroupedShrink& job, Place place) {
  by_rank(job.table.rank_stride, [&](auto r) {
    constexpr int rank = decltype(r)::value, bytes = shrink_shared<rank>(backward);
    const auto splits = static_cast<unsigned>(grouped_column_splits(job.table, job.width));
    const auto blocks = static_cast<unsigned>(job.table.block_count);
    allow_shared<shrink_kernel<rank, backward>>(bytes, place);
    shrink_kernel<rank, backward>
        <<<dim3(blocks, splits), threads, bytes, cuda_stream(place)>>>(job, part_of(job.width, splits));
    check_launch("grouped_shrink");
    if (splits == 1) return;
    shrink_sum_kernel<<<blocks, threads, 0, cuda_stream(place)>>>(job, static_cast<int>(splits));
    check_launch("grouped_shrink");
  });
}

void shrink_on_cuda(const GroupedShrink& job, Place place) {
  if (job.table.block_count == 0) return;
  if (!in_tiles(job.type, {job.width, job.table.rank_stride}, {job.x, job.s})) return plain_shrink(job, place);
  job.backward ? shrink<true>(job, place) : shrink<false>(job, place);
}

template <bool backward>
void expand(const GroupedExpand& job, Place place) {
  by_rank(job.table.rank_stride, [&](auto r) {
    constexpr int rank = decltype(r)::value, bytes = expand_shared<rank>(backward);
    allow_shared<expand_kernel<rank, backward>>(bytes, place);
    const dim3 grid(cuda_blocks(static_cast<std::size_t>(job.width), expand_columns),
                    static_cast<unsigned>(job.table.block_count));
    expand_kernel<rank, backward><<<grid, threads, bytes, cuda_stream(place)>>>(job);
    check_launch("grouped_expand");
  });
}

void expand_on_cuda(const GroupedExpand& job, Place place) {
  if (job.table.block_count == 0) return;
  if (!in_tiles(job.type, {job.width, job.table.rank_stride}, {job.y, job.s})) return plain_expand(job, place);
  job.backward ? expand<true>(job, place) : expand<false>(job, place);
}

void outer_on_cuda(const GroupedOuter& job, Place place) {
  if (job.table.block_count == 0) return;
  if (!in_tiles(job.type, {job.in, job.out, job.table.rank_stride}, {job.x, job.ds, job.dy, job.s}))
    return plain_outer(job, place);
  by_rank(job.table.rank_stride, [&](auto r) {
    constexpr int rank = decltype(r)::value, bytes = outer_shared<rank>();
    const auto splits = static_cast<unsigned>(grouped_token_splits(job.table, job.in, job.out));
    const auto groups = static_cast<unsigned>(job.table.groups);
    const unsigned tiles = cuda_blocks(static_cast<std::size_t>(job.in), outer_columns) +
                           cuda_blocks(static_cast<std::size_t>(job.out), outer_columns);
    allow_shared<outer_kernel<rank>>(bytes, place);
    outer_kernel<rank>
        <<<dim3(tiles, groups, splits), threads, bytes, cuda_stream(place)>>>(job, part_of(job.table.longest, splits));
    check_launch("grouped_outer");
    if (splits == 1) return;
    outer_sum_kernel<<<dim3(64, groups), threads, 0, cuda_stream(place)>>>(job, static_cast<int>(splits));
    check_launch("grouped_outer");
  });
}

void dropout_on_cuda(const GroupedDropout& job, Place place) {
  if (job.tokens > 0 && job.width > 0) plain_dropout(job, place);
}

const Kernel<GroupedShrink>::Twin shrink_twin(grouped_shrink, shrink_on_cuda);
const Kernel<GroupedExpand>::Twin expand_twin(grouped_expand, expand_on_cuda);
const Kernel<GroupedOuter>::Twin outer_twin(grouped_outer, outer_on_cuda);
const Kernel<GroupedDropout>::Twin dropout_twin(grouped_dropout, dropout_on_cuda);

}  // namespace
}  // namespace trireme::kernels
