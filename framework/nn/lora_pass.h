// What one pass over the backbone needs of the adapters, and the LoRA path of one target by each backend.
#pragma once
#include "framework/nn/lora.h"

namespace trireme::nn {

// One adapter of one target.
struct LoraAdapter {
  at::Tensor a, b;    // [rank, in], [out, rank] of the base's type; undefined: this target is not adapted
  at::Tensor da, db;  // of the masters' type; added to
  double scale = 0;
};

struct LoraGroup {
  SlotRows rows;
  std::shared_ptr<const std::vector<LoraAdapter>> adapters;  // one a target
};

struct LoraPass {
  LoraBackend backend = LoraBackend::loop;
  std::vector<LoraGroup> groups;  // with rows
};

// y += the LoRA path of x. What backward needs beside x comes back.
at::Tensor lora_forward(const LoraPass& pass, std::int64_t target, const at::Tensor& x, at::Tensor& y);
// Adds to the adapters' gradients and, where it is defined, to dx.
void lora_backward(const LoraPass& pass, std::int64_t target, const at::Tensor& x, const at::Tensor& s,
                   const at::Tensor& dy, at::Tensor& dx);

}  // namespace trireme::nn
