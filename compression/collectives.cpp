#include "compression/collectives.h"

#include "comm/error.h"
#include "compression/all_reduce.h"

#include <algorithm>
#include <cstring>
#include <numeric>

namespace trireme {
namespace {

using Bytes = std::unique_ptr<std::uint8_t[]>;

Bytes uninitialized(std::size_t n) { return std::make_unique_for_overwrite<std::uint8_t[]>(n); }
std::unique_ptr<float[]> uninitialized_floats(std::size_t n) { return std::make_unique_for_overwrite<float[]>(n); }

Buffer bytes_of(const Bytes& b, std::size_t n) { return {b.get(), n, DType::u8}; }

template <class T>
Buffer words_of(std::vector<T>& v) {
  static_assert(sizeof(T) == sizeof(std::int64_t));
  return {v.data(), v.size(), DType::i64};
}

float* floats(const Buffer& b, std::size_t first) { return static_cast<float*>(b.data) + first; }

// Lets the sizes that other ranks announce never ask for more memory than honest ones could.
void check_sizes(const Compressor& codec, std::span<const std::uint64_t> sizes, std::span<const std::size_t> counts) {
  for (std::size_t r = 0; r < sizes.size(); ++r)
    if (sizes[r] > codec.max_bytes(counts[r]))
      throw CommError("compressed collective",
                      "rank " + std::to_string(r) + " announces " + std::to_string(sizes[r]) + " bytes for " +
                          std::to_string(counts[r]) + " values",
                      "do all ranks run the same program and configuration?");
}

// One exchange: what this rank encoded for each, what it gets from each.
struct Exchange {
  Compressor& codec;
  std::vector<std::size_t> recv_counts;
  std::vector<std::uint64_t> send_sizes, recv_sizes;
  Bytes encoded, received;
  std::size_t encoded_bytes = 0, received_bytes = 0;
};

Work send_codes(Communicator& comm, const std::shared_ptr<Exchange>& x) {
  check_sizes(x->codec, x->recv_sizes, x->recv_counts);
  x->received_bytes = std::accumulate(x->recv_sizes.begin(), x->recv_sizes.end(), std::size_t{0});
  x->received = uninitialized(x->received_bytes);
  const std::vector<std::size_t> send(x->send_sizes.begin(), x->send_sizes.end());
  const std::vector<std::size_t> recv(x->recv_sizes.begin(), x->recv_sizes.end());
  return comm.all_to_all(bytes_of(x->encoded, x->encoded_bytes), send, bytes_of(x->received, x->received_bytes), recv);
}

// Encodes and exchanges; `x->received` holds the codes once the Work is complete.
Work exchange(Communicator& comm, const std::shared_ptr<Exchange>& x, std::span<const Chunk> chunks) {
  std::size_t room = 0;
  for (const auto& c : chunks) room += x->codec.max_bytes(c.in.count);
  x->encoded = uninitialized(room);
  x->send_sizes.resize(chunks.size());
  x->codec.encode(chunks, bytes_of(x->encoded, room), words_of(x->send_sizes));
  x->encoded_bytes = std::accumulate(x->send_sizes.begin(), x->send_sizes.end(), std::size_t{0});
  x->recv_sizes.resize(chunks.size());
  if (x->codec.fixed_size()) {
    std::transform(x->recv_counts.begin(), x->recv_counts.end(), x->recv_sizes.begin(),
                   [&](std::size_t n) { return x->codec.max_bytes(n); });
    return send_codes(comm, x);
  }
  const std::vector<std::size_t> one(chunks.size(), 1);
  return comm.all_to_all(words_of(x->send_sizes), one, words_of(x->recv_sizes), one).then([&comm, x] {
    return send_codes(comm, x);
  });
}

// ---- all_reduce of a codec whose codes differ in size ----

struct Reduction {
  Communicator& comm;
  Compressor& codec;
  Buffer inout;
  double bound;
  std::optional<ErrorFeedback> feedback;
  std::size_t shard;
  std::vector<std::uint64_t> sizes;  // of every rank's sums
  Bytes encoded, gathered;
  std::size_t slot = 0;  // bytes between two ranks' sums in `gathered`

