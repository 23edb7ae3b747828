// A codec that is summable: encode, all_reduce of the codes, decode. Any other, for n ranks of which each owns a shard:
//  1. encode the n shards for their owners into `codes`; all_to_all from there into `received`
//  2. decode and sum what was received into `sum`; encode that into this rank's slot of `codes`; all_gather in place
//  3. decode the n slots into the buffer
// On a device step 1 begins on the buffer's stream, the rest runs in order on the communicator's (Work::then).
#include "compression/all_reduce.h"

#include "comm/device.h"
#include "comm/error.h"

#include <algorithm>

namespace trireme {
namespace {

constexpr std::size_t alignment = 256;
std::size_t rounded(std::size_t bytes) { return (bytes + alignment - 1) / alignment * alignment; }

// Bytes of the scratch memory and where its parts begin. Alike on all ranks.
struct Parts {
  std::size_t slot = 0, received = 0, sum = 0, end = 0;  // slot: the longest code of a shard; `codes` begins at 0

  Parts(const Compressor& codec, std::size_t count, int ranks) {
    if (codec.summable()) {
      end = codec.max_bytes(count);
      return;
    }
    const std::size_t shard = shard_size(count, ranks), first = std::min(shard, count);
    const auto n = static_cast<std::size_t>(ranks);
    slot = codec.max_bytes(first);  // the first shard is the longest
    received = rounded(n * slot);
    sum = received + rounded(n * slot);
    end = sum + sizeof(float) * first;
  }
};

struct Reduction {
  Communicator& comm;
  Compressor& codec;
  Buffer inout;
  double bound;
  std::optional<ErrorFeedback> feedback;
  Parts at;
  std::size_t shard;
  std::shared_ptr<std::uint8_t[]> own;  // the memory, where the caller gave none
  std::uint8_t* memory;

