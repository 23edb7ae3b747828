// Sparsification: of every bucket only the values of largest magnitude travel, the rest waits in the error feedback
// (Stich, Cordonnier and Jaggi, NeurIPS'18).
#include "framework/base/tensor.h"
#include "framework/gradients/hook.h"

#include <cmath>
#include <utility>

namespace trireme {
namespace {

class TopK final : public GradientHook {
 public:
  TopK(const HookConfig& config, const Bucket& bucket)
      : keep_(std::max<std::int64_t>(1, std::int64_t(std::ceil(config.density * double(bucket.flat.numel()))))),
        feedback_(config.error_feedback),
        rest_(at::zeros({bucket.flat.numel()}, bucket.flat.options())),
        before_(at::zeros_like(rest_)) {}

  void reduce(Bucket& bucket, Lanes lanes, std::vector<Work>& works) override {
    Communicator& comm = *lanes[0];
    at::NoGradGuard no_grad;
    std::swap(rest_, before_);
    at::add_out(rest_, before_, bucket.flat);
    const at::Tensor index = std::get<1>(rest_.abs().topk(keep_, 0, /*largest=*/true, /*sorted=*/false));
    const at::Tensor value = rest_.index_select(0, index);
    // Index and value of each as two words of one message.
    const at::Tensor mine = at::stack({index.to(at::kInt), value.view(at::kInt)});
    const at::Tensor all = at::empty({comm.size(), 2, keep_}, mine.options());
    // A value that is not finite is sent, makes this step a skipped one, and must not come again.
    if (!feedback_ || !std::isfinite(rest_.sum().item<float>()))
      rest_.zero_();
    else
      rest_.index_fill_(0, index, 0);
    const at::Tensor flat = bucket.flat;
    works.push_back(comm.all_gather(buffer_of(mine), buffer_of(all)).then([flat, mine, all] {
      at::NoGradGuard no_grad;
      flat.zero_();
      for (std::int64_t r = 0; r < all.size(0); ++r)  // in rank order
        flat.index_add_(0, all[r][0], all[r][1].view(at::kFloat));
      return Work();
    }));
  }

  std::size_t bytes(const Bucket&, const Communicator& comm) const override {
    return std::size_t(comm.size() - 1) * std::size_t(keep_) * 8;
  }

  void undo() override { std::swap(rest_, before_); }

  void state(Archive& ar, Sharing::Kind) override {
    if (feedback_ && ar.has("rest")) archive(ar, "rest", rest_, {Sharing::per_rank});
  }

 private:
  std::int64_t keep_;
  bool feedback_;
  at::Tensor rest_, before_;  // what has not travelled yet; the same before the last step
};

const GradientHooks::Entry registered("top_k", [](const HookConfig& c, const Bucket& b, const Communicator&) {
  return std::make_unique<TopK>(c, b);
});

}  // namespace
}  // namespace trireme
