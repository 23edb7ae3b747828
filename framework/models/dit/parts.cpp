#include "framework/models/dit/parts.h"

#include "comm/error.h"
#include "framework/base/tensor.h"
#include "framework/kernels/dit_pointwise.h"

#include <cmath>

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>

namespace trireme::dit {
namespace {

bool trained(const at::Tensor& t) { return t.requires_grad(); }

at::Tensor whole_of(const std::vector<Linear>& parts, at::Tensor Linear::*member) {
  std::vector<at::Tensor> all;
  for (const auto& p : parts) all.push_back(p.*member);
  return at::cat(all);
}

template <class T>
const T* pointer(const at::Tensor& t) {
  return t.defined() ? static_cast<const T*>(t.const_data_ptr()) : nullptr;
}

template <class T, class M>
Gated run_modulate(const at::Tensor& residual, const at::Tensor& gate, const at::Tensor& add, const at::Tensor& shift,
                   const at::Tensor& scale, double eps) {
  const at::Tensor x = residual.contiguous(), a = add.defined() ? add.contiguous() : add;
  Gated r;
  if (a.defined()) r.sum = at::empty(x.sizes(), x.options());
  if (shift.defined()) r.modulated = at::empty(x.sizes(), x.options());
  const auto row = [](const at::Tensor& t) { return !t.defined() || t.stride(1) == 1 ? t : t.contiguous(); };
  const at::Tensor g = row(gate);
  at::Tensor s = row(shift), c = row(scale);
  if (s.defined() && s.stride(0) != c.stride(0)) s = s.contiguous(), c = c.contiguous();
  const kernels::ModulateJob<T, M> job{pointer<T>(x),
                                       pointer<T>(a),
                                       pointer<M>(g),
                                       pointer<M>(s),
                                       pointer<M>(c),
                                       const_cast<T*>(pointer<T>(r.sum)),
                                       const_cast<T*>(pointer<T>(r.modulated)),
                                       x.size(0),
                                       x.size(1),
                                       x.size(2),
                                       g.defined() ? g.stride(0) : 0,
                                       s.defined() ? s.stride(0) : 0,
                                       float(eps)};
  kernels::modulate(job, buffer_of(x).place);
  return r;
}

bool wants_gradient(const at::Tensor& t) { return at::GradMode::is_enabled() && t.requires_grad(); }

// May `row` modulate x: [B, D] of its type or f32, without a gradient of its own?
bool alike(const at::Tensor& x, const at::Tensor& row) {
  return x.dim() == 3 && row.dim() == 2 && (x.scalar_type() == row.scalar_type() || row.scalar_type() == at::kFloat) &&
         row.size(0) == x.size(0) && row.size(1) == x.size(2) && !wants_gradient(row);
}

bool fits(const at::Tensor& a, const at::Tensor& b) {
  return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && !wants_gradient(b);
}

// add undefined: the norm alone; shift undefined: the sum alone.
Gated modulate(const at::Tensor& residual, const at::Tensor& gate, const at::Tensor& add, const at::Tensor& shift,
               const at::Tensor& scale, double eps) {
  if (residual.scalar_type() == at::kFloat) return run_modulate<float, float>(residual, gate, add, shift, scale, eps);
  const auto& rows = shift.defined() ? shift : gate;
  using kernels::BrainFloat;
  return rows.defined() && rows.scalar_type() == at::kFloat
             ? run_modulate<BrainFloat, float>(residual, gate, add, shift, scale, eps)
             : run_modulate<BrainFloat, BrainFloat>(residual, gate, add, shift, scale, eps);
}

template <class T>
void run_norm_rows(const at::Tensor& x, const QkNorm& weight, std::int64_t heads, const RopeTable& table, bool rotate_k,
                   double eps) {
  const RopeTable t = table.cos.defined() ? RopeTable{table.cos.contiguous(), table.sin.contiguous()} : table;
  const std::int64_t width = weight.q.size(0);
  const kernels::RowNormJob<T> job{static_cast<T*>(x.mutable_data_ptr()),
                                   {pointer<T>(weight.q), pointer<T>(weight.k)},
                                   pointer<float>(t.cos),
                                   pointer<float>(t.sin),
                                   x.size(0),
                                   x.size(1),
                                   x.stride(1),
                                   heads,
                                   width / heads,
                                   t.cos.defined() && t.cos.dim() == 3 ? t.cos.stride(0) : 0,
                                   rotate_k,
                                   float(eps)};
  kernels::norm_rows(job, buffer_of(x).place);
}

}  // namespace

at::Tensor Linear::operator()(const at::Tensor& x) const { return at::linear(x, weight, bias); }

at::Tensor StackedLinear::operator()(const at::Tensor& x) const {
  if (whole.weight.defined()) return whole(x);
  return at::linear(x, whole_of(parts, &Linear::weight), whole_of(parts, &Linear::bias));
}

at::Tensor WeightList::one(const std::string& name, std::vector<std::int64_t> shape, Kind kind, double std) {
  at::Tensor t = (*source_)({name, std::move(shape), kind, std});
  all_.emplace_back(name, t);
  return t;
}

Linear WeightList::linear(const std::string& name, std::int64_t out, std::int64_t in, Kind kind, bool bias) {
  Linear l;
  l.weight = one(name + ".weight", {out, in}, kind, 1 / std::sqrt(double(in)));
  if (bias) l.bias = one(name + ".bias", {out}, Kind::zero);
  return l;
}

StackedLinear WeightList::stacked(std::initializer_list<Part> parts, std::int64_t in) {
  StackedLinear s;
  const std::size_t first = all_.size();
  for (const auto& p : parts) s.parts.push_back(linear(p.name, p.out, in));
  if (trained(s.parts.front().weight)) return s;
  s.whole = {whole_of(s.parts, &Linear::weight), whole_of(s.parts, &Linear::bias)};
  std::int64_t row = 0;
  for (std::size_t i = 0; i < s.parts.size(); ++i) {
    const std::int64_t out = s.parts[i].weight.size(0);
    all_[first + 2 * i].second = s.parts[i].weight = s.whole.weight.narrow(0, row, out);
    all_[first + 2 * i + 1].second = s.parts[i].bias = s.whole.bias.narrow(0, row, out);
    row += out;
  }
  return s;
}

at::Tensor sinusoid(const at::Tensor& t, std::int64_t width) {
  const std::int64_t half = width / 2;
  const at::Tensor frequency =
      at::exp(at::arange(half, at::TensorOptions(t.device()).dtype(at::kFloat)) * (-std::log(10000.0) / double(half)));
  const at::Tensor angle = t.to(at::kFloat).unsqueeze(1) * frequency;
  return at::cat({angle.cos(), angle.sin()}, 1);
}

at::Tensor Embedder::operator()(const at::Tensor& x) const {
  return second(at::silu(first(x.to(first.weight.scalar_type()))));
}

Embedder embedder(WeightList& w, const std::string& name, std::int64_t in, std::int64_t width) {
  Embedder e;
  e.first = w.linear(name + ".linear_1", width, in);
  e.second = w.linear(name + ".linear_2", width, width);
  return e;
}

at::Tensor patchify(const at::Tensor& x, std::int64_t p, std::int64_t pf) {
  const std::int64_t b = x.size(0), c = x.size(1), f = x.size(2) / pf, h = x.size(3) / p, w = x.size(4) / p;
  return x.reshape({b, c, f, pf, h, p, w, p}).permute({0, 2, 4, 6, 1, 3, 5, 7}).reshape({b, f * h * w, c * pf * p * p});
}

at::Tensor unpatchify(const at::Tensor& tokens, at::IntArrayRef latent, std::int64_t p, std::int64_t pf,
                      bool channel_last) {
  const std::int64_t b = latent[0], f = latent[2] / pf, h = latent[3] / p, w = latent[4] / p;
  const std::int64_t c = tokens.size(2) / (pf * p * p);
  const at::Tensor t = channel_last ? tokens.reshape({b, f, h, w, pf, p, p, c}).permute({0, 7, 1, 4, 2, 5, 3, 6})
                                    : tokens.reshape({b, f, h, w, c, pf, p, p}).permute({0, 4, 1, 5, 2, 6, 3, 7});
  return t.reshape({b, c, latent[2], latent[3], latent[4]});
}

RopeTable rope_table(const Grid& grid, const Offsets& offsets, const std::vector<std::int64_t>& axes, double theta,
                     at::Device device) {
  const std::int64_t size[3] = {grid.frames, grid.rows, grid.columns};
  const std::int64_t from[3] = {offsets.frames, offsets.rows, offsets.columns};
  const std::int64_t wrap[3] = {offsets.wrap.frames, offsets.wrap.rows, offsets.wrap.columns};
  std::vector<at::Tensor> angles;
  for (std::int64_t a = 0; a < 3; ++a) {
    const std::int64_t dim = axes[std::size_t(a)];
    at::Tensor position = at::arange(from[a], from[a] + size[a], at::kLong);
    if (wrap[a]) position = position.remainder(wrap[a]);
    const at::Tensor frequency = at::pow(theta, at::arange(0, dim, 2, at::kDouble) / double(-dim));
    std::vector<std::int64_t> view{1, 1, 1, dim / 2};
    view[std::size_t(a)] = size[a];
    angles.push_back(at::outer(position.to(at::kDouble), frequency)
                         .view(view)
                         .expand({grid.frames, grid.rows, grid.columns, dim / 2}));
  }
  const at::Tensor angle = at::cat(angles, 3).flatten(0, 2);
  return {angle.cos().to(at::kFloat).to(device), angle.sin().to(at::kFloat).to(device)};
}

RopeTable rope_origin(std::int64_t tokens, std::int64_t pairs, at::Device device) {
  const auto options = at::TensorOptions(device).dtype(at::kFloat);
  return {at::ones({tokens, pairs}, options), at::zeros({tokens, pairs}, options)};
}

RopeTable joined(const RopeTable& first, std::int64_t n_first, const RopeTable& second, std::int64_t n_second) {
  if (!first.cos.defined() && !second.cos.defined()) return {};
  const RopeTable& known = first.cos.defined() ? first : second;
  const auto whole = [&](const RopeTable& t, std::int64_t n) {
    return t.cos.defined() ? t : rope_origin(n, known.cos.size(-1), known.cos.device());
  };
  RopeTable a = whole(first, n_first), b = whole(second, n_second);
  const auto both = [](at::Tensor x, at::Tensor y) {
    if (x.dim() < y.dim()) x = x.unsqueeze(0).expand({y.size(0), -1, -1});
    if (y.dim() < x.dim()) y = y.unsqueeze(0).expand({x.size(0), -1, -1});
    return at::cat({x, y}, -2);
  };
  return {both(a.cos, b.cos), both(a.sin, b.sin)};
}

const RopeTables& OwnTables::of(const Denoiser& model, const Grid& grid, std::int64_t text_tokens) {
  const std::array<std::int64_t, 4> size{grid.frames, grid.rows, grid.columns, text_tokens};
  if (size != size_) {
    tables_ = model.rope(grid, text_tokens, {});
    size_ = size;
  }
  return tables_;
}

at::Tensor apply_rope(const at::Tensor& x, const RopeTable& table) {
  if (!table.cos.defined()) return x;
  const at::Tensor cos = table.cos.unsqueeze(-2), sin = table.sin.unsqueeze(-2);  // [(B,) n, 1, d/2]
  const at::Tensor pairs = x.to(at::kFloat).unflatten(-1, {-1, 2});
  const at::Tensor a = pairs.select(-1, 0), b = pairs.select(-1, 1);
  return at::stack({a * cos - b * sin, b * cos + a * sin}, -1).flatten(-2).to(x.scalar_type());
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return at::rms_norm(x, weight.sizes(), weight, eps);
}

bool fused(const at::Tensor& x) {
  return (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) && !wants_gradient(x) &&
         !at::autocast::is_autocast_enabled(x.device().type());
}

at::Tensor modulated(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale, double eps) {
  if (fused(x) && alike(x, shift) && alike(x, scale) && shift.scalar_type() == scale.scalar_type())
    return modulate(x, at::Tensor(), at::Tensor(), shift, scale, eps).modulated;
  if (scale.scalar_type() != at::kFloat || x.scalar_type() == at::kFloat)
    return at::layer_norm(x, {x.size(-1)}, {}, {}, eps) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1);
  return modulated(x.to(at::kFloat), shift, scale, eps).to(x.scalar_type());
}

