// How a collective combines the ranks' elements.
#pragma once
#include <cstdint>
#include <string_view>

namespace trireme {

enum class Op : std::uint8_t { sum, min, max };

std::string_view name(Op op);

}  // namespace trireme
