// What a CLIP run holds and sends, by the formulas of the method: bytes of features, scalars and tables.
#pragma once
#include "framework/plan.h"
#include "framework/train_config.h"
#include "recipes/clip/config.h"
#include "recipes/clip/reference.h"

namespace trireme::fastclip {

// samples: rows of the tables. A reference need not be here: it is taken to be as large as the model. A constant
// temperature counts among the gradients, as a run has it there. Throws what trained_rows() and size_of() do.
void plan_clip(Plan& plan, const nn::ClipConfig& model, const LossConfig& loss, const ReferenceConfig& reference,
               std::int64_t samples, int ranks, const TrainConfig& train);

}  // namespace trireme::fastclip
