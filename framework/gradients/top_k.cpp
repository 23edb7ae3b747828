// Sparsification: of every bucket only the values of largest magnitude travel, the rest waits in the error feedback
// (Stich, Cordonnier and Jaggi, NeurIPS'18).
#include "framework/kernels/top_k.h"

#include "comm/error.h"
#include "framework/base/tensor.h"
#include "framework/gradients/hook.h"

#include <cmath>
#include <limits>

namespace trireme {
namespace {

class TopK final : public GradientHook {
 public:
  TopK(const HookConfig& config, const Bucket& bucket, const Communicator& comm)
      : keep_(std::max<std::int64_t>(1, std::int64_t(std::ceil(config.density * double(bucket.flat.numel()))))),
        feedback_(config.error_feedback),
        rest_(bucket.flat.numel(), bucket.flat.options()),
        mine_(at::zeros({2, keep_}, bucket.flat.options().dtype(at::kInt))),
        all_(at::zeros({comm.size(), 2, keep_}, mine_.options())),
        scratch_(at::empty({bucket.flat.is_cpu() ? 0 : std::int64_t(kernels::top_k_scratch(bucket.flat.numel()))},
                           mine_.options().dtype(at::kByte))) {}

  void reduce(Bucket& bucket, Lanes lanes, std::vector<Work>& works) override {
    rest_.next_step();
    auto* mine = mine_.data_ptr<std::int32_t>();
    kernels::TopKJob job;
    job.in = bucket.flat.const_data_ptr<float>();
    job.before = rest_.before.const_data_ptr<float>();
    job.rest = rest_.now.data_ptr<float>();
    job.count = bucket.flat.numel();
    job.keep = keep_;
    job.forget = !feedback_;
    job.index = mine;
    job.value = reinterpret_cast<float*>(mine + keep_);
    job.scratch = scratch_.data_ptr();
    kernels::top_k(job, buffer_of(bucket.flat).place);
    const at::Tensor flat = bucket.flat;
    works.push_back(lanes[0]->all_gather(buffer_of(mine_), buffer_of(all_)).then([this, flat] {
      sum(flat);
      return Work();
    }));
  }

  std::size_t bytes(const Bucket&, const Communicator& comm) const override {
    return std::size_t(comm.size() - 1) * std::size_t(keep_) * 8;
  }

  void undo(const at::Tensor& skip) override { rest_.undo(skip); }
  void rescale(const at::Tensor& factor) override { rest_.rescale(factor); }

  void state(Archive& ar, Sharing::Kind) override {
    if (feedback_) rest_.state(ar, "rest");
  }

 private:
  void sum(at::Tensor flat) const {
    at::NoGradGuard no_grad;
    flat.zero_();
    const auto* all = all_.const_data_ptr<std::int32_t>();
    for (std::int64_t r = 0; r < all_.size(0); ++r) {  // in rank order
      const auto* index = all + 2 * r * keep_;
      kernels::add_at(
          {index, reinterpret_cast<const float*>(index + keep_), keep_, flat.data_ptr<float>(), flat.numel()},
          buffer_of(flat).place);
    }
  }

  std::int64_t keep_;
  bool feedback_;
  KeptGradients rest_;     // what has not travelled yet
  at::Tensor mine_, all_;  // indices, then values as words, of one rank and of all
  at::Tensor scratch_;     // of the selection on a device
};

const GradientHooks::Entry registered("top_k", [](const HookConfig& c, const Bucket& b, const Communicator& comm) {
  if (b.flat.numel() > std::numeric_limits<std::int32_t>::max())
    throw UsageError("hook.name",
                     "top_k sends places as 32 bits, and a bucket has " + std::to_string(b.flat.numel()) + " values",
                     "freeze what is so large, or use another hook");
  return std::make_unique<TopK>(c, b, comm);
});

}  // namespace
}  // namespace trireme
