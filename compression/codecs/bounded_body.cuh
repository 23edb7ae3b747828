// Encoder: the bytes of a chunk, from its codes or its values.
#pragma once
#include "compression/codecs/bounded_fixed.cuh"
#include "compression/codecs/bounded_huffman.cuh"
#include "compression/codecs/bounded_lanes.cuh"
#include "compression/codecs/bounded_lz.cuh"
#include "compression/codecs/bounded_rows.cuh"
#include "compression/codecs/bounded_sparse.cuh"
#include "compression/codecs/bounded_streams.cuh"

namespace trireme::coding {

__device__ inline float value_at(const DeviceChunk& c, std::uint32_t i) {
  return c.rows[std::size_t{i / c.dim} * c.stride + i % c.dim];
}

__device__ inline void put_values(const DeviceChunk& c, const std::uint32_t* rows, std::uint32_t n, std::uint8_t* to) {
  for (std::size_t i = threadIdx.x; i < std::size_t{n} * c.dim; i += block_threads) {
    const std::size_t r = i / c.dim;
    const std::uint32_t word = __float_as_uint(c.rows[(rows ? rows[r] : r) * c.stride + (i - r * c.dim)]);
    if (aligned(to, 4)) {
      reinterpret_cast<std::uint32_t*>(to)[i] = word;
    } else {
      for (int b = 0; b < 4; ++b) to[4 * i + b] = static_cast<std::uint8_t>(word >> (8 * b));
    }
  }
}

// What a receiver would get of a chunk that stays.
__device__ inline void put_self(const EncodeShared& s, const DeviceChunk& c) {
  const float step = 2 * s.bound.eb, first = c.n * c.dim ? c.rows[0] : 0;
  for (std::uint32_t i = threadIdx.x; i < c.n * c.dim; i += block_threads) {
    const float x = value_at(c, i);
    const std::int32_t code = s.bound.plan == Plan::codes ? code_of(x, step) : 0;
    float y = x;
    if (s.bound.plan == Plan::constant) y = first == 0 ? 0.0f : first;
    if (s.bound.plan == Plan::codes && !(s.missed && misses(x, code, step, s.bound.eb)))
      y = __fmul_rn(static_cast<float>(code), step);
    c.self[std::size_t{i / c.dim} * c.self_stride + i % c.dim] = y;
  }
}

__device__ inline std::uint64_t packed_size(std::uint32_t span, std::uint64_t values) {
  return 1 + (bits_for(span) * values + 7) / 8;
}

// Codes of all rows or of the unique ones, in as few bits as their span needs. A thread takes eight: whole bytes.
__device__ inline void put_packed(const EncodeShared& s, const std::uint8_t* codes, const std::uint32_t* rows,
                                  std::uint32_t n, std::uint32_t dim, std::uint8_t* to) {
  const std::uint32_t bits = bits_for(s.span), values = n * dim;
  const bool wide = s.wide;
  if (threadIdx.x == 0) to[0] = static_cast<std::uint8_t>(bits);
  for (std::uint32_t i = threadIdx.x; 8 * i < values; i += block_threads) {
    const std::uint32_t here = min(8u, values - 8 * i);
    std::uint32_t r = 8 * i / dim, column = 8 * i - r * dim, first = (rows ? rows[r] : r) * dim, code[8];
#pragma unroll
    for (std::uint32_t k = 0; k < 8; ++k) {
      code[k] = 0;
      if (k >= here) continue;
      const std::uint32_t at = first + column;
      code[k] = wide ? reinterpret_cast<const std::uint16_t*>(codes)[at] : codes[at];
      if (++column == dim && k + 1 < here) column = 0, ++r, first = (rows ? rows[r] : r) * dim;
    }
    std::uint8_t* at = to + 1 + std::size_t{bits} * i;
    std::uint32_t held = 0, filled = 0;
#pragma unroll
    for (std::uint32_t k = 0; k < 8; ++k) {
      held |= code[k] << filled;
      filled += k < here ? bits : 0;
      for (; filled >= 8; filled -= 8, held >>= 8) *at++ = static_cast<std::uint8_t>(held);
    }
    if (filled) *at = static_cast<std::uint8_t>(held);
  }
}

__device__ inline std::uint32_t put_number(std::uint8_t* to, std::uint32_t value) {  // by one thread; its bytes
  std::uint32_t n = 0;
  for (; value >= 128; value >>= 7) to[n++] = static_cast<std::uint8_t>(value | 128);
  to[n++] = static_cast<std::uint8_t>(value);
  return n;
}
__device__ inline std::uint32_t number_bytes(std::uint32_t value) {
  std::uint32_t n = 1;
  for (; value >= 128; value >>= 7) ++n;
  return n;
}

__device__ inline void take_rows(DeviceRows& d, Arena& arena, std::uint32_t n) {
  d.slot_mask = (2u << bits_for(n)) - 1;
  d.index = arena.take<std::uint32_t>(n);
  d.unique = arena.take<std::uint32_t>(n);
  d.repeats = arena.take<std::uint32_t>(n);
  d.rank = arena.take<std::uint32_t>(n);
  d.slots = arena.take<std::uint32_t>(d.slot_mask + 1);
  d.place = d.slots;  // the table is of no use by then
  d.weight = arena.take<std::uint8_t>(n);
  d.repeat = arena.take<std::uint8_t>(n);
  d.classes = arena.take<std::uint8_t>(n);
  d.bits = arena.take<std::uint32_t>(index_words(n, bits_for(n)));
}

__device__ inline void set_flags(EncodeShared& s, Encoder encoder, std::uint32_t form) {
  s.header.encoder = encoder;
  s.header.flags |= static_cast<std::uint8_t>((form & 1 ? index_form_low : 0) | (form & 2 ? index_form_high : 0));
}

__device__ inline void add_stream(EncodeShared& s, std::uint32_t k, const std::uint8_t* symbols, std::uint32_t count,
                                  std::uint16_t* words) {
  DeviceStream& t = s.stream[k];
  if (threadIdx.x == 0) {
    t.symbols = symbols, t.row_of = nullptr, t.class_of_row = nullptr, t.late = nullptr;
    t.late_bytes = 0, t.count = t.period = count, t.classes = 1;
    t.log2 = fast_lanes_log2(count);
    t.words = words;
  }
  __syncthreads();
}

// The body of rans and dedup_rans. Returns its bytes.
__device__ inline std::uint32_t encode_symbols(EncodeShared& s, DeviceRows& d, const DeviceChunk& c,
                                               const std::uint8_t* codes, bool index, std::uint32_t* bins,
                                               std::uint16_t* words, std::uint8_t* to) {
  const std::uint32_t rows = index ? s.unique : c.n, code = 0;
  if (threadIdx.x == 0) s.streams = 1;
  if (index) put_index(s, d, c.n);
  add_stream(s, code, codes, rows * c.dim, words);
  DeviceStream& t = s.stream[code];
  if (threadIdx.x == 0) {
    t.row_of = index ? d.unique : nullptr;
    t.period = c.dim;
    t.late = reinterpret_cast<const std::uint8_t*>(d.bits);
    t.late_bytes = index ? (s.bits + 7) / 8 : 0;
    if (index && s.form == symbols) s.streams = 2;
    if (index && s.form == weighted) s.streams = 3;
  }
  __syncthreads();
  words += rows * c.dim;
  if (s.streams == 2) {
    for (std::uint32_t r = threadIdx.x; r < c.n; r += block_threads)
      d.weight[r] = static_cast<std::uint8_t>(d.index[r]);
    add_stream(s, 1, d.weight, c.n, words);
  } else if (s.streams == 3) {
    add_stream(s, 1, d.weight, s.unique, words);
    add_stream(s, 2, d.repeat, c.n - s.unique, words + s.unique);
  }
  classify(s, t, d.classes, d.place, bins, centre_of(s.code_min, s.span));
  for (std::uint32_t k = 1; k < s.streams; ++k) count_bytes(s.stream[k].counts, s.stream[k].symbols, s.stream[k].count);
  encode_streams(s);
  std::uint32_t at = 0;
  if (index) {
    if (threadIdx.x == 0) put_number(to, s.unique);
    at = number_bytes(s.unique);
    for (std::uint32_t k = 1; k < s.streams; ++k) {
      if (threadIdx.x == 0) put_number(to + at, s.stream[k].bytes);
      at += number_bytes(s.stream[k].bytes);
      put_stream(s.stream[k], to + at);
      at += s.stream[k].bytes;
    }
    if (s.bits) {
      if (threadIdx.x == 0) put_number(to + at, t.bytes);
      at += number_bytes(t.bytes);
    }
  }
  put_stream(t, to + at);
  at += t.bytes;
  if (!index) return at;
  const std::uint32_t bytes = (s.bits + 7) / 8, along = min(bytes, 2u << t.log2);
  block_copy(to + at, t.late + along, bytes - along);
  return at + bytes - along;
}

// The body of huffman and dedup_huffman. Returns its bytes; where they are `most` or more they are not there. words:
// room for the codes of any stream.
__device__ inline std::uint64_t encode_huffman(EncodeShared& s, DeviceRows& d, const DeviceChunk& c,
                                               const std::uint8_t* codes, bool index, std::uint64_t most,
                                               std::uint32_t* words, std::uint8_t* to) {
  if (index) put_index(s, d, c.n);
  HuffmanStream t[most_streams] = {{codes, index ? d.unique : nullptr, (index ? s.unique : c.n) * c.dim, c.dim}};
  std::uint32_t streams = 1;
  if (index && s.form == symbols) {
    for (std::uint32_t r = threadIdx.x; r < c.n; r += block_threads)
      d.weight[r] = static_cast<std::uint8_t>(d.index[r]);
    t[streams++] = {d.weight, nullptr, c.n, c.n};
  } else if (index && s.form == weighted) {
    t[streams++] = {d.weight, nullptr, s.unique, s.unique};
    t[streams++] = {d.repeat, nullptr, c.n - s.unique, c.n - s.unique};
  }
  __syncthreads();
  count_rows(*s.book[0], t[0], centre_of(s.code_min, s.span));
  for (std::uint32_t k = 1; k < streams; ++k) count_bytes(s.book[k]->count, t[k].symbols, t[k].count);
  const unsigned warp = threadIdx.x / 32;
  if (warp < streams) make_book(*s.book[warp], t[warp].count);
  __syncthreads();
  const std::uint32_t bits = index ? (s.bits + 7) / 8 : 0;
  std::uint64_t size = s.book[0]->bytes + std::uint64_t{bits};
  if (index) size += number_bytes(s.unique);
  for (std::uint32_t k = bits ? 0 : 1; k < streams; ++k) size += number_bytes(s.book[k]->bytes);
  for (std::uint32_t k = 1; k < streams; ++k) size += s.book[k]->bytes;
  if (size >= most) return size;
  if (index) {
    if (threadIdx.x == 0) put_number(to, s.unique);
    to += number_bytes(s.unique);
  }
  for (std::uint32_t n = 0; n < streams; ++n) {  // those of the index first
    const std::uint32_t k = (n + 1) % streams, bytes = s.book[k]->bytes;
    if (k || bits) {
      if (threadIdx.x == 0) put_number(to, bytes);
      to += number_bytes(bytes);
    }
    put_huffman(s, *s.book[k], t[k], words, to);
    to += bytes;
  }
  block_copy(to, reinterpret_cast<const std::uint8_t*>(d.bits), bits);
  return size;
}

// The body of dedup_sparse. Returns its bytes; where they are `most` or more they are not all there.
__device__ inline std::uint64_t encode_sparse(EncodeShared& s, DeviceRows& d, const DeviceChunk& c,
                                              const std::uint8_t* codes, const Arena& arena, std::uint32_t* spill,
                                              std::uint64_t most, std::uint8_t* to) {
  put_index(s, d, c.n);
  const std::uint32_t head = number_bytes(s.unique), index = (s.bits + 7) / 8;
  const SparseRows rows{codes, d.unique, s.unique, c.dim, centre_of(s.code_min, s.span), d.place, d.weight};
  const std::uint32_t fixed = sparse_fixed_bytes(s.unique, c.dim), bits = put_sparse_maps(rows, s.sums, to + head),
                      others = (bits + 7) / 8;
  const std::uint64_t size = std::uint64_t{head} + fixed + others + index;
  if (size >= most) return size;
  std::uint32_t* const words = arena.fast_left >= others + 16 ? reinterpret_cast<std::uint32_t*>(arena.fast) : spill;
  for (std::uint32_t i = threadIdx.x; i < bits / 32 + 2; i += block_threads) words[i] = 0;
  if (threadIdx.x == 0) put_number(to, s.unique);
  __syncthreads();
  put_sparse_others(rows, to + head + 1 + (s.unique + 1) / 2, words);
  __syncthreads();
  block_copy(to + head + fixed, reinterpret_cast<const std::uint8_t*>(words), others);
  block_copy(to + head + fixed + others, reinterpret_cast<const std::uint8_t*>(d.bits), index);
  return size;
}

// The encoder of codes that do not suit symbols, or else the one that is asked for.
__device__ inline Encoder encoder_for(const EncodeShared& s, Encoder only) {
  const bool symbols = only == huffman || only == rans, indexed = only == dedup_huffman || only == dedup_rans;
  return s.wide && symbols ? packed_codes : s.wide && indexed ? dedup_packed : only;
}
__device__ inline Encoder sparse_or_packed(const EncodeShared& s, const DeviceChunk& c) {
  return s.wide || std::size_t{c.n} * c.dim >= most_sparse ? dedup_packed : dedup_sparse;
}

// Codes of plan `codes`: the header's fields and the body. Returns the bytes behind `to`.
template <Family family>
__device__ inline std::uint32_t encode_codes(EncodeShared& s, DeviceRows& d, const DeviceChunk& c, std::uint8_t* codes,
                                             std::uint32_t* bins, const Arena& arena, std::uint8_t* slot,
                                             std::uint8_t* to) {
  const SlotLayout layout = slot_layout(c.n, c.dim);
  constexpr bool of_paper = family == Family::paper, of_lanes = family == Family::lanes;
  Encoder e = of_lanes ? sparse_or_packed(s, c) : encoder_for(s, c.only);
  const std::uint32_t width = c.dim * (s.wide ? 2 : 1);
  if (of_lanes && width % 16 == 0 && aligned(codes, 16))
    dedup_block(s, d, QuadRows{reinterpret_cast<const uint4*>(codes), width / 16}, c.n);
  else if (e != packed_codes && e != huffman && e != rans)
    dedup_block(s, d, ByteRows{codes, width, width, width % 4 == 0}, c.n);
  if (e == encoders) {
    const bool index = worth_an_index(c.n, s.unique, c.dim, s.span);
    e = s.wide ? (index ? dedup_packed : packed_codes) : index ? dedup_rans : rans;
  }
  const bool index = of_lanes || e == dedup_huffman || e == dedup_rans || e == dedup_packed;
  if (index) choose_form_block(s, d, c.n, !of_lanes && e != dedup_packed);
  const std::uint64_t all = packed_size(s.span, std::uint64_t{c.n} * c.dim);
  std::uint64_t size = all;
  if (family == Family::others && (e == rans || e == dedup_rans)) {
    size = encode_symbols(s, d, c, codes, index, bins, reinterpret_cast<std::uint16_t*>(slot + layout.words), to);
  } else if (of_paper && (e == huffman || e == dedup_huffman)) {
    const bool fits = arena.fast_left >= all + 64;  // no larger than the packed codes, else they are not made
    size = encode_huffman(s, d, c, codes, index, all,
                          reinterpret_cast<std::uint32_t*>(fits ? arena.fast : slot + layout.words), to);
  } else if (of_paper && e == vector_lz) {
    size = encode_lz(s, d, codes, c.n, width, c.window, all, to);
  } else if (of_lanes && e == dedup_sparse) {
    size = encode_sparse(s, d, c, codes, arena, reinterpret_cast<std::uint32_t*>(slot + layout.words), all, to);
  } else if (index) {
    put_index(s, d, c.n);
    const std::uint32_t head = number_bytes(s.unique), bits = (s.bits + 7) / 8;
    const auto packed = static_cast<std::uint32_t>(packed_size(s.span, std::uint64_t{s.unique} * c.dim));
    size = head + packed + bits;
    if (size < all) {
      if (threadIdx.x == 0) put_number(to, s.unique);
      put_packed(s, codes, d.unique, s.unique, c.dim, to + head);
      block_copy(to + head + packed, reinterpret_cast<const std::uint8_t*>(d.bits), bits);
    }
  }
  __syncthreads();
  if (size < all) {
    if (threadIdx.x == 0) set_flags(s, e, index ? s.form : plain);
    return static_cast<std::uint32_t>(size);
  }
  if (threadIdx.x == 0) set_flags(s, packed_codes, plain);
  put_packed(s, codes, nullptr, c.n, c.dim, to);
  return static_cast<std::uint32_t>(all);
}

// Rows of fixed rate, behind `to` or into c.self.
__device__ inline void put_fixed_rate(const DeviceChunk& c, Encoder encoder, std::uint8_t* to) {
  const std::size_t scales = scale_bytes(encoder, c.dim), codes = code_bytes(encoder, c.dim);
  for (std::size_t r = threadIdx.x / 32; r < c.n; r += block_warps)
    encode_row(encoder, c.rows + r * c.stride, c.dim, to + r * scales, to + c.n * scales + r * codes,
               c.self ? c.self + r * c.self_stride : nullptr);
}

// No loss: rows that differ, bit by bit. Returns the bytes, or 0 where the values themselves are no longer.
__device__ inline std::uint32_t encode_values(EncodeShared& s, DeviceRows& d, const DeviceChunk& c, std::uint8_t* to) {
  dedup_block(s, d, ByteRows{reinterpret_cast<const std::uint8_t*>(c.rows), 4 * std::size_t{c.stride}, 4 * c.dim, true},
              c.n);
  choose_form_block(s, d, c.n, false);
  put_index(s, d, c.n);
  const std::uint32_t head = number_bytes(s.unique), bits = (s.bits + 7) / 8;
  const std::uint64_t size = head + 4ull * s.unique * c.dim + bits;
  if (size >= 4ull * c.n * c.dim) return 0;
  if (threadIdx.x == 0) {
    put_number(to, s.unique);
    set_flags(s, dedup_values, s.form);
    s.header.flags |= without_loss;
  }
  put_values(c, d.unique, s.unique, to + head);
  block_copy(to + head + 4 * std::size_t{s.unique} * c.dim, reinterpret_cast<const std::uint8_t*>(d.bits), bits);
  return static_cast<std::uint32_t>(size);
}

__device__ inline void write_header(EncodeShared& s, std::uint8_t* slot, std::uint32_t bytes, std::uint64_t* size) {
  __syncthreads();
  if (threadIdx.x == 0) {
    s.header.bytes = bytes;
    *reinterpret_cast<ChunkHeader*>(slot) = s.header;
    std::uint32_t end = header_bytes + bytes;
    for (; end % 4; ++end) slot[end] = 0;
    *size = end;
  }
}

__device__ inline std::uint32_t outlier_bytes(const EncodeShared& s) { return s.missed ? 4 + 8 * s.missed : 0; }

// Makes the codes, or finds that the values travel as they are (row_shape of encode_chunk.cpp).
template <Family family>
__device__ inline void make_codes(const EncodeArguments& a, EncodeShared& s, const DeviceChunk& c,
                                  std::uint8_t* codes) {
  __syncthreads();  // all have read the plan that brought them here
  if (threadIdx.x == 0) {
    s.wide = c.code_width == 16 || s.span > 256;
    if (s.span > (c.code_width == 8 ? 256u : 65536u)) s.bound.plan = Plan::raw;
  }
  __syncthreads();
  if (s.bound.plan == Plan::raw) return;
  if (family == Family::lanes && codes && !s.wide && in_fours(c) && c.stride == c.dim)
    quantize_dense(s, c, a.strict, codes);
  else
    quantize_block(s, c, a.strict, codes);
  const std::uint64_t values = std::uint64_t{c.n} * c.dim;
  if (threadIdx.x == 0 && packed_size(s.span, values) + outlier_bytes(s) >= 4 * values) s.bound.plan = Plan::raw;
  __syncthreads();
}

}  // namespace trireme::coding
