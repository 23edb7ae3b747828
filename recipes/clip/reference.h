// The frozen reference model of DRRho-CLIP: its configuration, and its features of a batch.
#pragma once
#include "data/image_text/image_text.h"
#include "framework/context.h"
#include "framework/losses/selection.h"
#include "framework/models/preprocess.h"
#include "framework/train_config.h"

#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace trireme::fastclip {

struct ReferenceConfig {
  std::string model, features;
  std::vector<std::string> use{"shift"};
  double distill_weight = 1, distill_scale = 100, shift_scale = 0;
  Selection select;
  void fields(Fields&);
  bool on() const { return !model.empty() || !features.empty(); }
  bool uses(std::string_view what) const;  // and is on
};

// Pairs that a rank trains on in a step. UsageError with the cure where that is less than the loss takes, or not a
// multiple of `accumulate`.
std::int64_t trained_rows(const ReferenceConfig& reference, const TrainConfig& train, int ranks);

// Before it is opened, of what lies there; 0: unknown. DataError: it is no reference.
struct ReferenceSize {
  std::int64_t width = 0, weights = 0;  // numbers a row; numbers that an online one holds
};
ReferenceSize size_of(const ReferenceConfig& config);

// What the run itself does to a pair; all of it outlives the reference.
struct ReferenceInput {
  const Pairs& pairs;
  const ImageTextDataset& dataset;
  const Tokenizer& tokenizer;
  const Preprocess& preprocess;
  std::int64_t context;
};

class Reference {
 public:
  virtual ~Reference() = default;
  // Null where it is off. Collective: all ranks hold the same reference, of a run its newest checkpoint as rank 0 sees
  // it, and throw what one of them meets. UsageError with the cure: a model that sees other pixels or tokens than the
  // run; DataError as load_clip() and ReferenceFeatures.
  static std::unique_ptr<Reference> open(const ReferenceConfig& config, const ReferenceInput& input, Context& c);

  // What to load batches from: cached features are read along with a batch (columns `reference_image`,
  // `reference_text` [b, d_ref]).
  virtual const Dataset& train_data() const = 0;
  // Unit-length rows [b, d_ref] of image and text, on the run's device in param_type, without a graph or autocast.
  // pixels: of the batch, in param_type (not read where features are cached).
  virtual std::pair<at::Tensor, at::Tensor> features(const Batch& batch, const at::Tensor& pixels,
                                                     Context& c) const = 0;
  // Likewise [2, n, d_ref] of the pairs `ids` as evaluation sees them: whole pictures and captions. Collective.
  virtual at::Tensor evaluated(std::span<const std::int64_t> ids, Context& c) const = 0;
  // A run goes on with the same reference, wherever it lies, or with none (null) as before: DataError.
  static void state(Archive& ar, const Reference* reference);

 protected:
  std::string name_, print_;  // as the user called it; what tells it from others
};

// What a reference takes off the variance of the loss: Var_j(l_ij - r_ij) / Var_j(l_ij) over negatives j, l_ij = s_ij -
// s_ii and r_ij the reference's, each variance averaged over the anchors of both sides. own [2, n, d], theirs [2, n,
// d_ref]: image and text features of n >= 3 pairs. DRRho's bound is the better the further it is below 1.
double variance_ratio(const at::Tensor& own, const at::Tensor& theirs);

}  // namespace trireme::fastclip
