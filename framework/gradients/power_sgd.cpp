// PowerSGD (Vogels, Karimireddy and Jaggi, NeurIPS'19): the sum of the gradients M of a weight matrix [m, n] is
// approximated by P Q^T of rank r, by one step of power iteration from the last Q. Two small all-reduces replace the
// large one. Gradients here are shares that sum (not means), so P and Q are sums too; each rank keeps
// M - P (M^T P)^T, its own projection error, and the errors of all ranks add up to what the step lost.
// Matrices that P and Q would not make half as small, and everything that is no matrix, travel as they are beside P.
#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/gradients/hook.h"
#include "framework/kernels/orthonormal.h"

#include <utility>

namespace trireme {
namespace {

class PowerSgd final : public GradientHook {
 public:
  PowerSgd(const HookConfig& config, const Bucket& bucket) : feedback_(config.error_feedback) {
    std::int64_t first = 0, second = 0, errors = 0;
    for (std::size_t i = 0; i < bucket.gradients.size(); ++i) {
      const auto& g = bucket.gradients[i];
      const bool matrix = g.dim() >= 2 && g.numel() > 0;
      const std::int64_t m = matrix ? g.size(0) : 1, n = g.numel() / m;
      const std::int64_t r = std::min({config.rank, m, n});
      if (!matrix || 2 * r * (m + n) > m * n) {
        plain_.push_back(i);
        first += g.numel();
      } else {
        matrices_.push_back({i, m, n, r, {}, {}, {}, {}, {}});
        first += r * m, second += r * n, errors += m * n;
      }
    }
    const auto options = bucket.flat.options();
    first_ = at::zeros({first}, options);
    second_ = at::zeros({second}, options);
    own_second_ = at::zeros({second}, options);
    error_ = at::zeros({errors}, options);
    error_before_ = at::zeros({feedback_ ? errors : 0}, options);
    start_ = at::empty({second}, at::kFloat);
    second_before_ = at::zeros_like(second_);
    lost_ = at::zeros({1}, options);
    std::vector<kernels::Rows> ps, qs;
    std::int64_t p = 0, q = 0, e = 0;
    for (auto& x : matrices_) {
      x.p = take(first_, p, x.r, x.m);
      x.q = take(second_, q, x.r, x.n);
      q -= x.r * x.n;
      x.own_q = take(own_second_, q, x.r, x.n);
      if (feedback_) {
        x.error_before = take(error_before_, e, x.m, x.n);
        e -= x.m * x.n;
      }
      x.error = take(error_, e, x.m, x.n);
      draw(bucket.parameters[x.gradient], x.r, x.n, start_.data_ptr<float>() + (q - x.r * x.n));
      ps.push_back({x.p.data_ptr<float>(), nullptr, x.r, x.m});
      qs.push_back({x.q.data_ptr<float>(), nullptr, x.r, x.n});
    }
    start_ = start_.to(options.device());
    second_.copy_(start_);
    for (auto& rows : qs) rows.start = start_.data_ptr<float>() + (rows.data - second_.data_ptr<float>());
    p_rows_ = table(ps, options.device());
    q_rows_ = table(qs, options.device());
    rest_ = first_.narrow(0, p, first - p);
  }

  void reduce(Bucket& bucket, Lanes lanes, std::vector<Work>& works) override {
    at::NoGradGuard no_grad;
    if (feedback_) swap_errors();
    second_before_.copy_(second_);
    for (auto& x : matrices_) {
      const at::Tensor gradient = bucket.gradients[x.gradient].view({x.m, x.n});
      if (feedback_)
        at::add_out(x.error, x.error_before, gradient);
      else
        x.error.copy_(gradient);
      at::mm_out(x.p, x.q, x.error.t());
    }
    std::int64_t at = 0;
    for (const auto i : plain_) {
      const std::int64_t n = bucket.gradients[i].numel();
      rest_.narrow(0, at, n).copy_(bucket.gradients[i].view(-1));
      at += n;
    }
    Communicator* c = lanes[0];
    Bucket* b = &bucket;
    works.push_back(c->all_reduce(buffer_of(first_), Op::sum).then([this, c, b] {
      at::NoGradGuard no_grad;
      kernels::orthonormalize({rows_of(p_rows_), std::int64_t(matrices_.size())}, buffer_of(first_).place);
      for (auto& x : matrices_) at::mm_out(x.own_q, x.p, x.error);
      second_.copy_(own_second_);
      return c->all_reduce(buffer_of(second_), Op::sum).then([this, b] {
        finish(*b);
        return Work();
      });
    }));
  }

