#include "compression/stages/sparse_rows.h"

#include "comm/clones.h"
#include "compression/stages/format.h"

#include <bit>
#include <cstring>

namespace trireme::coding {
namespace {

constexpr std::uint64_t ones = 0x0101010101010101u;

TRIREME_CLONES void distances(const std::uint8_t* row, std::size_t dim, std::uint8_t centre, std::uint8_t* to) {
  for (std::size_t i = 0; i < dim; ++i) {
    const auto d = static_cast<std::uint8_t>(row[i] - centre);
    to[i] = static_cast<std::uint8_t>(static_cast<std::uint8_t>(d << 1) ^ (d & 128 ? 255 : 0));
  }
}

// Eight distances: a bit each says which are not 0, and those become less by 1.
std::uint8_t map_of(std::uint8_t* eight) {
  std::uint64_t all;
  std::memcpy(&all, eight, 8);
  const std::uint64_t others = (((all & 0x7f * ones) + 0x7f * ones) | all) >> 7 & ones;
  all -= others;
  std::memcpy(eight, &all, 8);
  return static_cast<std::uint8_t>(others * 0x0102040810204080u >> 56);
}

}  // namespace

void put_sparse(const std::uint8_t* codes, std::size_t n, std::size_t dim, std::uint32_t centre, Bytes& out) {
  const std::size_t map_bytes = sparse_map_bytes(dim), widths = out.size() + 1, maps = widths + (n + 1) / 2;
  out.push_back(static_cast<std::uint8_t>(centre));
  out.resize(maps + n * map_bytes);
  BitWriter others(out);
  Bytes row(8 * map_bytes);
  for (std::size_t r = 0; r < n; ++r) {
    distances(codes + r * dim, dim, static_cast<std::uint8_t>(centre), row.data());
    std::uint8_t* const map = out.data() + maps + r * map_bytes;
    std::uint64_t all = 0;
    for (std::size_t b = 0; b < map_bytes; ++b) {
      map[b] = map_of(row.data() + 8 * b);
      std::uint64_t eight;
      std::memcpy(&eight, row.data() + 8 * b, 8);
      all |= eight;
    }
    all |= all >> 32, all |= all >> 16, all |= all >> 8;
    const auto width = static_cast<std::uint32_t>(std::bit_width(all & 255));
    out[widths + r / 2] |= static_cast<std::uint8_t>(width << 4 * (r % 2));
    for (std::size_t b = 0; width && b < map_bytes; ++b)
      for (unsigned left = out[maps + r * map_bytes + b]; left; left &= left - 1)
        others.write(row[8 * b + static_cast<std::size_t>(std::countr_zero(left))], width);
    std::memset(row.data() + 8 * (map_bytes - 1), 0, 8);  // what lies behind the row stays 0
  }
  others.finish();
}

void take_sparse(Reader& in, std::size_t n, std::size_t dim, std::uint8_t* codes) {
  const std::size_t map_bytes = sparse_map_bytes(dim);
  const std::uint32_t centre = in.get<std::uint8_t>();
  const auto widths = in.take((n + 1) / 2), maps = in.take(n * map_bytes);
  const auto width_of = [&](std::size_t r) { return static_cast<std::uint32_t>(widths[r / 2]) >> 4 * (r % 2) & 15; };
  std::uint64_t bits = 0;
  for (std::size_t r = 0; r < n; ++r) {
    const auto map = maps.subspan(r * map_bytes, map_bytes);
    if (width_of(r) > 8) bad_stream("a code has too many bits");
    if (dim % 8 && map.back() >> dim % 8) bad_stream("a row has more codes than it is long");
    std::uint32_t others = 0;
    for (const std::uint8_t b : map) others += static_cast<std::uint32_t>(std::popcount(b));
    bits += std::uint64_t{others} * width_of(r);
  }
  BitReader others(in.take(bytes_of_bits(bits)));
  std::memset(codes, static_cast<int>(centre), n * dim);
  for (std::size_t r = 0; r < n; ++r) {
    const std::uint32_t width = width_of(r);
    for (std::size_t b = 0; b < map_bytes; ++b)
      for (unsigned left = maps[r * map_bytes + b]; left; left &= left - 1)
        codes[r * dim + 8 * b + static_cast<std::size_t>(std::countr_zero(left))] =
            sparse_code(others.read(width) + 1, centre);
  }
}

}  // namespace trireme::coding
