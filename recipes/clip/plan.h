// What a CLIP run holds and sends, by the formulas of the method: bytes of features, scalars and tables.
#pragma once
#include "framework/plan.h"
#include "framework/train_config.h"
#include "recipes/clip/config.h"

namespace trireme::fastclip {

// samples: rows of the tables. reference_width: of the reference's features, 0: there is none.
void plan_clip(Plan& plan, const nn::ClipConfig& model, const LossConfig& loss, std::int64_t samples,
               std::int64_t reference_width, int ranks, const TrainConfig& train);

}  // namespace trireme::fastclip
