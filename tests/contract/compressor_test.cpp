// links: comm
// What compressor.h and collectives.h promise, for every registered codec.
#include "comm/device.h"
#include "comm/error.h"
#include "comm/local/loopback.h"
#include "comm/wrappers/traced.h"
#include "compression/collectives.h"
#include "tests/max_difference.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <numeric>
#include <random>

#include <gtest/gtest.h>

namespace trireme {
namespace {

using Values = std::vector<float>;

Values normal(std::size_t n, float scale, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> d(0, scale);
  Values v(n);
  for (auto& x : v) x = d(random);
  return v;
}

// Gradients as they are met, and as they should not be.
std::vector<Values> inputs(std::size_t n) {
  std::vector<Values> all = {normal(n, 1e-3f, 1), normal(n, 30, 2), Values(n, 0), Values(n, -7.25f)};
  Values heavy = normal(n, 1, 3);
  for (std::size_t i = 0; i < n; ++i) heavy[i] = std::copysign(std::exp(4 * heavy[i]), heavy[i]);
  all.push_back(heavy);
  Values tiny = normal(n, 1e-41f, 4), huge = normal(n, 1e37f, 5);
  all.push_back(tiny);
  all.push_back(huge);
  return all;
}

// The largest error as a share of the largest magnitude of 128 values.
float precision(const std::string& codec) {
  return codec == "fp8" ? 1 / 28.0f : codec == "int4" ? 1 / 14.0f : 1 / 254.0f;
}

struct Code {
  std::vector<std::uint8_t> bytes;
  std::vector<std::uint64_t> sizes;
};

Code encode(Compressor& c, const std::vector<Values>& chunks, double bound) {
  std::vector<Chunk> in;
  std::size_t room = 0;
  for (const auto& v : chunks) {
    in.push_back({{v.data(), v.size(), DType::f32}, bound});
    room += c.max_bytes(v.size());
  }
  Code code{std::vector<std::uint8_t>(room), std::vector<std::uint64_t>(chunks.size())};
  c.encode(in, {code.bytes.data(), room, DType::u8}, {code.sizes.data(), code.sizes.size(), DType::i64});
  const auto used = std::accumulate(code.sizes.begin(), code.sizes.end(), std::size_t{0});
  EXPECT_LE(used, room);
  code.bytes.resize(used);
  return code;
}

std::vector<Values> decode(const Compressor& c, const Code& code, const std::vector<std::size_t>& counts) {
  std::vector<Values> out;
  for (const auto n : counts) out.emplace_back(n, -1.0f);
  std::vector<Buffer> buffers;
  for (auto& v : out) buffers.push_back({v.data(), v.size(), DType::f32});
  c.decode({code.bytes.data(), code.bytes.size(), DType::u8}, code.sizes, buffers);
  return out;
}

class CompressorContract : public testing::TestWithParam<std::string> {
 protected:
  std::unique_ptr<Compressor> codec = Compressors::create(GetParam());
};

TEST_P(CompressorContract, SizesAndChunks) {
  for (const std::size_t n : {0u, 1u, 31u, 32u, 33u, 255u, 256u, 257u, 5000u}) {
    const std::vector<Values> chunks = {normal(n, 1, 1), normal(3, 1, 2), {}, normal(n + 1, 5, 3)};
    const Code all = encode(*codec, chunks, 1e-3);
    std::size_t first = 0;
    for (std::size_t k = 0; k < chunks.size(); ++k) {
      if (codec->fixed_size()) {
        EXPECT_EQ(all.sizes[k], codec->max_bytes(chunks[k].size()));
      }
      const Code alone = encode(*codec, {chunks[k]}, 1e-3);  // a chunk's code does not depend on its neighbours
      ASSERT_EQ(alone.sizes[0], all.sizes[k]);
      EXPECT_TRUE(std::equal(alone.bytes.begin(), alone.bytes.end(), all.bytes.begin() + std::ptrdiff_t(first)));
      first += all.sizes[k];
    }
    const auto back = decode(*codec, all, {n, 3, 0, n + 1});
    for (std::size_t k = 0; k < chunks.size(); ++k)
      EXPECT_EQ(decode(*codec, encode(*codec, {chunks[k]}, 1e-3), {chunks[k].size()})[0], back[k]);
  }
}

TEST_P(CompressorContract, TheBoundHolds) {
  if (!codec->bounded()) GTEST_SKIP() << "makes no promise";
  for (const double bound : {1e-7, 1e-4, 0.05, 3.0})
    for (const auto& in : inputs(4099)) {
      const Values out = decode(*codec, encode(*codec, {in}, bound), {in.size()})[0];
      for (std::size_t i = 0; i < in.size(); ++i)
        ASSERT_LE(std::abs(double(in[i]) - double(out[i])), bound) << in[i] << " became " << out[i];
    }
}

TEST_P(CompressorContract, BoundZeroOfABoundedCodecIsExact) {
  if (!codec->bounded()) GTEST_SKIP() << "makes no promise";
  for (const auto& in : inputs(1000)) EXPECT_EQ(decode(*codec, encode(*codec, {in}, 0), {in.size()})[0], in);
}

TEST_P(CompressorContract, RelativeErrorIsSmallInTheBlock) {
  const Values in = normal(256, 0.01f, 7);
  const float largest =
      std::abs(*std::max_element(in.begin(), in.end(), [](float a, float b) { return std::abs(a) < std::abs(b); }));
  const float share = precision(GetParam());
  const Values out = decode(*codec, encode(*codec, {in}, largest * share), {in.size()})[0];
  for (std::size_t i = 0; i < in.size(); ++i) EXPECT_NEAR(out[i], in[i], 1.004f * largest * share);
}

TEST_P(CompressorContract, NonFiniteStaysNonFinite) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), std::nanf("")}) {
    Values in = normal(700, 1, 8);
    in[300] = bad;
    const Values out = decode(*codec, encode(*codec, {in}, 0.1), {in.size()})[0];
    EXPECT_FALSE(std::isfinite(out[300])) << bad;
  }
}