at::Tensor gated(const at::Tensor& residual, const at::Tensor& gate, const at::Tensor& x) {
  if (fused(residual) && alike(residual, gate) && fits(residual, x))
    return modulate(residual, gate, x, at::Tensor(), at::Tensor(), 0).sum;
  return (residual + gate.unsqueeze(1) * x).to(residual.scalar_type());
}

Gated gated_modulated(const at::Tensor& residual, const at::Tensor& gate, const at::Tensor& x, const at::Tensor& shift,
                      const at::Tensor& scale, double eps) {
  if (fused(residual) && (!gate.defined() || (alike(residual, gate) && gate.scalar_type() == shift.scalar_type())) &&
      fits(residual, x) && alike(residual, shift) && alike(residual, scale) &&
      shift.scalar_type() == scale.scalar_type())
    return modulate(residual, gate, x, shift, scale, eps);
  const at::Tensor sum = gate.defined() ? gated(residual, gate, x) : residual + x;
  return {sum, modulated(sum, shift, scale, eps)};
}

bool norm_rows(const at::Tensor& x, const QkNorm& weight, std::int64_t heads, const RopeTable& table, bool rotate_k,
               double eps) {
  const std::int64_t width = weight.q.size(0);
  if (!fused(x) || x.dim() != 3 || x.stride(2) != 1 || x.stride(0) != x.size(1) * x.stride(1) || width / heads % 2 ||
      weight.q.scalar_type() != x.scalar_type())
    return false;
  if (x.scalar_type() == at::kFloat)
    run_norm_rows<float>(x, weight, heads, table, rotate_k, eps);
  else
    run_norm_rows<kernels::BrainFloat>(x, weight, heads, table, rotate_k, eps);
  return true;
}

