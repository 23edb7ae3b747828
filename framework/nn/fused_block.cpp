#include "framework/nn/fused_block.h"

#include "framework/gradients/slot.h"
#include "framework/kernels/attention.h"
#include "framework/kernels/layer_norm.h"
#include "framework/nn/weight_gradient.h"

namespace trireme::nn {
namespace {

using kernels::Activation;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
constexpr double eps = 1e-5;

std::span<const std::int64_t> i64(const at::Tensor& t) {
  return {t.const_data_ptr<std::int64_t>(), std::size_t(t.numel())};
}

at::Tensor vector_like(const at::Tensor& param) {
  at::Tensor g = gradient_destination(param);
  return g.defined() ? g : at::empty_like(param);
}

template <class T>
struct Norm {
  at::Tensor mean, rstd;

  at::Tensor forward(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) {
    const auto n = x.size(0);
    mean = at::empty({n}, x.options());
    rstd = at::empty({n}, x.options());
    at::Tensor y = at::empty_like(x);
    kernels::layer_norm<T>(ptr(x), ptr(w), ptr(b), eps, out(y), out(mean), out(rstd), n, x.size(1));
    return y;
  }
  at::Tensor again(const at::Tensor& x, const at::Tensor& w, const at::Tensor& b) const {
    at::Tensor y = at::empty_like(x);
    kernels::layer_norm_again<T>(ptr(x), ptr(w), ptr(b), ptr(mean), ptr(rstd), out(y), x.size(0), x.size(1));
    return y;
  }
  // In place of dy; adds `residual` when it is there.
  at::Tensor backward(at::Tensor dy, const at::Tensor& x, const at::Tensor& w, const at::Tensor& residual,
                      at::Tensor& dw, at::Tensor& db) const {
    kernels::layer_norm_backward<T>(ptr(dy), ptr(x), ptr(w), ptr(mean), ptr(rstd),
                                    residual.defined() ? ptr(residual) : nullptr, out(dy), out(dw), out(db), x.size(0),
                                    x.size(1));
    return dy;
  }

  static const T* ptr(const at::Tensor& t) { return t.const_data_ptr<T>(); }
  static T* out(at::Tensor& t) { return t.mutable_data_ptr<T>(); }
};

struct Block : torch::autograd::Function<Block> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input, const at::Tensor& ln1_w,
                            const at::Tensor& ln1_b, const at::Tensor& qkv_w, const at::Tensor& qkv_b,
                            const at::Tensor& out_w, const at::Tensor& out_b, const at::Tensor& ln2_w,
                            const at::Tensor& ln2_b, const at::Tensor& fc_w, const at::Tensor& fc_b,
                            const at::Tensor& proj_w, const at::Tensor& proj_b, const at::Tensor& offsets,
                            const at::Tensor& pool, std::int64_t heads, std::int64_t activation, bool causal,
                            bool checkpointing) {
    const BlockParameters p{ln1_w, ln1_b, qkv_w, qkv_b, out_w, out_b, ln2_w, ln2_b, fc_w, fc_b, proj_w, proj_b};
    ctx->saved_data["heads"] = heads;
    ctx->saved_data["activation"] = activation;
    ctx->saved_data["causal"] = causal;
    const at::Tensor x = input.contiguous();
    variable_list kept{x,     ln1_w, ln1_b, qkv_w,  qkv_b,  out_w,   out_b, ln2_w,
                       ln2_b, fc_w,  fc_b,  proj_w, proj_b, offsets, pool};
    const at::Tensor y = x.scalar_type() == at::kDouble ? run<double>(ctx, x, p, offsets, pool, kept)
                                                        : run<float>(ctx, x, p, offsets, pool, kept);
    if (checkpointing) kept.resize(inputs);
    ctx->save_for_backward(kept);
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list dy) {
    return dy[0].scalar_type() == at::kDouble ? back<double>(ctx, dy[0].contiguous())
                                              : back<float>(ctx, dy[0].contiguous());
  }

 private:
  static constexpr std::size_t inputs = 15;  // of what is kept, the rest is made from these

