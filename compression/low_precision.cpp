// bf16 and fp16: half the bytes, summable. fp16 saturates to infinity above 65504; bf16 keeps f32's range.
#include "comm/reduce.h"
#include "compression/chunks.h"

#include <cstring>

namespace trireme {
namespace {

struct Bf16 {
  static constexpr std::string_view name = "bf16";
  static constexpr DType dtype = DType::bf16;
  static std::uint16_t pack(float f) { return f32_to_bf16(f); }
  static float unpack(std::uint16_t h) { return bf16_to_f32(h); }
};

struct Fp16 {
  static constexpr std::string_view name = "fp16";
  static constexpr DType dtype = DType::f16;
  static std::uint16_t pack(float f) { return f32_to_f16(f); }
  static float unpack(std::uint16_t h) { return f16_to_f32(h); }
};

template <class Format>
class LowPrecision final : public Compressor {
 public:
  std::optional<DType> sum_type() const override { return Format::dtype; }
  bool fixed_size() const override { return true; }
  std::size_t max_bytes(std::size_t count) const override { return 2 * count; }

  void encode(std::span<const Chunk> chunks, Buffer out, Buffer sizes) override {
    encode_each(*this, chunks, out, sizes, [](const float* in, std::size_t count, double, std::uint8_t* to) {
      for (std::size_t i = 0; i < count; ++i) {
        const std::uint16_t h = Format::pack(in[i]);
        std::memcpy(to + 2 * i, &h, 2);
      }
      return 2 * count;
    });
  }
  void decode(ConstBuffer in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out) const override {
    decode_each(*this, Format::name, in, sizes, out,
                [](const std::uint8_t* from, std::size_t, float* values, std::size_t count) {
                  for (std::size_t i = 0; i < count; ++i) {
                    std::uint16_t h;
                    std::memcpy(&h, from + 2 * i, 2);
                    values[i] = Format::unpack(h);
                  }
                });
  }
};

const RegisterCompressor bf16("bf16", [] { return std::make_unique<LowPrecision<Bf16>>(); });
const RegisterCompressor fp16("fp16", [] { return std::make_unique<LowPrecision<Fp16>>(); });

}  // namespace
}  // namespace trireme
