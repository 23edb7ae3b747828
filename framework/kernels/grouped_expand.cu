// Y += s S B^T and dX += mask (dS A) on CUDA.
#include "framework/kernels/grouped_tiles.cuh"

namespace trireme::kernels {
namespace {

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

// Sums of a block, by what they are multiplied with, onto its tile of y in shared memory.
template <bool backward>
__device__ void put_sums(const GroupedExpand& job, const ExpandTarget& target, const Span& span,
                         std::int64_t first_column, const float (&sum)[expand_columns / 8][4], bf16* ys) {
  constexpr int y_stride = expand_columns + pad;
  const std::int64_t columns = target.width - first_column;
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
}

__device__ void write_rows(const bf16* ys, bf16* y, std::int64_t width, int rows, int columns) {
  constexpr int each = expand_columns / 8;
  for (int i = static_cast<int>(threadIdx.x); i < rows * each; i += threads) {
    const int row = i / each, column = i % each * 8;
    if (column < columns)
      *reinterpret_cast<uint4*>(y + row * width + column) =
          *reinterpret_cast<const uint4*>(ys + row * (expand_columns + pad) + column);
  }
}

// Blocks of x: tiles of columns, of y: 64 rows. Forward: the tiles of one target after the other's. Backward: all
// targets' sums in one.
template <int rank, bool backward>
__global__ void __launch_bounds__(threads, expands_at_once(rank))
    expand_kernel(const __grid_constant__ GroupedExpand job) {
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
#pragma unroll 1
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
#pragma unroll 2
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
  put_sums<backward>(job, target, span, first_column, sum, ys);
  __syncthreads();
  write_rows(ys, y, target.width, span.rows, columns);
}

template <class T>
__global__ void __launch_bounds__(plain_threads)
    plain_expand_kernel(const __grid_constant__ GroupedExpand job, ExpandTarget from, ExpandTarget to, bool add) {
  const GroupedBlock at = job.table.blocks[blockIdx.x];
  const GroupedRows g = job.table.rows[at.group];
  const GroupedAdapter w = from.adapters[at.group];
  if (w.rank == 0) return;
  const std::int64_t width = to.width, stride = job.table.rank_stride;
  const Strided<T> s{static_cast<const T*>(from.s) + g.first * stride, stride, 1, g.last - g.first, w.rank};
  const Strided<T> weights = job.backward ? Strided<T>{static_cast<const T*>(w.a), width, 1, w.rank, width}
                                          : Strided<T>{static_cast<const T*>(w.b), 1, w.rank, w.rank, width};
  T* const y = static_cast<T*>(to.y) + g.first * width;
  const T* const bias = static_cast<const T*>(to.bias);
  plain_product(s, weights, at.block * grouped_rows + blockIdx.z * plain_tile, blockIdx.y * plain_tile,
                [&](std::int64_t i, std::int64_t j, float v) {
                  float by = w.scale;
                  if (job.backward) {
                    const DropoutWords words = dropout_words(g.dropout, from.module, static_cast<std::uint32_t>(i),
                                                             static_cast<std::uint32_t>(j / 4));
                    by = g.dropout.threshold == 0 ? 1.0f : dropout_factor(g.dropout, words.word[j % 4]);
                  }
                  T* const at = y + i * width + j;
                  put(at, fmaf(v, by, add ? value_of(*at) : bias ? value_of(bias[j]) : 0.0f));
                });
}

void plain_expand(const GroupedExpand& job, Place place) {
  for (int t = 0; t < job.targets; ++t) {
    const ExpandTarget& to = job.target[job.backward ? 0 : t];
    const dim3 grid(static_cast<unsigned>(job.table.block_count), plain_tiles(to.width), 2);
    const bool add = job.add || (job.backward && t > 0);
    plain_type(job.type, [&](auto v) {
      plain_expand_kernel<decltype(v)><<<grid, plain_threads, 0, cuda_stream(place)>>>(job, job.target[t], to, add);
    });
  }
  check_launch("grouped_expand");
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
  if (!all_in_tiles(job, [](const ExpandTarget& t) { return in_tiles({t.width}, {t.s, t.y, t.bias}); }))
    return plain_expand(job, place);
  job.backward ? expand<true>(job, place) : expand<false>(job, place);
}

const Kernel<GroupedExpand>::Twin registered(grouped_expand, expand_on_cuda);

}  // namespace
}  // namespace trireme::kernels
