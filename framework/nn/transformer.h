// Pre-LN transformer with a pooled output, as in CLIP's two towers. Parameter names and layouts follow OpenCLIP
// (`resblocks.N.ln_1.weight`, `.attn.in_proj_weight` [3w, w], ...), so weights travel by name.
#pragma once
#include "framework/kernels/activation.h"
#include "framework/nn/parameters.h"

namespace trireme::nn {

struct BlockParameters {
  at::Tensor ln1_w, ln1_b, qkv_w, qkv_b, out_w, out_b, ln2_w, ln2_b, fc_w, fc_b, proj_w, proj_b;
};

class Transformer {
 public:
  struct Shape {
    std::int64_t layers = 0, width = 0, heads = 0, mlp = 0;
    kernels::Activation activation = kernels::Activation::gelu;
    bool causal = false, checkpointing = false;  // checkpointing: blocks keep their input and are computed again
    double flops(double tokens) const;           // of one sequence's forward, multiply-adds x 2
  };

  Transformer() = default;
  // Adds its parameters as `prefix` + "resblocks.N....".
  Transformer(const Shape& shape, const std::string& prefix, Parameters& params);

  // x [b, t, w] -> [b, w]: the output at position pool[i] of sequence i. Only what the pooled rows depend on is
  // computed: causal towers never look past pool[i], so sequences are packed without what stands behind it, which may
  // be anything; and the last block's queries and MLP run on b rows. `fused`: by kernels of ours (host memory, f32 or
  // f64), else by ATen operators, under autocast in its type; the host does not wait for the device.
  at::Tensor pooled(const at::Tensor& x, std::span<const std::int64_t> pool, bool fused) const;

 private:
  at::Tensor on_host(const at::Tensor& x, std::span<const std::int64_t> pool) const;
  at::Tensor on_operators(const at::Tensor& x, std::span<const std::int64_t> pool) const;
  Shape shape_;
  std::vector<BlockParameters> blocks_;
};

}  // namespace trireme::nn
