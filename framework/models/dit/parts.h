// What the layouts of diffusion transformers are built of.
#pragma once
#include "framework/models/dit/denoiser.h"

#include <array>
#include <initializer_list>

#include <ATen/core/Tensor.h>
#include <nlohmann/json.hpp>

namespace trireme::dit {

struct Linear {
  at::Tensor weight, bias;  // [out, in]; bias undefined: none
  at::Tensor operator()(const at::Tensor& x) const;
};

// Several linears of one input as one product.
struct StackedLinear {
  Linear whole;               // undefined where weights are trained: they are put together at use
  std::vector<Linear> parts;  // views of whole, where that is defined
  at::Tensor operator()(const at::Tensor& x) const;  // [.., sum of outs]
};

// Asks for weights one by one, and keeps the list.
class WeightList {
 public:
  explicit WeightList(const DitWeights& source) : source_(&source) {}
  using Kind = DitWeight::Kind;

  at::Tensor one(const std::string& name, std::vector<std::int64_t> shape, Kind kind, double std = 0.02);
  // name.weight and name.bias; deviation 1/sqrt(in).
  Linear linear(const std::string& name, std::int64_t out, std::int64_t in, Kind kind = Kind::matrix, bool bias = true);
  struct Part {
    std::string name;
    std::int64_t out;
  };
  StackedLinear stacked(std::initializer_list<Part> parts, std::int64_t in);
  at::Tensor norm(const std::string& name, std::int64_t width) { return one(name + ".weight", {width}, Kind::one); }

  const std::vector<std::pair<std::string, at::Tensor>>& all() const { return all_; }

 private:
  const DitWeights* source_;  // null once the model is built
  std::vector<std::pair<std::string, at::Tensor>> all_;
};

// [B] -> f32 [B, width]: cosines, then sines, of t * 10000^(-i / (width/2)).
at::Tensor sinusoid(const at::Tensor& t, std::int64_t width);

// linear_2(silu(linear_1(x))), as diffusers' TimestepEmbedding and text projections.
struct Embedder {
  Linear first, second;
  at::Tensor operator()(const at::Tensor& x) const;
};
Embedder embedder(WeightList& w, const std::string& name, std::int64_t in, std::int64_t width);

// Latents [B, C, F, H, W] -> tokens [B, N, C * patch_frames * patch * patch] in the order frames, rows, columns; of a
// token's features the channel is slowest. Back: `channel_last`: it is the fastest there.
at::Tensor patchify(const at::Tensor& x, std::int64_t patch, std::int64_t patch_frames);
at::Tensor unpatchify(const at::Tensor& tokens, at::IntArrayRef latent, std::int64_t patch, std::int64_t patch_frames,
                      bool channel_last);

// Angles position * theta^(-2i/dim) of the axes frame, row, column, made in f64.
RopeTable rope_table(const Grid& grid, const Offsets& offsets, const std::vector<std::int64_t>& axes, double theta,
                     at::Device device);
RopeTable rope_origin(std::int64_t tokens, std::int64_t pairs, at::Device device);  // of position 0
// Text and image tables in the order of the joint sequence. A part without a table is not rotated.
RopeTable joined(const RopeTable& first, std::int64_t n_first, const RopeTable& second, std::int64_t n_second);
// A model's own tables, kept for the size of the last forward.
class OwnTables {
 public:
  const RopeTables& of(const Denoiser& model, const Grid& grid, std::int64_t text_tokens);

 private:
  RopeTables tables_;
  std::array<std::int64_t, 4> size_{};
};
// x [B, n, H, d], pairs of adjacent channels; computed in f32.
at::Tensor apply_rope(const at::Tensor& x, const RopeTable& table);

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps = 1e-6);  // over the last dimension
// LayerNorm without affine times (1 + scale) plus shift. x [B, n, D]; shift, scale [B, D]. Computed in f32 where these
// are f32, and of x's type.
at::Tensor modulated(const at::Tensor& x, const at::Tensor& shift, const at::Tensor& scale, double eps = 1e-6);
// residual + gate * x; gate [B, D].
at::Tensor gated(const at::Tensor& residual, const at::Tensor& gate, const at::Tensor& x);
// Both, and the sum: LayerNorm of residual + gate * x, modulated. gate undefined: 1.
struct Gated {
  at::Tensor sum, modulated;
};
Gated gated_modulated(const at::Tensor& residual, const at::Tensor& gate, const at::Tensor& x, const at::Tensor& shift,
                      const at::Tensor& scale, double eps = 1e-6);
struct QkNorm {
  at::Tensor q, k;
};
// In place, of queries and keys that rows of x [B, n, >= D or 2 D] begin with: RMSNorm over all heads together, weights
// [D], then the rotation. weight.k undefined: there are queries alone. False: nothing was done, since x is not one for
// the fused kernel.
bool norm_rows(const at::Tensor& x, const QkNorm& weight, std::int64_t heads, const RopeTable& table, bool rotate_k,
               double eps);
// Is x computed by the fused kernels of framework/kernels/dit_pointwise.h: no gradient is wanted, and it is f32 or
// bf16.
bool fused(const at::Tensor& x);
// [B, n * D] -> n of [B, D].
std::vector<at::Tensor> cut(const at::Tensor& modulation, std::int64_t n);

// GELU (tanh form) of linear(x).
at::Tensor gelu_of(const Linear& linear, const at::Tensor& x);
// It between two linears.
struct Mlp {
  Linear up, down;
  at::Tensor operator()(const at::Tensor& x) const;
};
Mlp mlp(WeightList& w, const std::string& up, const std::string& down, std::int64_t width, std::int64_t inner);

// A value of config.json. DataError: it is there and of another type, or out of [1, 2^20].
std::int64_t config_count(const nlohmann::json& config, const char* key, std::int64_t fallback);

// Three even counts that sum to head_dim, or DataError.
std::vector<std::int64_t> config_axes(const nlohmann::json& axes, std::int64_t head_dim);

// UsageError with both shapes.
void expect_shape(const char* what, const at::Tensor& t, at::IntArrayRef shape);
// x, t and condition are what `info` asks for. -> the grid of x.
Grid checked_inputs(const DenoiserInfo& info, const at::Tensor& x, const at::Tensor& t, const Conditioning& condition);

}  // namespace trireme::dit
