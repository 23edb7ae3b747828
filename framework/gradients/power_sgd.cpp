// PowerSGD (Vogels, Karimireddy and Jaggi, NeurIPS'19): the sum of the gradients M of a weight matrix [m, n] is
// approximated by P Q^T of rank r, by one step of power iteration from the last Q. Two small all-reduces replace the
// large one. Gradients here are shares that sum (not means), so P and Q are sums too; each rank keeps
// M - P (M^T P)^T, its own projection error, and the errors of all ranks add up to what the step lost.
// Matrices that P and Q would not make half as small, and everything that is no matrix, travel as they are beside P.
#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/gradients/hook.h"
#include "framework/gradients/low_rank.h"
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
        matrices_.push_back({bucket.parameters[i], {m, n, r, offset(bucket, g)}});
        first += r * m, second += r * n, errors += m * n;
      }
    }
    const auto options = bucket.flat.options();
    first_ = at::zeros({first}, options);
    second_ = at::zeros({second}, options);
    own_second_ = at::zeros({second}, options);
    error_.now = at::zeros({errors}, options);
    if (feedback_) error_.before = at::zeros_like(error_.now);
    start_ = at::empty({second}, at::kFloat);
    second_before_ = at::zeros_like(second_);
    lost_ = at::zeros({1}, options);
    const std::int64_t p = place_matrices();
    rest_ = first_.narrow(0, p, first - p);
  }

  void reduce(Bucket& bucket, Lanes lanes, std::vector<Work>& works) override {
    at::NoGradGuard no_grad;
    if (feedback_) error_.next_step();
    second_before_.copy_(second_);
    project(job_of(bucket), buffer_of(first_).place);
    std::int64_t at = 0;
    for (const auto i : plain_) {
      const std::int64_t n = bucket.gradients[i].numel();
      rest_.narrow(0, at, n).copy_(bucket.gradients[i].view(-1));
      at += n;
    }
    Communicator* c = lanes[0];
    Bucket* b = &bucket;
    works.push_back(c->all_reduce(buffer_of(first_), Op::sum).then([this, c, b] {
      const Place there = buffer_of(first_).place;
      kernels::orthonormalize({rows_of(p_rows_), job_.count, job_.rank, orthonormal_.data_ptr<double>()}, there);
      back_project(job_of(*b), there);
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
    if (feedback_) error_.undo(skip);
    take_back(skip, second_, second_before_);
  }

  // Directions have no unit: the next P is made orthonormal.
  void rescale(const at::Tensor& factor) override {
    if (feedback_) error_.rescale(factor);
  }

  void state(Archive& ar, Sharing::Kind common) override {
    if (feedback_) error_.state(ar, "error");
    if (common == Sharing::replicated || ar.has("q")) archive(ar, "q", second_, {common});
  }

 private:
  struct Matrix {
    std::string name;
    LowRankMatrix low_rank;  // factors transposed, so that vectors are contiguous
  };

  // In f32 values.
  static std::int64_t offset(const Bucket& bucket, const at::Tensor& gradient) {
    return gradient.const_data_ptr<float>() - bucket.flat.const_data_ptr<float>();
  }

  // Shares out first_, second_ and errors, and draws the first Q. Returns what all P have.
  std::int64_t place_matrices() {
    std::vector<kernels::RowMatrix> ps, qs;
    std::vector<LowRankMatrix> all;
    std::int64_t p = 0, q = 0, e = 0;
    for (auto& [name, x] : matrices_) {
      x.error = e;
      x.p = first_.data_ptr<float>() + p;
      x.q = second_.data_ptr<float>() + q;
      x.own_q = own_second_.data_ptr<float>() + q;
      draw(name, x.r, x.n, start_.data_ptr<float>() + q);
      ps.push_back({x.p, nullptr, x.r, x.m});
      qs.push_back({x.q, nullptr, x.r, x.n});
      all.push_back(x);
      p += x.r * x.m, q += x.r * x.n, e += x.m * x.n;
    }
    start_ = start_.to(second_.device());
    second_.copy_(start_);
    for (auto& rows : qs) rows.start = start_.data_ptr<float>() + (rows.data - second_.data_ptr<float>());
    p_rows_ = table(ps, second_.device());
    q_rows_ = table(qs, second_.device());
    const std::int64_t partial = low_rank_layout(all.data(), std::ssize(all), job_);
    low_rank_ = table(all, second_.device());
    partial_ = at::empty({second_.is_cuda() ? partial : 0}, second_.options());
    const std::int64_t products = kernels::orthonormal_scratch(job_.count, job_.rank);
    orthonormal_ = at::empty({second_.is_cuda() ? products : 0}, second_.options().dtype(at::kDouble));
    return p;
  }

  LowRankJob job_of(const Bucket& bucket) {
    LowRankJob job = job_;
    job.matrices = static_cast<const LowRankMatrix*>(low_rank_.const_data_ptr());
    job.gradient = bucket.flat.data_ptr<float>();
    job.before = feedback_ ? error_.before.const_data_ptr<float>() : nullptr;
    job.error = error_.now.data_ptr<float>();
    job.partial = partial_.data_ptr<float>();
    return job;
  }

  // Equal on all ranks.
  static void draw(const std::string& name, std::int64_t rows, std::int64_t n, float* q) {
    for (std::int64_t row = 0; row < rows; ++row) {
      Rng rng(0, "powersgd/" + name, std::uint64_t(row));
      for (std::int64_t i = 0; i < n; ++i) *q++ = float(rng.normal());
    }
  }

  // What kernels read, beside the matrices.
  template <class T>
  static at::Tensor table(std::vector<T>& rows, at::Device device) {
    const auto bytes = std::int64_t(rows.size() * sizeof(T));
    return at::from_blob(rows.data(), {bytes}, at::kByte).clone().to(device);
  }
  static const kernels::RowMatrix* rows_of(const at::Tensor& table) {
    return static_cast<const kernels::RowMatrix*>(table.const_data_ptr());
  }

  void finish(Bucket& bucket) {
    at::NoGradGuard no_grad;
    approximate(job_of(bucket), buffer_of(second_).place);
    // A direction that is lost (a zero gradient) or not finite would stay so.
    lost_.zero_();
    kernels::restart_rows({rows_of(q_rows_), std::int64_t(matrices_.size()), lost_.data_ptr<float>()},
                          buffer_of(second_).place);
    if (feedback_) take_back(lost_, error_.now, {});  // the step is skipped; the next one starts clean
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
  at::Tensor first_, second_, own_second_;  // [all P, the rest], all Q summed, own share of Q
  KeptGradients error_;                     // all M, then what was lost of them: without feedback `now` alone
  at::Tensor second_before_;                // as it was before the last step
  at::Tensor rest_;                         // the part of first_ that travels as it is
  at::Tensor start_, lost_;                 // all Q as they began; 1 where a Q was not finite
  at::Tensor p_rows_, q_rows_, low_rank_;   // kernels::RowMatrix and LowRankMatrix of each matrix
  at::Tensor partial_, orthonormal_;        // scratch of the kernels
  LowRankJob job_;                          // but for its pointers
};

const GradientHooks::Entry registered("powersgd", [](const HookConfig& c, const Bucket& b, const Communicator&) {
  return std::make_unique<PowerSgd>(c, b);
});

}  // namespace
}  // namespace trireme