  // Projections and who attends to whom. Pooled: one query a sequence.
  template <class T>
  struct Attention {
    at::Tensor q, kv;  // rows of width w (or 3w, packed) and 2w
    std::vector<std::int64_t> q_offsets;
    kernels::AttentionShape shape;
    kernels::Rows<const T> qr, kr, vr;
  };

  template <class T>
  static Attention<T> attention_of(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& kv,
                                   const at::Tensor& offsets, bool pooled, std::int64_t w) {
    Attention<T> a{q, kv, {}, {}, {}, {}, {}};
    a.shape.k_offsets = i64(offsets);
    a.shape.heads = ctx->saved_data["heads"].toInt();
    a.shape.head_dim = w / a.shape.heads;
    if (pooled) {
      a.q_offsets.resize(offsets.numel());
      for (std::size_t i = 0; i < a.q_offsets.size(); ++i) a.q_offsets[i] = std::int64_t(i);
      a.shape.q_offsets = a.q_offsets;
      a.qr = {q.const_data_ptr<T>(), w};
      a.kr = {kv.const_data_ptr<T>(), 2 * w};
      a.vr = {kv.const_data_ptr<T>() + w, 2 * w};
    } else {
      a.shape.q_offsets = a.shape.k_offsets;
      a.shape.causal = ctx->saved_data["causal"].toBool();
      const T* base = q.const_data_ptr<T>();
      a.qr = {base, 3 * w};
      a.kr = {base + w, 3 * w};
      a.vr = {base + 2 * w, 3 * w};
    }
    return a;
  }

  // Appends to `kept` what backward reads besides the inputs. `again`: only for that.
  template <class T>
  static at::Tensor run(AutogradContext* ctx, const at::Tensor& x, const BlockParameters& p, const at::Tensor& offsets,
                        const at::Tensor& pool, variable_list& kept, bool again = false) {
    const auto w = x.size(1);
    const bool pooled = pool.numel() > 0;
    Norm<T> ln1, ln2;
    const at::Tensor h = ln1.forward(x, p.ln1_w, p.ln1_b);
    at::Tensor q, kv, residual = x;
    if (pooled) {
      q = at::addmm(p.qkv_b.narrow(0, 0, w), h.index_select(0, pool), p.qkv_w.narrow(0, 0, w).t());
      kv = at::addmm(p.qkv_b.narrow(0, w, 2 * w), h, p.qkv_w.narrow(0, w, 2 * w).t());
      residual = x.index_select(0, pool);
    } else {
      q = at::addmm(p.qkv_b, h, p.qkv_w.t());
    }
    const auto a = attention_of<T>(ctx, q, kv, offsets, pooled, w);
    const auto rows = residual.size(0);
    at::Tensor mixed = at::empty({rows, w}, x.options());
    kernels::attention<T>(a.shape, a.qr, a.kr, a.vr, {mixed.mutable_data_ptr<T>(), w});

    at::Tensor y = at::mm(mixed, p.out_w.t());
    kernels::bias_residual<T>(residual.const_data_ptr<T>(), p.out_b.const_data_ptr<T>(), y.mutable_data_ptr<T>(), rows,
                              w);
    at::Tensor z = at::mm(ln2.forward(y, p.ln2_w, p.ln2_b), p.fc_w.t());
    at::Tensor act = at::empty_like(z);
    kernels::bias_activation<T>(Activation(ctx->saved_data["activation"].toInt()), z.mutable_data_ptr<T>(),
                                p.fc_b.const_data_ptr<T>(), act.mutable_data_ptr<T>(), rows, z.size(1));
    kept.insert(kept.end(), {ln1.mean, ln1.rstd, ln2.mean, ln2.rstd, q, kv, mixed, y, z});
    if (again) return {};
    at::Tensor out = at::mm(act, p.proj_w.t());
    kernels::bias_residual<T>(y.const_data_ptr<T>(), p.proj_b.const_data_ptr<T>(), out.mutable_data_ptr<T>(), rows, w);

    return out;
  }

