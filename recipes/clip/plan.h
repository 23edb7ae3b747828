// What a CLIP run holds and sends, by the formulas of the method: bytes of features, scalars and tables.
#pragma once
#include "framework/plan.h"
#include "framework/train_config.h"
#include "recipes/clip/config.h"
#include "recipes/clip/reference.h"

namespace trireme::fastclip {

// Puts what is not trained, beside the buffers, into the group "frozen".
void freeze(std::vector<Param>& params, const nn::ClipConfig& model, const LossConfig& loss);

// samples: rows of the tables. A reference need not be here: it is taken to be as large as the model. Throws what
// trained_rows() and size_of() do.
void plan_clip(Plan& plan, const nn::ClipConfig& model, const LossConfig& loss, const ReferenceConfig& reference,
               std::int64_t samples, int ranks, const TrainConfig& train);

}  // namespace trireme::fastclip