TEST_P(CompressorContract, ErrorIsWhatTheCodeLost) {
  for (Values in : inputs(700)) {
    in[300] = std::nanf("");
    Values error = normal(in.size(), 1e-3f, 12);
    const std::size_t room = codec->max_bytes(in.size());
    std::vector<std::uint8_t> bytes(room), plain(room);
    std::uint64_t size = 0, plain_size = 0;
    Values whole(in);
    for (std::size_t i = 0; i < in.size(); ++i) whole[i] += error[i];
    const Chunk with{{in.data(), in.size(), DType::f32}, 0.05, error.data()},
        without{{whole.data(), in.size(), DType::f32}, 0.05};
    codec->encode({&with, 1}, {bytes.data(), room, DType::u8}, {&size, 1, DType::i64});
    codec->encode({&without, 1}, {plain.data(), room, DType::u8}, {&plain_size, 1, DType::i64});
    EXPECT_EQ(size, plain_size);
    EXPECT_EQ(bytes, plain);
    const Values out = decode(*codec, {bytes, {size}}, {in.size()})[0];
    for (std::size_t i = 0; i < in.size(); ++i) {
      const float lost = whole[i] - out[i];
      ASSERT_EQ(error[i], std::isfinite(lost) ? lost : 0) << i << ": " << in[i];
    }
  }
}

TEST_P(CompressorContract, DecodeSumIsTheSumInOrder) {
  for (const std::size_t n : {0u, 1u, 257u, 1000u}) {
    std::vector<Code> codes;
    std::vector<ConstBuffer> buffers;
    for (unsigned k = 0; k < 11; ++k) codes.push_back(encode(*codec, {normal(n, 1, 20 + k)}, 0.01));
    for (const auto& c : codes) buffers.push_back({c.bytes.data(), c.bytes.size(), DType::u8});
    Values expected(n), sum(n, 99.0f);
    for (std::size_t k = 0; k < codes.size(); ++k) {
      const Values one = decode(*codec, codes[k], {n})[0];
      for (std::size_t i = 0; i < n; ++i) expected[i] = k == 0 ? one[i] : expected[i] + one[i];
    }
    codec->decode_sum(buffers, {sum.data(), n, DType::f32});
    EXPECT_EQ(sum, expected);
    if (n == 0) continue;
    buffers[2].count -= 1;  // a code that ends too early
    EXPECT_THROW(codec->decode_sum(buffers, {sum.data(), n, DType::f32}), CommError);
  }
}

