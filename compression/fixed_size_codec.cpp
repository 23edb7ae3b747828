#include "compression/fixed_size_codec.h"

#include "compression/chunks.h"

#include <algorithm>

namespace trireme {
namespace {

class FixedSize final : public Compressor {
 public:
  explicit FixedSize(const FixedSizeCodec& codec) : codec_(codec) {}

  std::optional<DType> sum_type() const override { return codec_.sum_type; }
  bool fixed_size() const override { return true; }
  bool on_device() const override { return true; }
  std::size_t max_bytes(std::size_t count) const override { return codec_.bytes(count); }

  void encode(std::span<const Chunk> chunks, Buffer out, Buffer sizes) override {
    check_encode(*this, chunks, out, sizes);
    auto* to = static_cast<std::uint8_t*>(out.data);
    auto* size = static_cast<std::uint64_t*>(sizes.data);
    for (const Chunk& c : chunks) {
      if (c.in.count > 0)
        codec_.encode({static_cast<const float*>(c.in.data), before(c), c.error, c.in.count, to}, out.place);
      *size = codec_.bytes(c.in.count);
      to += *size++;
    }
  }

  void decode(ConstBuffer in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out) const override {
    check_decode(*this, codec_.name, in, sizes, out);
    const auto* from = static_cast<const std::uint8_t*>(in.data);
    for (std::size_t k = 0; k < out.size(); ++k) {
      const std::uint8_t* const code[] = {from};
      sum(code, out[k], false);
      from += sizes[k];
    }
  }

  void decode_sum(std::span<const ConstBuffer> codes, Buffer out) const override {
    std::vector<const std::uint8_t*> from;
    for (const auto& c : codes) {
      const std::uint64_t size = c.count;
      check_decode(*this, codec_.name, c, {&size, 1}, {&out, 1});
      from.push_back(static_cast<const std::uint8_t*>(c.data));
    }
    for (std::size_t k = 0; k < from.size(); k += DecodeJob::most)
      sum(std::span(from).subspan(k, std::min(DecodeJob::most, from.size() - k)), out, k > 0);
  }

 private:
  void sum(std::span<const std::uint8_t* const> codes, const Buffer& out, bool add) const {
    if (out.count == 0) return;
    DecodeJob job;
    std::copy(codes.begin(), codes.end(), job.code);
    job.codes = codes.size();
    job.add = add;
    job.out = static_cast<float*>(out.data);
    job.count = out.count;
    codec_.decode(job, out.place);
  }

  const FixedSizeCodec codec_;
};

}  // namespace

std::unique_ptr<Compressor> make_compressor(const FixedSizeCodec& codec) { return std::make_unique<FixedSize>(codec); }

}  // namespace trireme