  std::size_t part(int rank) const { return part_of_shard(inout.count, shard, rank); }
  std::size_t mine() const { return part(comm.rank()); }
};

Work decode_sums(const std::shared_ptr<Reduction>& r) {
  for (int from = 0; from < r->comm.size(); ++from) {
    const Buffer out{floats(r->inout, std::min(r->inout.count, r->shard * static_cast<std::size_t>(from))),
                     r->part(from), DType::f32};
    const std::uint64_t size = r->sizes[static_cast<std::size_t>(from)];
    const auto* codes = r->gathered.get() + r->slot * static_cast<std::size_t>(from);
    r->codec.decode({codes, static_cast<std::size_t>(size), DType::u8}, {&size, 1}, {&out, 1});
  }
  return {};
}

Work gather_sums(const std::shared_ptr<Reduction>& r) {
  std::vector<std::size_t> counts;
  for (int k = 0; k < r->comm.size(); ++k) counts.push_back(r->part(k));
  check_sizes(r->codec, r->sizes, counts);
  r->slot = static_cast<std::size_t>(*std::max_element(r->sizes.begin(), r->sizes.end()));
  r->gathered = uninitialized(r->slot * static_cast<std::size_t>(r->comm.size()));
  return r->comm
      .all_gather(bytes_of(r->encoded, r->slot),
                  bytes_of(r->gathered, r->slot * static_cast<std::size_t>(r->comm.size())))
      .then([r] { return decode_sums(r); });
}

// The codes of all ranks for this rank's shard have arrived.
Work sum_shard(const std::shared_ptr<Reduction>& r, const Exchange& x) {
  const std::size_t n = r->mine();
  std::vector<ConstBuffer> codes;  // in rank order
  const std::uint8_t* from = x.received.get();
  for (const std::uint64_t size : x.recv_sizes) {
    codes.push_back({from, static_cast<std::size_t>(size), DType::u8});
    from += size;
  }
  const auto sum = uninitialized_floats(n);
  r->codec.decode_sum(codes, {sum.get(), n, DType::f32});
  // Room for any rank's code: all_gather sends as many bytes as the longest has.
  const std::size_t room = r->codec.max_bytes(r->shard);
  r->encoded = uninitialized(room);
  Chunk chunk{{sum.get(), n, DType::f32}, r->bound};
  if (r->feedback) {
    chunk.error = floats(r->feedback->owned, 0);
    chunk.error_before = static_cast<const float*>(r->feedback->owned_before.data);
  }
  std::uint64_t size = 0;
  r->codec.encode({&chunk, 1}, bytes_of(r->encoded, room), {&size, 1, DType::i64});
  std::fill(r->encoded.get() + size, r->encoded.get() + room, std::uint8_t{0});
  r->sizes.resize(static_cast<std::size_t>(r->comm.size()));
  r->sizes[static_cast<std::size_t>(r->comm.rank())] = size;
  return r->comm.all_gather({&r->sizes[static_cast<std::size_t>(r->comm.rank())], 1, DType::i64}, words_of(r->sizes))
      .then([r] { return gather_sums(r); });
}

Work reduce_by_shards(Communicator& comm, Compressor& codec, Buffer inout, double bound,
                      const ErrorFeedback* feedback) {
  auto r = std::make_shared<Reduction>(comm, codec, inout, bound, std::nullopt, shard_size(inout.count, comm.size()));
  if (feedback) r->feedback = *feedback;
  auto x = std::make_shared<Exchange>(codec);
  std::vector<Chunk> chunks;
  for (int k = 0; k < comm.size(); ++k) {
    const std::size_t first = std::min(inout.count, r->shard * static_cast<std::size_t>(k));
    Chunk& chunk = chunks.emplace_back(Chunk{{floats(inout, first), r->part(k), DType::f32}, bound});
    if (!feedback) continue;
    chunk.error = floats(feedback->sent, first);
    if (const auto* before = static_cast<const float*>(feedback->sent_before.data)) chunk.error_before = before + first;
  }
  x->recv_counts.assign(chunks.size(), r->mine());
  return exchange(comm, x, chunks).then([r, x] { return sum_shard(r, *x); });
}

}  // namespace

std::size_t shard_size(std::size_t count, int ranks) {
  constexpr std::size_t align = 256;
  const auto n = static_cast<std::size_t>(ranks);
  return ((count + n - 1) / n + align - 1) / align * align;
}

Work all_to_all(Communicator& comm, Compressor& codec, ConstBuffer in, std::span<const std::size_t> send,
                std::span<const double> bounds, Buffer out, std::span<const std::size_t> recv) {
  auto x = std::make_shared<Exchange>(codec);
  x->recv_counts.assign(recv.begin(), recv.end());
  std::vector<Chunk> chunks;
  const auto* from = static_cast<const float*>(in.data);
  for (std::size_t r = 0; r < send.size(); ++r) {
    chunks.push_back({{from, send[r], in.dtype, in.place}, bounds[r]});
    from += send[r];
  }
  return exchange(comm, x, chunks).then([x, out] {
    std::vector<Buffer> parts;
    std::size_t first = 0;
    for (const std::size_t n : x->recv_counts) {
      parts.push_back({floats(out, first), n, out.dtype, out.place});
      first += n;
    }
    x->codec.decode(bytes_of(x->received, x->received_bytes), x->recv_sizes, parts);
    return Work();
  });
}

Work all_reduce(Communicator& comm, Compressor& codec, Buffer inout, double bound, const ErrorFeedback* feedback,
                Buffer scratch) {
  if (comm.size() == 1 || inout.count == 0) return {};
  if (!inout.place.host() && !codec.fixed_size())
    throw Error(ExitCode::bug, "all_reduce",
                "codes of any length want host memory, or framework/gradients/sized_hook.h");
  return codec.fixed_size() ? all_reduce_fixed_size(comm, codec, inout, bound, feedback, scratch)
                            : reduce_by_shards(comm, codec, inout, bound, feedback);
}

std::size_t all_reduce_bytes(const Compressor& codec, std::size_t count, int rank, int ranks) {
  const auto n = static_cast<std::size_t>(ranks);
  if (codec.summable()) return 2 * (n - 1) * codec.max_bytes(count) / n;
  const std::size_t shard = shard_size(count, ranks);
  std::size_t bytes = (n - 1) * codec.max_bytes(std::min(shard, count));  // the sums: rank 0's shard is the longest
  for (int r = 0; r < ranks; ++r)
    if (r != rank) bytes += codec.max_bytes(part_of_shard(count, shard, r));
  return bytes;
}

}  // namespace trireme
