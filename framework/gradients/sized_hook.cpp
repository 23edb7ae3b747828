// For n ranks of which each owns a shard, cut into parts that are coded apart (a block of a GPU codes one):
//  1. in reduce(): encode the parts of all shards; all_to_all of their sizes
//  2. in wait(): wait for the sizes; all_to_all of the codes; decode and sum in rank order; encode the sums of this
//     rank's shard; all_gather of their sizes; wait for those; all_gather of the codes, as many bytes as the longest
//     rank has; decode them into the bucket
#include "framework/gradients/sized_hook.h"

#include "comm/error.h"
#include "compression/collectives.h"
#include "framework/base/side_stream.h"
#include "framework/base/tensor.h"
#include "framework/gradients/codec_hook.h"

#include <algorithm>
#include <exception>
#include <numeric>
#include <optional>

#include <ATen/ATen.h>

namespace trireme {
namespace {

constexpr std::size_t part_values = 64u << 10;

std::size_t sum_of(std::span<const std::uint64_t> sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), std::size_t{0});
}

// No rank's sizes may ask for more memory than honest ones could.
void check_size(std::uint64_t size, std::size_t most, std::size_t rank) {
  if (size > most)
    throw CommError("compressed gradients",
                    "rank " + std::to_string(rank) + " announces " + std::to_string(size) + " bytes, at most " +
                        std::to_string(most) + " are possible",
                    "do all ranks run the same program and configuration?");
}

Buffer front(const at::Tensor& t, std::size_t bytes) {
  Buffer b = buffer_of(t);
  b.count = bytes;
  return b;
}

class SizedHook final : public GradientHook {
 public:
  SizedHook(const HookConfig& config, const Bucket& bucket, const Communicator& comm);

  void reduce(Bucket& bucket, Lanes lanes, std::vector<Work>& works) override;
  // At most: codes never grow beyond max_bytes.
  std::size_t bytes(const Bucket&, const Communicator& comm) const override;
  void undo(const at::Tensor& skip) override { lost_.undo(skip); }
  void rescale(const at::Tensor& factor) override { lost_.rescale(factor); }
  void state(Archive& ar, Sharing::Kind) override {
    codec_->state(ar);
    lost_.state(ar, "whole");
  }

 private:
  class Late;
  struct Part {
    std::size_t first, count;  // of the bucket
  };
  std::span<const Part> parts_of(int rank) const { return parts_[std::size_t(rank)]; }
  std::size_t most_bytes(std::span<const Part> parts) const;
  void beside(const std::function<void()>& f) { side_ ? side_->run(f) : f(); }
  void encode(std::span<const Part> parts, const at::Tensor& values, std::size_t first, const KeptGradients& error,
              const at::Tensor& codes, const at::Tensor& sizes);
  std::vector<std::uint64_t> read_sizes(const at::Tensor& sizes, std::size_t first);
  void finish();
  void sum_shard();
  void gather_sums();

  double bound_;
  int rank_, ranks_;
  std::unique_ptr<Compressor> codec_;
  std::vector<std::vector<Part>> parts_;  // of each rank's shard
  std::size_t all_parts_ = 0;
  std::optional<SideStream> side_;
  at::Tensor flat_;               // of this reduce
  Communicator* comm_ = nullptr;  // of this reduce
  Work sizes_sent_;
  at::Tensor sizes_, sum_sizes_, host_sizes_;               // i64: own then received; of the sums; pinned
  at::Tensor codes_, received_, sum_code_;                  // u8; codes_: for others, then the sums of all ranks
  at::Tensor values_;                                       // [ranks, shard]
  std::vector<std::uint64_t> sent_sizes_, received_sizes_;  // of this reduce
  LostGradients lost_;
};

// What a reduce has begun goes on where it is waited for: there the host may wait for sizes.
class SizedHook::Late final : public Work::State {
 public:
  explicit Late(SizedHook& hook) : hook_(hook) {}
  bool done() override { return over_; }
  bool settled() override { return over_; }
  void wait() override {
    if (std::exchange(over_, true)) return;
    // While an error passes nothing new is posted: peers may be elsewhere.
    std::uncaught_exceptions() > 0 ? hook_.sizes_sent_.wait() : hook_.finish();
  }
  bool wait_host(std::chrono::milliseconds) override {
    wait();
    if (hook_.side_) hook_.side_->mark(), hook_.side_->wait_host();
    return true;
  }
  std::shared_ptr<Work::State> then(std::function<Work()>) override {
    throw Error(ExitCode::bug, "hook of sized codes", "nothing can follow it but what waits for it");
  }

 private:
  SizedHook& hook_;
  bool over_ = false;
};

