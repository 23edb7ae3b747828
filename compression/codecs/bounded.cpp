#include "compression/codecs/bounded.h"

#include "comm/error.h"
#include "comm/nearest.h"
#include "compression/codecs/bounded_on_device.h"
#include "compression/stages/chunk.h"

#include <algorithm>
#include <cmath>
#include <map>

namespace trireme {
namespace {

using namespace coding;

// What a codec tries, chunk by chunk.
const std::map<std::string, std::vector<Encoder>, std::less<>>& codecs() {
  static const std::map<std::string, std::vector<Encoder>, std::less<>> all = {
      {"auto", {}},
      {"smallest", {vector_lz, huffman, rans, dedup_packed, dedup_sparse, dedup_huffman, dedup_rans}},
      {"raw", {raw_values}},
      {"packed", {packed_codes}},
      {"vector_lz", {vector_lz}},
      {"huffman", {huffman}},
      {"rans", {rans}},
      {"dedup_packed", {dedup_packed}},
      {"dedup_sparse", {dedup_sparse}},
      {"dedup_huffman", {dedup_huffman}},
      {"dedup_rans", {dedup_rans}},
      {"fp16", {fp16}},
      {"bf16", {bf16}},
      {"fp8", {fp8}},
      {"int8_row32", {int8_row32}},
      {"int4", {int4}},
  };
  return all;
}

constexpr std::string_view encoder_names[encoders] = {
    "raw",          "packed",       "constant", "vector_lz", "huffman", "dedup_huffman", "rans", "dedup_rans",
    "dedup_packed", "dedup_values", "fp16",     "bf16",      "fp8",     "int8_row32",    "int4", "dedup_sparse"};

Settings settings_of(const BoundedOptions& o) {
  Settings s;
  s.try_all = codecs().at(o.codec);
  s.smallest = o.codec == "smallest";
  s.strict = o.strict;
  s.checksum = o.checksum;
  s.code_width = o.code_width;
  s.window = static_cast<std::uint32_t>(o.window);
  return s;
}

// Codec, code width and window of one, all else of the other.
Settings settings_as(BoundedOptions call, const BoundedOptions& codec) {
  call.codec = codec.codec;
  call.code_width = codec.code_width;
  call.window = codec.window;
  return settings_of(call);
}

Rows rows_of(const TableChunk& c) { return {c.rows, c.n, c.dim, c.stride ? c.stride : c.dim}; }

[[noreturn]] void refuse(const BadStream& bad, std::size_t chunk) {
  throw CommError("codec bounded, chunk " + std::to_string(chunk), bad.what,
                  "do all ranks run the same program and configuration?");
}

void check_parts(std::span<const CodePart> parts, std::size_t chunks) {
  std::size_t all = 0;
  bool good = parts.size() <= most_code_parts;
  for (const CodePart& p : parts) {
    all += p.chunks;
    good = good && p.bytes % 8 == 0 && (p.bytes == 0 || p.bytes >= CodePart::header_bytes(p.chunks));
  }
  if (!good || all != chunks) throw Error(ExitCode::bug, "codec bounded", "these are no parts of the chunks");
}

void check_call(std::span<const TableChunk> chunks, const Buffer& out, const Buffer& sizes, std::size_t room) {
  if (out.bytes() < room || sizes.count < chunks.size() || size_of(sizes.dtype) != sizeof(std::uint64_t) ||
      (out.place.host() && !sizes.place.host()))
    throw Error(ExitCode::bug, "codec bounded", "the output or the sizes are too small");
  for (const auto& c : chunks) {
    check_size(c.n, c.dim, c.stride);
    if (!(c.bound >= 0) || !std::isfinite(c.bound))
      throw UsageError("codec bounded", "a bound is negative or no number", "bounds are 0 or more");
  }
}

// Codes into their parts, as they come.
class Packer {
 public:
  Packer(std::uint8_t* out, std::span<const CodePart> parts) : begin_(out), parts_(parts), out_(out) { open(); }

  void add(const Bytes& code) {
    if (parts_.empty()) {
      if (!code.empty()) std::memcpy(out_, code.data(), code.size());
      out_ += code.size();
      return;
    }
    while (chunk_ == parts_[part_].chunks) close();
    const std::size_t room = parts_[part_].bytes;
    if (room > 0) put_word(8 * (1 + chunk_), code.size());
    if (code.size() > room - std::min(room, used_))
      lacks_ = true;
    else if (!code.empty())
      std::memcpy(out_ + used_, code.data(), code.size());
    used_ += code.size();
    ++chunk_;
  }

  void finish() {
    if (parts_.empty()) return;
    while (part_ + 1 < parts_.size()) close();
    out_ = begin_;
    for (const CodePart& p : parts_) {
      if (p.bytes > 0) put_word(0, lacks_);
      out_ += p.bytes;
    }
  }

 private:
  void open() {
    chunk_ = 0;
    used_ = parts_.empty() ? 0 : parts_[part_].bytes ? CodePart::header_bytes(parts_[part_].chunks) : 0;
  }
  void close() {
    out_ += parts_[part_++].bytes;
    open();
  }
  void put_word(std::size_t at, std::uint64_t word) { std::memcpy(out_ + at, &word, sizeof word); }

