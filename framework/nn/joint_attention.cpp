#include "framework/nn/joint_attention.h"

#include "framework/base/tensor.h"
#include "framework/kernels/attention_merge.h"

#include <algorithm>
#include <cmath>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/detail/CUDAHooksInterface.h>

namespace trireme::nn {
namespace {

// Hopper's own kernels; torch's flash attention there is that of the generation before.
bool cudnn_attention(const at::Tensor& q) {
  if (!q.is_cuda() || q.scalar_type() == at::kFloat || q.scalar_type() == at::kDouble) return false;
  static const bool there =
      at::detail::getCUDAHooks().compiledWithCuDNN() && at::detail::getCUDAHooks().versionCuDNN() >= 90000;
  return there && q.size(-1) <= 128 && q.size(-1) % 8 == 0;
}

// Training in 16 bits: flash attention. scaled_dot_product_attention would take cuDNN's, whose backward (9, torch 2.11)
// reads beyond a gradient whose rows are parts of longer ones, as those of a concatenation are.
at::Tensor trained(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  const bool cast = at::autocast::is_autocast_enabled(q.device().type());
  const auto type = cast ? at::autocast::get_autocast_dtype(q.device().type()) : v.scalar_type();
  const bool half = type == at::kHalf || type == at::kBFloat16;
  if (!q.is_cuda() || !half || q.size(-1) % 8 != 0 || q.size(-1) > 256)
    return at::scaled_dot_product_attention(q, k, v, {}, 0.0, false, scale);
  return std::get<0>(
      at::_scaled_dot_product_flash_attention(q.to(type), k.to(type), v.to(type), 0.0, false, false, scale));
}

at::Tensor plain(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  if (at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad()))
    return trained(q, k, v, scale);
  if (cudnn_attention(q))
    return std::get<0>(at::_scaled_dot_product_cudnn_attention(q, k, v, {}, false, 0.0, false, false, scale));
  return at::scaled_dot_product_attention(q, k, v, {}, 0.0, false, scale);
}

at::Tensor masked(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t begin, std::int64_t end,
                  const AttentionScores& s) {
  at::Tensor bias = at::zeros({1, 1, 1, k.size(2)}, q.options().requires_grad(false));
  bias.narrow(3, begin, end - begin).fill_(s.text_bias);
  return at::scaled_dot_product_attention(q, k, v, bias.expand({q.size(0), q.size(1), q.size(2), k.size(2)}), 0.0,
                                          false, s.scale);
}

bool by_fours(const at::Tensor& x) {
  if (x.size(3) % 4 || x.stride(3) != 1 || reinterpret_cast<std::uintptr_t>(x.const_data_ptr()) % 16) return false;
  return x.stride(0) % 4 == 0 && x.stride(1) % 4 == 0 && x.stride(2) % 4 == 0;
}

bool mergeable(const AttentionPart& p) {
  const auto type = p.out.scalar_type();
  if ((type != at::kFloat && type != at::kBFloat16) || p.lse.scalar_type() != at::kFloat || !by_fours(p.out))
    return false;
  return !at::GradMode::is_enabled() || !(p.out.requires_grad() || p.lse.requires_grad());
}

template <class T>
AttentionPart run_merge(const AttentionPart& a, const AttentionPart& b, double bias, const at::Tensor& out) {
  const auto& s = a.out.sizes();
  const at::Tensor la = a.lse.contiguous(), lb = b.lse.contiguous(), lse = at::empty(la.sizes(), la.options());
  const auto rows = [](const at::Tensor& t) {
    return kernels::HeadRows<const T>{static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
  };
  kernels::merge_attention(
      kernels::MergeJob<T>{rows(a.out),
                           rows(b.out),
                           la.const_data_ptr<float>(),
                           lb.const_data_ptr<float>(),
                           {static_cast<T*>(out.mutable_data_ptr()), out.stride(0), out.stride(1), out.stride(2)},
                           lse.mutable_data_ptr<float>(),
                           s[0],
                           s[1],
                           s[2],
                           s[3],
                           float(bias)},
      buffer_of(lse).place);
  return {out, lse};
}

// Keys before `begin` and from `end` on.
AttentionPart beside(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t begin,
                     std::int64_t end, double scale) {
  const auto some = [&](std::int64_t from, std::int64_t to) {
    return attention_part(q, k.narrow(2, from, to - from), v.narrow(2, from, to - from), scale);
  };
  const std::int64_t n = k.size(2);
  if (begin == 0) return some(end, n);
  if (end == n) return some(0, begin);
  return merge_parts(some(0, begin), some(end, n));
}

}  // namespace

AttentionPart attention_by_queries(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  const std::int64_t batch = q.size(0), heads = q.size(1), n = q.size(2);
  const std::int64_t some = std::max<std::int64_t>(1, (8 << 20) / std::max<std::int64_t>(1, batch * heads * k.size(2)));
  AttentionPart part{at::empty({batch, n, heads, v.size(3)}, q.options()).transpose(1, 2),
                     at::empty({batch, heads, n}, q.options())};
  const at::Tensor keys = k.to(at::kDouble).transpose(2, 3), values = v.to(at::kDouble);
  // Scores become their exponentials where they lie.
  for (std::int64_t i = 0; i < n; i += some) {
    const std::int64_t m = std::min(some, n - i);
    at::Tensor scores = at::matmul(q.narrow(2, i, m).to(at::kDouble).mul(scale), keys);
    const at::Tensor most = scores.amax(3, /*keepdim=*/true);
    const at::Tensor sums = scores.sub_(most).exp_().sum(3, /*keepdim=*/true);
    part.lse.narrow(2, i, m).copy_((most + sums.log()).squeeze(3));
    part.out.narrow(2, i, m).copy_(at::matmul(scores, values).div_(sums));
  }
  return part;
}

AttentionPart attention_part(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  if (!q.is_cuda()) {
    const auto [out, lse] = at::_scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, false, {}, scale);
    return {out, lse};
  }
  if (cudnn_attention(q)) {
    const auto r = at::_scaled_dot_product_cudnn_attention(q, k, v, {}, true, 0.0, false, false, scale);
    return {std::get<0>(r), std::get<1>(r).reshape({q.size(0), q.size(1), q.size(2)})};
  }
  if (q.scalar_type() == at::kHalf || q.scalar_type() == at::kBFloat16) {
    const auto r = at::_scaled_dot_product_flash_attention(q, k, v, 0.0, false, false, scale);
    return {std::get<0>(r), std::get<1>(r)};
  }
  return attention_by_queries(q, k, v, scale);
}

