// Classes of rows whose codes have frequencies of their own (format.h: class_of), for rANS.
#pragma once
#include "compression/stages/symbols.h"

namespace trireme::coding {

struct RowClasses {
  std::uint32_t classes = 1;  // 1, 2 or 4
  Bytes of_row;               // empty for one class
  std::array<SymbolCounts, most_classes> counts;
};
// n rows of dim codes; centre: the code of zero. As many classes as ought to be the smallest.
RowClasses choose_classes(const std::uint8_t* codes, std::uint32_t n, std::uint32_t dim, std::uint32_t centre);

}  // namespace trireme::coding
