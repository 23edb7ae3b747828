// The error-bounded codec as a Compressor: flat values are rows of 64 where they divide so, else one row. Bounds are
// absolute. On a device with the kernels of bounded_device.h; its scratch memory there is the codec's own, so calls of
// one object follow each other in stream order.
#include "compression/codecs/bounded_flat.h"

#include "comm/error.h"
#include "compression/chunks.h"
#include "compression/codecs/bounded.h"
#include "compression/device_room.h"

namespace trireme {

namespace {

[[noreturn]] void flat_on_host(const char* kernel) {
  throw Error(ExitCode::bug, kernel, "is part of loops over host memory");
}

}  // namespace

constinit Kernel<CompensateJob> compensate_flat("compensate_flat",
                                                [](const CompensateJob&) { flat_on_host("compensate_flat"); });
constinit Kernel<LossJob> keep_flat_loss("keep_flat_loss", [](const LossJob&) { flat_on_host("keep_flat_loss"); });
constinit Kernel<SumCodesJob> sum_flat_codes("sum_flat_codes",
                                             [](const SumCodesJob&) { flat_on_host("sum_flat_codes"); });

namespace {

constexpr std::size_t row = 64;

template <class Job>
void run(const Kernel<Job>& kernel, const std::vector<Job>& jobs, Place place) {
  for (const Job& job : jobs)
    if (job.count > 0) kernel(job, place);
}

class BoundedFlat final : public Compressor {
 public:
  bool bounded() const override { return true; }
  bool on_device() const override { return true; }
  std::size_t max_bytes(std::size_t count) const override { return codec_.max_bytes(1, count); }

  void encode(std::span<const Chunk> chunks, Buffer out, Buffer sizes) override {
    if (!out.place.host()) return encode_there(chunks, out, sizes);
    encode_each(*this, chunks, out, sizes,
                [&](const float* in, std::size_t count, double bound, std::uint8_t* to) -> std::size_t {
                  const TableChunk c = rows_of(in, count, bound, 0);
                  std::uint64_t size = 0;
                  codec_.encode({&c, 1}, {to, max_bytes(count), DType::u8}, {&size, 1, DType::i64});
                  return size;
                });
  }

  void decode(ConstBuffer in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out) const override {
    if (!in.place.host()) return decode_there(in, sizes, out);
    decode_each(*this, "bounded", in, sizes, out,
                [&](const std::uint8_t* from, std::size_t bytes, float* values, std::size_t count) {
                  const CodedChunk c{from, bytes, values, rows(count), count / rows(count)};
                  codec_.decode({&c, 1});
                });
  }

  void decode_sum(std::span<const ConstBuffer> codes, Buffer out) const override {
    if (out.place.host()) return Compressor::decode_sum(codes, out);
    auto* const values = static_cast<float*>(values_.take(codes.size() * out.count * sizeof(float), out.place).data);
    std::vector<CodedChunk> chunks;
    for (const auto& c : codes) {
      const std::uint64_t size = c.count;
      check_decode(*this, "bounded", c, {&size, 1}, {&out, 1});
      chunks.push_back({static_cast<const std::uint8_t*>(c.data), c.count, values + chunks.size() * out.count,
                        rows(out.count), out.count / rows(out.count)});
    }
    const std::uint32_t* const status = decode_rows(chunks, out.place);
    run(sum_flat_codes, {{values, codes.size(), out.count, status, static_cast<float*>(out.data)}}, out.place);
  }

 private:
  static std::size_t rows(std::size_t count) { return count % row == 0 && count > 0 ? count / row : 1; }
  static BoundedOptions options() {
    BoundedOptions o;
    o.relative = false;
    return o;
  }
  static TableChunk rows_of(const float* in, std::size_t count, double bound, std::size_t number) {
    TableChunk c;
    c.rows = in;
    c.n = rows(count);
    c.dim = count / c.n;
    c.bound = f32_bound(bound);
    c.scope = static_cast<std::uint32_t>(number);
    return c;
  }

  // What a chunk loses is known before its size is: the same rounding once more, without a code.
  void encode_there(std::span<const Chunk> chunks, const Buffer& out, const Buffer& sizes) {
    check_encode(*this, chunks, out, sizes);
    std::size_t with_error = 0;
    for (const Chunk& c : chunks) with_error += c.error ? c.in.count : 0;
    auto* sum = static_cast<float*>(sums_.take(with_error * sizeof(float), out.place).data);
    std::vector<CompensateJob> sums;
    std::vector<LossJob> losses;
    std::vector<TableChunk> coded, received;
    for (const Chunk& c : chunks) {
      const auto* in = static_cast<const float*>(c.in.data);
      if (c.error) {
        if (!sums.empty() && sums.back().in + sums.back().count == in &&
            sums.back().before + sums.back().count == before(c))
          sums.back().count += c.in.count;
        else
          sums.push_back({in, before(c), sum, c.in.count});
        losses.push_back({sum, c.error, c.in.count, static_cast<const std::uint8_t*>(out.data),
                          static_cast<const std::uint64_t*>(sizes.data), coded.size()});
        received.push_back(rows_of(sum, c.in.count, c.bound, coded.size()));
        received.back().self = c.error;
        in = sum;
        sum += c.in.count;
      }
      coded.push_back(rows_of(in, c.in.count, c.bound, coded.size()));
    }
    run(compensate_flat, sums, out.place);
    codec_.encode(coded, out, sizes, scratch_.take(codec_.scratch_bytes(coded), out.place));
    if (received.empty()) return;
    Buffer none = no_sizes_.take(received.size() * sizeof(std::uint64_t), out.place);
    none.count = received.size(), none.dtype = DType::i64;
    codec_.encode(received, {out.data, 0, DType::u8, out.place}, none,
                  scratch_.take(codec_.scratch_bytes(received), out.place));
    run(keep_flat_loss, losses, out.place);
  }

  void decode_there(const ConstBuffer& in, std::span<const std::uint64_t> sizes, std::span<const Buffer> out) const {
    check_decode(*this, "bounded", in, sizes, out);
    const auto* from = static_cast<const std::uint8_t*>(in.data);
    std::vector<CodedChunk> chunks;
    std::vector<SumCodesJob> checks;
    for (std::size_t k = 0; k < out.size(); ++k) {
      auto* const values = static_cast<float*>(out[k].data);
      chunks.push_back(
          {from, static_cast<std::size_t>(sizes[k]), values, rows(out[k].count), out[k].count / rows(out[k].count)});
      from += sizes[k];
      if (!checks.empty() && checks.back().out + checks.back().count == values)
        checks.back().count += out[k].count;
      else
        checks.push_back({values, 1, out[k].count, nullptr, values});
    }
    const std::uint32_t* const status = decode_rows(chunks, in.place);
    for (auto& c : checks) c.status = status;
    run(sum_flat_codes, checks, in.place);
  }

  const std::uint32_t* decode_rows(std::span<const CodedChunk> chunks, Place place) const {
    auto* const status = static_cast<std::uint32_t*>(status_.take(sizeof(std::uint32_t), place).data);
    codec_.decode(chunks, place, status, scratch_.take(codec_.decode_scratch_bytes(chunks), place));
    return status;
  }

  const Bounded codec_{options()};
  mutable DeviceRoom sums_, values_, scratch_, no_sizes_, status_;
};

const Compressors::Entry registered("bounded", [] { return std::make_unique<BoundedFlat>(); });

}  // namespace
}  // namespace trireme
