// The CUDA twin. A block makes 32 x 32 pixels of one picture: the first pass leaves the levels of the rows (or columns)
// it needs in shared memory, the second one adds them up. Weights are computed by the block, in f64 as on the host.
#include "data/image_text/crop.h"
#include "data/image_text/crop_taps.h"

#include <string>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace trireme {
namespace {

constexpr int tile = 32, threads = 256, most = 4 * most_reduction + 3;
constexpr int most_lines = tile * most_reduction + most;

struct Statistics {
  double scale[3], shift[3];
};

__device__ float widen(double v, float*) { return static_cast<float>(v); }
__device__ float widen(double v, __nv_bfloat16*) { return static_cast<float>(v); }
__device__ double widen(double v, double*) { return v; }
__device__ void store(float* p, float v) { *p = v; }
__device__ void store(double* p, double v) { *p = v; }
__device__ void store(__nv_bfloat16* p, float v) { *p = __float2bfloat16_rn(v); }

__device__ int to_level(int sum) {
  const int v = sum >> weight_bits;
  return v < 0 ? 0 : v > 255 ? 255 : v;
}

struct Weights {
  TapRange at[tile];
  int weight[most][tile];
};

// Of output pixels [first, first + tile) of an axis; mirrored: counted from the other end.
__device__ void fill(Weights& w, const ResizeAxis& axis, int first, bool mirror, int lane) {
  const int i = first + lane;
  if (i >= axis.out) {
    w.at[lane] = {0, 0};
    return;
  }
  const int from = mirror ? axis.out - 1 - i : i;
  int mine[most];
  TapRange taps = taps_at(axis, from);
  if (taps.count > most) taps.count = most;  // a box that is too large: no memory but ours is touched
  weights_at(axis, from, taps, mine);
  w.at[lane] = taps;
  for (int k = 0; k < taps.count; ++k) w.weight[k][lane] = mine[k];
}

// Levels between the passes, a channel: [line][lane] of rows, or [y][line] of columns.
using Between = std::uint8_t[3][most_lines * tile];

constexpr int half = 1 << (weight_bits - 1);

struct Sums {
  int rgb[3] = {half, half, half};
  __device__ void add(const std::uint8_t* p, int weight) {
    for (int c = 0; c < 3; ++c) rgb[c] += weight * p[c];
  }
  __device__ void store_levels(Between& out, int at) const {
    for (int c = 0; c < 3; ++c) out[c][at] = static_cast<std::uint8_t>(to_level(rgb[c]));
  }
};

// Lines of the input that output pixels [0, last] of an axis see: rows or columns, mirrored or not.
__device__ TapRange lines_of(const Weights& w, int last) {
  const TapRange a = w.at[0], b = w.at[last];
  const int first = a.first < b.first ? a.first : b.first;
  const int end = a.first + a.count > b.first + b.count ? a.first + a.count : b.first + b.count;
  return {first, end - first < most_lines ? end - first : most_lines};
}

__device__ void rows_across(const std::uint8_t* pixels, int pitch, const Weights& across, TapRange rows, int lane,
                            int warp, Between& out) {
  const TapRange mine = across.at[lane];
  for (int y = warp; y < rows.count; y += threads / tile) {
    const std::uint8_t* p = pixels + static_cast<std::int64_t>(rows.first + y) * pitch + mine.first * 3;
    Sums sums;
    for (int k = 0; k < mine.count; ++k, p += 3) sums.add(p, across.weight[k][lane]);
    sums.store_levels(out, y * tile + lane);
  }
}

__device__ void columns_down(const std::uint8_t* pixels, int pitch, const Weights& down, TapRange columns, int bottom,
                             int lane, int warp, Between& out) {
  for (int y = warp; y <= bottom; y += threads / tile) {
    const TapRange taps = down.at[y];
    for (int x = lane; x < columns.count; x += tile) {
      const std::uint8_t* p = pixels + static_cast<std::int64_t>(taps.first) * pitch + (columns.first + x) * 3;
      Sums sums;
      for (int k = 0; k < taps.count; ++k, p += pitch) sums.add(p, down.weight[k][y]);
      sums.store_levels(out, y * most_lines + x);
    }
  }
}

// The second pass, for one pixel: lines from the first tap's on, `step` bytes apart.
__device__ Sums second_pass(const Between& levels, int at, int step, int first, int count, const Weights& weights,
                            int lane) {
  Sums sums;
  for (int k = 0; k < count && first + k < most_lines; ++k) {
    const std::uint8_t level[3] = {levels[0][at + k * step], levels[1][at + k * step], levels[2][at + k * step]};
    sums.add(level, weights.weight[k][lane]);
  }
  return sums;
}

template <class T>
__global__ void __launch_bounds__(threads) crop_kernel(const std::uint8_t* bytes, std::int64_t stride,
                                                       const Crop* crops, int size, Statistics statistics, T* out) {
  __shared__ Weights across, down;
  __shared__ Between levels;
  const int lane = static_cast<int>(threadIdx.x) % tile, warp = static_cast<int>(threadIdx.x) / tile;
  const int x0 = static_cast<int>(blockIdx.x) * tile, y0 = static_cast<int>(blockIdx.y) * tile;
  const std::int64_t row = blockIdx.z;
  const Crop crop = crops[row];
  if (warp == 0) fill(across, {crop.left, crop.box_width, crop.width, size}, x0, crop.mirror != 0, lane);
  if (warp == 1) fill(down, {crop.top, crop.box_height, crop.height, size}, y0, false, lane);
  __syncthreads();

  // The last row and column of this tile.
  const int bottom = y0 + tile < size ? tile - 1 : size - 1 - y0, right = x0 + tile < size ? tile - 1 : size - 1 - x0;
  const bool down_first = crop.down_first != 0;
  const TapRange lines = down_first ? lines_of(across, right) : lines_of(down, bottom);
  const std::uint8_t* pixels = bytes + row * stride;
  if (down_first)
    columns_down(pixels, crop.pitch, down, lines, bottom, lane, warp, levels);
  else
    rows_across(pixels, crop.pitch, across, lines, lane, warp, levels);
  __syncthreads();

  if (lane > right) return;
  for (int y = warp; y <= bottom; y += threads / tile) {
    const TapRange taps = down_first ? across.at[lane] : down.at[y];
    const int first = taps.first - lines.first;
    const Sums sums = down_first ? second_pass(levels, y * most_lines + first, 1, first, taps.count, across, lane)
                                 : second_pass(levels, first * tile + lane, tile, first, taps.count, down, y);
    for (int c = 0; c < 3; ++c) {
      const auto scale = widen(statistics.scale[c], out), shift = widen(statistics.shift[c], out);
      T* to = out + ((row * 3 + c) * size + y0 + y) * size + x0 + lane;
      store(to, to_level(sums.rgb[c]) * scale + shift);  // two roundings, as on the host: compiled with -fmad=false
    }
  }
}

template <class T>
void launch(const CropJob& job, cudaStream_t stream) {
  Statistics s{};
  for (int c = 0; c < 3; ++c) {
    s.scale[c] = 1 / (255 * job.statistics.std_dev[c]);
    s.shift[c] = -job.statistics.mean[c] / job.statistics.std_dev[c];
  }
  const auto tiles = static_cast<unsigned>((job.size + tile - 1) / tile);
  constexpr std::int64_t most_pictures = 32768;  // a grid has at most 65,535 layers
  for (std::int64_t done = 0; done < job.rows; done += most_pictures) {
    const std::int64_t n = job.rows - done < most_pictures ? job.rows - done : most_pictures;
    crop_kernel<T><<<dim3(tiles, tiles, static_cast<unsigned>(n)), threads, 0, stream>>>(
        job.bytes + done * job.stride, job.stride, job.crops + done, job.size, s,
        static_cast<T*>(job.out) + done * 3 * job.size * job.size);
  }
  const cudaError_t result = cudaGetLastError();
  if (result != cudaSuccess) throw CommError("crop_resize", cudaGetErrorString(result));
}

void on_cuda(const CropJob& job, Place place) {
  const auto stream = static_cast<cudaStream_t>(place.stream);
  if (job.type == DType::f32) return launch<float>(job, stream);
  if (job.type == DType::bf16) return launch<__nv_bfloat16>(job, stream);
  if (job.type == DType::f64) return launch<double>(job, stream);
  throw Error(ExitCode::bug, "crop_resize", "makes no " + std::string(name(job.type)) + " on a device");
}

const Kernel<CropJob>::Twin registered(crop_resize, on_cuda);

}  // namespace
}  // namespace trireme