  std::size_t bytes(const Bucket&, const Communicator& comm) const override {
    const auto n = std::size_t(comm.size());
    return 2 * (n - 1) * first_.nbytes() / n + 2 * (n - 1) * second_.nbytes() / n;
  }

  void undo(const at::Tensor& skip) override {
    if (feedback_) take_back(skip, error_, error_before_);
    take_back(skip, second_, second_before_);
  }

  // Directions have no unit: the next P is made orthonormal.
  void rescale(const at::Tensor& factor) override {
    if (feedback_) scale_kept(error_, factor);
  }

  void state(Archive& ar, Sharing::Kind common) override {
    if (feedback_ && ar.has("error")) archive(ar, "error", error_, {Sharing::per_rank});
    if (common == Sharing::replicated || ar.has("q")) archive(ar, "q", second_, {common});
  }

 private:
  struct Matrix {
    std::size_t gradient;
    std::int64_t m, n, r;
    at::Tensor p, q, own_q;  // [r, m], [r, n], [r, n]: transposed, so that vectors are contiguous
    at::Tensor error;        // [m, n]: error feedback, during a step M
    at::Tensor error_before;
  };

  static at::Tensor take(const at::Tensor& flat, std::int64_t& at, std::int64_t rows, std::int64_t columns) {
    const at::Tensor view = flat.narrow(0, at, rows * columns).view({rows, columns});
    at += rows * columns;
    return view;
  }

  void swap_errors() {
    std::swap(error_, error_before_);
    for (auto& x : matrices_) std::swap(x.error, x.error_before);
  }

  // Equal on all ranks.
  static void draw(const std::string& name, std::int64_t rows, std::int64_t n, float* q) {
    for (std::int64_t row = 0; row < rows; ++row) {
      Rng rng(0, "powersgd/" + name, std::uint64_t(row));
      for (std::int64_t i = 0; i < n; ++i) *q++ = float(rng.normal());
    }
  }

  // What kernels read, beside the matrices.
  static at::Tensor table(std::vector<kernels::Rows>& rows, at::Device device) {
    const auto bytes = std::int64_t(rows.size() * sizeof(kernels::Rows));
    return at::from_blob(rows.data(), {bytes}, at::kByte).clone().to(device);
  }
  static const kernels::Rows* rows_of(const at::Tensor& table) {
    return static_cast<const kernels::Rows*>(table.const_data_ptr());
  }

  void finish(Bucket& bucket) {
    at::NoGradGuard no_grad;
    for (auto& x : matrices_) {
      if (feedback_) x.error.addmm_(x.p.t(), x.own_q, 1, -1);
      at::Tensor sum = bucket.gradients[x.gradient].view({x.m, x.n});
      at::mm_out(sum, x.p.t(), x.q);
    }
    // A direction that is lost (a zero gradient) or not finite would stay so.
    lost_.zero_();
    kernels::restart_rows({rows_of(q_rows_), std::int64_t(matrices_.size()), lost_.data_ptr<float>()},
                          buffer_of(second_).place);
    if (feedback_) take_back(lost_, error_, {});  // the step is skipped; the next one starts clean
    std::int64_t at = 0;
    for (const auto i : plain_) {
      auto& g = bucket.gradients[i];
      g.copy_(rest_.narrow(0, at, g.numel()).view(g.sizes()));
      at += g.numel();
    }
  }

  bool feedback_;
  std::vector<Matrix> matrices_;
  std::vector<std::size_t> plain_;
  at::Tensor first_, second_, own_second_, error_;  // [all P, the rest], all Q summed, own share of Q, all errors
  at::Tensor error_before_, second_before_;         // as they were before the last step
  at::Tensor rest_;                                 // the part of first_ that travels as it is
  at::Tensor start_, lost_;                         // all Q as they began; 1 where a Q was not finite
  at::Tensor p_rows_, q_rows_;                      // kernels::Rows of each matrix
};

const GradientHooks::Entry registered("powersgd", [](const HookConfig& c, const Bucket& b, const Communicator&) {
  return std::make_unique<PowerSgd>(c, b);
});

}  // namespace
}  // namespace trireme
