// A frozen linear layer of a backbone, under the name by which adapters find it.
#pragma once
#include <string>

#include <ATen/core/Tensor.h>

namespace trireme::nn {

struct Projection {
  std::string name;   // module path as Hugging Face has it, e.g. "model.layers.0.self_attn.q_proj"
  at::Tensor weight;  // [out, in]; GPT-2's Conv1D is transposed when it is loaded
  at::Tensor bias;    // [out] of the weight's type, or undefined
};

}  // namespace trireme::nn
