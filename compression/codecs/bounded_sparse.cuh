// Sparse rows (stages/sparse_rows.cpp), both ways: a thread takes eight codes of a row, a byte of its map.
#pragma once
#include "compression/stages/block.cuh"
#include "compression/stages/format.h"

namespace trireme::coding {

// Distances (sparse_code) of four codes, byte by byte.
__device__ inline std::uint32_t sparse_distances(std::uint32_t codes, std::uint32_t centres) {
  const std::uint32_t d = __vsub4(codes, centres);
  return (d << 1 & 0xfefefefeu) ^ (d >> 7 & 0x01010101u) * 255u;
}

struct SparseGroup {
  std::uint32_t distance[2];  // less 1; 0 at the centre
  std::uint32_t map;          // a bit a code
};
// Eight codes of a row, or as many as are left. words: rows are multiples of eight.
__device__ inline SparseGroup sparse_group(const std::uint8_t* row, std::uint32_t column, std::uint32_t dim, bool words,
                                           std::uint32_t centre) {
  const std::uint32_t centres = centre * 0x01010101u;
  std::uint32_t four[2] = {centres, centres};
  if (words) {
    const uint2 both = *reinterpret_cast<const uint2*>(row + column);
    four[0] = both.x, four[1] = both.y;
  } else {
    for (std::uint32_t k = 0; k < 8 && column + k < dim; ++k) {
      const std::uint32_t shift = k % 4 * 8, old = four[k / 4] & ~(255u << shift);
      four[k / 4] = old | static_cast<std::uint32_t>(row[column + k]) << shift;
    }
  }
  SparseGroup g{{0, 0}, 0};
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const std::uint32_t z = sparse_distances(four[h], centres),
                        others = (((z & 0x7f7f7f7fu) + 0x7f7f7f7fu) | z) >> 7 & 0x01010101u;
    g.distance[h] = z - others;
    g.map |= (others * 0x01020408u >> 24 & 15) << (4 * h);
  }
  return g;
}

// Bits of the maps of a row before byte `column`.
__device__ inline std::uint32_t sparse_before(const std::uint8_t* map, std::uint32_t column) {
  std::uint32_t n = 0;
  for (std::uint32_t k = 0; k < column; ++k) n += __popc(map[k]);
  return n;
}

struct SparseRows {
  const std::uint8_t* codes;
  const std::uint32_t* rows;  // row u is the rows[u]-th of `codes`
  std::uint32_t n, dim, centre;
  std::uint32_t* first;  // [n] scratch: where the others of a row begin, in bits
  std::uint8_t* width;   // [n] scratch
};
__device__ inline std::uint32_t sparse_fixed_bytes(std::uint32_t n, std::uint32_t dim) {
  return static_cast<std::uint32_t>(1 + (n + 1) / 2 + n * sparse_map_bytes(dim));
}

// Centre, widths and maps. Returns the bits of what follows.
__device__ inline std::uint32_t put_sparse_maps(const SparseRows& s, std::uint32_t* sums, std::uint8_t* to) {
  const auto bytes = static_cast<std::uint32_t>(sparse_map_bytes(s.dim));
  std::uint8_t* const maps = to + 1 + (s.n + 1) / 2;
  const bool words = s.dim % 8 == 0;
  for (std::uint32_t u = threadIdx.x; u < s.n; u += block_threads) s.first[u] = 0;
  __syncthreads();
  Walk at(bytes);
  for (std::uint32_t i = threadIdx.x; i < s.n * bytes; i += block_threads, at.next()) {
    const SparseGroup g =
        sparse_group(s.codes + std::size_t{s.rows[at.row]} * s.dim, 8 * at.column, s.dim, words, s.centre);
    maps[i] = static_cast<std::uint8_t>(g.map);
    std::uint32_t all = g.distance[0] | g.distance[1];
    all |= all >> 16, all |= all >> 8, all &= 255;
    if (all) atomicOr(&s.first[at.row], all);
  }
  __syncthreads();
  std::uint32_t bits = 0;
  for (std::uint32_t begin = 0; begin < s.n; begin += block_threads) {
    const std::uint32_t u = begin + threadIdx.x;
    std::uint32_t width = 0, own = 0, total;
    if (u < s.n) {
      width = s.first[u] ? floor_log2(s.first[u]) + 1 : 0;
      own = width ? width * sparse_before(maps + std::size_t{u} * bytes, bytes) : 0;
    }
    const std::uint32_t before = bits + block_scan(own, sums, total);
    if (u < s.n) s.first[u] = before, s.width[u] = static_cast<std::uint8_t>(width);
    bits += total;
  }
  __syncthreads();
  if (threadIdx.x == 0) to[0] = static_cast<std::uint8_t>(s.centre);
  for (std::uint32_t i = threadIdx.x; i < (s.n + 1) / 2; i += block_threads)
    to[1 + i] = static_cast<std::uint8_t>(s.width[2 * i] | (2 * i + 1 < s.n ? s.width[2 * i + 1] << 4 : 0));
  return bits;
}