  std::size_t part(int rank) const { return part_of_shard(inout.count, shard, rank); }
  float* values(int rank) const {
    return static_cast<float*>(inout.data) + std::min(inout.count, shard * static_cast<std::size_t>(rank));
  }
  std::size_t code_bytes(int rank) const { return codec.max_bytes(part(rank)); }
  // Inside a then() the order is that of the communicator's stream.
  Place now() const { return inout.place.host() ? inout.place : current_place(inout.place.device); }
  void encode(std::span<const Chunk> chunks, Buffer out) const {
    std::vector<std::uint64_t> sizes(chunks.size());  // known: nobody reads them
    codec.encode(chunks, out, {sizes.data(), sizes.size(), DType::i64});
  }
};
using Shared = std::shared_ptr<Reduction>;

Work decode_sums(const Shared& r) {
  const Place place = r->now();
  for (int from = 0; from < r->comm.size(); ++from) {
    const Buffer out{r->values(from), r->part(from), DType::f32, place};
    const std::uint64_t size = r->code_bytes(from);
    const auto* code = r->memory + r->at.slot * static_cast<std::size_t>(from);
    r->codec.decode({code, static_cast<std::size_t>(size), DType::u8, place}, {&size, 1}, {&out, 1});
  }
  return {};
}

// The codes of all ranks for this rank's shard have arrived.
Work sum_shard(const Shared& r) {
  const Place place = r->now();
  const int me = r->comm.rank();
  const std::size_t n = r->part(me), bytes = r->code_bytes(me), ranks = static_cast<std::size_t>(r->comm.size());
  std::vector<ConstBuffer> codes;  // in rank order
  for (std::size_t k = 0; k < ranks; ++k)
    codes.push_back({r->memory + r->at.received + k * bytes, bytes, DType::u8, place});
  auto* sum = reinterpret_cast<float*>(r->memory + r->at.sum);
  r->codec.decode_sum(codes, {sum, n, DType::f32, place});
  Chunk chunk{{sum, n, DType::f32, place}, r->bound};
  if (r->feedback) {
    chunk.error = static_cast<float*>(r->feedback->owned.data);
    chunk.error_before = static_cast<const float*>(r->feedback->owned_before.data);
  }
  std::uint8_t* slot = r->memory + r->at.slot * static_cast<std::size_t>(me);
  r->encode({&chunk, 1}, {slot, r->at.slot, DType::u8, place});
  if (place.host())
    std::fill(slot + bytes, slot + r->at.slot, std::uint8_t{0});  // sent by the last ranks, read by none
  return r->comm.all_gather({slot, r->at.slot, DType::u8, place}, {r->memory, ranks * r->at.slot, DType::u8, place})
      .then([r] { return decode_sums(r); });
}

Work by_shards(const Shared& r) {
  const Place place = r->inout.place;
  const int ranks = r->comm.size();
  std::vector<Chunk> chunks;
  std::vector<std::size_t> send, recv;
  for (int k = 0; k < ranks; ++k) {
    Chunk& chunk = chunks.emplace_back(Chunk{{r->values(k), r->part(k), DType::f32, place}, r->bound});
    send.push_back(r->code_bytes(k));
    recv.push_back(r->code_bytes(r->comm.rank()));
    if (!r->feedback) continue;
    const std::ptrdiff_t first = r->values(k) - static_cast<const float*>(r->inout.data);
    chunk.error = static_cast<float*>(r->feedback->sent.data) + first;
    if (const auto* before = static_cast<const float*>(r->feedback->sent_before.data))
      chunk.error_before = before + first;
  }
  std::size_t sent = 0;
  for (const std::size_t bytes : send) sent += bytes;
  const Buffer codes{r->memory, sent, DType::u8, place};
  r->encode(chunks, codes);
  const Buffer received{r->memory + r->at.received, recv[0] * recv.size(), DType::u8, place};
  return r->comm.all_to_all(codes, send, received, recv).then([r] { return sum_shard(r); });
}

Work by_codes(const Shared& r) {
  const std::size_t bytes = r->at.end;
  const Chunk chunk{r->inout, 0};
  r->encode({&chunk, 1}, {r->memory, bytes, DType::u8, r->inout.place});
  const Buffer codes{r->memory, r->inout.count, *r->codec.sum_type(), r->inout.place};
  return r->comm.all_reduce(codes, Op::sum).then([r, bytes] {
    const std::uint64_t size = bytes;
    const Buffer out{r->inout.data, r->inout.count, DType::f32, r->now()};
    r->codec.decode({r->memory, bytes, DType::u8, out.place}, {&size, 1}, {&out, 1});
    return Work();
  });
}

}  // namespace

std::size_t all_reduce_scratch(const Compressor& codec, std::size_t count, int ranks) {
  return ranks == 1 || count == 0 || !codec.fixed_size() ? 0 : Parts(codec, count, ranks).end;
}

std::size_t part_of_shard(std::size_t count, std::size_t shard, int rank) {
  const std::size_t first = std::min(count, shard * static_cast<std::size_t>(rank));
  return std::min(shard, count - first);
}

Work all_reduce_fixed_size(Communicator& comm, Compressor& codec, Buffer inout, double bound,
                           const ErrorFeedback* feedback, Buffer scratch) {
  const Parts parts(codec, inout.count, comm.size());
  auto r = std::make_shared<Reduction>(
      Reduction{comm, codec, inout, bound, {}, parts, shard_size(inout.count, comm.size()), {}, nullptr});
  if (feedback) r->feedback = *feedback;
  if (!scratch.data && inout.place.host()) {
    r->own = std::make_shared_for_overwrite<std::uint8_t[]>(parts.end);
    scratch = {r->own.get(), parts.end, DType::u8};
  }
  if (scratch.bytes() < parts.end || scratch.place.device != inout.place.device)
    throw Error(ExitCode::bug, "all_reduce", "the scratch memory is too small or lies elsewhere");
  r->memory = static_cast<std::uint8_t*>(scratch.data);
  return codec.summable() ? by_codes(r) : by_shards(r);
}

}  // namespace trireme
