#include "recipes/dlrm/exchange.h"

#include "comm/error.h"
#include "framework/base/tensor.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>

#include <ATen/ATen.h>

namespace trireme::dlrm {
namespace {

std::size_t first_of(const std::vector<std::size_t>& chunks, int rank) {
  return std::accumulate(chunks.begin(), chunks.begin() + rank, std::size_t{0});
}

std::size_t bytes_of(const std::vector<CodePart>& parts) {
  return std::accumulate(parts.begin(), parts.end(), std::size_t{0},
                         [](std::size_t sum, const CodePart& p) { return sum + p.bytes; });
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
    : rows_(rows), sizes_(sizes), to_(std::move(to)), from_(std::move(from)), room_(rows.size()) {}

std::vector<std::size_t> RowExchange::values(const std::vector<std::size_t>& chunks) const {
  std::vector<std::size_t> n;
  for (const std::size_t c : chunks) n.push_back(c * std::size_t(recv_.size(1) * recv_.size(2)));
  return n;
}

// Kept from call to call; but what a graph reads and writes is its own.
void RowExchange::make_room(at::Tensor& memory, std::size_t bytes) const {
  if (memory.defined() && memory.nbytes() >= bytes && !coding_.recorded) return;
  memory = at::empty({std::int64_t(bytes)}, at::TensorOptions(recv_.device()).dtype(at::kByte));
}

void RowExchange::start(const at::Tensor& send, const at::Tensor& recv, const Coding& coding) {
  send_ = send, recv_ = recv, coding_ = coding, work_ = {};
  if (coding.recorded) recorded_ = {};
  coded_ = coding.codec && !coding.simulate;
  settled_ = !coded_ || !coding.in_room || here_ || rows_.size() == 1 || rows_.size() > int(most_code_parts);
  in_room_ = !settled_ && room_.known_for(recv.size(1) * recv.size(2));
  if (coding.recorded && coded_ && !in_room_)
    throw Error(ExitCode::bug, "compressed exchange", "sizes that go first cannot be recorded");
  if (coding.recorded) recorded_.in_room = in_room_, settled_ = true;  // by accept()
  const auto me = std::size_t(rows_.rank());
  chunk_bytes_ = recv.size(1) * recv.size(2) * recv.element_size();
  if (coding.recorded) recorded_.chunk_bytes = chunk_bytes_;
  const double plain = double(std::size_t(send.size(0)) - to_[me]) * double(chunk_bytes_);
  counted().plain += plain;
  send_sizes_.assign(std::size_t(send.size(0)), std::uint64_t(chunk_bytes_));
  if (coding_.codec) encode();
  if (coded_) return in_room_ ? send_parts() : start_coded();
  counted().sent += plain;
  if (here_) return keep_values();
  work_ = rows_.all_to_all(buffer_of(send_), values(to_), buffer_of(recv_), values(from_));
}

void RowExchange::start_coded() {
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
  make_room(received_, std::max<std::size_t>(std::size_t(total), 4));
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

void RowExchange::encode() {
  const auto n = std::size_t(send_.size(1)), d = std::size_t(send_.size(2));
  const std::size_t mine = first_of(to_, rows_.rank()), end = mine + to_[std::size_t(rows_.rank())];
  const std::size_t there = first_of(from_, rows_.rank());
  auto* from = send_.data_ptr<float>();
  auto* to = recv_.data_ptr<float>();
  std::vector<TableChunk> chunks(std::size_t(send_.size(0)));
  for (std::size_t k = 0; k < chunks.size(); ++k) {
    TableChunk& c = chunks[k];
    c.rows = from + k * n * d, c.n = n, c.dim = d, c.scope = coding_.scopes[k];
    c.bound = coding_.bounds[k];
    if (!coding_.codecs.empty()) c.as = coding_.codecs[k];
    if (coding_.simulate)
      chunks[k].self = from + k * n * d;
    else if (k >= mine && k < end)
      chunks[k].self = to + (there + k - mine) * n * d;
  }
  if (!send_.is_cpu()) return encode_on_device(chunks);
  const auto into = in_room_ ? parts(to_, room_.to()) : std::vector<CodePart>();
  make_room(encoded_, in_room_ ? bytes_of(into) : coding_.codec->max_bytes(n, d) * chunks.size());
  std::vector<std::uint64_t> sizes(chunks.size());
  coding_.codec->encode(chunks, buffer_of(encoded_), {sizes.data(), sizes.size(), DType::i64}, {}, into);
  if (coded_) send_sizes_ = std::move(sizes);
}

void RowExchange::encode_on_device(std::span<const TableChunk> chunks) {
  const at::TensorOptions longs = at::TensorOptions().dtype(at::kLong);
  const auto n = std::int64_t(chunks.size());
  const Bounded& codec = *coding_.codec;
  if (!side_) side_.emplace(send_.device());
  if (!coded_sizes_.defined() || coded_sizes_.numel() != n) coded_sizes_ = at::empty({n}, longs.pinned_memory(true));
  side_->follow();  // also where there is nothing to code: `recv` is of the current stream
  side_->run([&] {
    const auto into = in_room_ ? parts(to_, room_.to()) : std::vector<CodePart>();
    const std::size_t most = chunks.empty() ? 4 : codec.max_bytes(chunks[0].n, chunks[0].dim) * chunks.size();
    make_room(encoded_, in_room_ ? bytes_of(into) : most);
    if (chunks.empty()) return void(encoded_.zero_());  // parts of nothing
    make_room(scratch_, codec.scratch_bytes(chunks));
    const at::Tensor sizes = at::empty({n}, longs.device(send_.device()));
    codec.encode(chunks, buffer_of(encoded_), buffer_of(sizes), buffer_of(scratch_), into);
    coded_sizes_.copy_(sizes, /*non_blocking=*/true);
  });
  side_->mark();
  if (coding_.simulate) side_->lead();
}

// ---- in room ----

std::vector<CodePart> RowExchange::parts(const std::vector<std::size_t>& chunks,
                                         const std::vector<std::int64_t>& room) const {
  std::vector<CodePart> all;
  for (std::size_t r = 0; r < chunks.size(); ++r)
    all.push_back(
        {chunks[r], r == std::size_t(rows_.rank()) ? 0 : CodePart::header_bytes(chunks[r]) + std::size_t(room[r])});
  return all;
}

std::vector<std::int64_t> RowExchange::needed() const {
  std::vector<std::int64_t> bytes;
  auto size = send_sizes_.begin();
  for (const std::size_t n : to_)
    bytes.push_back(std::int64_t(std::accumulate(size, size + std::ptrdiff_t(n), std::uint64_t{0}))),
        size += std::ptrdiff_t(n);
  return bytes;
}

void RowExchange::send_parts() {
  std::vector<std::size_t> send, recv;
  for (const CodePart& p : parts(to_, room_.to())) send.push_back(p.bytes);
  for (const CodePart& p : parts(from_, room_.from())) recv.push_back(p.bytes);
  const std::size_t out = std::accumulate(send.begin(), send.end(), std::size_t{0}),
                    in = std::accumulate(recv.begin(), recv.end(), std::size_t{0});
  counted().sent += double(out);
  const auto post = [&] {
    make_room(received_, in);
    work_ = rows_.all_to_all(bytes_of(encoded_, out), send, bytes_of(received_, in), recv);
  };
  side_ ? side_->run(post) : post();
}

// The first word of each part to the host; then values, which count where all ranks had room.
void RowExchange::finish_parts() {
  const auto read = [&] {
    work_.wait();
    std::size_t at = 0;
    const auto all = parts(from_, room_.from());
    for (std::size_t r = 0; r < all.size(); at += all[r++].bytes)
      if (all[r].bytes > 0)
        lacks_.narrow(0, 8 * std::int64_t(r), 8).copy_(received_.narrow(0, std::int64_t(at), 8), /*non_blocking=*/true);
  };
  if (!lacks_.defined())
    lacks_ = at::zeros({8 * rows_.size()}, at::TensorOptions().dtype(at::kByte).pinned_memory(side_.has_value()));
  if (side_) {
    side_->run(read);
    side_->mark();
    return side_->run([this] { decode(); });
  }
  read();
  all_had_room() ? decode() : void(recv_.fill_(std::numeric_limits<float>::quiet_NaN()));
}

bool RowExchange::all_had_room() const {
  bool all = room_.enough(needed());
  for (int r = 0; r < rows_.size(); ++r) {
    std::uint64_t lacks;
    std::memcpy(&lacks, lacks_.const_data_ptr<std::uint8_t>() + 8 * r, sizeof lacks);
    if (lacks > 1) throw BadChunk(r, 0, "what should stand before the codes does not");
    all = all && lacks == 0;
  }
  return all;
}

bool RowExchange::settle() {
  if (std::exchange(settled_, true)) return false;
  std::optional<bool> fitted;
  if (std::exchange(in_room_, false)) {
    if (side_) side_->wait_host(), take_sizes();
    fitted = all_had_room();
    if (!*fitted) {
      encode();
      start_coded();
      finish_coded();
    } else {
      remember(status_);
    }
  }
  bytes_.sent += room_.note(needed(), fitted, sizes_);
  send_ = recv_ = at::Tensor();
  return fitted && !*fitted;
}

bool RowExchange::accept() {
  bytes_.plain += recorded_.bytes.plain, bytes_.sent += recorded_.bytes.sent;
  chunk_bytes_ = recorded_.chunk_bytes;
  if (!recorded_.in_room) return true;
  if (side_) take_sizes();
  const bool fitted = all_had_room();
  if (fitted) remember(recorded_.status);
  bytes_.sent += room_.note(needed(), fitted, sizes_);
  return fitted;
}

// ---- sizes, then codes ----

Work RowExchange::send_payload() {
  const std::size_t most = coding_.codec->max_bytes(std::size_t(recv_.size(1)), std::size_t(recv_.size(2)));
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
  make_room(received_, std::max<std::size_t>(total, 4));
  return rows_.all_to_all(bytes_of(encoded_, std::accumulate(send.begin(), send.end(), std::size_t{0})), send,
                          bytes_of(received_, total), recv);
}

int RowExchange::source_of(std::size_t chunk) const {
  int r = 0;
  for (std::size_t first = from_[0]; chunk >= first; first += from_[std::size_t(r)]) ++r;
  return r;
}

// Codes as they came; `number`: which of all chunks each is.
std::vector<CodedChunk> RowExchange::arrived(std::vector<std::size_t>& number) {
  const auto n = std::size_t(recv_.size(1)), d = std::size_t(recv_.size(2));
  const auto came_in = in_room_ ? parts(from_, room_.from()) : std::vector<CodePart>();
  std::vector<CodedChunk> chunks;
  const auto* code = received_.const_data_ptr<std::uint8_t>();
  auto* to = recv_.data_ptr<float>();
  std::size_t k = 0;
  for (std::size_t r = 0; r < from_.size(); ++r) {
    for (std::size_t i = 0; i < from_[r]; ++i, ++k) {
      if (r == std::size_t(rows_.rank())) continue;
      CodedChunk c{code, in_room_ ? came_in[r].bytes : std::size_t(recv_sizes_[k]), to + k * n * d, n, d};
      if (in_room_)
        c.of = from_[r], c.number = i;
      else
        code += recv_sizes_[k];
      chunks.push_back(c);
      number.push_back(k);
    }
    if (in_room_) code += came_in[r].bytes;
  }
  return chunks;
}

void RowExchange::decode() {
  std::vector<std::size_t> number;
  const std::vector<CodedChunk> chunks = arrived(number);
  if (recv_.is_cpu()) {
    for (std::size_t i = 0; i < chunks.size(); ++i) try {
        coding_.codec->decode({&chunks[i], 1});
      } catch (const CommError& e) {
        const int source = source_of(number[i]);
        throw BadChunk(source, number[i] - first_of(from_, source), e.what());
      }
    return;
  }
  status_ = at::zeros({1}, at::TensorOptions(recv_.device()).dtype(at::kInt));
  make_room(scratch_, coding_.codec->decode_scratch_bytes(chunks));
  coding_.codec->decode(chunks, buffer_of(recv_).place, reinterpret_cast<std::uint32_t*>(status_.data_ptr<int>()),
                        buffer_of(scratch_));
  if (!in_room_) remember(status_);
  if (coding_.recorded) recorded_.status = status_;
}

void RowExchange::remember(const at::Tensor& status) {
  if (!status.defined()) return;
  bad_ = bad_.defined() ? at::maximum(bad_, status) : status.clone();  // which a graph writes anew
}

std::optional<std::size_t> RowExchange::take_bad() {
  if (!bad_.defined()) return std::nullopt;
  const int first = std::exchange(bad_, at::Tensor()).item<int>();
  return first > 0 ? std::optional(std::size_t(first - 1)) : std::nullopt;
}

void RowExchange::finish() {
  if (in_room_) return finish_parts();
  finish_coded();
  if (settled_) send_ = recv_ = at::Tensor();
}

void RowExchange::finish_coded() {
  if (coded_ && !recv_.is_cpu()) return finish_on_device();
  work_.wait();
  if (coded_) decode();
}

void RowExchange::take_sizes() {
  const auto* s = coded_sizes_.const_data_ptr<std::int64_t>();
  send_sizes_.assign(s, s + coded_sizes_.numel());
}

// The one wait of the host for this direction: how much travels.
void RowExchange::finish_on_device() {
  side_->wait_host();
  take_sizes();
  if (!here_) {
    send_sizes();
    work_.wait();
  }
  side_->run([&] {
    if (here_) {
      keep_codes();
    } else {
      work_ = send_payload();
      work_.wait();
    }
    decode();
  });
}

void RowExchange::join() {
  if (side_ && coding_.codec) side_->lead();  // without one nothing has followed there
}

}  // namespace trireme::dlrm
