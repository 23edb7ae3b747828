#include "comm/crc32c.h"

#include <numeric>
#include <string>
#include <vector>

#include <gtest/gtest.h>

namespace trireme {
namespace {

// Bit by bit from the definition: the polynomial 0x1EDC6F41, reflected.
std::uint32_t reference(const unsigned char* p, std::size_t n) {
  std::uint32_t c = ~0u;
  for (std::size_t i = 0; i < n; ++i)
    for (int bit = 0; bit < 8; ++bit) {
      const bool one = ((p[i] >> bit) & 1) != (c & 1);
      c = (c >> 1) ^ (one ? 0x82F63B78u : 0);
    }
  return ~c;
}

TEST(Crc32c, KnownVectors) {  // RFC 3720, B.4
  EXPECT_EQ(crc32c("123456789", 9), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0').data(), 32), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xff').data(), 32), 0x62A8AB43u);
  std::vector<unsigned char> up(32);
  std::iota(up.begin(), up.end(), 0);
  EXPECT_EQ(crc32c(up.data(), 32), 0x46DD794Eu);
  EXPECT_EQ(crc32c(nullptr, 0), 0u);
}

TEST(Crc32c, AnyLengthAndAlignmentEqualsTheDefinition) {
  std::vector<unsigned char> data(300);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<unsigned char>(i * i + 17 * i);
  for (std::size_t at = 0; at < 9; ++at)
    for (std::size_t n = 0; n + at <= data.size(); n += 1 + n / 7)
      EXPECT_EQ(crc32c(data.data() + at, n), reference(data.data() + at, n)) << at << " " << n;
}

TEST(Crc32c, LongOnesAreSummedSideBySideAndEqualTheDefinition) {
  std::vector<unsigned char> data(40000);
  for (std::size_t i = 0; i < data.size(); ++i) data[i] = static_cast<unsigned char>(i * i + (i >> 7) + 17 * i);
  for (std::size_t at : {0, 1, 5})
    for (std::size_t n : {12287, 12288, 12289, 24576, 24583, 36864, 39990})
      EXPECT_EQ(crc32c(data.data() + at, n), reference(data.data() + at, n)) << at << " " << n;
}

TEST(Crc32c, PiecesAddUpThroughTheSeed) {
  std::string s(1000, 'x');
  for (std::size_t i = 0; i < s.size(); ++i) s[i] = char(i * 7);
  for (std::size_t cut : {0, 1, 7, 8, 500, 999, 1000})
    EXPECT_EQ(crc32c(s.data() + cut, s.size() - cut, crc32c(s.data(), cut)), crc32c(s.data(), s.size()));
}

}  // namespace
}  // namespace trireme
