// The CUDA twin of the error-bounded encoder: three launches for all chunks. (1) ranges of pieces; (2) a block a chunk:
// codes, unique rows, index and what its encoder makes of them into the chunk's slot, in one kernel a Family; (3) the
// codes side by side.
// Compiled with -fmad=false: rounds where the host rounds.
#include "compression/codecs/bounded_body.cuh"

#include <cstring>

namespace trireme {
namespace {

using namespace coding;

constexpr std::size_t shared_memory = 216 * 1024, shared_small = 64 * 1024;
// Descriptions travel as kernel arguments, of at most 32 KiB; a launch with 4 KiB takes less time.
constexpr std::size_t chunks_a_launch = 400, few_chunks = 48, most_parts = 128;

template <std::size_t most>
struct Batch {
  DeviceChunk chunk[most];
};
static_assert(sizeof(Batch<chunks_a_launch>) <= 32000);

Tables tables_of(const DeviceEncode& job) {
  Tables t;
  t.chunks = reinterpret_cast<DeviceChunk*>(job.scratch);
  t.pieces = reinterpret_cast<PieceRange*>(job.scratch + multiple_of_16(job.count * sizeof(DeviceChunk)));
  return t;
}

// Rows of each piece.
__host__ __device__ std::uint32_t piece_rows(std::uint32_t dim) {
  return dim == 0 ? 1 : (static_cast<std::uint32_t>(piece_values) + dim - 1) / dim;
}

__device__ void add(PieceRange& r, float x) {
  if (x - x == 0) {
    r.any = 1;
    r.min = x < r.min ? x : r.min;
    r.max = x > r.max ? x : r.max;
  } else {
    r.nonfinite = 1;
  }
}

// Values side by side. Where one is not finite, `sum` is not, and add() must tell.
__device__ bool add_dense(PieceRange& r, const float4* from, std::uint32_t fours) {
  constexpr std::uint32_t ahead = 8;  // loads under way
  float least = r.min, most = r.max, sum = 0;
  for (std::uint32_t begin = threadIdx.x; begin < fours; begin += ahead * 256) {
    float4 x[ahead];
#pragma unroll
    for (std::uint32_t k = 0; k < ahead; ++k) x[k] = from[min(begin + k * 256, fours - 1)];
#pragma unroll
    for (std::uint32_t k = 0; k < ahead; ++k) {
      least = fminf(fminf(least, fminf(x[k].x, x[k].y)), fminf(x[k].z, x[k].w));
      most = fmaxf(fmaxf(most, fmaxf(x[k].x, x[k].y)), fmaxf(x[k].z, x[k].w));
      sum = __fmaf_rn(x[k].x, 0.0f, __fmaf_rn(x[k].y, 0.0f, __fmaf_rn(x[k].z, 0.0f, __fmaf_rn(x[k].w, 0.0f, sum))));
    }
  }
  if (!(sum == 0)) return false;
  if (threadIdx.x < fours) r.min = least, r.max = most, r.any = 1;
  return true;
}

// 4 blocks: with more, registers would not hold eight loads.
template <std::size_t most>
__global__ void __launch_bounds__(256, 4)
    range_kernel(const __grid_constant__ Batch<most> batch, std::uint32_t count, Tables t) {
  for (std::uint32_t i = blockIdx.x * 256 + threadIdx.x; i < count; i += gridDim.x * 256)
    t.chunks[batch.chunk[i].number] = batch.chunk[i];
  const std::uint32_t piece = batch.chunk[0].first_piece + blockIdx.x;
  std::uint32_t k = 0;
  for (std::uint32_t half = 512; half > 0; half /= 2)  // the chunk of this piece
    if (k + half < count && batch.chunk[k + half].first_piece <= piece) k += half;
  const DeviceChunk& c = batch.chunk[k];
  const std::uint32_t first = (piece - c.first_piece) * piece_rows(c.dim), rows = min(piece_rows(c.dim), c.n - first);
  if (piece - c.first_piece >= c.pieces) return;  // the whole block
  PieceRange r{3.40282347e38f, -3.40282347e38f, 0, 0};
  const float* from = c.rows + std::size_t{first} * c.stride;
  const bool quick = in_fours(c) && c.stride == c.dim;
  if (quick && add_dense(r, reinterpret_cast<const float4*>(from), rows * c.dim / 4)) {
  } else if (in_fours(c)) {
    const std::uint32_t fours = c.dim / 4;
    for (std::uint32_t i = threadIdx.x; i < rows * fours; i += 256) {
      const std::uint32_t row = i / fours;
      const float4 x = *reinterpret_cast<const float4*>(from + std::size_t{row} * c.stride + (i - row * fours) * 4);
      add(r, x.x), add(r, x.y), add(r, x.z), add(r, x.w);
    }
  } else {
    for (std::uint32_t i = threadIdx.x; i < rows * c.dim; i += 256)
      add(r, from[std::size_t{i / c.dim} * c.stride + i % c.dim]);
  }
  __shared__ PieceRange of_warp[8];
  const PieceRange w{warp_min(r.min), warp_max(r.max), warp_max(r.any), warp_max(r.nonfinite)};
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = w;
  __syncthreads();
  if (threadIdx.x >= 32) return;
  const PieceRange all = merge(of_warp, 8);
  if (threadIdx.x == 0) t.pieces[piece] = all;
}

// ---- a block a chunk ----

// Memory of all steps; the codes come last, as the largest part.
__device__ std::uint8_t* take_memory(EncodeShared& s, DeviceRows& d, const DeviceChunk& c, Arena& arena) {
  const bool of_codes = s.bound.plan == Plan::codes, books = c.only == huffman || c.only == dedup_huffman;
  // Huffman's own codes share the fast memory with those it reads.
  if (!of_codes || (c.only != huffman && c.only != packed_codes)) take_rows(d, arena, c.n);
  const std::size_t values = std::size_t{c.n} * c.dim;
  if (!of_codes) return nullptr;
  for (std::uint32_t k = 0; k < most_streams; ++k) {
    DeviceStream t;
    if (books) {
      DeviceBook* const book = arena.take<DeviceBook>(1);
      if (threadIdx.x == 0) s.book[k] = book;
      continue;
    }
    if (c.only != encoders && c.only != rans && c.only != dedup_rans) break;
    take_tables(t, arena, k == 0 ? most_classes : 1);
    take_lanes(t, arena, fast_lanes_log2(k == 0 ? static_cast<std::uint32_t>(values) : c.n));
    if (threadIdx.x == 0) s.stream[k] = t;
  }
  return arena.take<std::uint8_t>(values * (c.code_width == 16 || s.span > 256 ? 2 : 1));
}

// The payload of a chunk that travels; 0: the values as they are.
template <Family family>
__device__ std::uint32_t encode_body(EncodeShared& s, const DeviceChunk& c, DeviceRows& d, std::uint8_t* codes,
                                     std::uint32_t* bins, const Arena& arena, std::uint8_t* slot) {
  std::uint8_t* to = slot + header_bytes;
  if (s.bound.plan == Plan::exact) return encode_values(s, d, c, to);
  if (s.bound.plan == Plan::fixed_rate) {
    if (threadIdx.x == 0) s.header.encoder = c.only;
    if constexpr (family == Family::lanes) {
      if (__syncthreads_or(encode_fp8_rows(c.rows, c.n, c.dim, c.stride, to, to + c.n * scale_bytes(fp8, c.dim)))) {
        if (threadIdx.x == 0) s.header.encoder = raw_values, s.nonfinite = 1;
        return 0;
      }
    } else {
      put_fixed_rate(c, c.only, to);
    }
    return static_cast<std::uint32_t>(fixed_rate_bytes(c.only, c.n, c.dim));
  }
  if (s.bound.plan != Plan::codes) return 0;
  if (threadIdx.x == 0) {
    s.header.code_width = s.wide ? 16 : 8;
    s.header.eb = s.bound.eb;
    s.header.code_min = s.code_min;
    if (s.missed) s.header.flags |= has_outliers;
  }
  if (s.missed) put_outliers(s, c, to);
  const std::uint32_t before = outlier_bytes(s);
  return before + encode_codes<family>(s, d, c, codes, bins, arena, slot, to + before);
}

template <Family family>
__global__ void __launch_bounds__(block_threads, 1) encode_kernel(const __grid_constant__ EncodeArguments a) {
  extern __shared__ __align__(16) std::uint8_t shared[];
  __shared__ EncodeShared s;
  __shared__ std::uint32_t bins[distance_bins];
  const DeviceChunk c = a.tables.chunks[blockIdx.x];
  if (c.family != family) return;  // the whole block
  std::uint8_t* slot = a.slots + c.slot_at;
  const std::size_t values = std::size_t{c.n} * c.dim;
  plan_chunk(s, c, a.tables.pieces, a.relative);
  const bool exact = s.bound.plan == Plan::exact;
  __syncthreads();
  if (threadIdx.x == 0) {
    s.header = ChunkHeader();
    s.header.rows = c.n;
    if (c.only == raw_values || values == 0) s.bound.plan = Plan::raw;
    if (c.only >= fp16 && c.only <= int4 && s.bound.plan != Plan::raw)
      s.bound.plan = fixed_rate_bytes(c.only, c.n, c.dim) < 4 * values ? Plan::fixed_rate : Plan::raw;
  }
  __syncthreads();
  DeviceRows d;
  std::uint8_t* codes = nullptr;
  Arena arena{shared, a.shared_bytes, slot + slot_layout(c.n, c.dim).spill};
  if (!c.self && (s.bound.plan == Plan::exact || s.bound.plan == Plan::codes)) codes = take_memory(s, d, c, arena);
  if (s.bound.plan == Plan::codes) make_codes<family>(a, s, c, codes);
  if (c.self) {
    if (s.bound.plan == Plan::fixed_rate)
      put_fixed_rate(c, c.only, nullptr);
    else
      put_self(s, c);
    if (threadIdx.x == 0) a.sizes[blockIdx.x] = 0;
    return;
  }
  std::uint32_t bytes = encode_body<family>(s, c, d, codes, bins, arena, slot);
  __syncthreads();
  if (values > 0 && s.bound.plan == Plan::constant) {
    if (threadIdx.x == 0) {
      s.header.encoder = constant_value;
      s.header.code_min = c.rows[0] == 0 ? 0 : __float_as_int(c.rows[0]);
    }
  } else if (values > 0 && bytes == 0) {
    if (threadIdx.x == 0) s.header.flags = s.nonfinite ? has_nonfinite : exact ? without_loss : 0;
    put_values(c, nullptr, c.n, slot + header_bytes);
    bytes = static_cast<std::uint32_t>(4 * values);
  }
  write_header(s, slot, bytes, a.sizes + blockIdx.x);
}

// ---- side by side ----

// A few blocks a chunk; each finds where its chunk begins from the sizes before.
__global__ void __launch_bounds__(256)
    compact_kernel(Tables t, const std::uint8_t* slots, const std::uint64_t* sizes, std::uint8_t* out) {
  unsigned long long before = 0;
  for (std::uint32_t k = threadIdx.x; k < blockIdx.x; k += 256) before += sizes[k];
  __shared__ unsigned long long of_warp[8];
  before = warp_sum(before);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = before;
  __syncthreads();
  before = 0;
  for (int w = 0; w < 8; ++w) before += of_warp[w];
  const auto* from = reinterpret_cast<const std::uint32_t*>(slots + t.chunks[blockIdx.x].slot_at);
  auto* to = reinterpret_cast<std::uint32_t*>(out + before);
  const std::uint64_t words = sizes[blockIdx.x] / 4;
  for (std::uint64_t i = std::uint64_t{blockIdx.y} * 256 + threadIdx.x; i < words; i += std::uint64_t{gridDim.y} * 256)
    to[i] = from[i];
}

struct Parts {
  DevicePart part[most_parts];
  std::uint32_t count;
};

__device__ unsigned long long sum_of(const std::uint64_t* sizes, std::uint32_t first, std::uint32_t end) {
  unsigned long long sum = 0;
  for (std::uint32_t k = first + threadIdx.x % 32; k < end; k += 32) sum += sizes[k];
  return warp_sum(sum);
}

// What comes before the codes of a part, by one block.
__device__ void put_part_header(const Parts& parts, const DevicePart& own, const std::uint64_t* sizes,
                                std::uint8_t* out) {
  bool lacks = false;
  for (std::uint32_t p = threadIdx.x / 32; p < parts.count; p += 8) {
    const DevicePart& part = parts.part[p];
    const std::uint64_t header = 8 * (1 + std::uint64_t{part.chunks});
    lacks = lacks || sum_of(sizes, part.first, part.first + part.chunks) > (part.bytes ? part.bytes - header : 0);
  }
  lacks = __syncthreads_or(lacks);
  if (own.bytes == 0) return;
  auto* to = reinterpret_cast<std::uint64_t*>(out + own.at);
  if (threadIdx.x == 0) to[0] = lacks;
  for (std::uint32_t k = threadIdx.x; k < own.chunks; k += 256) to[1 + k] = sizes[own.first + k];
}

// As compact_kernel, into parts; behind the chunks' blocks, one for the header of each part.
__global__ void __launch_bounds__(256)
    parts_kernel(Tables t, const std::uint8_t* slots, const std::uint64_t* sizes, std::uint8_t* out,
                 std::uint32_t chunks, const __grid_constant__ Parts parts) {
  if (blockIdx.x >= chunks) {
    if (blockIdx.y == 0) put_part_header(parts, parts.part[blockIdx.x - chunks], sizes, out);
    return;
  }
  std::uint32_t p = 0;
  while (blockIdx.x >= parts.part[p].first + parts.part[p].chunks) ++p;
  const DevicePart& part = parts.part[p];
  const std::uint64_t begin = 8 * (1 + std::uint64_t{part.chunks}) + sum_of(sizes, part.first, blockIdx.x),
                      size = sizes[blockIdx.x];
  if (begin + size > part.bytes) return;
  const auto* from = reinterpret_cast<const std::uint32_t*>(slots + t.chunks[blockIdx.x].slot_at);
  auto* to = reinterpret_cast<std::uint32_t*>(out + part.at + begin);
  for (std::uint64_t i = std::uint64_t{blockIdx.y} * 256 + threadIdx.x; i < size / 4;
       i += std::uint64_t{gridDim.y} * 256)
    to[i] = from[i];
}

void launch_parts(const DeviceEncode& job, const Tables& t, const std::uint8_t* slots, unsigned blocks,
                  cudaStream_t stream) {
  Parts parts;
  parts.count = static_cast<std::uint32_t>(job.part_count);
  std::memcpy(parts.part, job.parts, job.part_count * sizeof(DevicePart));
  parts_kernel<<<dim3(static_cast<unsigned>(job.count) + parts.count, blocks), 256, 0, stream>>>(
      t, slots, job.sizes, job.out, static_cast<std::uint32_t>(job.count), parts);
  check_launch("codes into parts");
}

// Descriptions to the device, and the ranges of their pieces.
template <std::size_t most>
void launch_ranges(const DeviceChunk* chunks, std::size_t n, bool ranges, const Tables& t, cudaStream_t stream) {
  Batch<most> batch;
  std::memcpy(batch.chunk, chunks, n * sizeof(DeviceChunk));
  for (std::size_t k = 0; k < n; ++k) {
    DeviceChunk& c = batch.chunk[k];
    c.family = family_of(c);
    if (!ranges) c.first_piece = c.pieces = c.pieces_of_scope = 0;
  }
  const DeviceChunk& last = batch.chunk[n - 1];
  const unsigned pieces = last.first_piece + last.pieces - batch.chunk[0].first_piece;
  range_kernel<most><<<pieces ? pieces : 1, 256, 0, stream>>>(batch, static_cast<std::uint32_t>(n), t);
  check_launch("range of rows");
}

void encode(const DeviceEncode& job, Place place) {
  const cudaStream_t stream = cuda_stream(place);
  const Tables t = tables_of(job);
  std::size_t largest = 0;
  bool of[3] = {}, ranges = false;  // rows of fp8 by lanes need none: what is not finite they find on their way
  for (std::size_t k = 0; k < job.count; ++k) {
    const DeviceChunk& c = job.chunks[k];
    const std::size_t values = std::size_t{c.n} * c.dim;
    largest = values > largest ? values : largest;
    of[static_cast<int>(family_of(c))] = true;
    ranges = ranges || c.only != fp8 || family_of(c) != Family::lanes;
  }
  for (std::size_t first = 0; first < job.count; first += chunks_a_launch) {
    const std::size_t n = job.count - first < chunks_a_launch ? job.count - first : chunks_a_launch;
    (n <= few_chunks ? launch_ranges<few_chunks> : launch_ranges<chunks_a_launch>)(job.chunks + first, n, ranges, t,
                                                                                   stream);
  }
  EncodeArguments a{t, job.scratch + encode_tables(job.count, job.pieces), job.sizes, job.relative, job.strict, 0};
  const std::size_t wanted = largest <= 8192 ? shared_small : shared_memory;
  const auto launch = [&](auto* kernel) {
    a.shared_bytes = shared_memory_of(reinterpret_cast<const void*>(kernel), "encoder of rows", wanted, shared_memory);
    kernel<<<static_cast<unsigned>(job.count), block_threads, a.shared_bytes, stream>>>(a);
    check_launch("encoder of rows");
  };
  if (of[0]) launch(encode_kernel<Family::others>);
  if (of[1]) launch(encode_kernel<Family::paper>);
  if (of[2]) launch(encode_kernel<Family::lanes>);
  const unsigned parts = largest <= 65536 ? 1 : ranges ? 4 : 16;
  if (job.part_count) return launch_parts(job, t, a.slots, parts, stream);
  compact_kernel<<<dim3(static_cast<unsigned>(job.count), parts), 256, 0, stream>>>(t, a.slots, job.sizes, job.out);
  check_launch("codes side by side");
}

const Kernel<DeviceEncode>::Twin twin(encode_bounded, encode);

}  // namespace
}  // namespace trireme
