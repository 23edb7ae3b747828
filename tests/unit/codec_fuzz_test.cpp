// links: comm
// What comes from another rank may be anything: an error, or exactly rows x dim values, finite unless the header says
// that they need not be; never a byte outside (the dev preset watches). TRIREME_FUZZ=N: N payloads (default 100,000);
// TRIREME_PART=K: others than those of part 0 (tests/nightly).
#include "comm/error.h"
#include "tests/unit/codec_rows.h"

#include <cstdlib>
#include <cstring>
#include <iostream>

#include <gtest/gtest.h>

namespace trireme::test {
namespace {

std::size_t payloads() {
  const char* n = std::getenv("TRIREME_FUZZ");
  return n ? std::size_t(std::atoll(n)) : 100000;
}

struct Sample {
  std::string codec;
  std::size_t n, dim;
  Coded code;
};

// Every encoder, form of index and width, at sizes where each part counts.
std::vector<Sample> samples(bool checksum) {
  std::vector<Sample> all;
  for (const auto& codec : Bounded::names())
    for (const auto& [kind, n, dim, rel] :
         {std::tuple{"embedding", 40, 8, 0.03f}, std::tuple{"few", 70, 16, 0.03f}, std::tuple{"shifted", 20, 5, 0.01f},
          std::tuple{"normal", 9, 7, 0.0005f}, std::tuple{"few", 33, 4, 0.0f}, std::tuple{"uniform", 1, 3, 0.5f}}) {
      BoundedOptions o;
      o.codec = codec;
      o.checksum = checksum;
      o.code_width = n == 20 ? 16 : 0;
      all.push_back(
          {codec, std::size_t(n), std::size_t(dim),
           encode(o, make_rows(kind, std::size_t(n), std::size_t(dim), 3), std::size_t(n), std::size_t(dim), rel)});
    }
  return all;
}

// True: it was refused.
bool decode_bad(std::vector<std::uint8_t> code, const Sample& s, bool checksum) {
  BoundedOptions o;
  o.checksum = checksum;
  code.shrink_to_fit();
  std::vector<float> rows(s.n * s.dim, std::nanf(""));
  const CodedChunk chunk{code.data(), code.size(), rows.data(), s.n, s.dim};
  try {
    Bounded(o).decode({&chunk, 1});
  } catch (const CommError&) {
    return true;
  }
  const bool any = inspect(code).nonfinite;
  for (const float x : rows) EXPECT_TRUE(any || std::isfinite(x)) << s.codec;
  return false;
}

TEST(CodecFuzz, BadPayloadsAreRefusedOrDecoded) {
  std::mt19937_64 random(5 + std::uint64_t(part_of_night()));
  const auto all = samples(false);
  const std::size_t n = payloads();
  std::size_t refused = 0;
  for (std::size_t t = 0; t < n; ++t) {
    const Sample& s = all[t % all.size()];
    auto code = s.code.code;
    switch (random() % 5) {
      case 0:  // a bit
        code[random() % code.size()] ^= std::uint8_t(1u << random() % 8);
        break;
      case 1:  // bytes of the payload: the header stays good
        for (int k = 0; k < 4 && code.size() > 20; ++k)
          code[20 + random() % (code.size() - 20)] = std::uint8_t(random());
        break;
      case 2: {  // cut, with a header that knows it
        code.resize(20 + random() % (code.size() - 19));
        while (code.size() % 4) code.pop_back();
        const auto bytes = std::uint32_t(code.size() - 20);
        std::memcpy(code.data(), &bytes, 4);
        break;
      }
      case 3:  // another encoder reads it
        code[4] = std::uint8_t(random() % 16), code[6] = std::uint8_t(random() & 63 & ~16), code[5] = code[5] ? 8 : 0;
        break;
      default:  // anything behind a good header
        for (std::size_t i = 20; i < code.size(); ++i) code[i] = std::uint8_t(random());
    }
    refused += decode_bad(std::move(code), s, false);
    if (HasFailure()) FAIL() << "payload " << t;
  }
  EXPECT_GT(refused, n / 3);
  std::cout << n << " payloads of part " << part_of_night() << ", " << refused << " refused\n";
}

TEST(CodecFuzz, ACutCodeIsRefused) {
  for (const auto& s : samples(false))
    for (std::size_t bytes = 0; bytes < s.code.code.size(); ++bytes)
      EXPECT_TRUE(decode_bad({s.code.code.begin(), s.code.code.begin() + std::ptrdiff_t(bytes)}, s, false)) << s.codec;
}

TEST(CodecFuzz, AChecksumReportsEveryFlippedBit) {
  for (const auto& s : samples(true))
    for (std::size_t bit = 0; bit < 8 * std::min<std::size_t>(s.code.code.size(), 300); ++bit) {
      auto code = s.code.code;
      code[bit / 8] ^= std::uint8_t(1u << bit % 8);
      ASSERT_TRUE(decode_bad(std::move(code), s, true)) << s.codec << ", bit " << bit;
    }
}

TEST(CodecFuzz, AnErrorNamesTheChunk) {
  const auto all = samples(false);
  std::vector<float> rows(all[0].n * all[0].dim);
  std::vector<std::uint8_t> bad = all[0].code.code;
  bad[7] = 9;
  const CodedChunk chunks[] = {{all[0].code.code.data(), all[0].code.code.size(), rows.data(), all[0].n, all[0].dim},
                               {bad.data(), bad.size(), rows.data(), all[0].n, all[0].dim}};
  try {
    Bounded({}).decode(chunks);
    FAIL();
  } catch (const CommError& e) {
    EXPECT_NE(std::string(e.what()).find("chunk 1"), std::string::npos) << e.what();
    EXPECT_NE(std::string(e.what()).find("version 9"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace trireme::test
