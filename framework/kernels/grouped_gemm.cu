// Three kernels of bf16 tiles for tensor cores (mma.cuh), for widths of a multiple of 8. Blocks of 128 threads: a warp
// owns 16 rows of its block's product. What they read streams through shared memory, two copies ahead of the product.
// The largest rank is a template; a block runs over its own group's rank alone. Anything else takes the plain kernels
// of grouped_plain.cuh.
#include "comm/cuda_launch.h"
#include "framework/kernels/grouped_gemm.h"
#include "framework/kernels/grouped_plain.cuh"
#include "framework/kernels/mma.cuh"

#include <algorithm>
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

__device__ Span span_of(const GroupedTable& t, const GroupedAdapter* adapters, unsigned block) {
  const GroupedBlock at = t.blocks[block];
  Span s{t.rows[at.group], adapters[at.group], 0, 0};
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

__host__ __device__ int part_of(std::int64_t length, std::int64_t splits) {
  const std::int64_t chunks = (length + chunk - 1) / chunk;
  return static_cast<int>((chunks + splits - 1) / splits * chunk);
}

// Blocks of x: targets of the first 64 rows, of the next ...: neighbours read the same rows. Of y: parts of the
// columns.
template <int rank, bool backward>
__global__ void __launch_bounds__(threads) shrink_kernel(const __grid_constant__ GroupedShrink job) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int x_size = block_rows * (chunk + pad), stride = backward ? rank + pad : chunk + pad;
  constexpr int w_size = backward ? chunk * stride : rank * stride;
  bf16* const xs = reinterpret_cast<bf16*>(shared);
  bf16* const ws = xs + stages * x_size;
  const unsigned of_target = blockIdx.x % job.targets;
  const ShrinkTarget& target = job.target[of_target];
  const Span span = span_of(job.table, target.adapters, blockIdx.x / job.targets);
  const GroupedAdapter w = span.adapter;
  if (w.rank == 0) return;
  const std::int64_t width = target.width;
  const int part = part_of(width, gridDim.y);
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.y) * part;
  const int length = static_cast<int>(min(static_cast<std::int64_t>(part), width - begin));  // may be negative
  const bf16* const x = static_cast<const bf16*>(target.x) + span.first * width + begin;
  const bf16* const weights =
      backward ? static_cast<const bf16*>(w.b) + begin * w.rank : static_cast<const bf16*>(w.a) + begin;
  float sum[rank / 8][4] = {};
  pipeline(
      length > 0 ? (length + chunk - 1) / chunk : 0,
      [&](int stage, int i) {
        const int from = i * chunk, left = length - from;
        fetch<block_rows, chunk>(xs + stage * x_size, x + from, width, span.rows, left);
        if constexpr (backward)
          fetch<chunk, rank>(ws + stage * w_size, weights + static_cast<std::int64_t>(from) * w.rank, w.rank, left,
                             w.rank);
        else
          fetch<rank, chunk>(ws + stage * w_size, weights + from, width, w.rank, left);
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
        *reinterpret_cast<float2*>(
            job.partial + (blockIdx.y * job.targets + of_target) * job.table.tokens * job.table.rank_stride + to) =
            make_float2(v0, v1);
      else
        *reinterpret_cast<__nv_bfloat162*>(static_cast<bf16*>(target.s) + to) =
            __floats2bfloat162_rn(v0 * scale, v1 * scale);
    }
}

