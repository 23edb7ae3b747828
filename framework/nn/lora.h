// Many LoRA adapters (Hu et al., arXiv 2106.09685) on one frozen backbone: the rows of all jobs go through it together,
// y = x W^T + b + s_i (dropout(x) A_i^T) B_i^T, where i is the slot that a row belongs to (ALTO, arXiv
// 2604.05426, 6.1). The base path is one product; the LoRA path runs by one of several backends, all of which give the
// same numbers. Not thread-safe.
#pragma once
#include "framework/nn/projection.h"

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace trireme::nn {

// kernels: own grouped kernels (framework/kernels/grouped_gemm.h). grouped_mm, bmm: at::_grouped_mm, at::bmm over
// padded groups. loop: one job after the other (mLoRA). wide: one product with all adapters side by side, of which each
// row uses its own (LoRAFusion).
enum class LoraBackend : std::uint8_t { kernels, grouped_mm, bmm, loop, wide };
LoraBackend lora_backend(std::string_view name);  // throws UsageError

struct AdapterShape {
  std::int64_t rank = 0;  // 0: this target is not adapted
  double scale = 0;       // alpha / rank, or alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732)
};

// What a job brings to a slot. Weights depend on it and on the names of targets, never on the slot.
struct AdapterInit {
  std::vector<AdapterShape> shapes;  // one a target
  std::uint64_t seed = 0;
  bool gaussian = false;  // A: normal of std 1/rank instead of PEFT's default U(-1/sqrt(in), 1/sqrt(in)). B is 0
  double dropout = 0;     // in [0, 1), on the input of A
};

// Rows [first, last) of the token batch. Rows of no slot run the base alone.
struct SlotRows {
  std::int64_t slot = 0, first = 0, last = 0;
  std::int64_t job_row = 0, step = 0;  // where `first` stands among the rows of the job's step: keys of dropout
};

struct AdapterTensors {
  std::string target;
  at::Tensor a, b;  // [rank, in], [out, rank]: views
};

struct LoraPass;
struct LoraCall;
struct Fp8Rows;

class AdapterStore {
 public:
  // Weights on one device, of one floating type, in which the LoRA path computes too; masters are f32 (f64 for f64).
  // r_max: the largest rank that may come, 1 to 128.
  AdapterStore(std::vector<Projection> targets, std::int64_t slots, std::int64_t r_max,
               LoraBackend backend = LoraBackend::kernels);
  ~AdapterStore();

  std::int64_t slots() const;
  const std::vector<Projection>& targets() const;
  LoraBackend backend() const;
  void set_backend(LoraBackend backend);  // of passes that begin from now on
  // A backbone whose weights move (sharded, gathered layer by layer): what `target` is from now on.
  void set_base(std::int64_t target, at::Tensor weight, at::Tensor bias);

  // From now on the products of `target`, of whose weight the shape counts alone, are in FP8, e4m3 with a scale a row
  // (nn/fp8_matrix.h); codes may move. Widths must be multiples of 16.
  void set_fp8_base(std::int64_t target, Fp8Rows codes, at::Tensor bias);
  bool has_fp8_base() const;

  // A free slot gets an adapter as PEFT initializes it, or with these flat weights. Throws UsageError.
  void fill(std::int64_t slot, const AdapterInit& init, const at::Tensor& flat = {});
  void clear(std::int64_t slot);  // its memory is freed once no backward needs it; begin() comes next
  bool filled(std::int64_t slot) const;
  const AdapterInit& init(std::int64_t slot) const;
  // Adapted targets of a slot: masters and gradients. Call `publish` after masters were written from outside.
  std::vector<AdapterTensors> weights(std::int64_t slot) const;
  std::vector<AdapterTensors> gradients(std::int64_t slot) const;
  void publish(std::int64_t slot);
  // The same, flat, all targets one after the other; ranks are padded to a multiple of 8 with zeros that stay zeros.
  at::Tensor flat_weights(std::int64_t slot) const;
  at::Tensor flat_gradients(std::int64_t slot) const;
  at::Tensor flat_working(std::int64_t slot) const;  // of the base's type; the masters themselves where that is theirs

  // Composition of the passes to come: ascending, disjoint rows; a slot may come once. `training`: dropout is on.
  // Backward of an earlier pass is still right. Throws UsageError.
  void begin(std::vector<SlotRows> rows, bool training);
  // Gradients count as 0 from now on; no memory is touched until somebody asks for them or backward comes.
  void zero_gradients();
  void zero_gradients(std::span<const std::int64_t> slots);
  // Of the composition: while it is held, tables that a recorded pass reads stay where they are.
  std::shared_ptr<const void> pass() const;
  // Counts up when the memory of any adapter moved.
  std::int64_t changes() const { return changes_; }

  // [T, in] -> [T, out] on the autograd graph, of the weight's type. Backward ADDS to the gradients of the slots; the
  // base gets none. Under nn::checkpointed the first input must require a gradient, or no backward is run.
  at::Tensor project(std::int64_t target, const at::Tensor& x);
  // Several targets of one input (q, k, v; gate, up), whose gradient is summed once.
  std::vector<at::Tensor> project(std::span<const std::int64_t> targets, const at::Tensor& x);
  // down(silu(gate(x)) * up(x)) as one node, whose LoRA paths of gate and up meet the activation without being written.
  // Undefined where it does not go (another backend, dropout, rows of nobody, f32 on a GPU): then part by part.
  at::Tensor gated(std::int64_t gate, std::int64_t up, std::int64_t down, const at::Tensor& x);

 private:
  struct Slot;
  void check_slot(std::int64_t slot, bool filled, const char* what) const;
  void check_input(std::span<const std::int64_t> targets, const at::Tensor& x) const;
  LoraCall call_of(std::span<const std::int64_t> targets) const;

  std::vector<Projection> targets_;
  std::vector<std::shared_ptr<const Fp8Rows>> fp8_;  // of a target, or null
  std::vector<std::uint32_t> modules_;               // names of targets, as dropout knows them
  std::vector<Slot> slots_;
  std::int64_t r_max_;
  LoraBackend backend_;
  std::int64_t changes_ = 0;
  std::shared_ptr<const LoraPass> pass_;
  at::Tensor anchor_;  // requires a gradient, so that backward comes when x does not
};

}  // namespace trireme::nn