SizedHook::SizedHook(const HookConfig& config, const Bucket& bucket, const Communicator& comm)
    : bound_(config.bound), rank_(comm.rank()), ranks_(comm.size()), codec_(codec_of(config)) {
  const auto count = std::size_t(bucket.flat.numel()), shard = shard_size(count, ranks_);
  for (int r = 0; r < ranks_; ++r) {
    auto& parts = parts_.emplace_back();
    const std::size_t begin = std::min(count, shard * std::size_t(r)), end = std::min(count, begin + shard);
    for (std::size_t at = begin; at < end; at += part_values) parts.push_back({at, std::min(part_values, end - at)});
    all_parts_ += parts.size();
  }
  if (ranks_ == 1 || count == 0) return;
  const at::TensorOptions floats = bucket.flat.options(), bytes = floats.dtype(at::kByte),
                          longs = floats.dtype(at::kLong);
  const std::size_t own = parts_of(rank_).size(), longest = parts_of(0).size(), n = std::size_t(ranks_);
  const std::size_t owned = std::size_t(std::min(shard, count - std::min(count, shard * std::size_t(rank_))));
  if (bucket.flat.is_cuda()) side_.emplace(bucket.flat.device());
  sizes_ = at::zeros({std::int64_t(all_parts_ + n * own)}, longs);
  sum_sizes_ = at::zeros({std::int64_t((1 + n) * longest)}, longs);
  host_sizes_ = at::zeros({std::int64_t(std::max(all_parts_ + n * own, n * longest))},
                          at::TensorOptions().dtype(at::kLong).pinned_memory(bucket.flat.is_cuda()));
  codes_ = at::empty({std::int64_t(n * most_bytes(parts_of(0)))}, bytes);
  received_ = at::empty({std::int64_t(n * most_bytes(parts_of(rank_)))}, bytes);
  values_ = at::empty({ranks_, std::int64_t(owned)}, floats);
  sum_code_ = at::zeros({std::int64_t(most_bytes(parts_of(0)))}, bytes);
  if (!config.error_feedback) return;
  lost_ = {{std::int64_t(count), floats}, {std::int64_t(owned), floats}};
}

std::size_t SizedHook::most_bytes(std::span<const Part> parts) const {
  std::size_t sum = 0;
  for (const Part& p : parts) sum += codec_->max_bytes(p.count);
  return sum;
}

std::size_t SizedHook::bytes(const Bucket&, const Communicator& comm) const {
  if (ranks_ == 1 || all_parts_ == 0) return 0;
  const std::size_t others = std::size_t(comm.size() - 1), word = sizeof(std::uint64_t);
  std::size_t sum = others * (most_bytes(parts_of(0)) + word * parts_of(0).size());
  for (int r = 0; r < ranks_; ++r)
    if (r != rank_) sum += most_bytes(parts_of(r)) + word * parts_of(r).size();
  return sum;
}

// values[0] is element `first` of the bucket; `error`, where there is any, begins there too.
void SizedHook::encode(std::span<const Part> parts, const at::Tensor& values, std::size_t first,
                       const KeptGradients& error, const at::Tensor& codes, const at::Tensor& sizes) {
  const Place place = buffer_of(values).place;
  std::vector<Chunk> chunks;
  for (const Part& p : parts) {
    Chunk& c = chunks.emplace_back(
        Chunk{{values.const_data_ptr<float>() + (p.first - first), p.count, DType::f32, place}, bound_});
    if (!error.now.defined()) continue;
    c.error = error.now.data_ptr<float>() + (p.first - first);
    c.error_before = error.before.const_data_ptr<float>() + (p.first - first);
  }
  codec_->encode(chunks, buffer_of(codes), buffer_of(sizes));
}

void SizedHook::reduce(Bucket& bucket, Lanes lanes, std::vector<Work>& works) {
  if (ranks_ == 1 || all_parts_ == 0) return;
  lost_.next_step();
  flat_ = bucket.flat, comm_ = lanes[0];
  std::vector<Part> parts;
  std::vector<std::size_t> counts;
  for (int r = 0; r < ranks_; ++r) {
    parts.insert(parts.end(), parts_of(r).begin(), parts_of(r).end());
    counts.push_back(parts_of(r).size());
  }
  if (side_) side_->follow();
  beside([&] {
    const at::Tensor own = sizes_.narrow(0, 0, std::int64_t(all_parts_)),
                     theirs = sizes_.narrow(0, std::int64_t(all_parts_), sizes_.numel() - std::int64_t(all_parts_));
    encode(parts, flat_, 0, lost_.sent, codes_, own);
    const std::vector<std::size_t> mine(std::size_t(ranks_), parts_of(rank_).size());
    sizes_sent_ = comm_->all_to_all(buffer_of(own), counts, buffer_of(theirs), mine);
  });
  works.emplace_back(std::make_shared<Late>(*this));
}

