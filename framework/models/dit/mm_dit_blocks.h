// MM-DiT's blocks (Esser et al., arXiv 2403.03206, in the form of FLUX): two streams with weights of their own that
// attend together, then blocks of one stream. HunyuanVideo is built of the same.
#pragma once
#include "framework/models/dit/block_cache.h"
#include "framework/models/dit/parts.h"
#include "framework/nn/joint_attention.h"

#include <vector>

namespace trireme::dit {

// Of one forward. The joint sequence is text and image, or image and text.
struct JointPass {
  JointPass(const DenoiserInfo& info, const DitHooks& hooks, const Grid& grid, std::int64_t text,
            const RopeTables& tables, std::int64_t batch);

  const DenoiserInfo& info;
  const DitHooks& hooks;
  std::int64_t text;       // tokens
  std::int64_t image;      // image tokens this rank computes
  std::int64_t tokens;     // of the picture, or, where tokens are chosen, of all ranks together
  std::int64_t first = 0;  // this rank's part begins at that computed token
  RopeTable rope;          // of the tokens computed here, joint
  RopeTable all_rope;      // of all tokens, joint; where cached keys are rotated at use

  // [B, N, ...] of the picture -> the image tokens computed here; and velocities back, on all ranks.
  at::Tensor take(const at::Tensor& x) const;
  at::Tensor give(const at::Tensor& x) const;

  at::Tensor join(const at::Tensor& text_part, const at::Tensor& image_part) const;  // along dimension 1
  at::Tensor text_of(const at::Tensor& joint) const;
  at::Tensor image_of(const at::Tensor& joint) const;
  // q, k normed, v: [B, n, H, d], joint -> [B, n, H * d].
  at::Tensor attention(std::int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const;
  // The same of qkv [B, n, 3 * H * d], joint, whose queries and keys are still to be normed by their stream's weights.
  // It may be overwritten.
  at::Tensor attention(std::int64_t layer, const at::Tensor& qkv, const QkNorm& text_norm,
                       const QkNorm& image_norm) const;
  // And where one norm goes over all heads together.
  at::Tensor attention_across(std::int64_t layer, const at::Tensor& qkv, const QkNorm& norm, double eps) const;

 private:
  bool late() const;  // keys are rotated when they are used
  // q is rotated; k too, unless late().
  at::Tensor attend(std::int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) const;
  std::int64_t picture_;  // tokens of the picture
};

// A linear of the time and the condition alone.
struct ModulationLinear : Linear {
  std::int64_t first = 0;  // where its values begin among all of the model's
};

// What modulates a forward.
struct Modulation {
  at::Tensor temb;  // [B, D], after SiLU; undefined where all are made
  at::Tensor made;  // [B, n], Conditioning::modulation
  at::Tensor operator()(const ModulationLinear& l) const;
};

struct DoubleBlock {
  struct Stream {
    ModulationLinear modulation;
    StackedLinear qkv;
    QkNorm norm;  // [head_dim]
    Linear out;
    Mlp mlp;
  };
  Stream image, text;

  // What the first block's attention reads of the image.
  at::Tensor modulated_image(const at::Tensor& x, const Modulation& modulation) const;
  BlockStreams forward(const BlockStreams& in, const Modulation& modulation, const JointPass& pass,
                       std::int64_t layer) const;
};

struct SingleBlock {
  ModulationLinear modulation;
  StackedLinear qkv;
  Linear up;  // the MLP's first
  QkNorm norm;
  Linear out;  // [D, D + inner]: of attention and MLP

  at::Tensor forward(const at::Tensor& x, const Modulation& made, const JointPass& pass, std::int64_t layer) const;

 private:
  at::Tensor project(const at::Tensor& attention, const at::Tensor& inner) const;
};

// Names of weights: at + ".attn.to_q" and so on.
DoubleBlock double_block(WeightList& w, const std::string& at, const DenoiserInfo& info, std::int64_t inner);
SingleBlock single_block(WeightList& w, const std::string& at, const DenoiserInfo& info, std::int64_t inner);

// All blocks with what hooks.blocks puts in their place. -> image tokens before the final layer.
at::Tensor run_blocks(const std::vector<DoubleBlock>& doubles, const std::vector<SingleBlock>& singles, BlockStreams x,
                      const Modulation& modulation, const JointPass& pass);

// What modulates all blocks: the time, a distilled model's guidance and the pooled text.
struct TimeText {
  Embedder time, guidance, text;
  at::Tensor operator()(const at::Tensor& t, const Conditioning& c) const;  // [B, D], after SiLU
};
TimeText time_text(WeightList& w, const DenoiserInfo& info);

// LayerNorm with a modulation cut into (scale, shift), the other way round than in the blocks, and the last linear.
struct FinalLayer {
  ModulationLinear modulation;
  Linear out;
  at::Tensor forward(const at::Tensor& x, const Modulation& made) const;
};
FinalLayer final_layer(WeightList& w, std::int64_t width, std::int64_t out);

// All values that modulate a model, in one row.
class ModulationRow {
 public:
  // Gives each linear its place; they must stay where they are.
  ModulationRow(std::vector<DoubleBlock>& doubles, std::vector<SingleBlock>& singles, FinalLayer& last);
  // As Denoiser::modulations().
  at::Tensor of_levels(const TimeText& time, const at::Tensor& t, const Conditioning& c) const;
  // Of one forward. UsageError: a row of another width.
  Modulation of(const TimeText& time, const at::Tensor& t, const Conditioning& c) const;

 private:
  void add(ModulationLinear& l);
  std::vector<const ModulationLinear*> all_;
  std::int64_t width_ = 0;
};

}  // namespace trireme::dit
