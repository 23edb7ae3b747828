// dA += dS^T X and dB += s dY^T S on CUDA, or the same written.
#include "framework/kernels/grouped_tiles.cuh"

namespace trireme::kernels {
namespace {

constexpr int threads = 256, stages = 3, outer_columns = grouped_outer_columns;

// Blocks that a multiprocessor holds at once by their shared memory: registers must not allow fewer.
constexpr int at_once(int rank) { return rank <= 64 ? 2 : 1; }

__device__ void put_one(const GroupedAdapter& w, bool of_a, std::int64_t in, int of_rank, std::int64_t c, float v,
                        bool add) {
  float& to = of_a ? static_cast<float*>(w.da)[of_rank * in + c] : static_cast<float*>(w.db)[c * w.rank + of_rank];
  const float change = of_a ? v : w.scale * v;  // the paper prints it without the scale
  to = add ? to + change : change;
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

// Writes `count` quads of floats, quad i of `from(i)`, to to(i), or adds them. Loads go ahead of stores, four at a
// time: one after the other each would wait for memory.
template <class From, class To>
__device__ void put_quads(int count, bool add, From from, To to) {
  if (!add) {
    for (int i = static_cast<int>(threadIdx.x); i < count; i += threads) *to(i) = from(i);
    return;
  }
  constexpr int each = 4;
  for (int first = static_cast<int>(threadIdx.x); first < count; first += each * threads) {
    float4 before[each];
#pragma unroll
    for (int k = 0; k < each; ++k)
      if (const int i = first + k * threads; i < count) before[k] = *to(i);
#pragma unroll
    for (int k = 0; k < each; ++k)
      if (const int i = first + k * threads; i < count) {
        const float4 v = from(i);
        *to(i) = make_float4(before[k].x + v.x, before[k].y + v.y, before[k].z + v.z, before[k].w + v.w);
      }
  }
}

// A block's sums into dA or dB by way of shared memory, in which rows lie as they do in the gradient.
template <int rank>
__device__ void put_gradient(const GroupedAdapter& w, bool of_a, std::int64_t in, std::int64_t first_column,
                             int columns, const float (&sum)[rank / 8][4], float* tile, bool add) {
  constexpr int a_stride = outer_columns + 4, b_stride = rank + 4;
#pragma unroll
  for (int j = 0; j < rank; j += 8)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int column = warp() * 16 + i / 2 * 8 + lane() / 4, of_rank = j + lane() % 4 * 2 + i % 2;
      if (of_a)
        tile[of_rank * a_stride + column] = sum[j / 8][i];
      else  // the paper prints it without the scale
        tile[column * b_stride + of_rank] = w.scale * sum[j / 8][i];
    }
  __syncthreads();
  const int quads = of_a ? columns / 4 : w.rank / 4;  // of a row
  const int rows = of_a ? w.rank : columns, stride = of_a ? a_stride : b_stride;
  const std::int64_t row = of_a ? in : w.rank;
  float* const to = of_a ? static_cast<float*>(w.da) + first_column : static_cast<float*>(w.db) + first_column * w.rank;
  put_quads(
      rows * quads, add,
      [&](int i) { return *reinterpret_cast<const float4*>(tile + i / quads * stride + i % quads * 4); },
      [&](int i) { return reinterpret_cast<float4*>(to + i / quads * row + i % quads * 4); });
}

template <int rank>
__device__ void outer_tile(const GroupedOuter& job, const Wide& tile, const GroupedRows& group, const GroupedAdapter& w,
                           int part, bf16* shared) {
  constexpr int wide_size = chunk * (outer_columns + pad), narrow_size = chunk * (rank + pad);
  bf16 *const wide = shared, *const narrow = wide + stages * wide_size;
  const OuterTarget& target = job.target[tile.target];
  const std::int64_t width = tile.of_a ? target.in : target.out;
  const int columns = static_cast<int>(min(static_cast<std::int64_t>(outer_columns), width - tile.first_column));
  const std::int64_t first = group.first + static_cast<std::int64_t>(blockIdx.z) * part;
  const int rows = static_cast<int>(min(static_cast<std::int64_t>(part), group.last - first));  // may be negative
  const bf16* const m = static_cast<const bf16*>(tile.of_a ? target.x : target.dy) + first * width + tile.first_column;
  const bf16* const n = static_cast<const bf16*>(tile.of_a ? target.ds : target.s) + first * job.table.rank_stride;
  float sum[rank / 8][4] = {};
  pipeline<stages>(
      rows > 0 ? (rows + chunk - 1) / chunk : 0,
      [&](int stage, int i) {
        const std::int64_t from = static_cast<std::int64_t>(i) * chunk;
        const int left = rows - i * chunk;
        fetch<threads, chunk, outer_columns>(wide + stage * wide_size, m + from * width, width, left, columns);
        fetch<threads, chunk, rank>(narrow + stage * narrow_size, n + from * job.table.rank_stride,
                                    job.table.rank_stride, left, w.rank);
      },
      [&](int stage) {
#pragma unroll
        for (int k = 0; k < chunk; k += 16) {
          constexpr int stride = outer_columns + pad;
          const Fragment a = left_columns<stride>(wide + stage * wide_size + k * stride + warp() * 16);
#pragma unroll
          for (int j = 0; j < rank; j += 16)
            multiply16(sum[j / 8], sum[j / 8 + 1], a,
                       right_rows<rank + pad>(narrow + stage * narrow_size + k * (rank + pad) + j));
        }
      });
  if (gridDim.z == 1)
    return put_gradient<rank>(w, tile.of_a, target.in, tile.first_column, columns, sum,
                              reinterpret_cast<float*>(shared), job.add);
  const std::int64_t all = grouped_columns(job);
  float* const partial =
      job.partial + ((blockIdx.z * job.table.groups + blockIdx.y) * all + tile.offset) * job.table.rank_stride;
#pragma unroll
  for (int j = 0; j < rank; j += 8)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = warp() * 16 + i / 2 * 8 + lane() / 4, of_rank = j + lane() % 4 * 2 + i % 2;
      if (j < w.rank && row < columns)
        partial[(tile.first_column + row) * job.table.rank_stride + of_rank] = sum[j / 8][i];
    }
}

// Blocks of x: tiles. Of y: groups. Of z: parts of a group's rows.
template <int rank>
__global__ void __launch_bounds__(threads, at_once(rank))
    outer_kernel(const __grid_constant__ GroupedOuter job, int part) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Wide tile = wide_of(job, blockIdx.x);
  const OuterTarget& target = job.target[tile.target];
  const GroupedRows group = job.table.rows[blockIdx.y];
  const GroupedAdapter w = target.adapters[blockIdx.y];
  if (w.rank == 0 || group.first == group.last || tile.first_column >= (tile.of_a ? target.in : target.out)) return;
  with_rank<rank>(w.rank, [&](auto r) {
    outer_tile<decltype(r)::value>(job, tile, group, w, part, reinterpret_cast<bf16*>(shared));
  });
}

