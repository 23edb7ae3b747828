#include "compression/stages/sparse_rows.h"

#include "compression/stages/format.h"

#include <bit>

namespace trireme::coding {

void put_sparse(const std::uint8_t* codes, std::size_t n, std::size_t dim, std::uint32_t centre, Bytes& out) {
  const std::size_t map_bytes = sparse_map_bytes(dim), widths = out.size() + 1, maps = widths + (n + 1) / 2;
  out.push_back(static_cast<std::uint8_t>(centre));
  out.resize(maps + n * map_bytes);
  BitWriter others(out);
  for (std::size_t r = 0; r < n; ++r) {
    const std::uint8_t* row = codes + r * dim;
    std::uint32_t all = 0;
    for (std::size_t i = 0; i < dim; ++i)
      if (const std::uint32_t z = sparse_distance(row[i], centre)) {
        out[maps + r * map_bytes + i / 8] |= static_cast<std::uint8_t>(1u << i % 8);
        all |= z - 1;
      }
    const auto width = static_cast<std::uint32_t>(std::bit_width(all));
    out[widths + r / 2] |= static_cast<std::uint8_t>(width << 4 * (r % 2));
    for (std::size_t i = 0; width && i < dim; ++i)
      if (const std::uint32_t z = sparse_distance(row[i], centre)) others.write(z - 1, width);
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
  for (std::size_t r = 0; r < n; ++r)
    for (std::size_t i = 0; i < dim; ++i) {
      const bool other = maps[r * map_bytes + i / 8] >> i % 8 & 1;
      codes[r * dim + i] = sparse_code(other ? others.read(width_of(r)) + 1 : 0, centre);
    }
}

}  // namespace trireme::coding
