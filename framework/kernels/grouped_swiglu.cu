// 64 rows of some tiles of 64 columns a block: S stays in shared memory, the weights of the next product come while
// this one runs, and what is read of the base while the first does.
#include "framework/kernels/grouped_swiglu.h"
#include "framework/kernels/grouped_tiles.cuh"

namespace trireme::kernels {
namespace {

constexpr int threads = 128, tile_columns = 64, y_stride = tile_columns + pad, y_size = block_rows * y_stride;

template <int rank>
__host__ __device__ constexpr int weights_size() {
  return rank * (tile_columns + pad) > tile_columns * (rank + pad) ? rank * (tile_columns + pad)
                                                                   : tile_columns * (rank + pad);
}
template <int rank>
constexpr int swiglu_shared(bool backward) {
  return ((backward ? 3 : 2) * (y_size + block_rows * (rank + pad)) + 2 * weights_size<rank>()) * 2;
}

struct Rows {
  int group, rows;
  std::int64_t first;
};

template <int rank>
__device__ void fetch_weights(const GroupedSwiglu& job, int group, int path, std::int64_t first_column, bf16* to) {
  const int columns = static_cast<int>(min(static_cast<std::int64_t>(tile_columns), job.width - first_column));
  const SwigluPath& of = path == 0 ? job.of_gate : path == 1 ? job.of_up : job.of_down;
  const GroupedAdapter& w = of.adapters[group];
  if (path == 2)
    fetch<threads, rank, tile_columns>(to, static_cast<const bf16*>(w.a) + first_column, job.width, w.rank, columns);
  else
    fetch<threads, tile_columns, rank>(to, static_cast<const bf16*>(w.b) + first_column * w.rank, w.rank, columns,
                                       w.rank);
}

template <int rank, bool of_down>
__device__ void multiply_tile(const bf16* ss, const bf16* ws, float (&sum)[tile_columns / 8][4]) {
  constexpr int s_stride = rank + pad;
#pragma unroll
  for (auto& four : sum)
    for (float& v : four) v = 0;
#pragma unroll
  for (int k = 0; k < rank; k += 16) {
    const Fragment a = left_rows<s_stride>(ss + warp() * 16 * s_stride + k);
#pragma unroll
    for (int j = 0; j < tile_columns; j += 16) {
      const Fragment b =
          of_down ? right_rows<y_stride>(ws + k * y_stride + j) : right_columns<s_stride>(ws + j * s_stride + k);
      multiply16(sum[j / 8], sum[j / 8 + 1], a, b);
    }
  }
}

__device__ float2 pair_at(const bf16* p) { return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(p)); }
__device__ void put_pair(bf16* p, float a, float b) {
  *reinterpret_cast<__nv_bfloat162*>(p) = __floats2bfloat162_rn(a, b);
}

struct Slopes {
  float silu, of_gate;  // silu(g), and its derivative
};
__device__ Slopes silu_of(float g) {
  const float s = __fdividef(1.0f, 1 + __expf(-g));
  return {g * s, s * (1 + g * (1 - s))};
}

// What was read of the base, in shared memory, becomes what is written.
template <bool backward, int paths>
__device__ void finish_tile(float of_gate, float of_up, const float (&sum)[paths][tile_columns / 8][4], bf16* ys) {
#pragma unroll
  for (int j = 0; j < tile_columns; j += 8)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      bf16* const at = ys + (warp() * 16 + half * 8 + lane() / 4) * y_stride + j + lane() % 4 * 2;
      const auto of = [&](int path, int i) { return sum[path][j / 8][2 * half + i]; };
      const float2 gate = pair_at(at), up = pair_at(at + y_size);
      const float g0 = fmaf(of(0, 0), of_gate, gate.x), g1 = fmaf(of(0, 1), of_gate, gate.y);
      const float u0 = fmaf(of(1, 0), of_up, up.x), u1 = fmaf(of(1, 1), of_up, up.y);
      const Slopes s0 = silu_of(g0), s1 = silu_of(g1);
      if constexpr (!backward) {
        put_pair(at, s0.silu * u0, s1.silu * u1);
      } else {
        const float2 dy = pair_at(at + 2 * y_size);
        const float d0 = dy.x + of(2, 0), d1 = dy.y + of(2, 1);
        put_pair(at, d0 * u0 * s0.of_gate, d1 * u1 * s1.of_gate);
        put_pair(at + y_size, d0 * s0.silu, d1 * s1.silu);
      }
    }
}

__device__ void write_tile(const bf16* ys, bf16* y, std::int64_t width, int rows, int columns) {
  constexpr int each = tile_columns / 8;
  for (int i = static_cast<int>(threadIdx.x); i < rows * each; i += threads)
    if (const int row = i / each, column = i % each * 8; column < columns)
      *reinterpret_cast<uint4*>(y + row * width + column) =
          *reinterpret_cast<const uint4*>(ys + row * y_stride + column);
}