  // What run() kept.
  template <class T>
  struct Saved {
    at::Tensor x;
    BlockParameters p;
    at::Tensor offsets, pool;
    Norm<T> ln1, ln2;
    at::Tensor q, kv, mixed, y, z;
    bool pooled;
    std::int64_t w, rows;

    explicit Saved(const variable_list& s)
        : x(s[0]),
          p{s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10], s[11], s[12]},
          offsets(s[13]),
          pool(s[14]),
          ln1{s[15], s[16]},
          ln2{s[17], s[18]},
          q(s[19]),
          kv(s[20]),
          mixed(s[21]),
          y(s[22]),
          z(s[23]),
          pooled(pool.numel() > 0),
          w(x.size(1)),
          rows(y.size(0)) {}
  };

  // Through the MLP and its norm: the gradient of y, the residual's included.
  template <class T>
  static at::Tensor back_mlp(AutogradContext* ctx, const Saved<T>& s, const at::Tensor& dout, BlockParameters& d) {
    const BlockParameters& p = s.p;
    at::Tensor dz = at::mm(dout, p.proj_w), act = at::empty_like(s.z);
    d.fc_b = vector_like(p.fc_b);
    kernels::activation_backward<T>(Activation(ctx->saved_data["activation"].toInt()), s.z.template const_data_ptr<T>(),
                                    dz.mutable_data_ptr<T>(), act.mutable_data_ptr<T>(), d.fc_b.mutable_data_ptr<T>(),
                                    s.rows, s.z.size(1));
    gradient_written(p.fc_b);
    d.proj_w = weight_gradient(p.proj_w, dout, act);
    d.proj_b = vector_like(p.proj_b);
    kernels::column_sums<T>(dout.const_data_ptr<T>(), d.proj_b.mutable_data_ptr<T>(), s.rows, s.w);
    gradient_written(p.proj_b);
    d.fc_w = weight_gradient(p.fc_w, dz, s.ln2.again(s.y, p.ln2_w, p.ln2_b));
    d.ln2_w = vector_like(p.ln2_w);
    d.ln2_b = vector_like(p.ln2_b);
    const at::Tensor dy = s.ln2.backward(at::mm(dz, p.fc_w), s.y, p.ln2_w, dout, d.ln2_w, d.ln2_b);
    gradient_written(p.ln2_w);
    gradient_written(p.ln2_b);
    return dy;
  }

  // Through the output projection and attention: gradients of q and, pooled, of kv.
  template <class T>
  static std::pair<at::Tensor, at::Tensor> back_attention(AutogradContext* ctx, const Saved<T>& s, const at::Tensor& dy,
                                                          BlockParameters& d) {
    const BlockParameters& p = s.p;
    const auto w = s.w;
    d.out_w = weight_gradient(p.out_w, dy, s.mixed);
    d.out_b = vector_like(p.out_b);
    kernels::column_sums<T>(dy.const_data_ptr<T>(), d.out_b.mutable_data_ptr<T>(), s.rows, w);
    gradient_written(p.out_b);
    const at::Tensor dmixed = at::mm(dy, p.out_w);
    const auto a = attention_of<T>(ctx, s.q, s.kv, s.offsets, s.pooled, w);
    at::Tensor dq = at::empty_like(s.q), dkv = s.pooled ? at::empty_like(s.kv) : at::Tensor();
    T *dqp = dq.mutable_data_ptr<T>(), *dkvp = s.pooled ? dkv.mutable_data_ptr<T>() : nullptr;
    const kernels::Rows<const T> dm{dmixed.const_data_ptr<T>(), w};
    if (s.pooled)
      kernels::attention_backward<T>(a.shape, a.qr, a.kr, a.vr, dm, {dqp, w}, {dkvp, 2 * w}, {dkvp + w, 2 * w});
    else
      kernels::attention_backward<T>(a.shape, a.qr, a.kr, a.vr, dm, {dqp, 3 * w}, {dqp + w, 3 * w},
                                     {dqp + 2 * w, 3 * w});
    return {dq, dkv};
  }

  // Through the projections: the gradient of h = norm(x), which is normalised again.
  template <class T>
  static at::Tensor back_projections(const Saved<T>& s, const at::Tensor& dq, const at::Tensor& dkv,
                                     BlockParameters& d) {
    const BlockParameters& p = s.p;
    const auto w = s.w;
    const at::Tensor h = s.ln1.again(s.x, p.ln1_w, p.ln1_b);
    d.qkv_b = vector_like(p.qkv_b);
    T* dqkv_b = d.qkv_b.mutable_data_ptr<T>();
    if (!s.pooled) {
      kernels::column_sums<T>(dq.const_data_ptr<T>(), dqkv_b, s.rows, 3 * w);
      gradient_written(p.qkv_b);
      d.qkv_w = weight_gradient(p.qkv_w, dq, h);
      return at::mm(dq, p.qkv_w);
    }
    kernels::column_sums<T>(dq.const_data_ptr<T>(), dqkv_b, s.rows, w);
    kernels::column_sums<T>(dkv.const_data_ptr<T>(), dqkv_b + w, s.x.size(0), 2 * w);
    gradient_written(p.qkv_b);
    d.qkv_w = gradient_destination(p.qkv_w);
    if (!d.qkv_w.defined()) d.qkv_w = at::empty_like(p.qkv_w);
    at::Tensor dwq = d.qkv_w.narrow(0, 0, w), dwkv = d.qkv_w.narrow(0, w, 2 * w);
    at::mm_out(dwq, dq.t(), h.index_select(0, s.pool));
    at::mm_out(dwkv, dkv.t(), h);
    gradient_written(p.qkv_w);
    at::Tensor dh = at::mm(dkv, p.qkv_w.narrow(0, w, 2 * w));
    dh.index_add_(0, s.pool, at::mm(dq, p.qkv_w.narrow(0, 0, w)));
    return dh;
  }

  template <class T>
  static variable_list back(AutogradContext* ctx, const at::Tensor& dout) {
    variable_list kept = ctx->get_saved_variables();
    if (kept.size() == inputs) {
      const at::Tensor x = kept[0], offsets = kept[13], pool = kept[14];
      const BlockParameters p{kept[1], kept[2], kept[3], kept[4],  kept[5],  kept[6],
                              kept[7], kept[8], kept[9], kept[10], kept[11], kept[12]};
      run<T>(ctx, x, p, offsets, pool, kept, /*again=*/true);
    }
    const Saved<T> s(kept);
    BlockParameters d;
    const at::Tensor dy = back_mlp(ctx, s, dout, d);
    const auto [dq, dkv] = back_attention(ctx, s, dy, d);
    const at::Tensor dh = back_projections(s, dq, dkv, d);
    d.ln1_w = vector_like(s.p.ln1_w);
    d.ln1_b = vector_like(s.p.ln1_b);
    // The residual's gradient joins in the layer norm's backward; pooled, in its rows alone.
    at::Tensor dx = s.ln1.backward(dh, s.x, s.p.ln1_w, s.pooled ? at::Tensor() : dy, d.ln1_w, d.ln1_b);
    if (s.pooled) dx.index_add_(0, s.pool, dy);
    return {dx,     d.ln1_w,  d.ln1_b,  d.qkv_w, d.qkv_b, d.out_w, d.out_b, d.ln2_w, d.ln2_b, d.fc_w,
            d.fc_b, d.proj_w, d.proj_b, {},      {},      {},      {},      {},      {}};
  }
};

}  // namespace

at::Tensor fused_block(const at::Tensor& x, const BlockParameters& p, const at::Tensor& offsets, const at::Tensor& pool,
                       const Transformer::Shape& shape) {
  return Block::apply(x, p.ln1_w, p.ln1_b, p.qkv_w, p.qkv_b, p.out_w, p.out_b, p.ln2_w, p.ln2_b, p.fc_w, p.fc_b,
                      p.proj_w, p.proj_b, offsets, pool, shape.heads, std::int64_t(shape.activation), shape.causal,
                      shape.checkpointing);
}

}  // namespace trireme::nn
