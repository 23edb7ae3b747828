// "Did you mean": the nearest known word.
#pragma once
#include <span>
#include <string>
#include <string_view>

namespace trireme {

// The candidate nearest to `word` by edit distance, or "" if none is near.
std::string nearest(std::string_view word, std::span<const std::string> candidates);

}  // namespace trireme
