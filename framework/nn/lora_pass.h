// What one pass over the backbone needs of the adapters, and the LoRA path of one target by each backend.
#pragma once
#include "framework/kernels/grouped_gemm.h"
#include "framework/nn/lora.h"

namespace trireme::nn {

// One adapter of one target. Ranks are padded to a multiple of 8 with zeros, whose gradients are 0.
struct LoraAdapter {
  at::Tensor a, b;    // [rank, in], [out, rank] of the base's type; undefined: this target is not adapted
  at::Tensor da, db;  // of the masters' type; added to
  double scale = 0;
};

struct LoraGroup {
  SlotRows rows;
  kernels::DropoutKey dropout;
  std::shared_ptr<const std::vector<LoraAdapter>> adapters;  // one a target
};

// Tables are bytes on the adapters' device: arrays of what they are named after.
struct LoraPass {
  LoraBackend backend = LoraBackend::loop;
  bool dropout = false;
  std::vector<LoraGroup> groups;        // with rows
  std::vector<std::int64_t> most_rank;  // a target, over the groups
  at::Tensor rows, adapters, blocks;    // GroupedRows; GroupedAdapter [targets, groups]; GroupedBlock
  std::int64_t longest = 0, block_count = 0;
};

// What masks follow from: of a job's rows, and of a target.
kernels::DropoutKey dropout_key(const AdapterInit& init, const SlotRows& rows);
std::uint32_t dropout_module(std::string_view target);

// Of a composition. `like` tells the device.
void make_tables(LoraPass& pass, std::size_t targets, const at::Tensor& like);

// y += the LoRA path of x, [tokens, in], contiguous. What backward needs beside x comes back. `module`: dropout's name
// of the target.
at::Tensor lora_forward(const LoraPass& pass, std::int64_t target, std::uint32_t module, const at::Tensor& x,
                        at::Tensor& y);
// Adds to the adapters' gradients and, where it is defined, to dx.
void lora_backward(const LoraPass& pass, std::int64_t target, std::uint32_t module, const at::Tensor& x,
                   const at::Tensor& s, const at::Tensor& dy, at::Tensor& dx);

// The backends; x is what dropout left.
struct LoraArm {
  at::Tensor (*forward)(const LoraPass& pass, std::int64_t target, const at::Tensor& x, at::Tensor& y);
  void (*backward)(const LoraPass& pass, std::int64_t target, std::uint32_t module, const at::Tensor& x,
                   const at::Tensor& s, const at::Tensor& dy, at::Tensor& dx);
};
extern const LoraArm lora_kernels, lora_grouped_mm, lora_bmm, lora_loop, lora_wide;

// The arm by own kernels puts dropout's mask on dx by itself.
inline bool masks_itself(const LoraPass& pass) { return pass.backend == LoraBackend::kernels; }

// Calls f(group, adapter) for the groups that adapt `target`, in the order of their rows.
template <class F>
void each_adapter(const LoraPass& pass, std::int64_t target, F f) {
  for (const auto& group : pass.groups) {
    const auto& adapter = (*group.adapters)[std::size_t(target)];
    if (adapter.a.defined()) f(group, adapter);
  }
}

inline at::Tensor rows_of(const at::Tensor& t, const SlotRows& r) { return t.narrow(0, r.first, r.last - r.first); }

}  // namespace trireme::nn
