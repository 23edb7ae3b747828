// S = X A^T and dS = s dY B on CUDA.
#include "framework/kernels/grouped_tiles.cuh"

namespace trireme::kernels {
namespace {

constexpr int threads = 256, row_warps = 4;  // two warps share 16 rows: each multiplies half of a chunk

template <int rank>
constexpr int stages = rank <= 64 ? 5 : 4;
template <int rank>
constexpr int shrink_shared(bool backward) {
  return stages<rank> * (block_rows * (chunk + pad) + (backward ? chunk * (rank + pad) : rank * (chunk + pad))) * 2;
}

// The second half's sums onto the first's, through shared memory.
template <int rank>
__device__ void join_halves(float (&sum)[rank / 8][4], float* room) {
  const int second = threads / 2, at = static_cast<int>(threadIdx.x) % second;
  if (static_cast<int>(threadIdx.x) >= second)
#pragma unroll
    for (int i = 0; i < rank / 2; ++i) room[i * second + at] = sum[i / 4][i % 4];
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < second)
#pragma unroll
    for (int i = 0; i < rank / 2; ++i) sum[i / 4][i % 4] += room[i * second + at];
}

// A block's sums, in bf16, or of a part of the columns as they are.
template <int rank>
__device__ void put_shrink(const GroupedShrink& job, unsigned of_target, const Span& span,
                           const float (&sum)[rank / 8][4]) {
  const GroupedAdapter& w = span.adapter;
  const float scale = job.backward ? w.scale : 1.0f;
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
        *reinterpret_cast<__nv_bfloat162*>(static_cast<bf16*>(job.target[of_target].s) + to) =
            __floats2bfloat162_rn(v0 * scale, v1 * scale);
    }
}

template <int rank, bool backward>
__device__ void shrink_rows(const GroupedShrink& job, unsigned of_target, const Span& span, bf16* shared) {
  constexpr int x_size = block_rows * (chunk + pad), stride = backward ? rank + pad : chunk + pad;
  constexpr int w_size = backward ? chunk * stride : rank * stride;
  bf16 *const xs = shared, *const ws = xs + stages<rank> * x_size;
  const GroupedAdapter& w = span.adapter;
  const std::int64_t width = job.target[of_target].width;
  const int part = part_of(width, gridDim.y);
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.y) * part;
  const int length = static_cast<int>(min(static_cast<std::int64_t>(part), width - begin));  // may be negative
  const bf16* const x = static_cast<const bf16*>(job.target[of_target].x) + span.first * width + begin;
  const bf16* const weights =
      backward ? static_cast<const bf16*>(w.b) + begin * w.rank : static_cast<const bf16*>(w.a) + begin;
  float sum[rank / 8][4] = {};
  pipeline<stages<rank>>(
      length > 0 ? (length + chunk - 1) / chunk : 0,
      [&](int stage, int i) {
        const int from = i * chunk, left = length - from;
        fetch<threads, block_rows, chunk>(xs + stage * x_size, x + from, width, span.rows, left);
        if constexpr (backward)
          fetch<threads, chunk, rank>(ws + stage * w_size, weights + static_cast<std::int64_t>(from) * w.rank, w.rank,
                                      left, w.rank);
        else
          fetch<threads, rank, chunk>(ws + stage * w_size, weights + from, width, w.rank, left);
      },
      [&](int stage) {
        const int first = warp() / row_warps * (chunk / 2);
#pragma unroll
        for (int k = first; k < first + chunk / 2; k += 16) {
          const Fragment a = left_rows<chunk + pad>(xs + stage * x_size + warp() % row_warps * 16 * (chunk + pad) + k);
#pragma unroll
          for (int j = 0; j < rank; j += 16) {
            const bf16* const tile = ws + stage * w_size;
            const Fragment b =
                backward ? right_rows<stride>(tile + k * stride + j) : right_columns<stride>(tile + j * stride + k);
            multiply16(sum[j / 8], sum[j / 8 + 1], a, b);
          }
        }
      });
  join_halves<rank>(sum, reinterpret_cast<float*>(shared));
  if (warp() < row_warps) put_shrink<rank>(job, of_target, span, sum);
}

// Blocks of x: targets of the first 64 rows, of the next ...: neighbours read the same rows. Of y: parts of the
// columns.
template <int rank, bool backward>
__global__ void __launch_bounds__(threads, 2) shrink_kernel(const __grid_constant__ GroupedShrink job) {
  extern __shared__ __align__(16) unsigned char shared[];
  const unsigned of_target = blockIdx.x % job.targets;
  const Span span = span_of(job.table, job.target[of_target].adapters, blockIdx.x / job.targets);
  if (span.adapter.rank == 0) return;
  with_rank<rank>(span.adapter.rank, [&](auto r) {
    shrink_rows<decltype(r)::value, backward>(job, of_target, span, reinterpret_cast<bf16*>(shared));
  });
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

// Blocks: x 64 rows of a group, y tiles of the product's columns, z halves of the rows.
template <class T>
__global__ void __launch_bounds__(plain_threads)
    plain_shrink_kernel(const __grid_constant__ GroupedShrink job, ShrinkTarget target) {
  const GroupedBlock at = job.table.blocks[blockIdx.x];
  const GroupedRows g = job.table.rows[at.group];
  const GroupedAdapter w = target.adapters[at.group];
  if (static_cast<std::int64_t>(blockIdx.y) * plain_tile >= w.rank) return;
  const std::int64_t width = target.width;
  const Strided<T> x{static_cast<const T*>(target.x) + g.first * width, width, 1, g.last - g.first, width};
  const Strided<T> weights = job.backward ? Strided<T>{static_cast<const T*>(w.b), w.rank, 1, width, w.rank}
                                          : Strided<T>{static_cast<const T*>(w.a), 1, width, width, w.rank};
  T* const s = static_cast<T*>(target.s) + g.first * job.table.rank_stride;
  const float scale = job.backward ? w.scale : 1.0f;
  plain_product(x, weights, at.block * grouped_rows + blockIdx.z * plain_tile, blockIdx.y * plain_tile,
                [&](std::int64_t i, std::int64_t j, float v) { put(s + i * job.table.rank_stride + j, v * scale); });
}

void plain_shrink(const GroupedShrink& job, Place place) {
  const dim3 grid(static_cast<unsigned>(job.table.block_count), plain_tiles(job.table.rank_stride), 2);
  for (int t = 0; t < job.targets; ++t)
    plain_type(job.type, [&](auto v) {
      plain_shrink_kernel<decltype(v)><<<grid, plain_threads, 0, cuda_stream(place)>>>(job, job.target[t]);
    });
  check_launch("grouped_shrink");
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
  if (!all_in_tiles(job, [](const ShrinkTarget& t) { return in_tiles({t.width}, {t.x, t.s}); }))
    return plain_shrink(job, place);
  job.backward ? shrink<true>(job, place) : shrink<false>(job, place);
}

const Kernel<GroupedShrink>::Twin registered(grouped_shrink, shrink_on_cuda);

}  // namespace
}  // namespace trireme::kernels
