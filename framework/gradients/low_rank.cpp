#include "framework/gradients/low_rank.h"

#include <algorithm>

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace trireme {
namespace {

at::Tensor matrix(const float* data, std::int64_t rows, std::int64_t columns) {
  return at::from_blob(const_cast<float*>(data), {rows, columns}, at::kFloat);
}

struct Views {
  at::Tensor p, q, own_q, error, gradient;

  Views(const LowRankJob& job, const LowRankMatrix& x)
      : p(matrix(x.p, x.r, x.m)),
        q(matrix(x.q, x.r, x.n)),
        own_q(matrix(x.own_q, x.r, x.n)),
        error(matrix(job.error + x.error, x.m, x.n)),
        gradient(matrix(job.gradient + x.gradient, x.m, x.n)) {}
};

void project_on_host(const LowRankJob& job) {
  at::NoGradGuard no_grad;
  for (std::int64_t k = 0; k < job.count; ++k) {
    const LowRankMatrix& x = job.matrices[k];
    Views v(job, x);
    if (job.before)
      at::add_out(v.error, matrix(job.before + x.error, x.m, x.n), v.gradient);
    else
      v.error.copy_(v.gradient);
    at::mm_out(v.p, v.q, v.error.t());
  }
}

void back_project_on_host(const LowRankJob& job) {
  at::NoGradGuard no_grad;
  for (std::int64_t k = 0; k < job.count; ++k) {
    Views v(job, job.matrices[k]);
    at::mm_out(v.own_q, v.p, v.error);
    v.q.copy_(v.own_q);
  }
}

void approximate_on_host(const LowRankJob& job) {
  at::NoGradGuard no_grad;
  for (std::int64_t k = 0; k < job.count; ++k) {
    Views v(job, job.matrices[k]);
    if (job.before) v.error.addmm_(v.p.t(), v.own_q, 1, -1);
    at::mm_out(v.gradient, v.p.t(), v.q);
  }
}

std::int64_t pieces(std::int64_t length, int each) { return (length + each - 1) / each; }

}  // namespace

std::int64_t low_rank_layout(LowRankMatrix* matrices, std::int64_t count, LowRankJob& job) {
  std::int64_t p = 0, q = 0;
  job.count = count;
  job.rank = 0;
  std::fill_n(job.tiles, 3, 0);
  for (std::int64_t k = 0; k < count; ++k) {
    LowRankMatrix& x = matrices[k];
    job.rank = std::max(job.rank, x.r);
    x.partial_p = p, p += x.r * x.m * pieces(x.n, low_rank_tile[0][1]);
    x.partial_q = q, q += x.r * x.n * pieces(x.m, low_rank_tile[1][0]);
    for (int which = 0; which < 3; ++which) {
      x.first_tile[which] = job.tiles[which];
      job.tiles[which] += std::int32_t(pieces(x.m, low_rank_tile[which][0]) * pieces(x.n, low_rank_tile[which][1]));
    }
  }
  return std::max(p, q);
}

constinit Kernel<LowRankJob> project("low-rank project", project_on_host);
constinit Kernel<LowRankJob> back_project("low-rank back_project", back_project_on_host);
constinit Kernel<LowRankJob> approximate("low-rank approximate", approximate_on_host);

}  // namespace trireme