// What follows the maps, into `words`, which are 0.
__device__ inline void put_sparse_others(const SparseRows& s, const std::uint8_t* maps, std::uint32_t* words) {
  const auto bytes = static_cast<std::uint32_t>(sparse_map_bytes(s.dim));
  const bool in_words = s.dim % 8 == 0;
  Walk at(bytes);
  for (std::uint32_t i = threadIdx.x; i < s.n * bytes; i += block_threads, at.next()) {
    const std::uint32_t width = s.width[at.row];
    if (width == 0) continue;
    const SparseGroup g =
        sparse_group(s.codes + std::size_t{s.rows[at.row]} * s.dim, 8 * at.column, s.dim, in_words, s.centre);
    const std::uint32_t first = s.first[at.row] + width * sparse_before(maps + i - at.column, at.column);
    std::uint64_t held = 0;
    std::uint32_t filled = 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      held |= static_cast<std::uint64_t>(g.distance[k / 4] >> (k % 4 * 8) & 255) << filled;
      filled += g.map >> k & 1 ? width : 0;
    }
    put_bits(words, first, static_cast<std::uint32_t>(held), 32);
    put_bits(words, std::uint64_t{first} + 32, static_cast<std::uint32_t>(held >> 32), 32);
  }
}

// ---- and back ----

// Row by row where its others begin, into first[n]; their bits in all. False: no encoder makes such rows.
__device__ inline bool sparse_bits(const std::uint8_t* widths, std::uint32_t n, std::uint32_t dim, std::uint32_t* sums,
                                   std::uint32_t* first, std::uint32_t& bits) {
  const auto bytes = static_cast<std::uint32_t>(sparse_map_bytes(dim));
  const std::uint8_t* const maps = widths + (n + 1) / 2;
  bool good = true;
  bits = 0;
  for (std::uint32_t begin = 0; begin < n; begin += block_threads) {
    const std::uint32_t u = begin + threadIdx.x;
    std::uint32_t own = 0, total;
    if (u < n) {
      const std::uint8_t* const map = maps + std::size_t{u} * bytes;
      const std::uint32_t width = widths[u / 2] >> (4 * (u % 2)) & 15;
      good = good && width <= 8 && (dim % 8 == 0 || map[bytes - 1] >> dim % 8 == 0);
      own = width * sparse_before(map, bytes);
    }
    const std::uint32_t before = bits + block_scan(own, sums, total);
    if (u < n) first[u] = before;
    bits += total;
  }
  return __syncthreads_and(good);
}

// `count` others of `width` bits, 32 bits at most, the first lowest.
__device__ inline std::uint32_t sparse_field(const std::uint8_t* bytes, std::uint32_t bit, std::uint32_t width,
                                             std::uint32_t count) {
  std::uint64_t held = 0;
  const std::uint32_t first = bit / 8, n = (bit % 8 + width * count + 7) / 8;
  for (std::uint32_t k = 0; k < n; ++k) held |= static_cast<std::uint64_t>(bytes[first + k]) << (8 * k);
  return static_cast<std::uint32_t>(held >> (bit % 8));
}

// The codes [n x dim].
__device__ inline void take_sparse_rows(const std::uint8_t* widths, const std::uint8_t* others,
                                        const std::uint32_t* first, std::uint32_t n, std::uint32_t dim,
                                        std::uint32_t centre, std::uint8_t* codes) {
  const auto bytes = static_cast<std::uint32_t>(sparse_map_bytes(dim));
  const std::uint8_t* const maps = widths + (n + 1) / 2;
  const bool words = dim % 8 == 0;
  Walk at(bytes);
  for (std::uint32_t i = threadIdx.x; i < n * bytes; i += block_threads, at.next()) {
    const std::uint32_t map = maps[i], width = widths[at.row / 2] >> (4 * (at.row % 2)) & 15, mask = (1u << width) - 1;
    std::uint32_t bit = first[at.row] + (width ? width * sparse_before(maps + i - at.column, at.column) : 0);
    const bool together = width <= 4;  // all of them in 32 bits
    std::uint32_t held = together && width ? sparse_field(others, bit, width, __popc(map)) : 0, four[2] = {0, 0};
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const bool other = map >> k & 1;
      const std::uint32_t field = together ? held & mask : other ? get_bits(others, bit, width) : 0;
      held >>= other && together ? width : 0;
      bit += width * (other ? 1 : 0);
      four[k / 4] |= static_cast<std::uint32_t>(sparse_code(other ? field + 1 : 0, centre)) << (k % 4 * 8);
    }
    std::uint8_t* const to = codes + std::size_t{at.row} * dim + 8 * at.column;
    if (words) {
      *reinterpret_cast<uint2*>(to) = make_uint2(four[0], four[1]);
    } else {
      for (std::uint32_t k = 0; k < 8 && 8 * at.column + k < dim; ++k)
        to[k] = static_cast<std::uint8_t>(four[k / 4] >> (k % 4 * 8));
    }
  }
}

}  // namespace trireme::coding
