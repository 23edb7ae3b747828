// The CUDA twin. A block makes 32 x 32 pixels of one picture: the first pass leaves the levels of the rows it needs in
// shared memory, the second one adds them up. Weights are computed by the block, in f64 as on the host.
#include "data/image_text/crop.h"
#include "data/image_text/crop_taps.h"

#include <string>

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

namespace trireme {
namespace {

constexpr int tile = 32, threads = 256, most = 4 * most_reduction + 3;
constexpr int most_rows = tile * most_reduction + most;

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

template <class T>
__global__ void __launch_bounds__(threads) crop_kernel(const std::uint8_t* bytes, std::int64_t stride,
                                                       const Crop* crops, int size, Statistics statistics, T* out) {
  __shared__ Weights across, down;
  __shared__ std::uint8_t levels[3][most_rows][tile];
  const int lane = static_cast<int>(threadIdx.x) % tile, warp = static_cast<int>(threadIdx.x) / tile;
  const int x0 = static_cast<int>(blockIdx.x) * tile, y0 = static_cast<int>(blockIdx.y) * tile;
  const std::int64_t row = blockIdx.z;
  const Crop crop = crops[row];
  if (warp == 0) fill(across, {crop.left, crop.box_width, crop.width, size}, x0, crop.mirror != 0, lane);
  if (warp == 1) fill(down, {crop.top, crop.box_height, crop.height, size}, y0, false, lane);
  __syncthreads();

  const int bottom = y0 + tile < size ? tile - 1 : size - 1 - y0;  // the last row of this tile
  const int first = down.at[0].first;
  int rows = down.at[bottom].first + down.at[bottom].count - first;
  if (rows > most_rows) rows = most_rows;
  constexpr int half = 1 << (weight_bits - 1);
  const TapRange mine = across.at[lane];
  const std::uint8_t* pixels = bytes + row * stride;
  for (int y = warp; y < rows; y += threads / tile) {
    const std::uint8_t* p = pixels + static_cast<std::int64_t>(first + y) * crop.pitch + mine.first * 3;
    int r = half, g = half, b = half;
    for (int k = 0; k < mine.count; ++k, p += 3) {
      const int w = across.weight[k][lane];
      r += w * p[0], g += w * p[1], b += w * p[2];
    }
    levels[0][y][lane] = static_cast<std::uint8_t>(to_level(r));
    levels[1][y][lane] = static_cast<std::uint8_t>(to_level(g));
    levels[2][y][lane] = static_cast<std::uint8_t>(to_level(b));
  }
  __syncthreads();

  if (x0 + lane >= size) return;
  for (int y = warp; y <= bottom; y += threads / tile) {
    const TapRange taps = down.at[y];
    int sum[3] = {half, half, half};
    for (int k = 0; k < taps.count; ++k) {
      const int w = down.weight[k][y], from = taps.first - first + k;
      if (from >= most_rows) break;
      for (int c = 0; c < 3; ++c) sum[c] += w * levels[c][from][lane];
    }
    for (int c = 0; c < 3; ++c) {
      const auto scale = widen(statistics.scale[c], out), shift = widen(statistics.shift[c], out);
      T* to = out + ((row * 3 + c) * size + y0 + y) * size + x0 + lane;
      store(to, to_level(sum[c]) * scale + shift);  // two roundings, as on the host: compiled with -fmad=false
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
