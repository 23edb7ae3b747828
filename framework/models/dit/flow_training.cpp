#include "framework/models/dit/flow_training.h"

#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/kernels/normal_rows.h"
#include "framework/models/dit/flow_schedule.h"

#include <ATen/ATen.h>

namespace trireme {
namespace {

at::Tensor both(const at::Tensor& a, const at::Tensor& b) {
  return a.defined() && b.defined() ? at::cat({a, b}) : at::Tensor();
}

}  // namespace

at::Tensor noise_of(std::uint64_t seed, std::string_view purpose, std::uint32_t draw, const at::Tensor& ids,
                    at::IntArrayRef shape) {
  std::vector<std::int64_t> sizes{ids.numel()};
  sizes.insert(sizes.end(), shape.begin(), shape.end());
  const at::Tensor to = at::empty(sizes, ids.options().dtype(at::kFloat));
  Rng rng(seed, purpose);
  kernels::NormalRowsJob job;
  job.key[0] = rng.u32(), job.key[1] = rng.u32(), job.draw = draw;
  const at::Tensor rows = ids.contiguous();
  job.ids = rows.const_data_ptr<std::int64_t>(), job.to = to.mutable_data_ptr<float>();
  job.rows = ids.numel(), job.columns = job.rows > 0 ? to.numel() / job.rows : 0;
  kernels::normal_rows(job, buffer_of(to).place);
  return to;
}

at::Tensor flow_loss(Denoiser& model, const at::Tensor& x0, const at::Tensor& e, const at::Tensor& sigma,
                     const Conditioning& condition, const DitHooks& hooks) {
  const at::Tensor s = sigma.view({-1, 1, 1, 1, 1});
  const at::Tensor x = at::lerp(x0, e, s);
  const at::Tensor v = model.forward(x.to(model.dtype()), sigma, condition, hooks);
  return at::mse_loss(v.to(at::kFloat), e - x0);
}

at::Tensor plain_sample(Denoiser& model, at::Tensor x, const Conditioning& condition, const Conditioning& none,
                        double guidance, std::int64_t steps) {
  const bool guides = guidance != 1;
  Conditioning c = condition;
  if (guides) c.text = both(condition.text, none.text), c.pooled = both(condition.pooled, none.pooled);
  const auto sigmas = flow_sigmas(steps, {}, 1);
  for (std::int64_t i = 0; i < steps; ++i) {
    const at::Tensor in = guides ? at::cat({x, x}) : x;
    const at::Tensor t = at::full({in.size(0)}, sigmas[std::size_t(i)], x.options());
    at::Tensor v = model.forward(in.to(model.dtype()), t, c).to(at::kFloat);
    if (guides) {
      const at::Tensor vu = v.narrow(0, x.size(0), x.size(0));
      v = vu + guidance * (v.narrow(0, 0, x.size(0)) - vu);
    }
    x = euler_step(x, v, sigmas[std::size_t(i)], sigmas[std::size_t(i) + 1]);
  }
  return x;
}

}  // namespace trireme