at::Tensor gelu_of(const Linear& l, const at::Tensor& x) {
  // cuBLAS has the tanh form in its epilogue.
  if (x.is_cuda() && l.bias.defined() && fused(x))
    return at::_addmm_activation(l.bias, x.flatten(0, -2), l.weight.t(), 1, 1, true)
        .unflatten(0, x.sizes().slice(0, x.dim() - 1));
  return at::gelu(l(x), "tanh");
}

std::vector<at::Tensor> cut(const at::Tensor& modulation, std::int64_t n) { return modulation.chunk(n, -1); }

at::Tensor Mlp::operator()(const at::Tensor& x) const { return down(gelu_of(up, x)); }

Mlp mlp(WeightList& w, const std::string& up, const std::string& down, std::int64_t width, std::int64_t inner) {
  Mlp m;
  m.up = w.linear(up, inner, width);
  m.down = w.linear(down, width, inner);
  return m;
}

std::int64_t config_count(const nlohmann::json& config, const char* key, std::int64_t fallback) {
  const auto found = config.find(key);
  if (found == config.end() || found->is_null()) return fallback;
  if (!found->is_number_integer() || *found < 1 || *found > (1 << 20))
    throw DataError("config.json", std::string(key) + " is no number from 1 to 1048576",
                    "take the file as diffusers wrote it");
  return found->get<std::int64_t>();
}