AttentionPart merge_parts(const AttentionPart& a, const AttentionPart& b, double bias, const at::Tensor& into) {
  const auto& s = a.out.sizes();
  const at::Tensor out = into.defined() ? into : at::empty({s[0], s[2], s[1], s[3]}, a.out.options()).transpose(1, 2);
  if (mergeable(a) && mergeable(b) && a.out.scalar_type() == b.out.scalar_type() && by_fours(out))
    return a.out.scalar_type() == at::kFloat ? run_merge<float>(a, b, bias, out)
                                             : run_merge<kernels::BrainFloat>(a, b, bias, out);
  const at::Tensor la = a.lse + bias;
  const at::Tensor lse = at::logaddexp(la, b.lse);
  const auto share = [&](const at::Tensor& l) { return (l - lse).exp().unsqueeze(-1); };
  return {out.copy_(share(la) * a.out + share(b.lse) * b.out), lse};
}

at::Tensor joint_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, std::int64_t text_begin,
                           std::int64_t text_end, const AttentionScores& s) {
  if (s.text_bias == 0 || text_end == text_begin) return plain(q, k, v, s.scale);
  const bool gradient = at::GradMode::is_enabled() && (q.requires_grad() || k.requires_grad() || v.requires_grad());
  if (s.mask || gradient) return masked(q, k, v, text_begin, text_end, s);
  if (text_end - text_begin == k.size(2)) return plain(q, k, v, s.scale);  // one constant for all keys
  const std::int64_t m = text_end - text_begin;
  const auto text = attention_part(q, k.narrow(2, text_begin, m), v.narrow(2, text_begin, m), s.scale);
  return merge_parts(text, beside(q, k, v, text_begin, text_end, s.scale), s.text_bias).out;
}

}  // namespace trireme::nn