// The parts of a shrink's sums, one after the other.
__global__ void __launch_bounds__(threads) shrink_sum_kernel(const __grid_constant__ GroupedShrink job, int splits) {
  const unsigned of_target = blockIdx.x % job.targets;
  const ShrinkTarget& target = job.target[of_target];
  const Span span = span_of(job.table, target.adapters, blockIdx.x / job.targets);
  const int rank = span.adapter.rank;
  const float scale = job.backward ? span.adapter.scale : 1.0f;
  const std::int64_t size = job.table.tokens * job.table.rank_stride;
  for (int i = static_cast<int>(threadIdx.x); i < span.rows * rank; i += threads) {
    const std::int64_t at = (span.first + i / rank) * job.table.rank_stride + i % rank;
    float sum = 0;
    for (int k = 0; k < splits; ++k) sum += job.partial[(k * job.targets + of_target) * size + at];
    static_cast<bf16*>(target.s)[at] = __float2bfloat16_rn(sum * scale);
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

// Blocks of x: tiles of columns, of y: 64 rows. Forward: the tiles of one target after the other's. Backward: all
// targets' sums in one.
template <int rank, bool backward>
__global__ void __launch_bounds__(threads) expand_kernel(const __grid_constant__ GroupedExpand job) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int y_stride = expand_columns + pad, s_stride = rank + pad;
  constexpr int w_stride = backward ? y_stride : s_stride;
  bf16* const ys = reinterpret_cast<bf16*>(shared);
  bf16* const ss = ys + block_rows * y_stride;
  bf16* const ws = ss + block_rows * s_stride;
  int of_target = 0;
  std::int64_t first_column = static_cast<std::int64_t>(blockIdx.x) * expand_columns;
  if constexpr (!backward)
    for (; first_column >= job.target[of_target].width; ++of_target)
      first_column -= (job.target[of_target].width + expand_columns - 1) / expand_columns * expand_columns;
  const ExpandTarget& target = job.target[of_target];
  const Span span = span_of(job.table, target.adapters, blockIdx.y);
  const int columns = static_cast<int>(min(static_cast<std::int64_t>(expand_columns), target.width - first_column));
  bf16* const y = static_cast<bf16*>(target.y) + span.first * target.width + first_column;
  float sum[expand_columns / 8][4] = {};
  bool any = false;
  for (int t = backward ? 0 : of_target; t < (backward ? job.targets : of_target + 1); ++t) {
    const GroupedAdapter w = job.target[t].adapters[job.table.blocks[blockIdx.y].group];
    if (w.rank == 0) continue;
    if (any) __syncthreads();  // the last target's tiles are still being read
    const std::int64_t stride = job.table.rank_stride;
    fetch<block_rows, rank>(ss, static_cast<const bf16*>(job.target[t].s) + span.first * stride, stride, span.rows,
                            w.rank);
    if constexpr (backward)
      fetch<rank, expand_columns>(ws, static_cast<const bf16*>(w.a) + first_column, target.width, w.rank, columns);
    else
      fetch<expand_columns, rank>(ws, static_cast<const bf16*>(w.b) + first_column * w.rank, w.rank, columns, w.rank);
    commit_copies();
    if (!any && job.add) fetch<block_rows, expand_columns>(ys, y, target.width, span.rows, columns);
    commit_copies();
    if (any)
      wait_copies<0>();
    else
      wait_copies<1>();
    __syncthreads();
    any = true;
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
  }
  if (!any) return;
  wait_copies<0>();
  __syncthreads();
#pragma unroll
  for (int j = 0; j < expand_columns; j += 8)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp() * 16 + half * 8 + lane() / 4, column = j + lane() % 4 * 2;
      float2 by = make_float2(span.adapter.scale, span.adapter.scale), before = make_float2(0, 0);
      if constexpr (backward)
        by = span.group.dropout.threshold == 0
                 ? make_float2(1, 1)
                 : factors(span.group, target.module, span.first + row, first_column + column);
      auto* const at = reinterpret_cast<__nv_bfloat162*>(ys + row * y_stride + column);
      if (job.add)
        before = __bfloat1622float2(*at);
      else if (target.bias && column < columns)
        before = __bfloat1622float2(
            *reinterpret_cast<const __nv_bfloat162*>(static_cast<const bf16*>(target.bias) + first_column + column));
      *at = __floats2bfloat162_rn(fmaf(sum[j / 8][2 * half], by.x, before.x),
                                  fmaf(sum[j / 8][2 * half + 1], by.y, before.y));
    }
  __syncthreads();
  constexpr int each = expand_columns / 8;
  for (int i = static_cast<int>(threadIdx.x); i < span.rows * each; i += threads) {
    const int row = i / each, column = i % each * 8;
    if (column < columns)
      *reinterpret_cast<uint4*>(y + row * target.width + column) =
          *reinterpret_cast<const uint4*>(ys + row * y_stride + column);
  }
}

template <int rank>
constexpr int outer_shared() {
  return stages * chunk * (outer_columns + pad + rank + pad) * 2;
}

// A tile of columns of a target's x or dy.
struct Wide {
  int target;
  bool of_a;
  std::int64_t first_column, offset;  // offset: of x or dy, among all columns of all targets
};