// Bytes come from another rank: whatever they are, nothing outside the output is written, and nothing else than
// CommError thrown.
TEST_P(CompressorContract, GarbageIsRefusedOrDecoded) {
  std::mt19937 random(11);
  const std::size_t n = 333, guard = 64;
  const Code good = encode(*codec, {normal(n, 1, 9)}, 1e-3);
  int refused = 0;
  for (int trial = 0; trial < 3000; ++trial) {
    Code bad = good;
    if (trial % 3 == 0) {
      for (auto& b : bad.bytes) b = std::uint8_t(random());
    } else if (trial % 3 == 1) {
      for (int k = 0; k < 8; ++k) bad.bytes[random() % bad.bytes.size()] ^= std::uint8_t(1u << (random() % 8));
    } else {
      bad.sizes[0] = random() % 2 ? random() % (bad.bytes.size() + 1) : (std::uint64_t(random()) << 32 | random());
      if (bad.sizes[0] < bad.bytes.size()) bad.bytes.resize(bad.sizes[0]);
    }
    Values out(n + guard, 42.0f);
    const Buffer b{out.data(), n, DType::f32};
    try {
      codec->decode({bad.bytes.data(), bad.bytes.size(), DType::u8}, bad.sizes, {&b, 1});
    } catch (const CommError&) {
      ++refused;
    }
    for (std::size_t i = n; i < out.size(); ++i) ASSERT_EQ(out[i], 42.0f);
  }
  EXPECT_GT(refused, 500);  // at least those whose size is a lie
}

// ---- on a device ----

// A copy in memory of device 0, on a stream of its own.
class Device {
 public:
  static Place place() {
    static const auto stream = device_runtime()->stream();
    return {0, stream.get()};
  }
  explicit Device(std::size_t bytes) : bytes_(bytes), memory_(device_runtime()->memory(bytes + 1)) {}
  template <class T>
  explicit Device(const std::vector<T>& host) : Device(host.size() * sizeof(T)) {
    if (bytes_) device_runtime()->copy(data(), host.data(), bytes_, place());
  }
  void* data() const { return memory_.get(); }
  template <class T>
  std::vector<T> read() const {
    std::vector<T> host(bytes_ / sizeof(T));
    if (bytes_) device_runtime()->copy(host.data(), data(), bytes_, place());
    return host;
  }

 private:
  std::size_t bytes_;
  std::shared_ptr<void> memory_;
};

// Bit by bit; which NaN a sum gives is the processor's choice.
std::size_t different(const Values& a, const Values& b) {
  std::size_t n = a.size() == b.size() ? 0 : 1;
  for (std::size_t i = 0; i < std::min(a.size(), b.size()); ++i)
    n += std::memcmp(&a[i], &b[i], sizeof(float)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]));
  return n;
}

// What one place makes of values and the error of the last time.
struct Coded {
  std::vector<std::uint8_t> code;
  Values error, values, sum;
};

// Absolute, of a codec that heeds it.
constexpr double device_bound = 1e-3;

Coded on_host(Compressor& c, const Values& in, const Values& before, std::size_t codes) {
  Coded r{std::vector<std::uint8_t>(c.max_bytes(in.size())), Values(before.size()), Values(in.size()),
          Values(in.size())};
  std::uint64_t size = 0;
  Chunk chunk{{in.data(), in.size(), DType::f32}, device_bound};
  if (!before.empty()) chunk.error = r.error.data(), chunk.error_before = before.data();
  c.encode({&chunk, 1}, {r.code.data(), r.code.size(), DType::u8}, {&size, 1, DType::i64});
  const Buffer values{r.values.data(), in.size(), DType::f32};
  c.decode({r.code.data(), r.code.size(), DType::u8}, {&size, 1}, {&values, 1});
  const std::vector<ConstBuffer> all(codes, {r.code.data(), std::size_t(size), DType::u8});
  c.decode_sum(all, {r.sum.data(), in.size(), DType::f32});
  return r;
}

