// What config.json of a Hugging Face causal language model says: Llama, Mistral, Qwen2 (2.5), Qwen3, GPT-2.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include <ATen/core/Tensor.h>

namespace trireme {

// Rotary positions (Su et al., arXiv 2104.09864), with Llama 3's stretching of long waves where `factor` is not 0.
struct Rope {
  double theta = 10000;
  double factor = 0, low_freq_factor = 1, high_freq_factor = 4;
  std::int64_t original_positions = 8192;
  std::vector<float> frequencies(std::int64_t head_dim) const;  // [head_dim / 2] radians a position
};

struct CausalLmConfig {
  std::string family;  // model_type: one of families()
  std::int64_t vocab = 0, hidden = 0, intermediate = 0, layers = 0, heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t max_length = 0;  // tokens of a sample that the model can be given; 0: any number
  double eps = 0;               // of the norms
  bool tied = false;            // logits by the embedding
  bool qkv_bias = false, out_bias = false, mlp_bias = false, qk_norm = false;
  Rope rope;                             // not of GPT-2
  bool scaled = true, by_layer = false;  // GPT-2: scores over sqrt(head_dim); and over the layer's number from 1
  at::ScalarType dtype = at::kFloat;     // of the weights on disk; f32 where the file says nothing
  std::vector<std::int64_t> end_ids;     // eos_token_id, a number or a list
  std::string document;                  // the JSON text this was read from

  bool gpt2() const { return family == "gpt2"; }
  static const std::vector<std::string>& families();
};

// Both spellings: rope_parameters and dtype (transformers 5), rope_theta, rope_scaling and torch_dtype (4). A missing
// key has the default of transformers. DataError(place) naming the key: another architecture (with the list of those
// that are read), sliding attention, another RoPE, another activation, sizes that do not fit together.
CausalLmConfig parse_causal_lm_config(std::string_view json, const std::string& place);

// Of weights that are drawn: {"model_type", the family's size keys, ...} completed with architectures.
std::string print_causal_lm_config(const CausalLmConfig& config, at::ScalarType dtype);

}  // namespace trireme
