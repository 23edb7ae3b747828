// Dropout of many jobs on CUDA.
#include "framework/kernels/grouped_plain.cuh"

namespace trireme::kernels {
namespace {

__device__ int group_of(const GroupedDropout& job, std::int64_t row) {
  int low = 0, high = static_cast<int>(job.groups);  // the last that begins at or before the row
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (job.rows[middle].first <= row ? low : high) = middle;
  }
  return low;
}

// A block of x takes a row, a thread four columns at a time.
template <class T>
__global__ void __launch_bounds__(plain_threads) plain_dropout_kernel(const __grid_constant__ GroupedDropout job) {
  const std::int64_t row = blockIdx.x;
  const GroupedRows g = job.rows[group_of(job, row)];
  const bool drop = row >= g.first && row < g.last && g.dropout.threshold != 0;
  const T* const from = static_cast<const T*>(job.from) + row * job.width;
  T* const to = static_cast<T*>(job.to) + row * job.width;
  for (std::int64_t c = threadIdx.x * 4; c < job.width; c += plain_threads * 4) {
    DropoutWords words{};
    if (drop)
      words = dropout_words(g.dropout, job.module, static_cast<std::uint32_t>(row - g.first),
                            static_cast<std::uint32_t>(c / 4));
    for (int k = 0; k < 4 && c + k < job.width; ++k)
      put(to + c + k, drop ? value_of(from[c + k]) * dropout_factor(g.dropout, words.word[k]) : value_of(from[c + k]));
  }
}

void plain_dropout(const GroupedDropout& job, Place place) {
  plain_type(job.type, [&](auto v) {
    plain_dropout_kernel<decltype(v)><<<static_cast<unsigned>(job.tokens), plain_threads, 0, cuda_stream(place)>>>(job);
  });
  check_launch("grouped_dropout");
}

void dropout_on_cuda(const GroupedDropout& job, Place place) {
  if (job.tokens > 0 && job.width > 0) plain_dropout(job, place);
}

const Kernel<GroupedDropout>::Twin registered(grouped_dropout, dropout_on_cuda);

}  // namespace
}  // namespace trireme::kernels