// Blocks of y: groups, of z: targets.
__global__ void __launch_bounds__(threads) outer_sum_kernel(const __grid_constant__ GroupedOuter job, int splits) {
  const OuterTarget& target = job.target[blockIdx.z];
  const GroupedAdapter w = target.adapters[blockIdx.y];
  if (job.table.rows[blockIdx.y].first == job.table.rows[blockIdx.y].last) return;
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
    put_one(w, c < target.in, target.in, of_rank, c < target.in ? c : c - target.in, sum, job.add);
  }
}

// Blocks: x tiles of columns, of x first and then of dy; y groups; z tiles of the rank.
template <class T>
__global__ void __launch_bounds__(plain_threads)
    plain_outer_kernel(const __grid_constant__ GroupedOuter job, OuterTarget target) {
  const GroupedRows g = job.table.rows[blockIdx.y];
  const GroupedAdapter w = target.adapters[blockIdx.y];
  if (g.first == g.last || static_cast<std::int64_t>(blockIdx.z) * plain_tile >= w.rank) return;
  const auto in_tiles = static_cast<unsigned>((target.in + plain_tile - 1) / plain_tile);
  const bool of_a = blockIdx.x < in_tiles;
  const std::int64_t width = of_a ? target.in : target.out, rows = g.last - g.first, stride = job.table.rank_stride;
  const Strided<T> n{static_cast<const T*>(of_a ? target.ds : target.s) + g.first * stride, 1, stride, w.rank, rows};
  const Strided<T> m{static_cast<const T*>(of_a ? target.x : target.dy) + g.first * width, width, 1, rows, width};
  plain_product(n, m, blockIdx.z * plain_tile, (of_a ? blockIdx.x : blockIdx.x - in_tiles) * plain_tile,
                [&](std::int64_t j, std::int64_t c, float v) {
                  put_one(w, of_a, target.in, static_cast<int>(j), c, v, job.add);
                });
}

void plain_outer(const GroupedOuter& job, Place place) {
  for (int t = 0; t < job.targets; ++t) {
    const OuterTarget& of = job.target[t];
    const dim3 grid(plain_tiles(of.in) + plain_tiles(of.out), static_cast<unsigned>(job.table.groups),
                    plain_tiles(job.table.rank_stride));
    plain_type(job.type, [&](auto v) {
      plain_outer_kernel<decltype(v)><<<grid, plain_threads, 0, cuda_stream(place)>>>(job, of);
    });
  }
  check_launch("grouped_outer");
}

void outer_on_cuda(const GroupedOuter& job, Place place) {
  if (job.table.block_count == 0 || job.targets == 0) return;
  if (!all_in_tiles(job, [](const OuterTarget& t) { return in_tiles({t.in, t.out}, {t.x, t.ds, t.dy, t.s}); }))
    return plain_outer(job, place);
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

const Kernel<GroupedOuter>::Twin registered(grouped_outer, outer_on_cuda);

}  // namespace
}  // namespace trireme::kernels
