// Captions as users wrote them, to one spelling; and which of them are held out.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace trireme {

inline constexpr std::size_t max_caption_characters = 1000;

// White space collapsed, control characters gone. `cut`: more than the most that is kept was there.
std::string clean_caption(std::string_view utf8, bool& cut);

// UTF-8, UTF-16 or Latin-1 to the same; empty where it is no text or holds none.
std::string caption_of(std::string_view bytes);

// A caption's place among all, by its hash, even over 32 bits, so that a split stays the same when a set
// grows.
std::uint32_t caption_draw(std::string_view caption);
// Captions whose draw is less are held out: that share of all, 0 to 1.
std::uint64_t held_out_draw(double share);

}  // namespace trireme
