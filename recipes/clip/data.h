// The pairs a run trains on.
#pragma once
#include "data/image_text/image_text.h"
#include "framework/context.h"
#include "framework/models/preprocess.h"
#include "recipes/clip/config.h"

#include <memory>

namespace trireme::fastclip {

// Collective; rank 0 first: it reads tars whose index is not yet in the cache, the others load that. All ranks throw
// what one of them meets: as open_pairs(), and UsageError for a prepared file whose pictures are smaller than the
// model's, DataError where nothing is left to train on.
std::unique_ptr<Pairs> open_data(const DataConfig& data, std::int64_t image_size, Context& c);

// Ascending ids of what is trained on and of what is evaluated on.
struct Split {
  std::vector<std::int64_t> train, held_out;
};
Split split_of(const Pairs& pairs, const DataConfig& data);

// How pairs become batches.
ImageTextOptions dataset_options(const DataConfig& data, const nn::ClipConfig& model, const Preprocess& preprocess,
                                 bool prepared, const Context& c);

// Captions that a tokenizer is learnt from: those of the ids, or of a million spread evenly over them.
std::vector<std::string> captions_of(const Pairs& pairs, const std::vector<std::int64_t>& ids);

}  // namespace trireme::fastclip
