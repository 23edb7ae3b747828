// Y += s S B^T and dX += mask (dS A) on CUDA.
#include "framework/kernels/grouped_tiles.cuh"

namespace trireme::kernels {
namespace {

constexpr int threads = 256, row_warps = 4;  // a warp: 16 rows of half of a tile's columns
constexpr int expand_columns = 128, half_columns = expand_columns / 2;

template <int rank>
__host__ __device__ constexpr int weight_stages(bool backward) {
  return rank <= 32 ? 4 : rank <= 64 && !backward ? 3 : 2;
}
template <int rank>
__host__ __device__ constexpr int weights_size(bool backward) {
  return backward ? rank * (expand_columns + pad) : expand_columns * (rank + pad);
}
template <int rank>
constexpr int expand_shared(bool backward, int targets) {
  const int own = (weight_stages<rank>(backward) * weights_size<rank>(backward) +
                   (backward ? targets : 1) * block_rows * (rank + pad)) *
                  2;
  if constexpr (rank > 16) return std::max(own, expand_shared<rank / 2>(backward, targets));
  return own;
}

// What dropout left of the inputs in two neighbouring columns, the first of which is even.
__device__ float2 factors(const GroupedRows& g, std::uint32_t module, std::int64_t row, std::int64_t column) {
  const DropoutWords w = dropout_words(g.dropout, module, static_cast<std::uint32_t>(row - g.first),
                                       static_cast<std::uint32_t>(column / 4));
  const bool second = column % 4 != 0;
  return make_float2(dropout_factor(g.dropout, second ? w.word[2] : w.word[0]),
                     dropout_factor(g.dropout, second ? w.word[3] : w.word[1]));
}

// A warp's sums, by what they are multiplied with, onto y, straight from registers: 16 bytes a lane, 4 rows at once.
template <bool backward, bool dropped>
__device__ void put_sums(const GroupedExpand& job, const ExpandTarget& target, const Span& span, int group,
                         std::int64_t first_column, const float (&sum)[half_columns / 8][4]) {
  const bf16* const bias = static_cast<const bf16*>(target.bias);
  const std::int64_t begin = first_column + warp() / row_warps * half_columns, own = begin + line_column();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int rows = warp() % row_warps * 16 + half * 8, row = rows + lane() / 4, line = rows + line_row();
    bf16* const y = static_cast<bf16*>(target.y) + (span.first + line) * target.width + own;
    const auto there = [&](int four) { return line + 4 * four < span.rows && own < target.width; };
    unsigned word[2][4] = {};
    if (job.add || bias) {
#pragma unroll
      for (int four = 0; four < 2; ++four)
        if (there(four)) load_words(word[four], job.add ? y + 4 * four * target.width : bias + own);
      turn_lines(word[0], word[1]);
      turn_quad(word[0]);
      turn_quad(word[1]);
    }
#pragma unroll
    for (int k = 0; k < half_columns / 8; ++k) {
      unsigned& both = word[k / 4][k % 4];
      const float2 from = unpack(both);
      const float scale = backward ? 1 : span.adapter.scale;
      float2 by = make_float2(scale, scale);
      if constexpr (dropped)  // its numbers are read where they are needed: registers are few
        by = factors(job.table.rows[group], target.module, span.first + row, begin + k * 8 + lane() % 4 * 2);
      both = pack(fmaf(sum[k][2 * half], by.x, from.x), fmaf(sum[k][2 * half + 1], by.y, from.y));
    }
    turn_quad(word[0]);
    turn_quad(word[1]);
    turn_lines(word[0], word[1]);
#pragma unroll
    for (int four = 0; four < 2; ++four)
      if (there(four)) store_words(y + 4 * four * target.width, word[four]);
  }
}

// Columns of y that a block writes, tile by tile.
struct Tiles {
  int target;  // forward: of the one whose y it is
  int first, count;
};

// A warp's part of a tile's product.
template <int rank, bool backward>
__device__ void add_product(const bf16* ss, const bf16* ws, float (&sum)[half_columns / 8][4]) {
  constexpr int s_stride = rank + pad, w_stride = backward ? expand_columns + pad : s_stride;
  const bf16* const left = ss + warp() % row_warps * 16 * s_stride;
  const int begin = warp() / row_warps * half_columns;
#pragma unroll
  for (int k = 0; k < rank; k += 16) {
    const Fragment a = left_rows<s_stride>(left + k);
#pragma unroll
    for (int j = 0; j < half_columns; j += 16) {
      const Fragment b = backward ? right_rows<w_stride>(ws + k * w_stride + begin + j)
                                  : right_columns<w_stride>(ws + (begin + j) * w_stride + k);
      multiply16(sum[j / 8], sum[j / 8 + 1], a, b);
    }
  }
}

// 64 rows of `tiles`: S stays in shared memory, through which the weights stream. Backward: a tile is the sum of all
// targets' products.
template <int rank, bool backward>
__device__ void expand_rows(const GroupedExpand& job, const Tiles& tiles, const Span& span, int group, bf16* shared) {
  constexpr int s_stride = rank + pad, s_size = block_rows * s_stride, w_size = weights_size<rank>(backward);
  constexpr int stages = weight_stages<rank>(backward);
  bf16 *const ws = shared, *const ss = ws + stages * w_size;
  const ExpandTarget& target = job.target[tiles.target];
  const std::int64_t stride = job.table.rank_stride;
  const int targets = backward ? job.targets : 1;
  const auto of = [&](int t) -> const ExpandTarget& { return job.target[backward ? t : tiles.target]; };
  const bool dropped = backward && span.group.dropout.threshold != 0;
  for (int t = 0; t < targets; ++t)
    fetch<threads, block_rows, rank>(ss + t * s_size, static_cast<const bf16*>(of(t).s) + span.first * stride, stride,
                                     span.rows, of(t).adapters[group].rank);
  const auto fetch_weights = [&](int stage, int product) {
    const GroupedAdapter& w = of(product % targets).adapters[group];
    const std::int64_t first = static_cast<std::int64_t>(tiles.first + product / targets) * expand_columns;
    const auto columns = static_cast<int>(min(static_cast<std::int64_t>(expand_columns), target.width - first));
    bf16* const to = ws + stage * w_size;
    if constexpr (backward)
      fetch<threads, rank, expand_columns>(to, static_cast<const bf16*>(w.a) + first, target.width, w.rank, columns);
    else
      fetch<threads, expand_columns, rank>(to, static_cast<const bf16*>(w.b) + first * w.rank, w.rank, columns, w.rank);
  };
  float sum[half_columns / 8][4] = {};
  int tile = tiles.first, t = 0;
  pipeline<stages>(tiles.count * targets, fetch_weights, [&](int stage) {
    add_product<rank, backward>(ss + t * s_size, ws + stage * w_size, sum);
    if (++t < targets) return;
    const std::int64_t first_column = static_cast<std::int64_t>(tile) * expand_columns;
    if (dropped)
      put_sums<backward, backward>(job, target, span, group, first_column, sum);
    else
      put_sums<backward, false>(job, target, span, group, first_column, sum);
#pragma unroll
    for (auto& four : sum)
      for (float& v : four) v = 0;
    t = 0;
    ++tile;
  });
}

int tiles_of(std::int64_t width) {
  return static_cast<int>(cuda_blocks(static_cast<std::size_t>(width), expand_columns));
}

// Blocks of x: `each` tiles of one target after the other's, of y: 64 rows. Backward: all targets' sums in one.
template <int rank, bool backward>
__global__ void __launch_bounds__(threads, rank <= 64 ? 3 : 2)
    expand_kernel(const __grid_constant__ GroupedExpand job, int each) {
  extern __shared__ __align__(16) unsigned char shared[];
  Tiles tiles{0, static_cast<int>(blockIdx.x), each};
  int all = 0;
  for (;; ++tiles.target) {
    all = static_cast<int>((job.target[tiles.target].width + expand_columns - 1) / expand_columns);
    const int blocks = (all + each - 1) / each;
    if (backward || tiles.first < blocks) break;
    tiles.first -= blocks;
  }
  tiles.first *= each;
  tiles.count = min(each, all - tiles.first);
  const int group = job.table.blocks[blockIdx.y].group;
  int most = 0;
  for (int t = backward ? 0 : tiles.target; t < (backward ? job.targets : tiles.target + 1); ++t)
    most = max(most, job.target[t].adapters[group].rank);
  if (most == 0) return;
  const Span span = span_of(job.table, job.target[tiles.target].adapters, blockIdx.y);
  with_rank<rank>(most, [&](auto r) {
    expand_rows<decltype(r)::value, backward>(job, tiles, span, group, reinterpret_cast<bf16*>(shared));
  });
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

// As many tiles a block as leave enough blocks: what a block reads once is then read by fewer.
template <bool backward>
void expand(const GroupedExpand& job, Place place) {
  constexpr int wanted = 1000, most_each = 4;  // over two waves
  const auto row_blocks = static_cast<int>(job.table.block_count);
  const auto blocks = [&](int each) {
    int sum = 0;
    for (int t = 0; t < (backward ? 1 : job.targets); ++t) sum += (tiles_of(job.target[t].width) + each - 1) / each;
    return sum;
  };
  int each = most_each;
  while (each > 1 && blocks(each) * row_blocks < wanted) each /= 2;
  by_rank(job.table.rank_stride, [&](auto r) {
    constexpr int rank = decltype(r)::value;
    const int bytes = expand_shared<rank>(backward, job.targets);
    allow_shared<expand_kernel<rank, backward>>(expand_shared<rank>(backward, grouped_most_targets), place);
    const dim3 grid(static_cast<unsigned>(blocks(each)), static_cast<unsigned>(row_blocks));
    expand_kernel<rank, backward><<<grid, threads, bytes, cuda_stream(place)>>>(job, each);
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