template <int rank, bool backward>
__device__ void swiglu_rows(const GroupedSwiglu& job, const Rows& at, int first_tile, int tiles, bf16* shared) {
  constexpr int paths = backward ? 3 : 2, s_size = block_rows * (rank + pad);
  bf16 *const ys = shared, *const ws = ys + paths * y_size, *const ss = ws + 2 * weights_size<rank>();
  const auto path = [&](int p) -> const SwigluPath& { return p == 0 ? job.of_gate : p == 1 ? job.of_up : job.of_down; };
  const auto base = [&](int p) { return static_cast<const bf16*>(p == 0 ? job.gate : p == 1 ? job.up : job.dy); };
  for (int p = 0; p < paths; ++p)
    fetch<threads, block_rows, rank>(ss + p * s_size,
                                     static_cast<const bf16*>(path(p).s) + at.first * path(p).rank_stride,
                                     path(p).rank_stride, at.rows, path(p).adapters[at.group].rank);
  fetch_weights<rank>(job, at.group, 0, static_cast<std::int64_t>(first_tile) * tile_columns, ws);
  commit_copies();
  float sum[paths][tile_columns / 8][4];
  int product = 0;
#pragma unroll 1
  for (int tile = first_tile; tile < first_tile + tiles; ++tile) {
    const std::int64_t column = static_cast<std::int64_t>(tile) * tile_columns, from = at.first * job.width + column;
    const int columns = static_cast<int>(min(static_cast<std::int64_t>(tile_columns), job.width - column));
#pragma unroll
    for (int p = 0; p < paths; ++p, ++product) {
      wait_copies<0>();
      __syncthreads();  // everybody is done with the other weights, and with ys
      bf16* const next = ws + (product + 1) % 2 * weights_size<rank>();
      if (p + 1 < paths)
        fetch_weights<rank>(job, at.group, p + 1, column, next);
      else if (tile + 1 < first_tile + tiles)
        fetch_weights<rank>(job, at.group, 0, column + tile_columns, next);
      if (p == 0)
        for (int k = 0; k < paths; ++k)
          fetch<threads, block_rows, tile_columns>(ys + k * y_size, base(k) + from, job.width, at.rows, columns);
      commit_copies();
      const bf16* const weights = ws + product % 2 * weights_size<rank>();
      if (p == 2)
        multiply_tile<rank, true>(ss + p * s_size, weights, sum[p]);
      else
        multiply_tile<rank, false>(ss + p * s_size, weights, sum[p]);
    }
    wait_copies<0>();
    __syncthreads();
    finish_tile<backward, paths>(job.of_gate.adapters[at.group].scale, job.of_up.adapters[at.group].scale, sum, ys);
    __syncthreads();
    write_tile(ys, static_cast<bf16*>(backward ? job.dgate : job.y) + from, job.width, at.rows, columns);
    if constexpr (backward) write_tile(ys + y_size, static_cast<bf16*>(job.dup) + from, job.width, at.rows, columns);
  }
}

// Blocks of x: `each` tiles of columns, of y: 64 rows.
template <int rank, bool backward>
__global__ void __launch_bounds__(threads, rank <= 64 ? 3 : 1)
    swiglu_kernel(const __grid_constant__ GroupedSwiglu job, int each) {
  extern __shared__ __align__(16) unsigned char shared[];
  const GroupedBlock block = job.table.blocks[blockIdx.y];
  const GroupedRows& group = job.table.rows[block.group];
  Rows at{block.group, 0, static_cast<std::int64_t>(group.first) + block.block * block_rows};
  at.rows = min(block_rows, static_cast<int>(group.last - at.first));
  const int first = static_cast<int>(blockIdx.x) * each;
  const int tiles = min(each, static_cast<int>((job.width + tile_columns - 1) / tile_columns) - first);
  int most = max(job.of_gate.adapters[at.group].rank, job.of_up.adapters[at.group].rank);
  if (backward) most = max(most, job.of_down.adapters[at.group].rank);
  with_rank<rank>(most, [&](auto r) {
    swiglu_rows<decltype(r)::value, backward>(job, at, first, tiles, reinterpret_cast<bf16*>(shared));
  });
}

template <bool backward>
void swiglu(const GroupedSwiglu& job, Place place) {
  constexpr unsigned wanted = 1600, most_each = 8;  // blocks: four waves
  const unsigned tiles = cuda_blocks(static_cast<std::size_t>(job.width), tile_columns);
  const auto rows = static_cast<unsigned>(job.table.block_count);
  unsigned each = most_each;
  while (each > 1 && (tiles + each - 1) / each * rows < wanted) each /= 2;
  const std::int64_t ranks = std::max({job.of_gate.rank_stride, job.of_up.rank_stride, job.of_down.rank_stride});
  by_rank(ranks, [&](auto r) {
    constexpr int rank = decltype(r)::value, bytes = swiglu_shared<rank>(backward);
    allow_shared<swiglu_kernel<rank, backward>>(bytes, place);
    swiglu_kernel<rank, backward>
        <<<dim3((tiles + each - 1) / each, rows), threads, bytes, cuda_stream(place)>>>(job, static_cast<int>(each));
    check_launch("grouped_swiglu");
  });
}

void on_cuda(const GroupedSwiglu& job, Place place) {
  if (job.table.block_count == 0) return;
  if (!has_grouped_swiglu(job.type, job.width))
    throw Error(ExitCode::bug, "grouped_swiglu", "on a GPU it takes bf16 and widths of a multiple of 8");
  job.dy ? swiglu<true>(job, place) : swiglu<false>(job, place);
}

const Kernel<GroupedSwiglu>::Twin registered(grouped_swiglu, on_cuda);

}  // namespace
}  // namespace trireme::kernels
