// S = X A^T and dS = s dY B on CUDA.
#include "framework/kernels/grouped_tiles.cuh"

namespace trireme::kernels {
namespace {

constexpr int threads = 256, row_warps = 4;  // two warps share 16 rows: each multiplies half of a chunk

// Of a stage: 64 rows of x, and what they are multiplied with.
template <int columns>
__host__ __device__ constexpr int stage_size(bool backward) {
  return block_rows * (chunk + pad) + (backward ? chunk * (columns + pad) : columns * (chunk + pad));
}
// So that a multiprocessor holds two blocks.
template <int columns>
__host__ __device__ constexpr int stages(bool backward) {
  constexpr int most = 5, room = 112 * 1024;
  return room / 2 / stage_size<columns>(backward) < most ? room / 2 / stage_size<columns>(backward) : most;
}
template <int rank, int targets>
constexpr int shrink_shared(bool backward) {
  const int own = stages<rank * targets>(backward) * stage_size<rank * targets>(backward) * 2;
  if constexpr (rank > 16) return std::max(own, shrink_shared<rank / 2, targets>(backward));
  return own;
}

// The second half's sums onto the first's, through shared memory.
template <int columns>
__device__ void join_halves(float (&sum)[columns / 8][4], float* room) {
  const int second = threads / 2, at = static_cast<int>(threadIdx.x) % second;
  if (static_cast<int>(threadIdx.x) >= second)
#pragma unroll
    for (int i = 0; i < columns / 2; ++i) room[i * second + at] = sum[i / 4][i % 4];
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < second)
#pragma unroll
    for (int i = 0; i < columns / 2; ++i) sum[i / 4][i % 4] += room[i * second + at];
}

// A block's sums for a target, in bf16, or of a part of x's columns as they are.
template <int rank>
__device__ void put_shrink(const GroupedShrink& job, unsigned of_target, const Span& span, const GroupedAdapter& w,
                           const float (*sum)[4]) {
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

// Targets of one x from `first_target` on, as one whose rank is the sum of theirs.
template <int rank, int targets, bool backward>
__device__ void shrink_rows(const GroupedShrink& job, unsigned first_target, const Span& span, int group,
                            bf16* shared) {
  constexpr int all = rank * targets, x_size = block_rows * (chunk + pad), stride = backward ? all + pad : chunk + pad;
  constexpr int size = stage_size<all>(backward), count = stages<all>(backward);
  const ShrinkTarget* const of = job.target + first_target;
  const std::int64_t width = of->width;
  const int part = part_of(width, gridDim.y);
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.y) * part;
  const int length = static_cast<int>(min(static_cast<std::int64_t>(part), width - begin));  // may be negative
  const bf16* const x = static_cast<const bf16*>(of->x) + span.first * width + begin;
  float sum[all / 8][4] = {};
  pipeline<count>(
      length > 0 ? (length + chunk - 1) / chunk : 0,
      [&](int stage, int i) {
        const int from = i * chunk, left = length - from;
        bf16 *const xs = shared + stage * size, *const ws = xs + x_size;
        fetch<threads, block_rows, chunk>(xs, x + from, width, span.rows, left);
#pragma unroll
        for (int t = 0; t < targets; ++t) {
          const GroupedAdapter& w = of[t].adapters[group];
          if constexpr (backward)
            fetch<threads, chunk, rank>(ws, static_cast<const bf16*>(w.b) + (begin + from) * w.rank, w.rank, left,
                                        w.rank);
          else
            fetch<threads, rank, chunk>(ws + t * rank * stride, static_cast<const bf16*>(w.a) + begin + from, width,
                                        w.rank, left);
        }
      },
      [&](int stage) {
        const bf16 *const xs = shared + stage * size, *const ws = xs + x_size;
        const int first = warp() / row_warps * (chunk / 2);
#pragma unroll
        for (int k = first; k < first + chunk / 2; k += 16) {
          const Fragment a = left_rows<chunk + pad>(xs + warp() % row_warps * 16 * (chunk + pad) + k);
#pragma unroll
          for (int j = 0; j < all; j += 16) {
            const Fragment b =
                backward ? right_rows<stride>(ws + k * stride + j) : right_columns<stride>(ws + j * stride + k);
            multiply16(sum[j / 8], sum[j / 8 + 1], a, b);
          }
        }
      });
  join_halves<all>(sum, reinterpret_cast<float*>(shared));
  if (warp() >= row_warps) return;
#pragma unroll
  for (int t = 0; t < targets; ++t)
    put_shrink<rank>(job, first_target + t, span, of[t].adapters[group], sum + t * rank / 8);
}

// Blocks of x: 64 rows each of `targets` targets together, or of one: those of the first rows, of the next ... Of y:
// parts of the columns.
template <int rank, int targets, bool backward>
__global__ void __launch_bounds__(threads, 2) shrink_kernel(const __grid_constant__ GroupedShrink job) {
  extern __shared__ __align__(16) unsigned char shared[];
  const unsigned each = targets == 1 ? job.targets : 1, of_target = blockIdx.x % each, block = blockIdx.x / each;
  const int group = job.table.blocks[block].group;
  int most = 0;
#pragma unroll
  for (int t = 0; t < targets; ++t) most = max(most, job.target[of_target + t].adapters[group].rank);
  if (most == 0) return;
  const Span span = span_of(job.table, job.target[of_target].adapters, block);
  with_rank<rank>(most, [&](auto r) {
    shrink_rows<decltype(r)::value, targets, backward>(job, of_target, span, group, reinterpret_cast<bf16*>(shared));
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

template <int targets, bool backward>
void shrink(const GroupedShrink& job, Place place) {
  by_rank(job.table.rank_stride, [&](auto r) {
    constexpr int rank = targets == 1 ? decltype(r)::value : std::min(decltype(r)::value, grouped_rank_together);
    constexpr int bytes = shrink_shared<rank, targets>(backward);
    const auto splits = static_cast<unsigned>(grouped_splits(job));
    const auto blocks = static_cast<unsigned>(job.table.block_count * job.targets);
    if constexpr (targets == 1)
      allow_shared<shrink_kernel<rank, targets, backward>>(bytes, place);
    else if (!allow_shared_memory(reinterpret_cast<const void*>(shrink_kernel<rank, targets, backward>), bytes,
                                  "grouped_shrink"))  // 99 KiB a block on some
      return shrink<1, backward>(job, place);
    shrink_kernel<rank, targets, backward><<<dim3(blocks / targets, splits), threads, bytes, cuda_stream(place)>>>(job);
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
  if (job.backward) return shrink<1, true>(job, place);
  const int together = grouped_together(job);
  if (together == 3) return shrink<3, false>(job, place);
  together == 2 ? shrink<2, false>(job, place) : shrink<1, false>(job, place);
}

const Kernel<GroupedShrink>::Twin registered(grouped_shrink, shrink_on_cuda);

}  // namespace
}  // namespace trireme::kernels