// `shift`: values by which everything lies beside an aligned address, and twice as many bytes the code, or as many
// words where codes are whole words.
Coded on_device(Compressor& c, const Values& in, const Values& before, std::size_t codes, std::size_t shift) {
  const auto shifted = [&](const Values& v) {
    Values all(shift, 1.0f);
    all.insert(all.end(), v.begin(), v.end());
    return all;
  };
  const auto place = Device::place();
  const std::size_t n = in.size(), bytes = c.max_bytes(n), code_shift = shift * (c.fixed_size() ? 2 : 4);
  const Device from(shifted(in)), kept(shifted(before)), error(shifted(before)), values(shifted(in)), sum(shifted(in)),
      code(std::vector<std::uint8_t>(bytes + code_shift)), size_there(std::vector<std::uint64_t>(1));
  const auto floats = [&](const Device& d) { return static_cast<float*>(d.data()) + shift; };
  auto* codes_at = static_cast<std::uint8_t*>(code.data()) + code_shift;
  std::uint64_t size = 0;
  Chunk chunk{{floats(from), n, DType::f32, place}, device_bound};
  if (!before.empty()) chunk.error = floats(error), chunk.error_before = floats(kept);
  const Buffer sizes = c.fixed_size() ? Buffer{&size, 1, DType::i64} : Buffer{size_there.data(), 1, DType::i64, place};
  c.encode({&chunk, 1}, {codes_at, bytes, DType::u8, place}, sizes);
  if (c.fixed_size()) {
    EXPECT_EQ(size, bytes);
  } else {
    size = size_there.read<std::uint64_t>()[0];
    EXPECT_LE(size, bytes);
  }
  const Buffer decoded{floats(values), n, DType::f32, place};
  c.decode({codes_at, bytes, DType::u8, place}, {&size, 1}, {&decoded, 1});
  const std::vector<ConstBuffer> all(codes, {codes_at, std::size_t(size), DType::u8, place});
  c.decode_sum(all, {floats(sum), n, DType::f32, place});
  const auto back = [&](const Device& d) {
    const Values v = d.read<float>();
    return Values(v.begin() + std::ptrdiff_t(shift), v.end());
  };
  const auto read = code.read<std::uint8_t>();
  return {{read.begin() + std::ptrdiff_t(code_shift), read.end()}, back(error), back(values), back(sum)};
}

TEST_P(CompressorContract, ADeviceGivesTheSameBits) {
  if (!codec->on_device()) GTEST_SKIP() << "takes host memory only";
  if (!device_runtime() || device_runtime()->count() == 0) GTEST_SKIP() << "no GPU";
  std::mt19937 random(13);
  for (const std::size_t n : {0u, 1u, 31u, 33u, 255u, 256u, 257u, 4099u, 1000007u}) {
    auto kinds = inputs(n);
    Values any(n), bad = normal(n, 1, 6);
    for (auto& x : any) {  // any bits: infinities, denormals, NaN
      const std::uint32_t bits = random();
      std::memcpy(&x, &bits, sizeof x);
    }
    for (std::size_t i = 0; i < n; i += 1000)
      bad[i] = i % 3000 == 0 ? std::nanf("") : i % 2000 == 0 ? HUGE_VALF : 1e-42f;
    kinds.push_back(any);
    kinds.push_back(bad);
    for (std::size_t kind = 0; kind < kinds.size(); ++kind)
      for (const bool feedback : {false, true})
        for (const std::size_t shift : {0u, 1u}) {
          const Values before = feedback ? normal(n, 1e-3f, 14) : Values();
          const std::size_t codes = 1 + (kind + shift) % 11;
          const Coded a = on_host(*codec, kinds[kind], before, codes),
                      b = on_device(*codec, kinds[kind], before, codes, shift);
          SCOPED_TRACE(std::to_string(n) + " values of kind " + std::to_string(kind) + (feedback ? ", feedback" : ""));
          EXPECT_EQ(different(a.values, b.values), 0u);
          EXPECT_EQ(different(a.error, b.error), 0u);
          EXPECT_EQ(different(a.sum, b.sum), 0u);
          // Some codes hold NaNs themselves.
          const bool nan_added = feedback && kind + 2 >= kinds.size() && (codec->summable() || !codec->fixed_size());
          EXPECT_TRUE(nan_added || a.code == b.code);
        }
  }
}

TEST_P(CompressorContract, ASummableCodeAddsUp) {
  if (!codec->summable()) GTEST_SKIP() << "is not summable";
  const Values a = normal(1000, 1, 1), b = normal(1000, 1, 2);
  Values sum(1000);
  run_loopback(2, [&](Communicator& comm) {
    const auto mine = Compressors::create(GetParam());
    Values v = comm.rank() ? b : a;
    all_reduce(comm, *mine, {v.data(), v.size(), DType::f32}, 0, nullptr).wait();
    if (comm.rank() == 0) sum = v;
  });
  for (std::size_t i = 0; i < sum.size(); ++i)
    EXPECT_NEAR(sum[i], a[i] + b[i], 0.02 * (std::abs(a[i]) + std::abs(b[i])) + 1e-6);
}

