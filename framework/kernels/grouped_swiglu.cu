// 64 rows of some tiles of 64 columns a block: S stays in shared memory, through which the weights of the tiles to come
// stream; what is read of the base and what is written goes through registers alone, 16 bytes a lane.
#include "framework/kernels/grouped_swiglu.h"
#include "framework/kernels/grouped_tiles.cuh"

namespace trireme::kernels {
namespace {

constexpr int threads = 256, row_warps = 4;  // a warp: 16 rows of half of a tile's columns
constexpr int tile_columns = 64, half_columns = tile_columns / 2, y_stride = tile_columns + pad;

constexpr int stages = 2;
// Blocks that a multiprocessor holds at once by their shared memory: registers must not allow fewer.
constexpr int at_once(int rank, bool backward) { return rank > 64 ? 1 : backward ? 2 : 3; }
template <int rank>
__host__ __device__ constexpr int weights_size() {
  return rank * (tile_columns + pad) > tile_columns * (rank + pad) ? rank * (tile_columns + pad)
                                                                   : tile_columns * (rank + pad);
}
template <int rank>
constexpr int swiglu_shared(bool backward) {
  return (backward ? 3 : 2) * (block_rows * (rank + pad) + stages * weights_size<rank>()) * 2;
}

struct Rows {
  int group, rows;
  std::int64_t first;
};

template <int rank>
__device__ void fetch_weights(const GroupedSwiglu& job, int group, int path, std::int64_t first_column, int columns,
                              bf16* to) {
  const SwigluPath& of = path == 0 ? job.of_gate : path == 1 ? job.of_up : job.of_down;
  const GroupedAdapter& w = of.adapters[group];
  if (path == 2)
    fetch<threads, rank, tile_columns>(to, static_cast<const bf16*>(w.a) + first_column, job.width, w.rank, columns);
  else
    fetch<threads, tile_columns, rank>(to, static_cast<const bf16*>(w.b) + first_column * w.rank, w.rank, columns,
                                       w.rank);
}

// A warp's part of a tile's product.
template <int rank, bool of_down>
__device__ void multiply_tile(const bf16* ss, const bf16* ws, float (&sum)[half_columns / 8][4]) {
  constexpr int s_stride = rank + pad;
  const int begin = warp() / row_warps * half_columns;
#pragma unroll
  for (auto& four : sum)
    for (float& v : four) v = 0;
#pragma unroll
  for (int k = 0; k < rank; k += 16) {
    const Fragment a = left_rows<s_stride>(ss + warp() % row_warps * 16 * s_stride + k);
#pragma unroll
    for (int j = 0; j < half_columns; j += 16) {
      const Fragment b = of_down ? right_rows<y_stride>(ws + k * y_stride + begin + j)
                                 : right_columns<s_stride>(ws + (begin + j) * s_stride + k);
      multiply16(sum[j / 8], sum[j / 8 + 1], a, b);
    }
  }
}

// Where a lane's 8 columns of a row lie: of the block's rows, and of the tile that begins at `column`.
struct Spot {
  std::int64_t at;
  bool there;
};
__device__ Spot spot(const Rows& rows, std::int64_t width, std::int64_t column, int half) {
  const int row = warp() % row_warps * 16 + half * 8 + lane() / 4;
  const std::int64_t own = column + warp() / row_warps * half_columns + lane() % 4 * 8;
  return {(rows.first + row) * width + own, row < rows.rows && own < width};
}

struct Slopes {
  float silu, of_gate;  // silu(g), and its derivative
};
__device__ Slopes silu_of(float g) {
  const float s = __fdividef(1.0f, 1 + __expf(-g));
  return {g * s, s * (1 + g * (1 - s))};
}

// What was read of the base (gate, up, dy) becomes what is written (y; dgate, dup): a row's 32 columns of four lanes.
template <bool backward, int paths>
__device__ void finish_row(float of_gate, float of_up, int half, const float (&sum)[paths][half_columns / 8][4],
                           unsigned (&word)[paths][4]) {
#pragma unroll
  for (auto& four : word) turn_quad(four);
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const auto of = [&](int path, int i) { return sum[path][k][2 * half + i]; };
    const float2 gate = unpack(word[0][k]), up = unpack(word[1][k]);
    const float g0 = fmaf(of(0, 0), of_gate, gate.x), g1 = fmaf(of(0, 1), of_gate, gate.y);
    const float u0 = fmaf(of(1, 0), of_up, up.x), u1 = fmaf(of(1, 1), of_up, up.y);
    const Slopes s0 = silu_of(g0), s1 = silu_of(g1);
    if constexpr (!backward) {
      word[0][k] = pack(s0.silu * u0, s1.silu * u1);
    } else {
      const float2 dy = unpack(word[2][k]);
      const float d0 = dy.x + of(2, 0), d1 = dy.y + of(2, 1);
      word[0][k] = pack(d0 * u0 * s0.of_gate, d1 * u1 * s1.of_gate);
      word[1][k] = pack(d0 * s0.silu, d1 * s1.silu);
    }
  }
  turn_quad(word[0]);
  if constexpr (backward) turn_quad(word[1]);
}

template <int rank, bool backward>
__device__ void swiglu_rows(const GroupedSwiglu& job, const Rows& at, int first_tile, int tiles, bf16* shared) {
  constexpr int paths = backward ? 3 : 2, s_size = block_rows * (rank + pad), w_size = weights_size<rank>();
  bf16 *const ss = shared, *const ws = ss + paths * s_size;
  const auto path = [&](int p) -> const SwigluPath& { return p == 0 ? job.of_gate : p == 1 ? job.of_up : job.of_down; };
  const auto base = [&](int p) { return static_cast<const bf16*>(p == 0 ? job.gate : p == 1 ? job.up : job.dy); };
  for (int p = 0; p < paths; ++p)
    fetch<threads, block_rows, rank>(ss + p * s_size,
                                     static_cast<const bf16*>(path(p).s) + at.first * path(p).rank_stride,
                                     path(p).rank_stride, at.rows, path(p).adapters[at.group].rank);
  const float of_gate = job.of_gate.adapters[at.group].scale, of_up = job.of_up.adapters[at.group].scale;
  std::int64_t column = static_cast<std::int64_t>(first_tile) * tile_columns;
  pipeline<stages>(
      tiles,
      [&](int stage, int i) {
        const std::int64_t from = static_cast<std::int64_t>(first_tile + i) * tile_columns;
        const int columns = static_cast<int>(min(static_cast<std::int64_t>(tile_columns), job.width - from));
#pragma unroll
        for (int p = 0; p < paths; ++p)
          fetch_weights<rank>(job, at.group, p, from, columns, ws + (stage * paths + p) * w_size);
      },
      [&](int stage) {
        unsigned word[2][paths][4] = {};
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (const Spot from = spot(at, job.width, column, half); from.there)
#pragma unroll
            for (int p = 0; p < paths; ++p) load_words(word[half][p], base(p) + from.at);
        float sum[paths][half_columns / 8][4];
#pragma unroll
        for (int p = 0; p < paths; ++p) {
          const bf16* const weights = ws + (stage * paths + p) * w_size;
          if (p == 2)
            multiply_tile<rank, true>(ss + p * s_size, weights, sum[p]);
          else
            multiply_tile<rank, false>(ss + p * s_size, weights, sum[p]);
        }
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          finish_row<backward, paths>(of_gate, of_up, half, sum, word[half]);
          const Spot to = spot(at, job.width, column, half);
          if (!to.there) continue;
          store_words(static_cast<bf16*>(backward ? job.dgate : job.y) + to.at, word[half][0]);
          if constexpr (backward) store_words(static_cast<bf16*>(job.dup) + to.at, word[half][1]);
        }
        column += tile_columns;
      });
}

// Blocks of x: `each` tiles of columns, of y: 64 rows.
template <int rank, bool backward>
__global__ void __launch_bounds__(threads, at_once(rank, backward))
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
  constexpr unsigned wanted = 1600, most_each = 8;  // blocks: four waves and more
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
