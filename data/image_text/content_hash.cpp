#include "data/image_text/content_hash.h"

#include <bit>
#include <cstdio>
#include <cstring>

namespace trireme {

// Two lanes, each a bijection of its state for any word and of the word for any state.
void ContentHash::stir(std::uint64_t word) {
  a_ = std::rotl(a_ ^ word, 29) * 0x9fb21c651e98df25ull;
  b_ = (std::rotl(b_, 23) + word) * 0xd6e8feb86659fd93ull;
  b_ ^= b_ >> 32;
}

void ContentHash::add(const void* data, std::size_t bytes) {
  const auto* p = static_cast<const unsigned char*>(data);
  std::uint64_t word = 0;
  std::size_t i = 0;
  for (; i + sizeof word <= bytes; i += sizeof word) {
    std::memcpy(&word, p + i, sizeof word);
    stir(word);
  }
  word = 0;
  if (i < bytes) std::memcpy(&word, p + i, bytes - i);
  stir(word);
  stir(bytes);
}

void ContentHash::add(const ContentHash& other) {
  stir(other.a_);
  stir(other.b_);
}

std::array<std::uint64_t, 2> ContentHash::words() const {
  ContentHash last = *this;
  for (int i = 0; i < 3; ++i) last.stir(std::rotl(last.b_, 31) ^ last.a_);
  return {last.a_, last.b_};
}

std::string ContentHash::hex() const {
  const auto [a, b] = words();
  char text[33];
  std::snprintf(text, sizeof text, "%016llx%016llx", static_cast<unsigned long long>(a),
                static_cast<unsigned long long>(b));
  return text;
}

}  // namespace trireme