// Tiles of x go target by target within a column, since targets may share x; then the tiles of dy.
__device__ Wide wide_of(const GroupedOuter& job, unsigned tile) {
  std::int64_t x_tiles = 0, offset = 0;
  for (int t = 0; t < job.targets; ++t) x_tiles = max(x_tiles, (job.target[t].in + outer_columns - 1) / outer_columns);
  Wide w{};
  w.of_a = tile < x_tiles * job.targets;
  std::int64_t at = w.of_a ? tile / job.targets : tile - x_tiles * job.targets;
  if (w.of_a) w.target = static_cast<int>(tile % job.targets);
  if (!w.of_a)
    for (std::int64_t tiles; at >= (tiles = (job.target[w.target].out + outer_columns - 1) / outer_columns);
         at -= tiles)
      ++w.target;
  for (int t = 0; t < w.target; ++t) offset += job.target[t].in + job.target[t].out;
  w.first_column = at * outer_columns;
  w.offset = offset + (w.of_a ? 0 : job.target[w.target].in);
  return w;
}

// Blocks of x: tiles. Of y: groups. Of z: parts of a group's rows.
template <int rank>
__global__ void __launch_bounds__(threads) outer_kernel(const __grid_constant__ GroupedOuter job, int part) {
  extern __shared__ __align__(16) unsigned char shared[];
  constexpr int wide_size = chunk * (outer_columns + pad), narrow_size = chunk * (rank + pad);
  bf16* const wide = reinterpret_cast<bf16*>(shared);
  bf16* const narrow = wide + stages * wide_size;
  const Wide tile = wide_of(job, blockIdx.x);
  const OuterTarget& target = job.target[tile.target];
  const GroupedRows group = job.table.rows[blockIdx.y];
  const GroupedAdapter w = target.adapters[blockIdx.y];
  const std::int64_t width = tile.of_a ? target.in : target.out;
  if (w.rank == 0 || tile.first_column >= width) return;
  const int columns = static_cast<int>(min(static_cast<std::int64_t>(outer_columns), width - tile.first_column));
  const std::int64_t first = group.first + static_cast<std::int64_t>(blockIdx.z) * part;
  const int rows = static_cast<int>(min(static_cast<std::int64_t>(part), group.last - first));  // may be negative
  const bf16* const m = static_cast<const bf16*>(tile.of_a ? target.x : target.dy) + first * width + tile.first_column;
  const bf16* const n = static_cast<const bf16*>(tile.of_a ? target.ds : target.s) + first * job.table.rank_stride;
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
  const std::int64_t all = grouped_columns(job);
  float* const partial =
      job.partial + ((blockIdx.z * job.table.groups + blockIdx.y) * all + tile.offset) * job.table.rank_stride;
#pragma unroll
  for (int j = 0; j < rank; j += 8)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp() * 16 + i / 2 * 8 + lane() / 4, of_rank = j + lane() % 4 * 2 + i % 2;
      if (j >= w.rank || row >= columns) continue;
      const std::int64_t c = tile.first_column + row;
      if (gridDim.z > 1)
        partial[c * job.table.rank_stride + of_rank] = sum[j / 8][i];
      else
        add_gradient(w, tile.of_a, target.in, of_rank, c, sum[j / 8][i]);
    }
}

