// Rows of 8-bit codes of which many are `centre`, the code of zero: a bit a code says which are not, and those take as
// many bits as the row's largest needs. No table and no order among rows, so a GPU codes all of them at once.
#pragma once
#include "compression/stages/bytes.h"

#include <cstddef>

namespace trireme::coding {

// codes [n x dim], n and dim at least 1.
void put_sparse(const std::uint8_t* codes, std::size_t n, std::size_t dim, std::uint32_t centre, Bytes& out);
// The reverse, from the beginning of `in`. Throws BadStream.
void take_sparse(Reader& in, std::size_t n, std::size_t dim, std::uint8_t* codes);

}  // namespace trireme::coding
