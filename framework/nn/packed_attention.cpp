#include "framework/nn/packed_attention.h"

#include "framework/base/tensor.h"

namespace trireme::nn {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Heads of up to 256 values in steps of 8; GPUs of compute capability 8.0 and above.
bool flash_serves(const at::Tensor& x, std::int64_t head) {
  const bool half = x.scalar_type() == at::kBFloat16 || x.scalar_type() == at::kHalf;
  return x.is_cuda() && half && head % 8 == 0 && head <= 256;
}

// The n matrices beside each other in x [rows, n*w], by head: [count, longest, heads, d] where all sequences are
// equal, else [rows, heads, d]. Views: the kernel takes strides.
variable_list by_head(const at::Tensor& x, std::int64_t n, std::int64_t count, std::int64_t heads, bool equal) {
  const auto d = x.size(1) / n / heads;
  return (equal ? x.view({count, x.size(0) / count, n, heads, d}) : x.view({x.size(0), n, heads, d})).unbind(-3);
}

// One node, so that the gradients of q, k and v are written side by side by one copy.
struct Flash : torch::autograd::Function<Flash> {
  // kv empty: q holds all three.
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& kv, const at::Tensor& offsets,
                            std::int64_t longest, std::int64_t heads, bool equal, bool causal) {
    ctx->saved_data["longest"] = longest;
    ctx->saved_data["heads"] = heads;
    ctx->saved_data["equal"] = equal;
    ctx->saved_data["causal"] = causal;
    const Parts p = parts(q, kv, offsets, longest, heads, equal);
    const auto optional = [](const at::Tensor& t) { return t.defined() ? std::optional(t) : std::nullopt; };
    auto [out, lse, random, unused, debug] =
        at::_flash_attention_forward(p.q, p.k, p.v, optional(p.q_offsets), optional(p.k_offsets), p.longest_q, longest,
                                     /*dropout_p=*/0, causal, /*return_debug_mask=*/false);
    ctx->save_for_backward({q, kv, offsets, out, lse, random, unused});
    return out.reshape({-1, heads * out.size(-1)});
  }

  static variable_list backward(AutogradContext* ctx, variable_list dy) {
    const auto s = ctx->get_saved_variables();
    const at::Tensor &q = s[0], &kv = s[1], &offsets = s[2], &out = s[3];
    const auto longest = ctx->saved_data["longest"].toInt(), heads = ctx->saved_data["heads"].toInt();
    const bool causal = ctx->saved_data["causal"].toBool();
    const Parts p = parts(q, kv, offsets, longest, heads, ctx->saved_data["equal"].toBool());
    const auto [dq, dk, dv] =
        at::_flash_attention_backward(dy[0].reshape(out.sizes()), p.q, p.k, p.v, out, s[4], p.q_offsets, p.k_offsets,
                                      p.longest_q, longest, /*dropout_p=*/0, causal, s[5], s[6]);
    if (kv.numel() == 0) return {at::stack({dq, dk, dv}, -3).view(q.sizes()), {}, {}, {}, {}, {}, {}};
    return {dq.reshape(q.sizes()), at::stack({dk, dv}, -3).view(kv.sizes()), {}, {}, {}, {}, {}};
  }

 private:
  struct Parts {
    at::Tensor q, k, v, q_offsets, k_offsets;  // offsets are undefined where all sequences are equal
    std::int64_t longest_q;
  };
  static Parts parts(const at::Tensor& q, const at::Tensor& kv, const at::Tensor& offsets, std::int64_t longest,
                     std::int64_t heads, bool equal) {
    const auto count = offsets.size(0) - 1;
    const at::Tensor k_offsets = equal ? at::Tensor() : offsets;
    if (kv.numel() == 0) {
      const auto three = by_head(q, 3, count, heads, equal);
      return {three[0], three[1], three[2], k_offsets, k_offsets, longest};
    }
    const auto one = by_head(q, 1, count, heads, equal), two = by_head(kv, 2, count, heads, equal);
    return {one[0], two[0], two[1], equal ? at::Tensor() : at::arange(count + 1, offsets.options()), k_offsets, 1};
  }
};

// x [total, n*w] -> n of [count, heads, longest, d], zeros behind each sequence.
variable_list padded(const at::Tensor& x, std::int64_t n, const Sequences& s, std::int64_t heads) {
  const at::Tensor all =
      s.equal() ? x : at::zeros({s.count * s.longest, x.size(1)}, x.options()).index_copy(0, s.rows, x);
  return all.view({s.count, s.longest, n, heads, x.size(1) / n / heads}).permute({2, 0, 3, 1, 4}).unbind(0);
}

}  // namespace

Sequences::Sequences(std::span<const std::int64_t> lengths, at::Device device) : count(std::ssize(lengths)) {
  std::vector<std::int32_t> ends{0};
  for (const auto n : lengths) {
    longest = std::max(longest, n);
    ends.push_back(std::int32_t(total += n));
  }
  offsets = to_device(at::tensor(ends, at::kInt), device);
  if (total == count * longest) return;
  at::Tensor places = at::empty({total}, at::kLong);
  auto* at = places.mutable_data_ptr<std::int64_t>();
  for (std::int64_t i = 0; i < count; ++i)
    for (std::int64_t k = 0; k < lengths[i]; ++k) *at++ = i * longest + k;
  rows = to_device(places, device);
}

at::Tensor packed_attention(const at::Tensor& qkv, const Sequences& s, std::int64_t heads, bool causal) {
  TORCH_CHECK(causal || s.equal(), "packed_attention: sequences of different lengths must be causal");
  const auto w = qkv.size(1) / 3;
  if (flash_serves(qkv, w / heads))
    return Flash::apply(qkv, at::empty({0}, qkv.options()), s.offsets, s.longest, heads, s.equal(), causal);
  const auto p = padded(qkv, 3, s, heads);
  const at::Tensor out =
      at::scaled_dot_product_attention(p[0], p[1], p[2], {}, 0.0, causal).transpose(1, 2).reshape({-1, w});
  return s.equal() ? out : out.index_select(0, s.rows);
}

at::Tensor pooled_attention(const at::Tensor& q, const at::Tensor& kv, const Sequences& s, std::int64_t heads) {
  const auto w = q.size(1), d = w / heads;
  if (flash_serves(q, d)) return Flash::apply(q, kv, s.offsets, s.longest, heads, s.equal(), false);
  const auto p = padded(kv, 2, s, heads);
  std::optional<at::Tensor> real;
  if (!s.equal()) {
    const at::Tensor lengths = s.offsets.narrow(0, 1, s.count) - s.offsets.narrow(0, 0, s.count);
    real = (at::arange(s.longest, s.offsets.options()) < lengths.unsqueeze(1)).view({s.count, 1, 1, s.longest});
  }
  const at::Tensor one = q.view({s.count, heads, 1, d});
  return at::scaled_dot_product_attention(one, p[0], p[1], real, 0.0, false).reshape({s.count, w});
}

}  // namespace trireme::nn