struct Summed {
  std::vector<Values> of;  // by rank
  std::vector<std::uint64_t> bytes, formula;
};

Summed sum_over(const std::string& name, int ranks, std::size_t n, double bound) {
  Summed s{std::vector<Values>(std::size_t(ranks)), std::vector<std::uint64_t>(std::size_t(ranks)),
           std::vector<std::uint64_t>(std::size_t(ranks))};
  run_loopback(ranks, [&](Communicator& inner) {
    Traced comm(inner);
    const auto codec = Compressors::create(name);
    const auto r = std::size_t(comm.rank());
    s.of[r] = normal(n, 1, 100 + unsigned(r));
    // With memory of the caller's on some ranks: the others make their own.
    std::vector<std::uint8_t> scratch(comm.rank() % 2 ? 0 : all_reduce_scratch(*codec, n, ranks));
    all_reduce(comm, *codec, {s.of[r].data(), n, DType::f32}, bound, nullptr,
               {scratch.data(), scratch.size(), DType::u8})
        .wait();
    s.bytes[r] = comm.stats().bytes;
    if (codec->fixed_size()) s.formula[r] = all_reduce_bytes(*codec, n, comm.rank(), comm.size());
  });
  return s;
}

TEST_P(CompressorContract, AllReduceIsEqualOnAllRanksAndNearTheSum) {
  const double bound = 1e-3, coarse = std::max(0.04, 6.0 * precision(GetParam()));  // a block's sum is below 6 a rank
  for (const int ranks : {1, 2, 3, 5})
    for (const std::size_t n : {0u, 1u, 300u, 513u, 20000u}) {
      const Summed s = sum_over(GetParam(), ranks, n, bound);
      std::vector<double> exact(n), size(n);
      for (int r = 0; r < ranks; ++r) {
        const Values v = normal(n, 1, 100 + unsigned(r));
        for (std::size_t i = 0; i < n; ++i) exact[i] += v[i], size[i] += std::abs(v[i]);
      }
      for (const auto& v : s.of) EXPECT_EQ(v, s.of[0]);
      for (std::size_t i = 0; i < n; ++i)
        ASSERT_NEAR(s.of[0][i], exact[i],
                    codec->bounded() ? (ranks + 1) * bound + 1e-6 * size[i] : coarse * (ranks + 1))
            << ranks << " ranks, element " << i << " of " << n;
      if (codec->fixed_size()) {
        EXPECT_EQ(s.bytes, s.formula) << ranks << " ranks, " << n;
      }
    }
}

// With error feedback what one call loses comes with the next: over T calls the sums drift by no more than the loss of
// a few calls, where without it the loss would add up.
TEST_P(CompressorContract, ErrorFeedbackLosesNothing) {
  if (codec->summable()) GTEST_SKIP() << "takes no error feedback";
  const std::size_t n = 1000;
  const int ranks = 3, calls = 200;
  std::vector<double> drift(n);
  run_loopback(ranks, [&](Communicator& comm) {
    const auto mine = Compressors::create(GetParam());
    const Values v = normal(n, 1, unsigned(comm.rank()));
    Values sent(n), owned(shard_size(n, ranks));
    const ErrorFeedback feedback{{sent.data(), n, DType::f32}, {owned.data(), owned.size(), DType::f32}};
    std::vector<double> total(n);
    for (int t = 0; t < calls; ++t) {
      Values work = v;
      all_reduce(comm, *mine, {work.data(), n, DType::f32}, 0.05, &feedback).wait();
      for (std::size_t i = 0; i < n; ++i) total[i] += work[i];
    }
    if (comm.rank() != 0) return;
    for (std::size_t i = 0; i < n; ++i) {
      drift[i] = total[i];
      for (int r = 0; r < ranks; ++r) drift[i] -= double(calls) * normal(n, 1, unsigned(r))[i];
    }
  });
  // Normal values and what is added to them stay below 6 a rank.
  const double loss = std::max(0.05f, 6 * precision(GetParam()));
  for (const double d : drift) EXPECT_LT(std::abs(d), loss * (GetParam() == "fp8" || GetParam() == "int4" ? 6 : 10));
}

