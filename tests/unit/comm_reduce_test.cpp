// links: comm
#include "comm/copy.h"
#include "comm/reduce.h"
#include "tests/max_difference.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include <gtest/gtest.h>

namespace trireme {
namespace {

template <class T>
std::vector<T> reduced(Op op, DType dtype, std::vector<std::vector<T>> in) {
  std::vector<const void*> pointers;
  for (auto& v : in) pointers.push_back(v.data());
  std::vector<T> out(in[0].size());
  reduce(op, dtype, out.data(), pointers, out.size());
  return out;
}

template <DType dtype>
std::uint16_t narrowed(float f) {
  std::uint16_t h;
  narrow(dtype, &f, &h, 1);
  return h;
}
template <DType dtype>
float widened(std::uint16_t h) {
  float f;
  widen(dtype, &h, &f, 1);
  return f;
}
constexpr auto f32_to_f16 = narrowed<DType::f16>, f32_to_bf16 = narrowed<DType::bf16>;
constexpr auto f16_to_f32 = widened<DType::f16>, bf16_to_f32 = widened<DType::bf16>;

float hardware(std::uint16_t bits) {
  _Float16 h;
  std::memcpy(&h, &bits, 2);
  return static_cast<float>(h);
}

TEST(Half, EveryValueWidensAsTheCompilerDoes) {
  for (std::uint32_t b = 0; b <= 0xffff; ++b) {
    const float ours = f16_to_f32(static_cast<std::uint16_t>(b)), theirs = hardware(static_cast<std::uint16_t>(b));
    if (std::isnan(theirs)) {
      EXPECT_TRUE(std::isnan(ours)) << b;
    } else {
      EXPECT_EQ(std::bit_cast<std::uint32_t>(ours), std::bit_cast<std::uint32_t>(theirs)) << b;
    }
  }
}

// Around every half and around the midpoints between halves, where rounding is decided.
TEST(Half, NarrowsToNearestEven) {
  for (std::uint32_t b = 0; b < 0x7c00; ++b) {
    const float low = hardware(static_cast<std::uint16_t>(b));
    const float high = b == 0x7bff ? 65536.0f : hardware(static_cast<std::uint16_t>(b + 1));
    const float middle = low + (high - low) / 2;
    for (float f : {low, middle, std::nextafter(middle, 0.0f), std::nextafter(middle, 1e30f)})
      for (float v : {f, -f}) {
        const _Float16 h = static_cast<_Float16>(v);
        std::uint16_t expected;
        std::memcpy(&expected, &h, 2);
        ASSERT_EQ(f32_to_f16(v), expected) << v;
      }
  }
  EXPECT_EQ(f32_to_f16(1e30f), 0x7c00);
  EXPECT_EQ(f32_to_f16(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_TRUE(std::isnan(f16_to_f32(f32_to_f16(std::nanf("")))));
}

TEST(Brain, NarrowsToNearestEven) {
  EXPECT_EQ(f32_to_bf16(1.0f), 0x3f80);
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808000u)), 0x3f80) << "a tie goes to even: down";
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f818000u)), 0x3f82) << "a tie goes to even: up";
  EXPECT_EQ(f32_to_bf16(std::bit_cast<float>(0x3f808001u)), 0x3f81);
  EXPECT_EQ(f32_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
  EXPECT_TRUE(std::isnan(bf16_to_f32(f32_to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(Reduce, SixteenBitSumsRoundOnce) {
  // 1 + 2^-8 lies half way to the next bf16 and would round down to 1, twice.
  const std::uint16_t one = f32_to_bf16(1.0f), tiny = f32_to_bf16(std::ldexp(1.0f, -8));
  const auto sum = reduced<std::uint16_t>(Op::sum, DType::bf16, {{one}, {tiny}, {tiny}});
  EXPECT_EQ(bf16_to_f32(sum[0]), 1.0f + std::ldexp(1.0f, -7));
}

TEST(Reduce, AddsInTheGivenOrder) {
  for (std::size_t inputs : {2, 3, 4, 5, 9}) {
    std::vector<std::vector<float>> in(inputs, std::vector<float>(3001));
    for (std::size_t r = 0; r < inputs; ++r)
      for (std::size_t i = 0; i < 3001; ++i)
        in[r][i] =
            std::ldexp(static_cast<float>((i * 37 + r * 101) % 997) - 498.0f, static_cast<int>((i + r * 5) % 30));
    const auto out = reduced(Op::sum, DType::f32, in);
    for (std::size_t i = 0; i < 3001; ++i) {
      float sum = in[0][i];
      for (std::size_t r = 1; r < inputs; ++r) sum += in[r][i];
      ASSERT_EQ(out[i], sum) << inputs << " inputs, element " << i;
    }
  }
}

TEST(Reduce, OutputMayBeAnyInput) {
  for (std::size_t inputs : {2, 3, 4, 6})
    for (std::size_t alias = 0; alias < inputs; ++alias) {
      std::vector<std::vector<double>> in(inputs, std::vector<double>(2500));
      for (std::size_t r = 0; r < inputs; ++r)
        for (std::size_t i = 0; i < 2500; ++i) in[r][i] = static_cast<double>(i % 113) / 7.0 + static_cast<double>(r);
      const auto expected = reduced(Op::sum, DType::f64, in);
      std::vector<const void*> pointers;
      for (auto& v : in) pointers.push_back(v.data());
      reduce(Op::sum, DType::f64, in[alias].data(), pointers, 2500);
      EXPECT_EQ(in[alias], expected) << inputs << " inputs, output over " << alias;
    }
}

TEST(Reduce, MinAndMaxPropagateNanFromAnyRank) {
  const float nan = std::nanf("");
  for (Op op : {Op::min, Op::max})
    for (std::size_t inputs : {2, 3, 4})
      for (std::size_t where = 0; where < inputs; ++where) {
        std::vector<std::vector<float>> in(inputs, std::vector<float>(20, 1.0f));
        in[where][13] = nan;
        const auto out = reduced(op, DType::f32, in);
        EXPECT_TRUE(std::isnan(out[13])) << name(op) << " " << inputs << " " << where;
        EXPECT_EQ(out[12], 1.0f);
      }
}

TEST(Reduce, IntegersWrap) {
  EXPECT_EQ(reduced<std::uint8_t>(Op::sum, DType::u8, {{200}, {100}})[0], 44);
  EXPECT_EQ(reduced<std::int32_t>(Op::sum, DType::i32, {{std::numeric_limits<std::int32_t>::max()}, {1}})[0],
            std::numeric_limits<std::int32_t>::min());
  EXPECT_EQ(reduced<std::int64_t>(Op::min, DType::i64, {{-5}, {3}, {-7}})[0], -7);
}

// What the tests judge by: no NaN is dropped, wherever it stands, and a result of nothing else passes no bound.
TEST(MaxDifference, NanStays) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  const auto worst = [](const std::vector<double>& differences) {
    double most = 0;
    for (const double d : differences) most = test::nan_max(most, d);
    return most;
  };
  EXPECT_EQ(worst({1, 3, 2}), 3);
  EXPECT_EQ(worst({1, inf, 2}), inf);
  for (const auto& differences :
       std::vector<std::vector<double>>{{nan, nan, nan}, {nan, 1, 2}, {1, nan, 2}, {1, 2, nan}})
    EXPECT_FALSE(worst(differences) <= inf);
}

TEST(Copy, EveryAlignmentAndLength) {
  std::vector<unsigned char> from(9000), to(9000);
  for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<unsigned char>(i * 31 + i / 256);
  for (std::size_t length : {0, 1, 63, 2047, 2048, 2111, 4096, 8191})
    for (std::size_t a : {0, 1, 17, 63})
      for (std::size_t b : {0, 5, 64}) {
        std::fill(to.begin(), to.end(), 0xee);
        copy_bytes(to.data() + a + 1, from.data() + b, length);
        ASSERT_EQ(std::memcmp(to.data() + a + 1, from.data() + b, length), 0) << length << " " << a << " " << b;
        ASSERT_EQ(to[a], 0xee);
        ASSERT_EQ(to[a + 1 + length], 0xee);
      }
}

}  // namespace
}  // namespace trireme
