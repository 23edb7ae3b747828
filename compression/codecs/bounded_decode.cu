// The CUDA twin of the error-bounded decoder: one launch for up to 600 chunks, a block a chunk.
#include "compression/codecs/bounded_fixed.cuh"
#include "compression/codecs/bounded_index.cuh"
#include "compression/codecs/bounded_paper.cuh"
#include "compression/codecs/bounded_sparse.cuh"

#include <cstring>

namespace trireme {
namespace {

using namespace coding;

constexpr std::size_t shared_memory = 216 * 1024, shared_small = 104 * 1024, most_staged = 40 * 1024;
// As bounded_encode.cu's.
constexpr std::size_t chunks_a_launch = 600, few_chunks = 80;

template <std::size_t most>
struct Batch {
  DeviceDecode::Chunk chunk[most];
};
static_assert(sizeof(Batch<chunks_a_launch>) <= 32000);

__device__ bool is_wide(const DecodeShared& s) { return s.header.code_width == 16; }
__device__ Encoder encoder(const DecodeShared& s) { return static_cast<Encoder>(s.header.encoder); }
__device__ bool books(Encoder e) { return e == huffman || e == dedup_huffman; }
__device__ bool streamed(Encoder e) { return books(e) || e == rans || e == dedup_rans; }
__device__ bool indexed(Encoder e) {
  return e == dedup_huffman || e == dedup_rans || e == dedup_packed || e == dedup_values || e == dedup_sparse;
}
__device__ bool coded(Encoder e) {
  return streamed(e) || e == packed_codes || e == vector_lz || e == dedup_packed || e == dedup_sparse;
}

__device__ bool fixed_rate(Encoder e) { return e >= fp16 && e <= int4; }

// As check_header of decode_chunk.cpp.
__device__ bool header_is_good(const ChunkHeader& h, const DeviceDecode::Chunk& c) {
  const auto e = static_cast<Encoder>(h.encoder);
  const float step = 2 * h.eb;
  const std::uint32_t form = (h.flags & index_form_low ? 1 : 0) | (h.flags & index_form_high ? 2 : 0);
  if (h.version != stream_version || (h.flags & ~all_flags) || (h.flags & has_checksum) || h.rows != c.n) return false;
  if (std::uint64_t{c.bytes} != (header_bytes + std::uint64_t{h.bytes} + 3) / 4 * 4) return false;
  if (coded(e)) {
    if (h.code_width != 8 && (h.code_width != 16 || streamed(e) || e == dedup_sparse)) return false;
    if (e == dedup_sparse && std::uint64_t{c.n} * c.dim >= most_sparse) return false;
    if (!(h.eb > 0) || !(step - step == 0) || h.code_min > largest_code || h.code_min < -largest_code) return false;
  } else if ((e != raw_values && e != constant_value && e != dedup_values && !fixed_rate(e)) || h.code_width != 0 ||
             h.eb != 0 || (h.flags & has_outliers)) {
    return false;
  }
  if ((h.flags & has_nonfinite) && e != raw_values) return false;
  if (form >= symbols && e != dedup_rans && e != dedup_huffman) return false;
  return indexed(e) || form == plain;
}

__device__ void set_source(DeviceSource& t, std::uint32_t count, std::uint32_t period, std::uint32_t largest,
                           std::uint8_t* out) {
  t.count = count, t.period = period, t.largest = largest, t.out = out;
}

__device__ bool parse_symbols(Encoder e, DeviceSource& t, const std::uint8_t* bytes, std::uint64_t size) {
  return books(e) ? parse_huffman(t, bytes, size) : parse_stream(t, bytes, size);
}

// The parts of the payload, by one thread.
__device__ bool parse(DecodeShared& s, const DeviceDecode::Chunk& c, DeviceReader in, const Work& w) {
  const Encoder e = encoder(s);
  const std::uint64_t values = std::uint64_t{c.n} * c.dim;
  s.unique = c.n, s.streams = 0, s.outliers = 0, s.form = plain;
  if (values == 0) return in.left() == 0 && e == raw_values;
  if (s.header.flags & has_outliers) {
    s.outliers = in.word();
    s.outlier_at = in.take(8ull * s.outliers);
  }
  if (in.bad) return false;
  if (e == raw_values) {
    s.codes_at = in.at;
    return in.left() == 4 * values;
  }
  if (e == constant_value) return in.left() == 0;
  if (fixed_rate(e)) {
    s.codes_at = in.at;
    return in.left() == fixed_rate_bytes(e, c.n, c.dim);
  }
  if (indexed(e)) {
    s.unique = in.number();
    s.form = (s.header.flags & index_form_low ? 1 : 0) | (s.header.flags & index_form_high ? 2 : 0);
    if (in.bad || s.unique == 0 || s.unique > c.n) return false;
    if (s.form == symbols && s.unique > most_symbols) return false;
    if (s.form == weighted && s.unique == c.n) return false;
  }
  const std::uint64_t mine = std::uint64_t{s.unique} * c.dim;
  std::uint32_t streams = 0;
  const auto index_stream = [&](std::uint32_t count, std::uint32_t largest, std::uint8_t* out) {
    const std::uint32_t size = in.number();
    const std::uint8_t* bytes = in.take(size);
    set_source(s.source[1 + streams], count, count, largest, out);
    if (in.bad || !parse_symbols(e, s.source[1 + streams], bytes, size)) return false;
    return s.source[1 + streams++].classes == 1;  // there is room for one table
  };
  if (s.form == symbols && !index_stream(c.n, s.unique - 1, w.repeat)) return false;
  if (s.form == weighted && (!index_stream(s.unique, weight_classes - 1, w.weight) ||
                             !index_stream(c.n - s.unique, weight_classes - 1, w.repeat)))
    return false;
  if (e == dedup_values) {
    s.codes_at = in.take(4 * mine);
  } else if (e == packed_codes || e == dedup_packed) {
    s.packed_bits = in.byte();
    if (s.packed_bits > (is_wide(s) ? 16u : 8u)) return false;
    s.codes_at = in.take((s.packed_bits * mine + 7) / 8);
  } else if (e == vector_lz || e == dedup_sparse) {
    s.codes_at = in.take(e == vector_lz ? 0 : sparse_fixed_bytes(s.unique, c.dim));
  } else {
    const std::uint64_t size =
        e == rans || e == huffman || s.form == symbols || (s.form == plain && s.unique == 1) ? in.left() : in.number();
    const std::uint8_t* bytes = in.take(size);
    set_source(s.source[0], static_cast<std::uint32_t>(mine), c.dim, most_symbols - 1, nullptr);
    if (in.bad || !parse_symbols(e, s.source[0], bytes, size)) return false;
    s.streams = 1 + streams;
  }
  s.bits_at = in.at;
  s.bits_left = static_cast<std::uint32_t>(in.left());
  return !in.bad && (indexed(e) || e == vector_lz || in.left() == 0);
}

// Packed codes, eight at a time: they are as many bytes as a code has bits.
__device__ void unpack(const DecodeShared& s, std::uint32_t values, std::uint8_t* codes) {
  const std::uint32_t bits = s.packed_bits, mask = (1u << bits) - 1;
  const std::uint8_t* const from = s.codes_at;
  const bool wide = is_wide(s);
  for (std::uint32_t i = threadIdx.x; 8 * i < values; i += block_threads) {
    const std::uint32_t n = min(8u, values - 8 * i), bytes = (n * bits + 7) / 8;
    const std::uint8_t* const at = from + std::size_t{bits} * i;
    std::uint64_t held = 0;
    std::uint32_t filled = 0, next = 0;
    for (std::uint32_t k = 0; k < n; ++k) {
      for (; filled < bits && next < bytes; filled += 8) held |= std::uint64_t{at[next++]} << filled;
      const std::uint32_t code = static_cast<std::uint32_t>(held) & mask;
      if (wide)
        reinterpret_cast<std::uint16_t*>(codes)[8 * i + k] = static_cast<std::uint16_t>(code);
      else
        codes[8 * i + k] = static_cast<std::uint8_t>(code);
      held >>= bits;
      filled -= bits;
    }
  }
}

// Sparse rows; what follows them are the bits of the index. All threads return alike.
__device__ bool unpack_sparse(DecodeShared& s, const Work& w, std::uint32_t dim) {
  const std::uint8_t *const widths = s.codes_at + 1, *const others = s.bits_at;
  const std::uint32_t left = s.bits_left;
  std::uint32_t bits;
  if (!sparse_bits(widths, s.unique, dim, s.sums, w.order, bits) || (bits + 7) / 8 > left) return false;
  if (threadIdx.x == 0) s.bits_at = others + (bits + 7) / 8, s.bits_left = left - (bits + 7) / 8;
  take_sparse_rows(widths, others, w.order, s.unique, dim, *s.codes_at, w.codes);
  __syncthreads();
  return true;
}

// ---- values ----

__device__ bool finite(float x) { return x - x == 0; }

// x' of every value. False: one is not finite.
__device__ bool put_rows(const DecodeShared& s, const DeviceDecode::Chunk& c, const Work& w, bool index) {
  const float step = 2 * s.header.eb;
  const std::int32_t min = s.header.code_min;
  bool good = true;
  if (!is_wide(s) && c.dim % 4 == 0 && c.stride % 4 == 0 && aligned(c.rows, 16)) {
    const std::uint32_t fours = c.dim / 4, stride = c.stride;
    const std::uint32_t* const numbers = w.index;
    const auto* const codes = reinterpret_cast<const std::uint32_t*>(w.codes);
    float* const rows = c.rows;
    const bool check =
        !finite(__fmul_rn(static_cast<float>(min), step)) || !finite(__fmul_rn(static_cast<float>(min + 255), step));
    Walk at(fours);
    for (std::uint32_t i = threadIdx.x; i < c.n * fours; i += block_threads, at.next()) {
      const std::uint32_t word = codes[(index ? numbers[at.row] : at.row) * fours + at.column];
      float v[4];
      for (int b = 0; b < 4; ++b)
        v[b] = __fmul_rn(static_cast<float>(min + static_cast<std::int32_t>(word >> (8 * b) & 255)), step);
      for (int b = 0; check && b < 4; ++b) good = good && finite(v[b]);
      *reinterpret_cast<float4*>(rows + std::size_t{at.row} * stride + 4 * at.column) =
          make_float4(v[0], v[1], v[2], v[3]);
    }
    return good;
  }
  for (std::uint32_t i = threadIdx.x; i < c.n * c.dim; i += block_threads) {
    const std::uint32_t r = i / c.dim, k = i - r * c.dim;
    const std::size_t from = std::size_t{index ? w.index[r] : r} * c.dim + k;
    const std::int32_t code = is_wide(s) ? reinterpret_cast<const std::uint16_t*>(w.codes)[from] : w.codes[from];
    const float v = __fmul_rn(static_cast<float>(min + code), step);
    good = good && finite(v);
    c.rows[std::size_t{r} * c.stride + k] = v;
  }
  return good;
}

// Values as they are, by row or by unique row.
__device__ bool put_values(const DecodeShared& s, const DeviceDecode::Chunk& c, const Work& w, bool index) {
  bool good = true;
  for (std::uint32_t i = threadIdx.x; i < c.n * c.dim; i += block_threads) {
    const std::uint32_t r = i / c.dim, k = i - r * c.dim;
    const std::size_t from = std::size_t{index ? w.index[r] : r} * c.dim + k;
    const float v = __uint_as_float(encoder(s) == constant_value ? static_cast<std::uint32_t>(s.header.code_min)
                                                                 : word_at(s.codes_at + 4 * from));
    good = good && finite(v);
    c.rows[std::size_t{r} * c.stride + k] = v;
  }
  return good || (s.header.flags & has_nonfinite);
}

__device__ bool put_fixed_rate(const DecodeShared& s, const DeviceDecode::Chunk& c) {
  const Encoder e = encoder(s);
  const std::size_t scales = scale_bytes(e, c.dim), codes = code_bytes(e, c.dim);
  if (in_lanes(e, c.dim, c.stride, c.rows) && aligned(s.codes_at, 4))
    return decode_fp8_rows(s.codes_at, s.codes_at + c.n * scales, c.n, c.dim, c.rows, c.stride);
  bool good = true;
  for (std::size_t r = threadIdx.x / 32; r < c.n; r += block_warps)
    good =
        decode_row(e, s.codes_at + r * scales, s.codes_at + c.n * scales + r * codes, c.dim, c.rows + r * c.stride) &&
        good;
  return good;
}

// Values that would have missed the bound, over what is there. With outliers, values that are not finite may be among
// those they replace: finite() counts afterwards.
__device__ bool put_outliers(const DecodeShared& s, const DeviceDecode::Chunk& c) {
  bool good = true;
  for (std::uint32_t k = threadIdx.x; k < s.outliers; k += block_threads) {
    const std::uint32_t i = word_at(s.outlier_at + 4 * std::size_t{k});
    const bool inside = i < c.n * c.dim;
    good = good && inside;
    if (inside)
      c.rows[std::size_t{i / c.dim} * c.stride + i % c.dim] =
          __uint_as_float(word_at(s.outlier_at + 4 * (std::size_t{s.outliers} + k)));
  }
  good = __syncthreads_and(good);
  for (std::uint32_t i = threadIdx.x; i < c.n * c.dim; i += block_threads)
    good = good && finite(c.rows[std::size_t{i / c.dim} * c.stride + i % c.dim]);
  return good;
}

// What parse() lets streams point at.
__device__ Work take_memory(DecodeShared& s, const DeviceDecode::Chunk& c, Arena& arena) {
  Work w{};
  w.index = arena.take<std::uint32_t>(c.n);
  w.order = arena.take<std::uint32_t>(c.n);
  w.weight = arena.take<std::uint8_t>(c.n);
  w.repeat = arena.take<std::uint8_t>(c.n);
  w.classes = arena.take<std::uint8_t>(c.n);
  w.bits = arena.take<std::uint8_t>((std::size_t{c.n} * (1 + bits_for(c.n))) / 8 + 8);
  if (threadIdx.x == 0)
    for (auto& t : s.source) t.classes_of_row = w.classes;
  return w;
}

// What depends on the payload: tables of the streams there are, and the codes, as the largest part.
__device__ void take_tables(DecodeShared& s, const DeviceDecode::Chunk& c, Arena& arena, Work& w) {
  for (std::uint32_t k = 0; k < s.streams; ++k) {
    auto* const symbols = arena.take<std::uint32_t>(s.source[k].classes * most_symbols);
    std::uint8_t* const late = arena.take<std::uint8_t>(s.source[k].late_bytes);
    SymbolTable* const table = arena.take<SymbolTable>(s.source[k].classes);
    if (threadIdx.x == 0) s.source[k].symbols = symbols, s.source[k].late = late, s.source[k].table = table;
  }
  w.codes = arena.take<std::uint8_t>(std::size_t{s.unique} * c.dim * (is_wide(s) ? 2 : 1));
  if (threadIdx.x == 0) s.source[0].out = w.codes;
  __syncthreads();
}

__device__ bool decode_chunk(DecodeShared& s, const DeviceDecode::Chunk& c, const Work& w) {
  const Encoder e = encoder(s);
  if (e == raw_values || e == constant_value) return put_values(s, c, w, false);
  if (fixed_rate(e)) return put_fixed_rate(s, c);
  if (e == vector_lz) {
    if (!decode_lz(s, w, c.n, c.dim * (is_wide(s) ? 2 : 1))) return false;
  } else if (s.streams) {
    if (!(books(e) ? decode_books(s.source, s.streams, s.sums) : decode_streams(s.source, s.streams))) return false;
  } else if (e == dedup_sparse) {
    if (!unpack_sparse(s, w, c.dim)) return false;
  } else if (coded(e)) {
    unpack(s, s.unique * c.dim, w.codes);
    __syncthreads();
  }
  if (indexed(e) ? !decode_index(s, w, c.n) : e != vector_lz && !gather_bits(s, w, 0)) return false;
  __syncthreads();
  if (e == dedup_values) return put_values(s, c, w, true);
  const bool good = put_rows(s, c, w, indexed(e) || e == vector_lz);
  if (s.outliers == 0) return good;
  __syncthreads();
  return put_outliers(s, c);
}

// The least number of a bad chunk, from 1 on; 0 says that there is none. Rare.
__device__ void tell_bad(std::uint32_t* status, std::uint32_t number) {
  for (std::uint32_t there = 0;;) {
    const std::uint32_t old = atomicCAS(status, there, number);
    if (old == there || (old && old <= number)) return;
    there = old;
  }
}

template <std::size_t most, bool in_parts>
__global__ void __launch_bounds__(block_threads, 1)
    decode_kernel(const __grid_constant__ Batch<most> batch, std::uint32_t first, std::uint8_t* scratch,
                  std::uint32_t shared_bytes, std::uint32_t* status) {
  extern __shared__ __align__(16) std::uint8_t shared[];
  __shared__ DecodeShared s;
  DeviceDecode::Chunk c = batch.chunk[blockIdx.x];
  if (in_parts && c.of) find_in_part(c);
  Arena arena{shared, shared_bytes, scratch + c.spill_at};
  const std::uint8_t* code = c.code;
  const bool large_enough = c.bytes >= header_bytes && c.bytes % 4 == 0;
  if (threadIdx.x == 0) {
    s.bad = large_enough ? 0 : 1;
    if (large_enough) s.header = *reinterpret_cast<const ChunkHeader*>(code);
    if (large_enough && !header_is_good(s.header, c)) s.bad = 1;
  }
  __syncthreads();
  bool good = !s.bad;
  if (good) {
    if (c.bytes <= most_staged && s.header.encoder != raw_values) {
      auto* staged = arena.take<std::uint32_t>(c.bytes / 4);
      for (std::uint32_t i = threadIdx.x; i < c.bytes / 4; i += block_threads)
        staged[i] = reinterpret_cast<const std::uint32_t*>(c.code)[i];
      code = reinterpret_cast<const std::uint8_t*>(staged);
    }
    Work w = take_memory(s, c, arena);
    __syncthreads();
    if (threadIdx.x == 0) {
      const std::uint8_t* payload = code + header_bytes;
      for (const std::uint8_t* pad = payload + s.header.bytes; pad < code + c.bytes; ++pad)
        if (*pad) s.bad = 1;
      if (!parse(s, c, {payload, payload + s.header.bytes, false}, w)) s.bad = 1;
    }
    __syncthreads();
    good = !s.bad;
    if (good && c.n * c.dim > 0) {
      take_tables(s, c, arena, w);
      good = decode_chunk(s, c, w);
    }
  }
  if (!__syncthreads_and(good) && threadIdx.x == 0) tell_bad(status, first + blockIdx.x + 1);
}

template <std::size_t most>
void launch_decode(const DeviceDecode& job, std::size_t first, std::size_t n, cudaStream_t stream) {
  Batch<most> batch;
  std::memcpy(batch.chunk, job.chunks + first, n * sizeof(DeviceDecode::Chunk));
  std::size_t largest = 0;
  bool in_parts = false;
  for (std::size_t k = 0; k < n; ++k) {
    const std::size_t values = std::size_t{batch.chunk[k].n} * batch.chunk[k].dim;
    largest = values > largest ? values : largest;
    in_parts = in_parts || batch.chunk[k].of;
  }
  const auto kernel = in_parts ? decode_kernel<most, true> : decode_kernel<most, false>;
  const std::uint32_t bytes = shared_memory_of(reinterpret_cast<const void*>(kernel), "decoder of rows",
                                               largest <= 8192 ? shared_small : shared_memory, shared_memory);
  kernel<<<static_cast<unsigned>(n), block_threads, bytes, stream>>>(batch, static_cast<std::uint32_t>(first),
                                                                     job.scratch, bytes, job.status);
  check_launch("decoder of rows");
}

void decode(const DeviceDecode& job, Place place) {
  const cudaStream_t stream = cuda_stream(place);
  if (cudaMemsetAsync(job.status, 0, sizeof *job.status, stream) != cudaSuccess) check_launch("status of the decoder");
  for (std::size_t first = 0; first < job.count; first += chunks_a_launch) {
    const std::size_t n = job.count - first < chunks_a_launch ? job.count - first : chunks_a_launch;
    (n <= few_chunks ? launch_decode<few_chunks> : launch_decode<chunks_a_launch>)(job, first, n, stream);
  }
}

const Kernel<DeviceDecode>::Twin twin(decode_bounded, decode);

}  // namespace
}  // namespace trireme