TEST_P(CompressorContract, AllToAllKeepsEachBound) {
  if (!codec->bounded()) GTEST_SKIP() << "makes no promise";
  run_loopback(3, [&](Communicator& comm) {
    const auto mine = Compressors::create(GetParam());
    const auto count = [](int from, int to) {
      return std::size_t((from * 3 + to * 7) % 5 * 100 + (from == to ? 0 : 1));
    };
    std::vector<std::size_t> send, recv;
    std::vector<double> bounds;
    Values in;
    for (int r = 0; r < 3; ++r) {
      send.push_back(count(comm.rank(), r));
      recv.push_back(count(r, comm.rank()));
      bounds.push_back(r == 0 ? 0 : std::pow(10.0, -r));
      const Values part = normal(send.back(), 1, unsigned(comm.rank() * 3 + r));
      in.insert(in.end(), part.begin(), part.end());
    }
    Values out(std::accumulate(recv.begin(), recv.end(), std::size_t{0}));
    all_to_all(comm, *mine, {in.data(), in.size(), DType::f32}, send, bounds, {out.data(), out.size(), DType::f32},
               recv)
        .wait();
    std::size_t at = 0;
    for (int r = 0; r < 3; ++r) {
      const double bound = comm.rank() == 0 ? 0 : std::pow(10.0, -comm.rank());
      for (const float x : normal(recv[std::size_t(r)], 1, unsigned(r * 3 + comm.rank())))
        EXPECT_LE(std::abs(double(x) - out[at++]), bound);
    }
  });
}

INSTANTIATE_TEST_SUITE_P(Every, CompressorContract, testing::ValuesIn(Compressors::names()),
                         [](const auto& info) { return info.param; });

TEST(Compressors, AnUnknownNameIsToldWithTheKnownOnes) {
  try {
    Compressors::create("int9", "a.yaml:3:5");
    FAIL();
  } catch (const UsageError& e) {
    EXPECT_NE(std::string(e.what()).find("int8"), std::string::npos);
  }
}

TEST(Scaled, AreTheFormulas) {
  const Values v = normal(300, 2, 5);
  const Values fp8 = decode(*Compressors::create("fp8"), encode(*Compressors::create("fp8"), {v}, 0), {v.size()})[0],
               int4 = decode(*Compressors::create("int4"), encode(*Compressors::create("int4"), {v}, 0), {v.size()})[0];
  EXPECT_EQ(Compressors::create("fp8")->max_bytes(300), 3u * 4 + 300);
  EXPECT_EQ(Compressors::create("int4")->max_bytes(301), 3u * 4 + 151);
  for (std::size_t first = 0; first < v.size(); first += 128) {
    const std::size_t last = std::min(v.size(), first + 128);
    double largest = 0;
    for (std::size_t i = first; i < last; ++i) largest = test::nan_max(largest, std::abs(v[i]));
    for (std::size_t i = first; i < last; ++i) {
      const double scale = largest / 7, q = v[i] / scale;
      EXPECT_NEAR(int4[i], std::nearbyint(q) * scale,
                  1e-5 * scale + (std::abs(q - std::nearbyint(q)) > 0.4999 ? scale : 0));
      // e4m3: three bits behind the first one, from 2^-6 of the scale on; multiples of 2^-9 below.
      const double x = std::abs(v[i]) / (largest / 448), unit = std::exp2(std::max(std::floor(std::log2(x)), -6.0) - 3);
      const double near = std::nearbyint(x / unit) * unit * largest / 448;
      const bool tie = std::abs(x / unit - std::floor(x / unit) - 0.5) < 1e-4;
      EXPECT_NEAR(std::abs(fp8[i]), near, 1e-5 * near + (tie ? unit * largest / 448 : 0)) << v[i];
      EXPECT_GE(fp8[i] * v[i], 0);
    }
  }
}

TEST(Int8, IsTheFormula) {
  const auto codec = Compressors::create("int8");
  Values v = normal(300, 2, 5);
  const Values out = decode(*codec, encode(*codec, {v}, 0), {v.size()})[0];
  for (const auto& [first, last] : {std::pair{0, 256}, std::pair{256, 300}}) {
    double largest = 0;
    for (int i = first; i < last; ++i) largest = test::nan_max(largest, std::abs(v[std::size_t(i)]));
    for (int i = first; i < last; ++i) {
      const double scale = largest / 127, q = std::nearbyint(v[std::size_t(i)] / scale);
      EXPECT_NEAR(out[std::size_t(i)], q * scale,
                  scale * 1e-5 + (std::abs(v[std::size_t(i)] / scale - q) > 0.499 ? scale : 0));
    }
  }
}

}  // namespace
}  // namespace trireme