// What is there of `sizes` from `first` on, as the side stream has it. The host waits.
std::vector<std::uint64_t> SizedHook::read_sizes(const at::Tensor& sizes, std::size_t first) {
  const std::int64_t n = sizes.numel() - std::int64_t(first);
  at::Tensor host = host_sizes_.narrow(0, 0, n);
  beside([&] { host.copy_(sizes.narrow(0, std::int64_t(first), n), /*non_blocking=*/true); });
  if (side_) side_->mark(), side_->wait_host();
  const auto* s = host.const_data_ptr<std::int64_t>();
  return {s, s + n};
}

void SizedHook::finish() {
  const at::NoGradGuard no_grad;
  beside([&] { sizes_sent_.wait(); });
  sent_sizes_ = read_sizes(sizes_, 0);
  received_sizes_.assign(sent_sizes_.begin() + std::ptrdiff_t(all_parts_), sent_sizes_.end());
  sent_sizes_.resize(all_parts_);
  beside([&] { sum_shard(); });
  gather_sums();
  if (side_) side_->lead();
  flat_ = at::Tensor();
}

void SizedHook::sum_shard() {
  const auto own = parts_of(rank_);
  std::vector<std::size_t> send, recv;
  std::size_t at = 0;
  for (int r = 0; r < ranks_; at += parts_of(r++).size())
    send.push_back(sum_of(std::span(sent_sizes_).subspan(at, parts_of(r).size())));
  for (std::size_t k = 0; k < received_sizes_.size(); ++k)
    check_size(received_sizes_[k], codec_->max_bytes(own[k % own.size()].count), k / own.size());
  for (std::size_t r = 0; r < std::size_t(ranks_); ++r)
    recv.push_back(sum_of(std::span(received_sizes_).subspan(r * own.size(), own.size())));
  const std::size_t sent = sum_of(sent_sizes_), got = sum_of(received_sizes_);
  comm_->all_to_all(front(codes_, sent), send, front(received_, got), recv).wait();
  if (own.empty()) return;
  const std::size_t first = own[0].first;
  const Place place = buffer_of(values_).place;
  std::vector<Buffer> out;
  for (std::int64_t r = 0; r < ranks_; ++r)
    for (const Part& p : own)
      out.push_back({values_[r].data_ptr<float>() + (p.first - first), p.count, DType::f32, place});
  codec_->decode(front(received_, got), received_sizes_, out);
  at::Tensor sum = values_[0];
  for (std::int64_t r = 1; r < ranks_; ++r) sum.add_(values_[r]);  // in rank order
  encode(own, sum, first, lost_.owned, sum_code_, sum_sizes_.narrow(0, 0, std::int64_t(own.size())));
}

void SizedHook::gather_sums() {
  const std::size_t longest = parts_of(0).size();
  const std::int64_t n = std::int64_t(longest);
  beside([&] {
    comm_->all_gather(buffer_of(sum_sizes_.narrow(0, 0, n)), buffer_of(sum_sizes_.narrow(0, n, n * ranks_))).wait();
  });
  const std::vector<std::uint64_t> sizes = read_sizes(sum_sizes_, longest);
  std::size_t slot = 0;
  for (int r = 0; r < ranks_; ++r) {
    const auto parts = parts_of(r);
    std::size_t sum = 0;
    for (std::size_t k = 0; k < parts.size(); ++k) {
      const std::uint64_t size = sizes[std::size_t(r) * longest + k];
      check_size(size, codec_->max_bytes(parts[k].count), std::size_t(r));
      sum += size;
    }
    slot = std::max(slot, sum);
  }
  beside([&] {
    comm_->all_gather(front(sum_code_, slot), front(codes_, slot * std::size_t(ranks_))).wait();
    const Place place = buffer_of(flat_).place;
    for (int r = 0; r < ranks_; ++r) {
      std::vector<Buffer> out;
      for (const Part& p : parts_of(r)) out.push_back({flat_.data_ptr<float>() + p.first, p.count, DType::f32, place});
      const std::span own = std::span(sizes).subspan(std::size_t(r) * longest, out.size());
      const auto* code = codes_.const_data_ptr<std::uint8_t>() + slot * std::size_t(r);
      codec_->decode({code, sum_of(own), DType::u8, place}, own, out);
    }
  });
}

}  // namespace

std::unique_ptr<GradientHook> make_sized_hook(const HookConfig& config, const Bucket& bucket,
                                              const Communicator& comm) {
  return std::make_unique<SizedHook>(config, bucket, comm);
}

}  // namespace trireme
