#include "framework/gradients/codec_hook.h"

#include "compression/collectives.h"
#include "framework/base/tensor.h"
#include "framework/gradients/sized_hook.h"

#include <algorithm>

namespace trireme {
namespace {

// Values of a piece for each rank on the host: long enough for the network, short enough that coding one piece hides
// behind the messages of others. On a device coding is a small part of the time and a launch costs something: there a
// bucket is one piece.
constexpr std::size_t piece_shard = 128u << 10;

class CodecHook final : public GradientHook {
 public:
  CodecHook(const HookConfig& config, const Bucket& bucket, const Communicator& comm)
      : bound_(config.bound), on_host_(bucket.flat.is_cpu()) {
    const std::size_t count = std::size_t(bucket.flat.numel());
    const std::size_t most = on_host_ ? piece_shard * std::size_t(comm.size()) : std::max<std::size_t>(count, 1);
    std::size_t owned = 0;
    for (std::size_t first = 0; first < std::max<std::size_t>(count, 1); first += most) {
      const std::size_t n = std::min(most, count - first);
      pieces_.push_back({first, n, owned, std::min(n, shard_size(n, comm.size())), codec_of(config)});
      owned += pieces_.back().owned;
    }
    const Compressor& codec = *pieces_.front().codec;
    const auto options = bucket.flat.options();
    if (!on_host_) {
      if (!codec.on_device())
        throw UsageError("hook.name", config.name + " compresses gradients in host memory only",
                         "use another hook, or device: cpu");
      scratch_ = at::empty({std::int64_t(all_reduce_scratch(codec, count, comm.size()))}, options.dtype(at::kByte));
    }
    if (!config.error_feedback || codec.summable()) return;
    lost_ = {{bucket.flat.numel(), options}, {std::int64_t(owned), options}};
  }

  void reduce(Bucket& bucket, Lanes lanes, std::vector<Work>& works) override {
    lost_.next_step();
    std::size_t lane = 0;
    for (auto& p : pieces_) {
      Communicator& comm = *lanes[lane++ % lanes.size()];
      const Buffer inout = part(bucket.flat, p.first, p.count);
      if (const auto& [sent, owned] = lost_; sent.now.defined()) {
        const ErrorFeedback feedback{part(sent.now, p.first, p.count), part(owned.now, p.first_owned, p.owned),
                                     part(sent.before, p.first, p.count), part(owned.before, p.first_owned, p.owned)};
        works.push_back(all_reduce(comm, *p.codec, inout, bound_, &feedback, scratch()));
      } else {
        works.push_back(all_reduce(comm, *p.codec, inout, bound_, nullptr, scratch()));
      }
    }
  }

  std::size_t bytes(const Bucket&, const Communicator& comm) const override {
    std::size_t sum = 0;
    for (const auto& p : pieces_) sum += all_reduce_bytes(*p.codec, p.count, comm.rank(), comm.size());
    return sum;
  }

  void undo(const at::Tensor& skip) override { lost_.undo(skip); }
  void rescale(const at::Tensor& factor) override { lost_.rescale(factor); }

  void state(Archive& ar, Sharing::Kind) override {
    for (std::size_t i = 0; i < pieces_.size(); ++i) {
      Archive::Group group(ar, "piece/" + std::to_string(i));
      pieces_[i].codec->state(ar);
    }
    lost_.state(ar, on_host_ ? std::to_string(piece_shard) : "whole");  // piece by piece
  }

 private:
  struct Piece {
    std::size_t first, count;        // of the bucket
    std::size_t first_owned, owned;  // of lost_.owned
    std::unique_ptr<Compressor> codec;
  };
  static Buffer part(const at::Tensor& flat, std::size_t first, std::size_t count) {
    return {flat.data_ptr<float>() + first, count, DType::f32, buffer_of(flat).place};
  }
  Buffer scratch() const { return on_host_ ? Buffer{} : buffer_of(scratch_); }

  double bound_;
  bool on_host_;
  std::vector<Piece> pieces_;
  LostGradients lost_;
  at::Tensor scratch_;  // of the one piece on a device
};

}  // namespace

std::unique_ptr<Compressor> codec_of(const HookConfig& config) {
  auto codec = Compressors::create(config.name, "hook.name");
  if (codec->bounded() && config.bound <= 0)
    throw UsageError("hook.bound", config.name + " needs an error bound",
                     "set hook.bound to a fraction of a typical gradient");
  return codec;
}

std::unique_ptr<GradientHook> make_codec_hook(const HookConfig& config, const Bucket& bucket,
                                              const Communicator& comm) {
  if (bucket.flat.is_cuda()) {
    const auto codec = Compressors::create(config.name);
    if (codec->on_device() && !codec->fixed_size()) return make_sized_hook(config, bucket, comm);
  }
  return std::make_unique<CodecHook>(config, bucket, comm);
}

}  // namespace trireme
