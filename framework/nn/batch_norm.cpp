#include "framework/nn/batch_norm.h"

#include "comm/communicator.h"
#include "framework/base/tensor.h"

#include <utility>

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
constexpr double eps = 1e-5, momentum = 0.1;
constexpr std::array<std::int64_t, 3> all_but_c{0, 2, 3};

at::Tensor column(const at::Tensor& v) { return v.view({1, -1, 1, 1}); }

struct Moments {
  at::Tensor mean, var;  // var: biased
};

// Of all ranks' rows, in rank order, from each rank's own mean and variance: nothing cancels.
Moments over_ranks(const at::Tensor& x, Communicator& comm) {
  const auto [var, mean] = at::var_mean(x, all_but_c, /*unbiased=*/false);
  const at::Tensor mine = at::stack({mean, var});
  at::Tensor all = at::empty({comm.size(), 2, mean.size(0)}, mine.options());
  comm.all_gather(buffer_of(mine), buffer_of(all)).wait();
  const auto means = all.select(1, 0), vars = all.select(1, 1);
  const at::Tensor m = means.mean(0);
  return {m, (vars + (means - m).square()).mean(0)};
}

// The closed form: two collectives of 2c values, one forward and one backward.
struct Synchronised : torch::autograd::Function<Synchronised> {
  static variable_list forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& w, const at::Tensor& b,
                               Communicator* comm) {
    const at::Tensor x = input.to(w.scalar_type());
    const Moments m = over_ranks(x, *comm);
    const at::Tensor rstd = (m.var + eps).rsqrt();
    ctx->saved_data["comm"] = reinterpret_cast<std::int64_t>(comm);
    ctx->save_for_backward({input, w, m.mean, rstd});
    ctx->mark_non_differentiable({m.mean, m.var});
    return {((x - column(m.mean)) * column(rstd * w) + column(b)).to(input.scalar_type()), m.mean, m.var};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto s = ctx->get_saved_variables();
    const at::Tensor &w = s[1], &rstd = s[3];
    auto& comm = *reinterpret_cast<Communicator*>(ctx->saved_data["comm"].toInt());
    const at::Tensor dy = grads[0].to(w.scalar_type());
    const at::Tensor normal = (s[0].to(w.scalar_type()) - column(s[2])) * column(rstd);
    const at::Tensor own = at::stack({dy.sum(all_but_c), (dy * normal).sum(all_but_c)});
    at::Tensor sums = own.clone();
    comm.all_reduce(buffer_of(sums), Op::sum).wait();
    const at::Tensor means = sums / (double(dy.numel() / w.numel()) * comm.size());
    const at::Tensor dx = column(rstd * w) * (dy - column(means[0]) - normal * column(means[1]));
    return {dx.to(s[0].scalar_type()), own[1], own[0], {}};
  }
};

}  // namespace

BatchNorm::BatchNorm(const std::string& prefix, std::int64_t channels, Parameters& params, double weight) {
  w_ = params.constant(prefix + "weight", {channels}, weight);
  b_ = params.constant(prefix + "bias", {channels}, 0);
  running_ = std::make_shared<Running>();
  running_->mean = params.buffer(prefix + "running_mean", {channels}, 0);
  running_->var = params.buffer(prefix + "running_var", {channels}, 1);
  running_->batches = params.counter(prefix + "num_batches_tracked");
}

at::Tensor BatchNorm::operator()(const at::Tensor& x, const Training* training) const {
  Running& r = *running_;
  if (!training) return at::batch_norm(x, w_, b_, r.mean, r.var, false, momentum, eps, true);
  const bool moves = training->moves_statistics;
  if (moves && !r.next_mean.defined()) {
    r.next_mean = r.mean.clone();
    r.next_var = r.var.clone();
  }
  r.seen += moves;
  if (!training->statistics)
    return at::batch_norm(x, w_, b_, moves ? r.next_mean : at::Tensor(), moves ? r.next_var : at::Tensor(), true,
                          momentum, eps, true);
  const auto y = Synchronised::apply(x, w_, b_, training->statistics);
  if (moves) {
    at::NoGradGuard no_grad;
    const double n = double(x.numel() / w_.numel()) * training->statistics->size();
    r.next_mean.lerp_(y[1], momentum);
    r.next_var.lerp_(y[2] * (n / std::max(n - 1, 1.0)), momentum);
  }
  return y[0];
}

void BatchNorm::step(const at::Tensor& skip) const {
  Running& r = *running_;
  if (r.seen == 0) return;
  const at::Tensor skipped = skip != 0;
  r.mean.copy_(at::where(skipped, r.mean, std::exchange(r.next_mean, {})));
  r.var.copy_(at::where(skipped, r.var, std::exchange(r.next_var, {})));
  r.batches.add_(at::where(skipped, 0, std::exchange(r.seen, 0)));
}

}  // namespace trireme::nn