std::vector<std::int64_t> config_axes(const nlohmann::json& axes, std::int64_t head_dim) {
  std::vector<std::int64_t> all;
  std::int64_t sum = 0;
  if (axes.is_array() && axes.size() == 3)
    for (const auto& a : axes)
      if (a.is_number_integer() && a > 0 && a <= head_dim && a.get<std::int64_t>() % 2 == 0)
        sum += all.emplace_back(a.get<std::int64_t>());
  if (all.size() != 3 || sum != head_dim)
    throw DataError("config.json",
                    "the axes of the rotation are no three even numbers that sum to the head's " +
                        std::to_string(head_dim) + " channels",
                    "take the file as diffusers wrote it");
  return all;
}

void expect_shape(const char* what, const at::Tensor& t, at::IntArrayRef shape) {
  const auto text = [](at::IntArrayRef s) {
    std::string all = "[";
    for (const auto n : s) all += (all.size() > 1 ? ", " : "") + std::to_string(n);
    return all + "]";
  };
  if (!t.defined()) throw UsageError("denoiser", std::string("wants ") + what + " " + text(shape), "give it");
  if (t.sizes() != shape)
    throw UsageError("denoiser", std::string(what) + " is " + text(t.sizes()) + ", the model wants " + text(shape), "");
}

Grid checked_inputs(const DenoiserInfo& info, const at::Tensor& x, const at::Tensor& t, const Conditioning& c) {
  if (x.dim() != 5 || x.size(1) != info.channels || x.size(2) % info.patch_frames || x.size(3) % info.patch ||
      x.size(4) % info.patch || x.numel() == 0)
    throw UsageError("denoiser",
                     "a latent of " + std::to_string(x.dim()) + " dimensions that is not [B, " +
                         std::to_string(info.channels) + ", F, H, W] of whole tokens",
                     "a token is " + std::to_string(info.patch) + " latent pixels a side");
  const std::int64_t batch = x.size(0);
  expect_shape("t", t, {batch});
  if (!c.text.defined() || c.text.dim() != 3) throw UsageError("denoiser", "wants text [B, M, width]", "give it");
  expect_shape("text", c.text, {batch, c.text.size(1), info.text_width});
  if (info.pooled_width) expect_shape("pooled", c.pooled, {batch, info.pooled_width});
  if (info.distilled_guidance) expect_shape("guidance", c.guidance, {batch});
  if (info.image_channels)
    expect_shape("image", c.image, {batch, info.image_channels, x.size(2), x.size(3), x.size(4)});
  return {x.size(2) / info.patch_frames, x.size(3) / info.patch, x.size(4) / info.patch};
}

}  // namespace trireme::dit