// Blocks of y: groups, of z: targets.
__global__ void __launch_bounds__(threads) outer_sum_kernel(const __grid_constant__ GroupedOuter job, int splits) {
  const OuterTarget& target = job.target[blockIdx.z];
  const GroupedAdapter w = target.adapters[blockIdx.y];
  const std::int64_t columns = target.in + target.out, all = grouped_columns(job), stride = job.table.rank_stride;
  std::int64_t offset = 0;
  for (unsigned t = 0; t < blockIdx.z; ++t) offset += job.target[t].in + job.target[t].out;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * threads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * threads + threadIdx.x; i < columns * w.rank;
       i += step) {
    const std::int64_t c = i / w.rank;
    const int of_rank = static_cast<int>(i % w.rank);
    const float* const at = job.partial + (blockIdx.y * all + offset + c) * stride + of_rank;
    float sum = 0;
    for (int k = 0; k < splits; ++k) sum += at[k * job.table.groups * all * stride];
    add_gradient(w, c < target.in, target.in, of_rank, c < target.in ? c : c - target.in, sum);
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

bool in_tiles(std::initializer_list<std::int64_t> widths, std::initializer_list<const void*> pointers) {
  for (const auto w : widths)
    if (w % 8 != 0) return false;
  for (const void* p : pointers)
    if (!aligned(p, 16)) return false;
  return true;
}
bool in_tiles(const ShrinkTarget& t) { return in_tiles({t.width}, {t.x, t.s}); }
bool in_tiles(const ExpandTarget& t) { return in_tiles({t.width}, {t.s, t.y, t.bias}); }
bool in_tiles(const OuterTarget& t) { return in_tiles({t.in, t.out}, {t.x, t.ds, t.dy, t.s}); }

template <class Job>
bool in_tiles(const Job& job) {
  bool all = job.type == DType::bf16 && job.table.rank_stride % 8 == 0;
  for (int t = 0; t < job.targets; ++t) all = all && in_tiles(job.target[t]);
  return all;
}

template <bool backward>
void shrink(const GroupedShrink& job, Place place) {
  by_rank(job.table.rank_stride, [&](auto r) {
    constexpr int rank = decltype(r)::value, bytes = shrink_shared<rank>(backward);
    const auto splits = static_cast<unsigned>(grouped_splits(job));
    const auto blocks = static_cast<unsigned>(job.table.block_count * job.targets);
    allow_shared<shrink_kernel<rank, backward>>(bytes, place);
    shrink_kernel<rank, backward><<<dim3(blocks, splits), threads, bytes, cuda_stream(place)>>>(job);
    check_launch("grouped_shrink");
    if (splits == 1) return;
    shrink_sum_kernel<<<blocks, threads, 0, cuda_stream(place)>>>(job, static_cast<int>(splits));
    check_launch("grouped_shrink");
  });
}

void shrink_on_cuda(const GroupedShrink& job, Place place) {
  if (job.table.block_count == 0 || job.targets == 0) return;
  if (!in_tiles(job)) return plain_shrink(job, place);
  job.backward ? shrink<true>(job, place) : shrink<false>(job, place);
}

template <bool backward>
void expand(const GroupedExpand& job, Place place) {
  by_rank(job.table.rank_stride, [&](auto r) {
    constexpr int rank = decltype(r)::value, bytes = expand_shared<rank>(backward);
    allow_shared<expand_kernel<rank, backward>>(bytes, place);
    unsigned tiles = 0;
    for (int t = 0; t < (backward ? 1 : job.targets); ++t)
      tiles += cuda_blocks(static_cast<std::size_t>(job.target[t].width), expand_columns);
    const dim3 grid(tiles, static_cast<unsigned>(job.table.block_count));
    expand_kernel<rank, backward><<<grid, threads, bytes, cuda_stream(place)>>>(job);
    check_launch("grouped_expand");
  });
}

void expand_on_cuda(const GroupedExpand& job, Place place) {
  if (job.table.block_count == 0 || job.targets == 0) return;
  if (!in_tiles(job)) return plain_expand(job, place);
  job.backward ? expand<true>(job, place) : expand<false>(job, place);
}

void outer_on_cuda(const GroupedOuter& job, Place place) {
  if (job.table.block_count == 0 || job.targets == 0) return;
  if (!in_tiles(job)) return plain_outer(job, place);
  by_rank(job.table.rank_stride, [&](auto r) {
    constexpr int rank = decltype(r)::value, bytes = outer_shared<rank>();
    const auto splits = static_cast<unsigned>(grouped_splits(job)), groups = static_cast<unsigned>(job.table.groups);
    unsigned x_tiles = 0, tiles = 0;
    for (int t = 0; t < job.targets; ++t) {
      x_tiles = std::max(x_tiles, cuda_blocks(static_cast<std::size_t>(job.target[t].in), outer_columns));
      tiles += cuda_blocks(static_cast<std::size_t>(job.target[t].out), outer_columns);
    }
    tiles += x_tiles * static_cast<unsigned>(job.targets);
    allow_shared<outer_kernel<rank>>(bytes, place);
    outer_kernel<rank>
        <<<dim3(tiles, groups, splits), threads, bytes, cuda_stream(place)>>>(job, part_of(job.table.longest, splits));
    check_launch("grouped_outer");
    if (splits == 1) return;
    const dim3 grid(64, groups, static_cast<unsigned>(job.targets));
    outer_sum_kernel<<<grid, threads, 0, cuda_stream(place)>>>(job, static_cast<int>(splits));
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
