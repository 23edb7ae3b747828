#include "framework/hooks/codec_hook.h"

#include "compression/collectives.h"
#include "framework/tensor.h"

namespace trireme {
namespace {

class CodecHook final : public GradientHook {
 public:
  CodecHook(const HookConfig& config, const Bucket& bucket, const Communicator& comm)
      : codec_(make_compressor(config.name, "hook.name")), bound_(config.bound) {
    if (codec_->bounded() && bound_ <= 0)
      throw UsageError("hook.bound", config.name + " needs an error bound",
                       "set hook.bound to a fraction of a typical gradient");
    if (!config.error_feedback || codec_->summable()) return;
    const auto options = bucket.flat.options();
    const auto count = std::size_t(bucket.flat.numel());
    sent_ = at::zeros({bucket.flat.numel()}, options);
    owned_ = at::zeros({std::int64_t(std::min(count, shard_size(count, comm.size())))}, options);
  }

  Work reduce(Bucket& bucket, Communicator& comm) override {
    const Buffer inout = buffer_of(bucket.flat);
    if (!sent_.defined()) return all_reduce(comm, *codec_, inout, bound_, nullptr);
    const ErrorFeedback feedback{buffer_of(sent_), buffer_of(owned_)};
    return all_reduce(comm, *codec_, inout, bound_, &feedback);
  }

  std::size_t bytes(const Bucket& bucket, const Communicator& comm) const override {
    return all_reduce_bytes(*codec_, std::size_t(bucket.flat.numel()), comm.rank(), comm.size());
  }

  void state(Archive& ar) override {
    codec_->state(ar);
    if (!sent_.defined()) return;
    if (ar.has("sent")) archive(ar, "sent", sent_, {Sharing::per_rank});
    if (ar.has("owned")) archive(ar, "owned", owned_, {Sharing::per_rank});
  }

 private:
  std::unique_ptr<Compressor> codec_;
  double bound_;
  at::Tensor sent_, owned_;  // error feedback
};

}  // namespace

std::unique_ptr<GradientHook> make_codec_hook(const HookConfig& config, const Bucket& bucket,
                                              const Communicator& comm) {
  return std::make_unique<CodecHook>(config, bucket, comm);
}

}  // namespace trireme
