#include "compression/codecs/bounded_on_device.h"

#include "comm/error.h"
#include "compression/codecs/bounded_device.h"
#include "compression/stages/chunk.h"
#include "compression/stages/rate_values.h"

#include <algorithm>
#include <map>
#include <numeric>

namespace trireme {

namespace {

[[noreturn]] void none_on_host(const char* kernel) {
  throw Error(ExitCode::bug, kernel, "is the twin of functions that take host memory");
}

}  // namespace

constinit Kernel<DeviceEncode> encode_bounded("encode_bounded",
                                              [](const DeviceEncode&) { none_on_host("encode_bounded"); });
constinit Kernel<DeviceDecode> decode_bounded("decode_bounded",
                                              [](const DeviceDecode&) { none_on_host("decode_bounded"); });

namespace {

using namespace coding;

std::size_t pieces_of(std::size_t n, std::size_t dim) {
  if (n * dim == 0) return 0;
  const std::size_t rows = (piece_values + dim - 1) / dim;
  return (n + rows - 1) / rows;
}

std::size_t stride_of(std::size_t stride, std::size_t dim) { return stride ? stride : dim; }

// Which encoder a codec means there; encoders: auto.
Encoder encoder_of(const BoundedOptions& o) {
  static const std::map<std::string, Encoder, std::less<>> known = {{"auto", encoders},
                                                                    {"vector_lz", vector_lz},
                                                                    {"huffman", huffman},
                                                                    {"dedup_huffman", dedup_huffman},
                                                                    {"rans", rans},
                                                                    {"dedup_rans", dedup_rans},
                                                                    {"dedup_packed", dedup_packed},
                                                                    {"dedup_sparse", dedup_sparse},
                                                                    {"packed", packed_codes},
                                                                    {"raw", raw_values},
                                                                    {"fp16", fp16},
                                                                    {"bf16", bf16},
                                                                    {"fp8", fp8},
                                                                    {"int8_row32", int8_row32},
                                                                    {"int4", int4}};
  if (const auto found = known.find(o.codec); found != known.end()) return found->second;
  throw UsageError("codec bounded", "codec " + o.codec + " has no kernels for a GPU",
                   "every codec but smallest has; auto is nearest to it");
}

void refuse_checksum(const BoundedOptions& o) {
  if (o.checksum)
    throw UsageError("codec bounded", "there are no checksums on a GPU", "leave checksum out, or code on the host");
}

// Descriptions of the chunks, those of a scope side by side, with their places in the scratch memory; `pieces` and
// `bytes` in all.
std::vector<DeviceChunk> describe(std::span<const TableChunk> chunks, std::size_t& pieces, std::size_t& bytes) {
  std::vector<std::size_t> order(chunks.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return chunks[a].scope < chunks[b].scope; });
  std::vector<DeviceChunk> all;
  pieces = bytes = 0;
  for (const std::size_t k : order) {
    const TableChunk& c = chunks[k];
    const std::size_t stride = stride_of(c.stride, c.dim), own = pieces_of(c.n, c.dim);
    check_size(c.n, c.dim, stride);
    DeviceChunk d;
    d.rows = c.rows;
    d.self = c.self;
    d.bound_at = c.bound_on_device;
    d.slot_at = bytes;
    d.n = static_cast<std::uint32_t>(c.n);
    d.dim = static_cast<std::uint32_t>(c.dim);
    d.stride = static_cast<std::uint32_t>(stride);
    d.self_stride = static_cast<std::uint32_t>(stride_of(c.self_stride, c.dim));
    d.bound = c.bound;
    d.number = static_cast<std::uint32_t>(k);
    d.first_piece = static_cast<std::uint32_t>(pieces);
    d.pieces = static_cast<std::uint32_t>(own);
    all.push_back(d);
    pieces += own;
    if (!c.self) bytes += slot_layout(c.n, c.dim).bytes;
  }
  for (std::size_t first = 0, end = 0; first < all.size(); first = end) {
    while (end < all.size() && chunks[order[end]].scope == chunks[order[first]].scope) ++end;
    for (std::size_t k = first; k < end; ++k) {
      all[k].first_of_scope = all[first].first_piece;
      all[k].pieces_of_scope = all[end - 1].first_piece + all[end - 1].pieces - all[first].first_piece;
    }
  }
  return all;
}

std::vector<DevicePart> describe(std::span<const CodePart> parts) {
  std::vector<DevicePart> all;
  std::uint64_t at = 0;
  std::uint32_t first = 0;
  for (const CodePart& p : parts) {
    all.push_back({at, p.bytes, first, static_cast<std::uint32_t>(p.chunks)});
    at += p.bytes, first += static_cast<std::uint32_t>(p.chunks);
  }
  return all;
}

}  // namespace

