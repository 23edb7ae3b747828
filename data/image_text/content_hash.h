// 128 bits that tell contents apart. Against accidents, not against forgers.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace trireme {

class ContentHash {
 public:
  // The next part; where one part ends and the next begins counts too.
  void add(const void* data, std::size_t bytes);
  void add(const ContentHash& other);
  std::string hex() const;                     // 32 digits
  std::array<std::uint64_t, 2> words() const;  // the same

 private:
  void stir(std::uint64_t word);
  std::uint64_t a_ = 0x9e3779b97f4a7c15ull, b_ = 0xc2b2ae3d27d4eb4full;
};

}  // namespace trireme
