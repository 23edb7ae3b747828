// bf16 and fp16: half the bytes, summable. fp16 saturates to infinity above 65504; bf16 keeps f32's range.
#include "comm/reduce.h"
#include "compression/chunks.h"

namespace trireme {
namespace {

class LowPrecision final : public Compressor {
 public:
  LowPrecision(std::string_view name, DType dtype) : name_(name), dtype_(dtype) {}

  std::optional<DType> sum_type() const override { return dtype_; }
  bool fixed_size() const override { return true; }
  std::size_t max_bytes(std::size_t count) const override { return 2 * count; }

  void encode(std::span<const Chunk> chunks, Buffer out, Buffer sizes) override {
    encode_each(*this, chunks, out, sizes, [this](const float* in, std::size_t count, double, std::uint8_t* to) {
      narrow(dtype_, in, to, count);
      return 2 * count;
    });
  }
  void decode(ConstBuffer in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out) const override {
    decode_each(*this, name_, in, sizes, out,
                [this](const std::uint8_t* from, std::size_t, float* values, std::size_t count) {
                  widen(dtype_, from, values, count);
                });
  }

 private:
  const std::string_view name_;
  const DType dtype_;
};

const Compressors::Entry bf16("bf16", [] { return std::make_unique<LowPrecision>("bf16", DType::bf16); });
const Compressors::Entry fp16("fp16", [] { return std::make_unique<LowPrecision>("fp16", DType::f16); });

}  // namespace
}  // namespace trireme