  std::uint8_t* const begin_;
  const std::span<const CodePart> parts_;
  std::uint8_t* out_;  // of the part
  std::size_t part_ = 0, chunk_ = 0, used_ = 0;
  bool lacks_ = false;
};

// The code of a chunk of a part; nothing where its sizes leave it none.
std::span<const std::uint8_t> find_in_part(const CodedChunk& c) {
  if (c.number >= c.of || c.bytes < CodePart::header_bytes(c.of)) return {};
  std::size_t left = c.bytes - CodePart::header_bytes(c.of), before = 0;
  for (std::size_t k = 0;; ++k) {
    std::uint64_t size;
    std::memcpy(&size, c.code + 8 * (1 + k), sizeof size);
    if (size > left) return {};
    if (k == c.number) return {c.code + CodePart::header_bytes(c.of) + before, std::size_t(size)};
    left -= size, before += size;
  }
}

}  // namespace

void check_size(std::size_t n, std::size_t dim, std::size_t stride) {
  constexpr std::size_t most = std::size_t{1} << 31;
  if (n >= most || dim >= most || stride >= most || n * dim >= most / 2)
    throw UsageError("codec bounded", "a chunk has 2^30 values or more, or a row is as long", "cut it into several");
}

float f32_bound(double bound) {
  const auto near = static_cast<float>(bound);
  return near > bound ? std::nextafter(near, 0.0f) : near;
}

std::vector<std::string> Bounded::names() {
  std::vector<std::string> all;
  for (const auto& [name, tried] : codecs()) all.push_back(name);
  return all;
}

Bounded::Bounded(BoundedOptions options, std::string_view where) : options_(std::move(options)) {
  if (!codecs().contains(options_.codec)) {
    std::string known;
    for (const auto& n : names()) known += (known.empty() ? "" : ", ") + n;
    const std::string near = nearest(options_.codec, names());
    throw UsageError(where, "unknown codec '" + options_.codec.substr(0, 60) + "'",
                     (near.empty() ? "" : "did you mean " + near + "? ") + ("known: " + known));
  }
  if (options_.code_width != 0 && options_.code_width != 8 && options_.code_width != 16)
    throw UsageError(where, "codes have 8 or 16 bits", "say 8, 16, or 0 for what they need");
  if (options_.window < 1 || options_.window > 255)
    throw UsageError(where, "the window of vector_lz is 1 to 255 rows", "32 is the published one");
}

std::size_t Bounded::max_bytes(std::size_t rows, std::size_t dim) const {
  return header_bytes + (options_.checksum ? checksum_bytes : 0) + 4 * rows * dim;
}

void Bounded::encode(std::span<const TableChunk> chunks, Buffer out, Buffer sizes, Buffer scratch_memory,
                     std::span<const CodePart> parts) const {
  std::size_t room = 0;
  if (!parts.empty()) check_parts(parts, chunks.size());
  for (const auto& p : parts) room += p.bytes;
  for (const auto& c : chunks) room += c.self || !parts.empty() ? 0 : max_bytes(c.n, c.dim);
  check_call(chunks, out, sizes, room);
  if (!out.place.host()) return encode_on_device(options_, chunks, out, sizes, scratch_memory, parts);
  const Settings of_call = settings_of(options_);
  std::map<const Bounded*, Settings> of_codec;  // those of TableChunk::as
  // Kept: fresh memory for every call would cost more than the coding.
  thread_local EncodeScratch scratch;
  thread_local Bytes code;
  Packer packer(static_cast<std::uint8_t*>(out.data), parts);
  std::vector<Range> own;
  std::map<std::uint32_t, Range> of_scope;
  for (const auto& c : chunks) {
    own.push_back(range_of(rows_of(c)));
    of_scope[c.scope].add(own.back());
    if (own.back().nonfinite && options_.refuse_nonfinite)
      throw Error(ExitCode::nonfinite, "codec bounded", "an embedding row holds NaN or infinity",
                  "lower the learning rate, or let such chunks travel as they are (nonfinite: raw)");
  }
  for (std::size_t k = 0; k < chunks.size(); ++k) {
    const TableChunk& c = chunks[k];
    const Bound bound = bound_for(of_scope[c.scope], c.bound, options_.relative);
    if (c.as && !of_codec.contains(c.as)) of_codec[c.as] = settings_as(options_, c.as->options());
    const Settings& settings = c.as ? of_codec[c.as] : of_call;
    code.clear();
    if (c.self)
      self_chunk(rows_of(c), bound, own[k], settings, scratch, c.self, c.self_stride ? c.self_stride : c.dim);
    else
      encode_chunk(rows_of(c), bound, own[k], settings, scratch, code);
    packer.add(code);
    static_cast<std::uint64_t*>(sizes.data)[k] = code.size();
  }
  packer.finish();
}

void Bounded::decode(std::span<const CodedChunk> chunks, Place place, std::uint32_t* status, Buffer scratch) const {
  if (!place.host()) return decode_on_device(options_, chunks, place, status, scratch);
  for (std::size_t k = 0; k < chunks.size(); ++k) {
    const CodedChunk& c = chunks[k];
    check_size(c.n, c.dim, c.stride);
    try {
      const std::span code = c.of ? find_in_part(c) : std::span(c.code, c.bytes);
      decode_chunk(code, options_.checksum, c.n, c.dim, c.rows, c.stride ? c.stride : c.dim);
    } catch (const BadStream& bad) {
      refuse(bad, k);
    }
  }
  if (status) *status = 0;
}

ChunkInfo inspect(std::span<const std::uint8_t> code) {
  try {
    const ChunkHeader h = read_header(code);
    ChunkInfo info{encoder_names[h.encoder], h.eb, h.rows, code.size(), (h.flags & has_nonfinite) != 0, 0};
    if (h.flags & has_outliers) {
      std::uint32_t count = 0;
      if (h.bytes >= sizeof count) std::memcpy(&count, code.data() + payload_at(h), sizeof count);
      info.outliers = count;
    }
    return info;
  } catch (const BadStream& bad) {
    refuse(bad, 0);
  }
}

}  // namespace trireme
