#include "framework/models/dit/flow_training.h"

#include "data/rng.h"
#include "framework/base/tensor.h"
#include "framework/kernels/normal_rows.h"
#include "framework/models/dit/flow_schedule.h"
#include "framework/models/dit/guidance.h"

#include <ATen/ATen.h>

namespace trireme {
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
  const auto sigmas = flow_sigmas(steps, {}, 1);
  const at::ScalarType type = model.dtype();
  for (std::size_t i = 0; i < std::size_t(steps); ++i) {
    const at::Tensor v = guidance == 1 ? velocity_of(model, type, condition, x, sigmas[i])
                                       : guided_velocity(model, type, condition, none, x, sigmas[i], guidance);
    x = euler_step(x, v, sigmas[i], sigmas[i + 1]);
  }
  return x;
}

}  // namespace trireme
