// The error-bounded codec as a Compressor: flat values are rows of 64 where they divide so, else one row. Bounds are
// absolute.
#include "compression/chunks.h"
#include "compression/codecs/bounded.h"

namespace trireme {
namespace {

constexpr std::size_t row = 64;

class BoundedFlat final : public Compressor {
 public:
  bool bounded() const override { return true; }
  std::size_t max_bytes(std::size_t count) const override { return codec_.max_bytes(1, count); }

  void encode(std::span<const Chunk> chunks, Buffer out, Buffer sizes) override {
    encode_each(*this, chunks, out, sizes,
                [&](const float* in, std::size_t count, double bound, std::uint8_t* to) -> std::size_t {
                  TableChunk c;
                  c.rows = in;
                  c.n = rows(count);
                  c.dim = count / c.n;
                  c.bound = f32_bound(bound);
                  std::uint64_t size = 0;
                  codec_.encode({&c, 1}, {to, max_bytes(count), DType::u8}, {&size, 1, DType::i64});
                  return size;
                });
  }
  void decode(ConstBuffer in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out) const override {
    decode_each(*this, "bounded", in, sizes, out,
                [&](const std::uint8_t* from, std::size_t bytes, float* values, std::size_t count) {
                  const CodedChunk c{from, bytes, values, rows(count), count / rows(count)};
                  codec_.decode({&c, 1});
                });
  }

 private:
  static std::size_t rows(std::size_t count) { return count % row == 0 && count > 0 ? count / row : 1; }
  static BoundedOptions options() {
    BoundedOptions o;
    o.relative = false;
    return o;
  }

  const Bounded codec_{options()};
};

const Compressors::Entry registered("bounded", [] { return std::make_unique<BoundedFlat>(); });

}  // namespace
}  // namespace trireme
