#include "recipes/dlrm/exchange.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>
#include <numeric>

#include <ATen/ATen.h>

namespace trireme::dlrm {
namespace {

at::Tensor room(const at::Tensor& have, std::size_t bytes, at::Device device) {
  if (have.defined() && have.nbytes() >= bytes) return have;
  return at::empty({std::int64_t(bytes)}, at::TensorOptions(device).dtype(at::kByte));
}

std::size_t first_of(const std::vector<std::size_t>& chunks, int rank) {
  return std::accumulate(chunks.begin(), chunks.begin() + rank, std::size_t{0});
}

Buffer bytes_of(const at::Tensor& t, std::size_t n) {
  Buffer b = buffer_of(t);
  b.count = n;
  return b;
}

}  // namespace

BadChunk::BadChunk(int from, std::size_t k, const std::string& why)
    : CommError("compressed exchange", "chunk " + std::to_string(k) + " from rank " + std::to_string(from) + ": " + why,
                "do all ranks run the same program and configuration?"),
      rank(from),
      chunk(k) {}

RowExchange::RowExchange(Communicator& rows, Communicator& sizes, std::vector<std::size_t> to,
                         std::vector<std::size_t> from)
    : rows_(rows), sizes_(sizes), to_(std::move(to)), from_(std::move(from)) {}

std::vector<std::size_t> RowExchange::values(const std::vector<std::size_t>& chunks) const {
  std::vector<std::size_t> n;
  for (const std::size_t c : chunks) n.push_back(c * std::size_t(recv_.size(1) * recv_.size(2)));
  return n;
}

void RowExchange::start(const at::Tensor& send, const at::Tensor& recv, const Coding& coding) {
  send_ = send, recv_ = recv, codec_ = nullptr;
  const auto me = std::size_t(rows_.rank());
  const double chunk = double(recv.size(1) * recv.size(2)) * double(recv.element_size());
  const double plain = double(std::size_t(send.size(0)) - to_[me]) * chunk;
  bytes_.plain += plain;
  send_sizes_.assign(std::size_t(send.size(0)), std::uint64_t(chunk));
  if (coding.codec) encode(coding);
  if (!codec_) {
    bytes_.sent += plain;
    if (here_) return keep_values();
    work_ = rows_.all_to_all(buffer_of(send_), values(to_), buffer_of(recv_), values(from_));
    return;
  }
  if (!send_.is_cpu()) return;  // in finish()
  if (here_) return keep_codes();
  send_sizes();
  work_ = work_.then([this] { return send_payload(); });
}

void RowExchange::keep_values() {
  const std::int64_t n = send_.size(0), m = recv_.size(0);
  for (std::int64_t at = 0; at < m; at += n) {
    const std::int64_t some = std::min(n, m - at);
    recv_.narrow(0, at, some).copy_(send_.narrow(0, 0, some), /*non_blocking=*/true);
  }
}

// The codes of chunks that would have left, over and over, as they lie.
void RowExchange::keep_codes() {
  const auto own = [&](const std::vector<std::size_t>& chunks, std::size_t k) {
    const std::size_t first = first_of(chunks, rows_.rank());
    return k >= first && k < first + chunks[std::size_t(rows_.rank())];
  };
  std::vector<std::uint64_t> coded;
  for (std::size_t k = 0; k < send_sizes_.size(); ++k)
    if (!own(to_, k)) coded.push_back(send_sizes_[k]);
  recv_sizes_.assign(std::size_t(recv_.size(0)), 0);
  std::int64_t total = 0;
  for (std::size_t k = 0, next = 0; k < recv_sizes_.size(); ++k)
    if (!own(from_, k)) total += std::int64_t(recv_sizes_[k] = coded[next++ % coded.size()]);
  const auto period = std::accumulate(coded.begin(), coded.end(), std::int64_t{0});
  received_ = room(received_, std::max<std::size_t>(std::size_t(total), 4), recv_.device());
  for (std::int64_t at = 0; at < total; at += period) {
    const std::int64_t some = std::min(period, total - at);
    received_.narrow(0, at, some).copy_(encoded_.narrow(0, 0, some), /*non_blocking=*/true);
  }
}

void RowExchange::send_sizes() {
  const auto total = std::accumulate(send_sizes_.begin(), send_sizes_.end(), std::uint64_t{0});
  bytes_.sent += double(total) + 8 * double(send_sizes_.size() - to_[std::size_t(rows_.rank())]);
  recv_sizes_.assign(std::size_t(recv_.size(0)), 0);
  // Sizes of what stays here are zero and go nowhere.
  work_ = sizes_.all_to_all({send_sizes_.data(), send_sizes_.size(), DType::i64}, to_,
                            {recv_sizes_.data(), recv_sizes_.size(), DType::i64}, from_);
}

void RowExchange::encode(const Coding& coding) {
  const auto n = std::size_t(send_.size(1)), d = std::size_t(send_.size(2));
  const std::size_t mine = first_of(to_, rows_.rank()), end = mine + to_[std::size_t(rows_.rank())];
  const std::size_t there = first_of(from_, rows_.rank());
  auto* from = send_.data_ptr<float>();
  auto* to = recv_.data_ptr<float>();
  std::vector<TableChunk> chunks(std::size_t(send_.size(0)));
  for (std::size_t k = 0; k < chunks.size(); ++k) {
    TableChunk& c = chunks[k];
    c.rows = from + k * n * d, c.n = n, c.dim = d, c.scope = coding.scopes[k];
    c.bound = coding.bounds[k];
    if (!coding.codecs.empty()) c.as = coding.codecs[k];
    if (coding.simulate)
      chunks[k].self = from + k * n * d;
    else if (k >= mine && k < end)
      chunks[k].self = to + (there + k - mine) * n * d;
  }
  const Bounded* codec = coding.codec;
  if (send_.is_cpu()) {
    encoded_ = room(encoded_, codec->max_bytes(n, d) * chunks.size(), send_.device());
    std::vector<std::uint64_t> sizes(chunks.size());
    codec->encode(chunks, buffer_of(encoded_), {sizes.data(), sizes.size(), DType::i64});
    if (!coding.simulate) send_sizes_ = std::move(sizes);
  } else {
    if (!chunks.empty()) encode_on_device(chunks, *codec);
    if (coding.simulate && side_) side_->lead();
  }
  if (!coding.simulate) codec_ = codec;
}

void RowExchange::encode_on_device(std::span<const TableChunk> chunks, const Bounded& codec) {
  const at::TensorOptions longs = at::TensorOptions().dtype(at::kLong);
  const auto n = std::int64_t(chunks.size());
  if (!side_) side_.emplace(send_.device());
  if (!coded_sizes_.defined() || coded_sizes_.numel() != n) coded_sizes_ = at::empty({n}, longs.pinned_memory(true));
  side_->follow();
  side_->run([&] {
    encoded_ = room(encoded_, codec.max_bytes(chunks[0].n, chunks[0].dim) * chunks.size(), send_.device());
    scratch_ = room(scratch_, codec.scratch_bytes(chunks), send_.device());
    const at::Tensor sizes = at::empty({n}, longs.device(send_.device()));
    codec.encode(chunks, buffer_of(encoded_), buffer_of(sizes), buffer_of(scratch_));
    coded_sizes_.copy_(sizes, /*non_blocking=*/true);
  });
  side_->mark();
}

Work RowExchange::send_payload() {
  const std::size_t most = codec_->max_bytes(std::size_t(recv_.size(1)), std::size_t(recv_.size(2)));
  std::vector<std::size_t> send, recv;
  std::size_t at = 0;
  for (const std::size_t n : to_) {
    send.push_back(std::accumulate(send_sizes_.begin() + std::ptrdiff_t(at),
                                   send_sizes_.begin() + std::ptrdiff_t(at + n), std::size_t{0}));
    at += n;
  }
  at = 0;
  for (std::size_t r = 0; r < from_.size(); ++r) {
    recv.push_back(0);
    for (std::size_t k = 0; k < from_[r]; ++k, ++at) {
      const std::uint64_t size = recv_sizes_[at];
      if (size > most || size % 4 != 0)
        throw BadChunk(
            int(r), k,
            "it announces " + std::to_string(size) + " bytes, at most " + std::to_string(most) + " are possible");
      recv.back() += size;
    }
  }
  const std::size_t total = std::accumulate(recv.begin(), recv.end(), std::size_t{0});
  received_ = room(received_, std::max<std::size_t>(total, 4), recv_.device());
  return rows_.all_to_all(bytes_of(encoded_, std::accumulate(send.begin(), send.end(), std::size_t{0})), send,
                          bytes_of(received_, total), recv);
}

int RowExchange::source_of(std::size_t chunk) const {
  int r = 0;
  for (std::size_t first = from_[0]; chunk >= first; first += from_[std::size_t(r)]) ++r;
  return r;
}

void RowExchange::decode() {
  const auto n = std::size_t(recv_.size(1)), d = std::size_t(recv_.size(2));
  const std::size_t mine = first_of(from_, rows_.rank()), end = mine + from_[std::size_t(rows_.rank())];
  std::vector<CodedChunk> chunks;
  const auto* code = received_.const_data_ptr<std::uint8_t>();
  auto* to = recv_.data_ptr<float>();
  std::vector<std::size_t> number;
  for (std::size_t k = 0; k < recv_sizes_.size(); ++k) {
    if (k >= mine && k < end) continue;
    chunks.push_back({code, std::size_t(recv_sizes_[k]), to + k * n * d, n, d});
    number.push_back(k);
    code += recv_sizes_[k];
  }
  if (recv_.is_cpu()) {
    for (std::size_t i = 0; i < chunks.size(); ++i) try {
        codec_->decode({&chunks[i], 1});
      } catch (const CommError& e) {
        const int source = source_of(number[i]);
        throw BadChunk(source, number[i] - first_of(from_, source), e.what());
      }
    return;
  }
  const at::Tensor status = at::zeros({1}, at::TensorOptions(recv_.device()).dtype(at::kInt));
  scratch_ = room(scratch_, codec_->decode_scratch_bytes(chunks), recv_.device());
  codec_->decode(chunks, buffer_of(recv_).place, reinterpret_cast<std::uint32_t*>(status.data_ptr<int>()),
                 buffer_of(scratch_));
  bad_ = bad_.defined() ? at::maximum(bad_, status) : status;
}

std::optional<std::size_t> RowExchange::take_bad() {
  if (!bad_.defined()) return std::nullopt;
  const int first = std::exchange(bad_, at::Tensor()).item<int>();
  return first > 0 ? std::optional(std::size_t(first - 1)) : std::nullopt;
}

void RowExchange::finish() {
  if (codec_ && !recv_.is_cpu()) {
    finish_on_device();
  } else {
    work_.wait();
    if (codec_) decode();
  }
  send_ = recv_ = at::Tensor();
}

// The one wait of the host for this direction: how much travels.
void RowExchange::finish_on_device() {
  if (!side_) side_.emplace(recv_.device());
  if (!send_sizes_.empty()) {
    side_->wait_host();
    const auto* s = coded_sizes_.const_data_ptr<std::int64_t>();
    send_sizes_.assign(s, s + coded_sizes_.numel());
  } else {
    side_->follow();  // nothing was coded here, and `recv` is of the current stream
  }
  if (!here_) {
    send_sizes();
    work_.wait();
  }
  side_->run([&] {
    encoded_ = room(encoded_, 4, recv_.device());  // a rank without tables has coded nothing
    if (here_) {
      keep_codes();
    } else {
      work_ = send_payload();
      work_.wait();
    }
    decode();
  });
  side_->lead();
}

}  // namespace trireme::dlrm
