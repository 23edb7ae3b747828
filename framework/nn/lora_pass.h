// What one pass over the backbone needs of the adapters, and the LoRA path of one target by each backend.
#pragma once
#include "framework/kernels/grouped_gemm.h"
#include "framework/nn/fp8_matrix.h"
#include "framework/nn/lora.h"

namespace trireme::nn {

// One adapter of one target. Ranks are padded to a multiple of 8 with zeros, whose gradients are 0.
struct LoraAdapter {
  at::Tensor a, b;    // [rank, in], [out, rank] of the base's type; undefined: this target is not adapted
  at::Tensor da, db;  // of the masters' type; added to
  double scale = 0;
  mutable bool empty = true;  // da and db count as 0, whatever they hold: the next backward may write them

  void settle() const {  // zeros where they count as such
    if (empty) da.zero_(), db.zero_();
    empty = false;
  }
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
  std::vector<bool> by_all;             // a target: do all groups adapt it?
  std::int64_t rows_from_0 = 0;         // groups cover rows [0, this) without a gap; 0: they do not
  at::Tensor rows, adapters, blocks;    // GroupedRows; GroupedAdapter [targets, groups]; GroupedBlock
  std::int64_t longest = 0, block_count = 0;
};

// What masks follow from: of a job's rows, and of a target.
kernels::DropoutKey dropout_key(const AdapterInit& init, const SlotRows& rows);
std::uint32_t dropout_module(std::string_view target);

// Of a composition; only of its rows and their dropout. `like` tells the device.
void make_rows(LoraPass& pass, const at::Tensor& like);
void make_tables(LoraPass& pass, std::size_t targets, const at::Tensor& like);

// Targets of one input. `module`: dropout's name of the target.
struct LoraTarget {
  std::int64_t index = 0;
  std::uint32_t module = 0;
  at::Tensor weight, bias;
  std::shared_ptr<const Fp8Rows> fp8 = nullptr;  // the weight, where the base is FP8
};
struct LoraCall {
  std::shared_ptr<const LoraPass> pass;
  std::vector<LoraTarget> targets;
};

// [tokens, in] -> a [tokens, out] a target; what backward needs beside x is put into `kept`.
std::vector<at::Tensor> lora_forward(const LoraCall& call, const at::Tensor& x, std::vector<at::Tensor>& kept);
// Adds to the adapters' gradients. -> the gradient of x, where it is wanted.
at::Tensor lora_backward(const LoraCall& call, const at::Tensor& x, const std::vector<at::Tensor>& kept,
                         const std::vector<at::Tensor>& dy, bool wanted);

// The base's products of one input, which becomes FP8 once where the base is.
class BaseProducts {
 public:
  explicit BaseProducts(const at::Tensor& x) : x_(x) {}
  at::Tensor operator()(const LoraTarget& t);  // x W^T + b

 private:
  at::Tensor x_;
  std::optional<Fp8Rows> rows_;
};
// dx += dy W; an undefined dx is made.
void add_base_gradient(const LoraTarget& t, const at::Tensor& dy, at::Tensor& dx);

// The same of the LoRA path by own kernels, on which the base's product is put: what they write is read by that
// product, which has time for it, and not by them. False: the composition does not allow it (rows or targets of
// nobody).
bool lora_comes_first(const LoraCall& call, std::int64_t tokens);
std::vector<at::Tensor> kernels_forward(const LoraCall& call, const at::Tensor& x, std::vector<at::Tensor>& kept);
at::Tensor kernels_backward(const LoraCall& call, const at::Tensor& x, const std::vector<at::Tensor>& kept,
                            const std::vector<at::Tensor>& dy, bool wanted);

// SwiGLU between the two targets of `in`, gate and up, and the one of `out` (kernels/grouped_swiglu.h).
bool gated_by_kernel(const LoraCall& in, const LoraCall& out, const at::Tensor& x);
at::Tensor gated_forward(const LoraCall& in, const LoraCall& out, const at::Tensor& x, std::vector<at::Tensor>& kept);
at::Tensor gated_backward(const LoraCall& in, const LoraCall& out, const at::Tensor& x,
                          const std::vector<at::Tensor>& kept, const at::Tensor& dy, bool wanted);

// x, or what dropout leaves of it.
at::Tensor dropped(const LoraPass& pass, std::uint32_t module, const at::Tensor& x);
void drop(const LoraPass& pass, std::uint32_t module, at::Tensor& x);  // in place

// The other backends, of one target: y += ...; x is what dropout left.
struct LoraArm {
  at::Tensor (*forward)(const LoraPass& pass, std::int64_t target, const at::Tensor& x, at::Tensor& y);
  void (*backward)(const LoraPass& pass, std::int64_t target, const at::Tensor& x, const at::Tensor& s,
                   const at::Tensor& dy, at::Tensor& dx);
};
extern const LoraArm lora_grouped_mm, lora_bmm, lora_loop, lora_wide;

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
