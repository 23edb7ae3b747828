// A warp for each row of a head; a block for each row of a cache.
#include "comm/cuda_launch.h"
#include "framework/kernels/attention_merge.h"

namespace trireme::kernels {
namespace {

constexpr int threads = 256, warps = threads / 32;

template <class T>
__device__ T* row_of(const HeadRows<T>& x, std::int64_t b, std::int64_t h, std::int64_t r) {
  return x.data + b * x.of_batch + h * x.of_head + r * x.of_row;
}

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T v[4];
};

template <class T>
__global__ void __launch_bounds__(threads) merge_kernel(MergeJob<T> job) {
  // Heads of one row follow each other in memory: so do the warps.
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
  if (i >= job.batch * job.heads * job.rows) return;
  const std::int64_t h = i % job.heads, r = i / job.heads % job.rows, b = i / job.heads / job.rows;
  const std::int64_t at = (b * job.heads + h) * job.rows + r;
  const float la = job.a_lse[at] + job.bias, lb = job.b_lse[at], most = fmaxf(la, lb);
  const float ea = expf(la - most), eb = expf(lb - most), sum = ea + eb, wa = ea / sum, wb = eb / sum;
  const int lane = threadIdx.x % 32;
  if (lane == 0) job.lse[at] = most + logf(sum);
  const T *x = row_of(job.a, b, h, r), *y = row_of(job.b, b, h, r);
  T* out = row_of(job.out, b, h, r);
  for (int c = 4 * lane; c < job.head_dim; c += 128) {
    const auto u = *reinterpret_cast<const Four<T>*>(x + c), v = *reinterpret_cast<const Four<T>*>(y + c);
    Four<T> o;
#pragma unroll
    for (int k = 0; k < 4; ++k) narrowed(wa * widened(u.v[k]) + wb * widened(v.v[k]), o.v[k]);
    *reinterpret_cast<Four<T>*>(out + c) = o;
  }
}

template <class T>
void merge_cuda(const MergeJob<T>& job, Place place) {
  const std::int64_t all = job.batch * job.heads * job.rows;
  if (all == 0) return;
  merge_kernel<T><<<cuda_blocks(static_cast<std::size_t>(all), warps), threads, 0, cuda_stream(place)>>>(job);
  check_launch("merge_attention");
}

__global__ void __launch_bounds__(threads) put_rows_kernel(PutRowsJob job) {
  const std::int64_t rows = job.before + job.rows + job.after, b = blockIdx.x / rows, i = blockIdx.x % rows;
  const unsigned char* from = blockIdx.y ? job.from[1] : job.from[0];
  unsigned char* to = blockIdx.y ? job.to[1] : job.to[0];
  const auto* x = reinterpret_cast<const uint4*>(from + b * job.from_batch + i * job.from_row);
  auto* y = reinterpret_cast<uint4*>(to + b * job.to_batch + place_of_row(job, b, i) * job.to_row);
  for (int c = threadIdx.x; c < job.bytes / 16; c += threads) y[c] = x[c];
}

void put_rows_cuda(const PutRowsJob& job, Place place) {
  const std::int64_t blocks = job.batch * (job.before + job.rows + job.after);
  if (blocks == 0) return;
  put_rows_kernel<<<dim3(static_cast<unsigned>(blocks), 2), threads, 0, cuda_stream(place)>>>(job);
  check_launch("put_rows");
}

const Kernel<MergeJob<float>>::Twin merge_32(merge_attention_f32, merge_cuda<float>);
const Kernel<MergeJob<BrainFloat>>::Twin merge_16(merge_attention_bf16, merge_cuda<BrainFloat>);
const Kernel<PutRowsJob>::Twin put(put_rows, put_rows_cuda);

}  // namespace
}  // namespace trireme::kernels