std::size_t Bounded::scratch_bytes(std::span<const TableChunk> chunks) const {
  std::size_t pieces, bytes;
  describe(chunks, pieces, bytes);
  return encode_tables(chunks.size(), pieces) + bytes;
}

void encode_on_device(const BoundedOptions& options, std::span<const TableChunk> chunks, const Buffer& out,
                      const Buffer& sizes, const Buffer& scratch, std::span<const CodePart> parts) {
  if (chunks.empty()) return;
  refuse_checksum(options);
  DeviceEncode job;
  std::size_t bytes;
  auto described = describe(chunks, job.pieces, bytes);
  const BoundedOptions* last = nullptr;
  Encoder only = encoders;
  for (DeviceChunk& d : described) {
    const Bounded* as = chunks[d.number].as;
    const BoundedOptions& how = as ? as->options() : options;
    if (&how != last) only = encoder_of(how), last = &how;
    d.only = only;
    d.window = static_cast<std::uint8_t>(how.window);
    d.code_width = static_cast<std::uint8_t>(how.code_width);
    // Codes of fixed rate hold to no bound; where they pay, only what is not finite is in their way, as at bound 0.
    const std::size_t values = std::size_t{d.n} * d.dim;
    if (is_fixed_rate(only) && fixed_rate_bytes(only, d.n, d.dim) < 4 * values) d.bound = 0, d.bound_at = nullptr;
  }
  job.chunks = described.data();
  job.count = chunks.size();
  job.relative = options.relative;
  job.strict = options.strict;
  job.out = static_cast<std::uint8_t*>(out.data);
  job.sizes = static_cast<std::uint64_t*>(sizes.data);
  job.scratch = static_cast<std::uint8_t*>(scratch.data);
  const std::vector<DevicePart> described_parts = describe(parts);
  job.parts = described_parts.data();
  job.part_count = described_parts.size();
  if (scratch.place.device != out.place.device || scratch.bytes() < encode_tables(job.count, job.pieces) + bytes)
    throw Error(ExitCode::bug, "codec bounded", "its scratch memory is too small, or elsewhere");
  encode_bounded(job, out.place);
}

std::size_t Bounded::decode_scratch_bytes(std::span<const CodedChunk> chunks) const {
  std::size_t bytes = 0;
  for (const auto& c : chunks) bytes += decode_spill(c.n, c.dim);
  return bytes;
}

void decode_on_device(const BoundedOptions& options, std::span<const CodedChunk> chunks, Place place,
                      std::uint32_t* status, const Buffer& scratch) {
  refuse_checksum(options);
  std::vector<DeviceDecode::Chunk> described;
  std::size_t bytes = 0;
  for (const auto& c : chunks) {
    const std::size_t stride = stride_of(c.stride, c.dim);
    check_size(c.n, c.dim, stride);
    DeviceDecode::Chunk d;
    d.code = c.code;
    d.rows = c.rows;
    d.spill_at = bytes;
    // Bytes of another rank's telling may end anywhere, and what lies behind them begins there: a code of no bytes is
    // bad.
    const bool can_be = c.bytes >> 32 == 0 && reinterpret_cast<std::uintptr_t>(c.code) % (c.of ? 8 : 4) == 0;
    d.bytes = can_be ? static_cast<std::uint32_t>(c.bytes) : 0;
    d.n = static_cast<std::uint32_t>(c.n);
    d.dim = static_cast<std::uint32_t>(c.dim);
    d.stride = static_cast<std::uint32_t>(stride);
    d.of = static_cast<std::uint32_t>(c.of);
    d.number = static_cast<std::uint32_t>(c.number);
    described.push_back(d);
    bytes += decode_spill(c.n, c.dim);
  }
  if (!status || scratch.place.device != place.device || scratch.bytes() < bytes)
    throw Error(ExitCode::bug, "codec bounded", "its scratch memory is too small, or elsewhere");
  DeviceDecode job;
  job.chunks = described.data();
  job.count = chunks.size();
  job.status = status;
  job.scratch = static_cast<std::uint8_t*>(scratch.data);
  decode_bounded(job, place);
}

}  // namespace trireme
