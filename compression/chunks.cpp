#include "compression/chunks.h"

#include "comm/error.h"

namespace trireme {

void bad_code(std::string_view codec, std::string_view what) {
  throw CommError("codec " + std::string(codec), what, "do all ranks run the same program and configuration?");
}

namespace {

void check_place(const Compressor& codec, std::string_view call, const Place& one, const Place& other) {
  if (one.device != other.device) throw Error(ExitCode::bug, call, "values and codes lie in different places");
  if (!one.host() && !codec.on_device()) throw Error(ExitCode::bug, call, "this codec takes host memory only");
}

}  // namespace

void check_encode(const Compressor& codec, std::span<const Chunk> chunks, const Buffer& out, const Buffer& sizes) {
  std::size_t room = 0;
  for (const auto& c : chunks) {
    room += codec.max_bytes(c.in.count);
    if (c.in.dtype != DType::f32) throw Error(ExitCode::bug, "encode", "codecs take f32 values");
    check_place(codec, "encode", c.in.place, out.place);
  }
  const int where = codec.fixed_size() ? Place().device : out.place.device;
  if (out.bytes() < room || sizes.place.device != where || sizes.count < chunks.size() ||
      size_of(sizes.dtype) != sizeof(std::uint64_t))
    throw Error(ExitCode::bug, "encode", "the output or the sizes are too small");
}

void check_decode(const Compressor& codec, std::string_view name, const ConstBuffer& in,
                  std::span<const std::uint64_t> sizes, std::span<const Buffer> out) {
  if (sizes.size() != out.size()) throw Error(ExitCode::bug, "decode", "as many sizes as outputs are needed");
  std::uint64_t left = in.bytes();
  for (std::size_t k = 0; k < out.size(); ++k) {
    if (out[k].dtype != DType::f32) throw Error(ExitCode::bug, "decode", "codecs give f32 values");
    check_place(codec, "decode", in.place, out[k].place);
    const std::size_t most = codec.max_bytes(out[k].count);
    if (sizes[k] > left || sizes[k] > most || (codec.fixed_size() && sizes[k] != most))
      bad_code(name, "a part of " + std::to_string(out[k].count) + " values cannot have " + std::to_string(sizes[k]) +
                         " bytes");
    left -= sizes[k];
  }
}

Compensated::Compensated(const Chunk& chunk) : chunk_(chunk) {
  if (!chunk.error) return;
  sum_ = std::make_unique_for_overwrite<float[]>(chunk.in.count);
  const auto* in = static_cast<const float*>(chunk.in.data);
  for (std::size_t i = 0; i < chunk.in.count; ++i) sum_[i] = in[i] + before(chunk)[i];
}

void Compensated::keep_loss(const Compressor& codec, const std::uint8_t* code, std::size_t bytes) const {
  if (!sum_) return;
  const Buffer decoded{chunk_.error, chunk_.in.count, DType::f32};
  const std::uint64_t size = bytes;
  codec.decode({code, bytes, DType::u8}, {&size, 1}, {&decoded, 1});
  for (std::size_t i = 0; i < chunk_.in.count; ++i) {
    const float lost = sum_[i] - chunk_.error[i];
    chunk_.error[i] = lost - lost == 0 ? lost : 0;  // a value that is not finite must not poison the next step
  }
}

}  // namespace trireme
